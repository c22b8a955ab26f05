"""Linear models at one point of their LBI path."""

from typing import Any

import numpy as np

from dessilbi_jax.stats.estimators.common import (
    PathClassifier,
    PathEstimator,
    PathRegressor,
    check_t,
    chosen_t,
    last_time,
)
from dessilbi_jax.stats.limits import Limits, tell_separation
from dessilbi_jax.stats.linear import follow
from dessilbi_jax.stats.problem import MAX_ITER, Problem, read
from dessilbi_jax.stats.result import PathResult


class LinearPath(PathEstimator):
    """How a path is followed, and a point of it taken."""

    def __init__(
        self,
        *,
        kappa: float = 20.0,
        alpha: float | None = None,
        t: float | str = "bic",
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        nt: int = 100,
        ratio: float | None = None,
        t_max: float | None = None,
        max_support: int | None = None,
        max_iter: int = MAX_ITER,
    ):
        self.kappa = kappa
        self.alpha = alpha
        self.t = t
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.nt = nt
        self.ratio = ratio
        self.t_max = t_max
        self.max_support = max_support
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearPath":
        """Follows the path and chooses a point of it.

        Args:
            X: (n, p), dense or sparse; float32 is computed in float32.
            y: (n,).
            sample_weight: (n,), not negative; None: all 1.

        Returns:
            Itself.

        Raises:
            ValueError: as scikit-learn words it, or arguments out of range.
        """
        check_t(self.t)
        X, y, family = self._read(X, y)
        problem, path = self._path(X, y, family, sample_weight, last_time(self.t, self.t_max))
        if self.t == "end" and problem.classes is not None and self._uncapped():
            tell_separation(problem, X, path)
        return self._take(path, min(chosen_t(self.t, path, problem, X), float(path.ts[-1])))

    def _uncapped(self) -> bool:
        return self.t_max is None and self.max_support is None

    def _path(
        self, X: Any, y: Any, family: str, sample_weight: Any, t_max: float | None
    ) -> tuple[Problem, PathResult]:
        problem = read(
            X, y, family=family, sample_weight=sample_weight, fit_intercept=self.fit_intercept,
            scaled="each" if self.standardize else "no", standardize_y=self.standardize,
        )  # fmt: skip
        limits = Limits(
            nt=self.nt, ratio=self.ratio, t_max=t_max, max_support=self.max_support,
            max_iter=self.max_iter,
        )  # fmt: skip
        return problem, follow(problem, self.kappa, self.alpha, self.groups, limits)

    def _take(self, path: PathResult, t: float) -> "LinearPath":
        self.path_, self.t_ = path, t
        self.coef_, self.intercept_ = path.at(t), path.intercept_at(t)
        if hasattr(self, "classes_"):
            self.coef_ = np.atleast_2d(self.coef_)
            self.intercept_ = np.atleast_1d(self.intercept_)
        self.entry_times_, self.n_iter_ = path.entry_times, path.n_iter
        return self


class LBIRegressor(PathRegressor, LinearPath):
    """Sparse least squares at one point of the path of `lbi_path`.

    Args:
        kappa: κ > 0; the larger, the less are estimates shrunk and the more steps it takes.
        alpha: length of a step, None: 1/(κΛ).
        t: the point of the path: a time; "bic" or "aic", which minimise n·log RSS + log n · df, or
            2 · df, over the snapshots with df up to n/2; "end".
        groups: labels (p,) of columns that enter together, None: each by itself.
        fit_intercept: whether there is an intercept.
        standardize: whether columns of X, and y, are divided by their standard deviations; κ and t
            are in units of the latter. Coefficients are in the units of X and y in any case.
        nt: number of snapshots.
        ratio: last over first time; None: 100, or 20 where n < p.
        t_max: last time, in place of `ratio`; None with a numeric `t`: that.
        max_support: end the path once so many coefficients or groups are not zero.
        max_iter: most steps; `sklearn.exceptions.ConvergenceWarning` tells if they were too few.

    Attributes:
        coef_: (p,), in the units of X and y.
        intercept_: a number.
        path_: the whole path, a `PathResult`.
        t_: the point chosen.
        entry_times_: when each coefficient, or group, entered.
        n_iter_: steps made.
        n_features_in_, feature_names_in_: as scikit-learn has them.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from dessilbi_jax.stats import LBIRegressor
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> model = LBIRegressor().fit(X, y)
        >>> list(X.columns[model.get_support()])
        ['sex', 'bmi', 'bp', 's3', 's5']
        >>> round(model.score(X, y), 2)
        0.51
    """


class LBIClassifier(PathClassifier, LinearPath):
    """Sparse logistic or multinomial regression at one point of the path of `lbi_path`.

    Two classes have one row of coefficients, more have one each.

    Args:
        kappa, alpha, fit_intercept, nt, ratio, t_max, max_support, max_iter: as for `LBIRegressor`.
        t: the point of the path: a time; "bic" or "aic", −2 log likelihood + log n · df, or
            2 · df, minimised over the snapshots with df up to n/2; "end".
        groups: labels (p,) of columns that enter together, for all classes; "columns": each column
            for all classes (more than two classes only); None: each coefficient by itself.
        standardize: whether columns of X are divided by their standard deviations.

    Attributes:
        classes_: the labels, sorted.
        coef_: (1, p) or (C, p), in the units of X.
        intercept_: (1,) or (C,).
        path_, t_, entry_times_, n_iter_, n_features_in_, feature_names_in_: as for `LBIRegressor`.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from dessilbi_jax.stats import LBIClassifier
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = LBIClassifier(t_max=50.0).fit(X, y)
        >>> int(model.get_support().sum()), model.score(X, y) > 0.97
        (9, True)
    """
