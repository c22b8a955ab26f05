"""DessiLBI for JAX and Optax: train once, walk away with a small network."""

from dessilbi_jax._calibrate import calibrate, step_size_bound
from dessilbi_jax._channels import Channels, channel_groups, channels
from dessilbi_jax._diagnose import Diagnosis, diagnose
from dessilbi_jax._export import load_slim, save_slim
from dessilbi_jax._groups import ChannelGroups, ChannelSet
from dessilbi_jax._masks import keep_support, project, rewind
from dessilbi_jax._monitor import TicketMonitor
from dessilbi_jax._plan import Plan
from dessilbi_jax._slim import Slim, slim
from dessilbi_jax._toolbox import (
    Extracted,
    extract,
    prune_by_percent,
    prune_order,
    recover,
    reinitialise,
)
from dessilbi_jax.optimizer import add_split_lbi, dessilbi, wrap
from dessilbi_jax.path import SolutionPath
from dessilbi_jax.prox import elastic_net, group_lasso, sparse_group_lasso
from dessilbi_jax.rules import Description, Rules, describe
from dessilbi_jax.state import SplitLBIState, gamma, get_state, support
from dessilbi_jax.structure import (
    Structure,
    blocks,
    columns,
    filters,
    heads,
    input_channels,
    layers,
    neurons,
    rows,
    slices,
    weights,
)
from dessilbi_jax.ticket import Ticket

__all__ = [
    "ChannelGroups",
    "ChannelSet",
    "Channels",
    "Description",
    "Diagnosis",
    "Extracted",
    "Plan",
    "Rules",
    "Slim",
    "SolutionPath",
    "SplitLBIState",
    "Structure",
    "Ticket",
    "TicketMonitor",
    "add_split_lbi",
    "blocks",
    "calibrate",
    "channel_groups",
    "channels",
    "columns",
    "describe",
    "dessilbi",
    "diagnose",
    "elastic_net",
    "extract",
    "filters",
    "gamma",
    "get_state",
    "group_lasso",
    "heads",
    "input_channels",
    "keep_support",
    "layers",
    "load_slim",
    "neurons",
    "project",
    "prune_by_percent",
    "prune_order",
    "recover",
    "reinitialise",
    "rewind",
    "rows",
    "save_slim",
    "slices",
    "slim",
    "sparse_group_lasso",
    "step_size_bound",
    "support",
    "weights",
    "wrap",
]
__version__ = "0.1.0"
