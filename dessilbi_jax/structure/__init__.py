"""What a group is: from the paths and shapes of parameters to groups of weights.

All other rooms ask one question of a network's parameters: which of them are selected together? The
answer, a `LeafGroups` for every leaf, is made here, by named structures, by rules on paths, or by
any object with `resolve(params)`, and nowhere else. Plain Python on shapes, no arrays.
"""

from dessilbi_jax.structure.description import Description, describe
from dessilbi_jax.structure.joint import count_groups, families, firsts, group_sizes
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.named import (
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
    stacked,
    weights,
)
from dessilbi_jax.structure.rules import Rules, StructureLike, as_structure, resolve

__all__ = [
    "Description",
    "LeafGroups",
    "Rules",
    "Structure",
    "StructureLike",
    "as_structure",
    "blocks",
    "columns",
    "count_groups",
    "describe",
    "families",
    "filters",
    "firsts",
    "group_sizes",
    "heads",
    "input_channels",
    "layers",
    "neurons",
    "resolve",
    "rows",
    "slices",
    "stacked",
    "weights",
]
