"""The statistics that the method comes from: whole paths of sparse models of small data.

Linearized Bregman iterations and the inverse scale space for linear models, split forms of them,
outliers, ranking: the prox of the deep optimizer, another loss. `path` is the driver of them all;
a model is a loss, what it is coupled to and a bound of its step; `estimators` are for scikit-learn.
"""

from dessilbi_jax.stats.differences import grid_edges
from dessilbi_jax.stats.estimators import (
    EXPECTED_FAILED_CHECKS,
    LBIClassifier,
    LBIClassifierCV,
    LBIRegressor,
    LBIRegressorCV,
    OutlierRegressor,
    RobustRanker,
    SplitLBIClassifier,
    SplitLBIRegressor,
)
from dessilbi_jax.stats.exact import iss_path
from dessilbi_jax.stats.linear import lbi_path
from dessilbi_jax.stats.result import ExactPath, PathResult
from dessilbi_jax.stats.split import SplitPath, split_lbi_path

__all__ = [
    "EXPECTED_FAILED_CHECKS",
    "ExactPath",
    "LBIClassifier",
    "LBIClassifierCV",
    "LBIRegressor",
    "LBIRegressorCV",
    "OutlierRegressor",
    "PathResult",
    "RobustRanker",
    "SplitLBIClassifier",
    "SplitLBIRegressor",
    "SplitPath",
    "grid_edges",
    "iss_path",
    "lbi_path",
    "split_lbi_path",
]
