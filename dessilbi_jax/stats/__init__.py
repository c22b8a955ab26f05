"""The statistics that the method comes from: whole paths of sparse models of small data.

Linearized Bregman iterations and the inverse scale space for linear models, split forms of them,
outliers, ranking: the prox of the deep optimizer, another loss.
"""

from dessilbi_jax.stats.exact import iss_path
from dessilbi_jax.stats.linear import lbi_path
from dessilbi_jax.stats.result import PathResult

__all__ = ["PathResult", "iss_path", "lbi_path"]
