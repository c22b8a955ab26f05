"""Which channels live and die together, read from a network's own computation.

A channel can be cut out only with everything that makes it and everything that reads it. A
network's jaxpr is followed primitive by primitive (`follower`, with a table of rules for each
kind), which gives groups of axes (`ChannelGroups`), a structure for the optimizer (`Channels`), and
plans of what stays (`Plan`). Nothing here knows of optimizers or tickets.
"""

from dessilbi_jax.dependency.groups import ChannelGroups, ChannelSet
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.reasons import Reason, Why
from dessilbi_jax.dependency.structure import Channels, channels
from dessilbi_jax.dependency.trace import channel_groups

__all__ = [
    "ChannelGroups",
    "ChannelSet",
    "Channels",
    "Plan",
    "Reason",
    "Why",
    "channel_groups",
    "channels",
]
