"""From V to Γ: group norms, thresholds and penalties.

Every penalty of the library is one formula with one proximal operator, so that the optimizer, its
lean state, tickets and statistics shrink alike. Pure functions of arrays and groups; nothing here
knows of steps, states or networks.
"""

from dessilbi_jax.prox.joint import joint_sums
from dessilbi_jax.prox.norms import expand, group_norm, group_norms, group_sum
from dessilbi_jax.prox.penalty import (
    Penalty,
    elastic_net,
    group_lasso,
    shrink_all,
    sparse_group_lasso,
)
from dessilbi_jax.prox.shrink import (
    Shrink,
    apply_shrink,
    fraction_of_threshold,
    group_soft_threshold,
    select,
    soft_threshold,
)

__all__ = [
    "Penalty",
    "Shrink",
    "apply_shrink",
    "elastic_net",
    "expand",
    "fraction_of_threshold",
    "group_lasso",
    "group_norm",
    "group_norms",
    "group_soft_threshold",
    "group_sum",
    "joint_sums",
    "select",
    "shrink_all",
    "soft_threshold",
    "sparse_group_lasso",
]
