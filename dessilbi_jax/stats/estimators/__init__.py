"""The paths as scikit-learn's estimators: one point of a path, chosen and ready to predict."""

from dessilbi_jax.stats.estimators.checks import EXPECTED_FAILED_CHECKS
from dessilbi_jax.stats.estimators.cross_validated import LBIClassifierCV, LBIRegressorCV
from dessilbi_jax.stats.estimators.linear import LBIClassifier, LBIRegressor
from dessilbi_jax.stats.estimators.outliers import OutlierRegressor
from dessilbi_jax.stats.estimators.ranking import RobustRanker
from dessilbi_jax.stats.estimators.split import SplitLBIClassifier, SplitLBIRegressor

__all__ = [
    "EXPECTED_FAILED_CHECKS",
    "LBIClassifier",
    "LBIClassifierCV",
    "LBIRegressor",
    "LBIRegressorCV",
    "OutlierRegressor",
    "RobustRanker",
    "SplitLBIClassifier",
    "SplitLBIRegressor",
]
