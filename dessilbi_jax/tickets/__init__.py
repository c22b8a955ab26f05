"""What entered when, and supports of any size out of it.

`SolutionPath` records a run; `Ticket` is the support of one moment or size, with card and file;
`GroupMasks` is the form in which it is held, `masks` what is done with it in training;
`TicketMonitor` says when a ticket is ready; `toolbox` has the calls of the authors' toolbox.
"""

from dessilbi_jax.tickets import toolbox
from dessilbi_jax.tickets.group_masks import GroupMasks
from dessilbi_jax.tickets.masks import keep_support, project, rewind
from dessilbi_jax.tickets.monitor import TicketMonitor
from dessilbi_jax.tickets.path import SolutionPath
from dessilbi_jax.tickets.ticket import Ticket

__all__ = [
    "GroupMasks",
    "SolutionPath",
    "Ticket",
    "TicketMonitor",
    "keep_support",
    "project",
    "rewind",
    "toolbox",
]
