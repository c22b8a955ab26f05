"""DessiLBI for JAX and Optax: train once, walk away with a small network."""

from dessilbi_jax._calibrate import calibrate, step_size_bound
from dessilbi_jax._diagnose import Diagnosis, diagnose
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
from dessilbi_jax.ticket import Ticket, keep_support, project

__all__ = [
    "Description",
    "Diagnosis",
    "Rules",
    "SolutionPath",
    "SplitLBIState",
    "Structure",
    "Ticket",
    "add_split_lbi",
    "blocks",
    "calibrate",
    "columns",
    "describe",
    "dessilbi",
    "diagnose",
    "elastic_net",
    "filters",
    "gamma",
    "get_state",
    "group_lasso",
    "heads",
    "input_channels",
    "keep_support",
    "layers",
    "neurons",
    "project",
    "rows",
    "slices",
    "sparse_group_lasso",
    "step_size_bound",
    "support",
    "weights",
    "wrap",
]
__version__ = "0.1.0"
