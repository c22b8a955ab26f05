"""Split models at one point of their path."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from dessilbi_jax.stats.differences import difference_matrix
from dessilbi_jax.stats.estimators.common import (
    PathClassifier,
    PathEstimator,
    PathRegressor,
    check_t,
    chosen_t,
    last_time,
)
from dessilbi_jax.stats.limits import Limits
from dessilbi_jax.stats.problem import MAX_ITER, read
from dessilbi_jax.stats.split import SplitPath, follow


class SplitEstimator(PathEstimator):
    """How a split path is followed, and a point of it taken."""

    def __init__(
        self,
        *,
        D: Any = None,
        edges: Any = None,
        nu: float | None = None,
        kappa: float = 10.0,
        alpha: float | None = None,
        t: float | str = "bic",
        dense: bool = True,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        nt: int = 100,
        ratio: float | None = None,
        t_max: float | None = None,
        max_support: int | None = None,
        max_iter: int = MAX_ITER,
    ):
        self.D = D
        self.edges = edges
        self.nu = nu
        self.kappa = kappa
        self.alpha = alpha
        self.t = t
        self.dense = dense
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.nt = nt
        self.ratio = ratio
        self.t_max = t_max
        self.max_support = max_support
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SplitEstimator":
        """Follows the path and chooses a point of it.

        Args:
            X: (n, p), dense or sparse; float32 is computed in float32.
            y: (n,).
            sample_weight: (n,), not negative; None: all 1.

        Returns:
            Itself.

        Raises:
            ValueError: as scikit-learn words it; D of another width; arguments out of range.
        """
        check_t(self.t)
        X, y, family = self._read(X, y)
        scaled = ("each" if self.D is None else "common") if self.standardize else "no"
        problem = read(
            X, y, family=family, sample_weight=sample_weight, fit_intercept=self.fit_intercept,
            scaled=scaled, standardize_y=self.standardize,
        )  # fmt: skip
        limits = Limits(
            nt=self.nt, ratio=100.0 if self.ratio is None else self.ratio,
            t_max=last_time(self.t, self.t_max), max_support=self.max_support,
            max_iter=self.max_iter,
        )  # fmt: skip
        D = difference_matrix(self.D, X.shape[1], self.edges)
        path = follow(problem, D, self.nu, self.kappa, self.alpha, self.groups, limits)
        t = chosen_t(self.t, path, problem, X, free_numbers(path))
        return self._take(path, min(t, float(path.ts[-1])))

    def _take(self, path: SplitPath, t: float) -> "SplitEstimator":
        self.path_, self.t_, self.nu_ = path, t, path.nu
        strong, weak, noise = path.parts(t)
        if self.dense:
            coef, intercept = strong + weak + noise, path.dense_intercept_at(t)
        else:
            coef, intercept = strong, path.intercept_at(t)
        rows = np.atleast_2d if hasattr(self, "classes_") else np.asarray
        self.coef_ = rows(coef)
        self.strong_, self.weak_, self.noise_ = rows(strong), rows(weak), rows(noise)
        self.intercept_ = np.atleast_1d(intercept) if hasattr(self, "classes_") else intercept
        self.entry_times_, self.n_iter_ = path.entry_times, path.n_iter
        return self

    def _selected(self) -> np.ndarray:
        return np.asarray(self.strong_) != 0

    @property
    def sparse_coef_(self) -> np.ndarray:
        """The sparse coefficients, `strong_`, in the shape of `coef_`."""
        check_is_fitted(self)
        return self.strong_


def free_numbers(path: SplitPath) -> np.ndarray:
    """How many different nonzero values the sparse coefficients have at each snapshot, (T,).

    For masks it is their number; for fused ones that of the pieces, the degrees of freedom of the
    generalised lasso (Tibshirani and Taylor, Annals of Statistics 40(2), 2012).
    """
    rows = path.coefs.reshape(-1, path.coefs.shape[-2], path.coefs.shape[-1])
    return np.array(
        [sum(len(np.unique(row[row != 0])) for row in rows[..., k]) for k in range(len(path.ts))]
    )


class SplitLBIRegressor(PathRegressor, SplitEstimator):
    """Least squares sparse in Dβ, at one point of the path of `split_lbi_path`.

    It predicts with the dense β, which keeps signals that are too weak to be selected, and selects
    by the sparse one.

    Args:
        D: (m, p), dense or sparse; None: the identity; "fused"; "graph" with `edges`.
        edges: (m, 2), pairs of columns.
        nu: ν > 0, None: as for `split_lbi_path`.
        kappa: κ > 0.
        alpha: length of a step, None: 1/(κΛ).
        t: the point of the path: a time; "bic" or "aic" of the sparse coefficients, whose degrees
            of freedom are the different values they have; "end".
        dense: whether `coef_` is the dense β; else the sparse one.
        groups: labels (m,) of the rows of D that enter together.
        fit_intercept, nt, t_max, max_support, max_iter: as for `LBIRegressor`.
        standardize: whether X and y are standardised: columns each by its own deviation if D is
            the identity, else all by one number.
        ratio: last over first time, None: 100.

    Attributes:
        coef_: (p,), in the units of X and y.
        sparse_coef_, strong_: (p,), β projected on what is selected.
        weak_, noise_: (p,), what else β holds: what stands out, and what does not
            (`SplitPath.parts`); the dense β is the sum of the three.
        intercept_, path_, t_, entry_times_, n_iter_, n_features_in_, feature_names_in_: as for
            `LBIRegressor`.
        nu_: ν.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats import SplitLBIRegressor
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 12))
        >>> y = X @ np.repeat([1.0, 2, 3], 4) + 0.1 * rng.standard_normal(60)
        >>> model = SplitLBIRegressor(D="fused").fit(X, y)
        >>> model.sparse_coef_.round(1)
        array([1., 1., 1., 1., 2., 2., 2., 2., 3., 3., 3., 3.])
    """


class SplitLBIClassifier(PathClassifier, SplitEstimator):
    """Logistic or multinomial regression sparse in Dβ, at one point of its path.

    Args:
        D, edges, nu, kappa, alpha, t, dense, groups, fit_intercept: as for `SplitLBIRegressor`.
        nt, ratio, t_max, max_support, max_iter: as there.
        standardize: whether columns of X are, as there.

    Attributes:
        classes_: the labels, sorted.
        coef_, sparse_coef_, strong_, weak_, noise_: (1, p) or (C, p), as for `SplitLBIRegressor`.
        intercept_: (1,) or (C,).
        path_, t_, nu_, entry_times_, n_iter_, n_features_in_, feature_names_in_: as there.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from dessilbi_jax.stats import SplitLBIClassifier
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> SplitLBIClassifier(ratio=10).fit(X, y).score(X, y) > 0.95
        True
    """
