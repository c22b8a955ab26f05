"""What entered when, and supports of any size out of it.

`SolutionPath` records a run; `Ticket` is the support of one moment or size, with masks, card and
file; `masks` is what is done with them in training; `TicketMonitor` says when a ticket is ready;
`toolbox` has the calls of the authors' PyTorch toolbox.
"""

from dessilbi_jax.tickets import toolbox
from dessilbi_jax.tickets.masks import keep_support, project, rewind
from dessilbi_jax.tickets.monitor import TicketMonitor
from dessilbi_jax.tickets.path import SolutionPath
from dessilbi_jax.tickets.ticket import Ticket

__all__ = [
    "SolutionPath",
    "Ticket",
    "TicketMonitor",
    "keep_support",
    "project",
    "rewind",
    "toolbox",
]
