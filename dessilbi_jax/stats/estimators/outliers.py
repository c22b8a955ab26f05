"""Robust regression by a sparse mean shift."""

import math
import numbers
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import RANSACRegressor
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dessilbi_jax.stats.linear import Limits
from dessilbi_jax.stats.mean_shift import (
    CRITERIA,
    Fit,
    MeanShiftPath,
    criterion,
    least_squares,
    least_trimmed,
    mean_shift_path,
    most_consistent,
    settled,
    trimmed,
)
from dessilbi_jax.stats.problem import MAX_ITER

STARTS = (None, "lts", "ransac")
_SUBSETS = 200  # random starts of "lts"


class OutlierRegressor(RegressorMixin, BaseEstimator):
    """Least squares without the outliers, which a sparse mean shift finds: y = Xβ + γ + ε.

    The path of γ (`mean_shift_path`) is followed from few shifted samples to half of them. A point
    of it says which samples to leave out; then least squares and the flags |r| > threshold·MAD
    are repeated until they agree.

    Against outliers of y alone the path needs no start. Against leverage, outliers of X that
    pull the plane to themselves, every path of residuals of least squares fails, this one and
    Huber's alike: use start="lts". So too for 40 % of outliers on one side.

    Args:
        t: which point of the path: "threshold", λ = threshold·σ̂, with the set of samples and σ̂
            found together: of all snapshots the one whose refit has the least trimmed squares,
            from there on to the fixed point; "bic" (m·log(RSS/m) + k(log m + 1), m = n − p, up to
            n/2 outliers) or "aic"; "cv", by the trimmed squares of held-out folds; or a time.
        start: None: P is that of all samples. "lts": samples that 200 random starts of least
            trimmed squares settle on pull β; the others have residuals, but no pull, along the
            path. "ransac": the same with the inliers of scikit-learn's `RANSACRegressor`.
        threshold: beyond how many σ̂ a sample is an outlier.
        kappa: κ > 0; the larger, the less are shifts shrunk.
        alpha: length of a step, None: 1/κ.
        fit_intercept: whether there is an intercept.
        nt: number of snapshots.
        ratio: last over first time; the path ends earlier once half of the samples are shifted.
        cv: folds of t="cv": their number, a splitter, or pairs of indices.
        max_iter: most steps; `sklearn.exceptions.ConvergenceWarning` tells if they were too few.
        random_state: of "lts" and "ransac".

    Attributes:
        coef_: (p,), of the inliers' least squares.
        intercept_: a number.
        outliers_: bool (n,), the flags of the samples of `fit`.
        scale_: σ̂ of the inliers, in the units of y.
        gamma_: (n,), the shifts at `t_`, in the units of y.
        path_: a `MeanShiftPath` over the samples of positive weight.
        t_: the point chosen; for "threshold" 1/(threshold·σ̂) in the units of the path.
        entry_times_: (n,), when each sample was first shifted, inf if never; the earlier, the
            farther out.
        n_iter_: steps made.
        n_features_in_, feature_names_in_: as scikit-learn has them.

    References:
        Y. She and A. B. Owen, "Outlier detection using nonconvex penalized regression", Journal
        of the American Statistical Association 106(494), 2011.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats import OutlierRegressor
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((30, 1))
        >>> y = 2 * X[:, 0] + 0.1 * rng.standard_normal(30)
        >>> y[:9] += 5  # all on one side
        >>> model = OutlierRegressor().fit(X, y)
        >>> model.coef_.round(1), np.flatnonzero(model.outliers_)
        (array([2.]), array([0, 1, 2, 3, 4, 5, 6, 7, 8]))
    """

    def __init__(
        self,
        *,
        t: float | str = "threshold",
        start: str | None = None,
        threshold: float = 2.5,
        kappa: float = 20.0,
        alpha: float | None = None,
        fit_intercept: bool = True,
        nt: int = 100,
        ratio: float = 100.0,
        cv: Any = 5,
        max_iter: int = MAX_ITER,
        random_state: Any = 0,
    ):
        self.t = t
        self.start = start
        self.threshold = threshold
        self.kappa = kappa
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.nt = nt
        self.ratio = ratio
        self.cv = cv
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "OutlierRegressor":
        """Follows the path, chooses a point, refits.

        Args:
            X: (n, p), dense.
            y: (n,).
            sample_weight: (n,), not negative; None: all 1.

        Returns:
            Itself.

        Raises:
            ValueError: as scikit-learn words it, or arguments out of range.
        """
        check_choices(self.t, self.threshold)
        if self.start not in STARTS:
            raise ValueError(f"start must be one of None, 'lts', 'ransac'; got {self.start!r}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, np.float64)
        w = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        pulling = w > 0
        if np.count_nonzero(pulling) < 2:
            raise ValueError("sample_weight must be positive for at least 2 samples")
        A = np.column_stack([X, np.ones(len(y))]) if self.fit_intercept else X
        chosen = chosen_fit(self, A[pulling], y[pulling], w[pulling])
        fit, path, t, shifts = chosen
        self.path_, self.t_, self.n_iter_ = path, t, path.n_iter
        self.coef_ = fit.coefs[: X.shape[1]]
        self.intercept_ = float(fit.coefs[-1]) if self.fit_intercept else 0.0
        self.scale_ = fit.scale
        self.entry_times_ = np.full(len(y), np.inf)
        self.entry_times_[pulling] = path.entry_times
        self.gamma_ = np.zeros(len(y))
        self.gamma_[pulling] = shifts
        r = np.abs(y - A @ fit.coefs)
        # What was not read is held against the same bound as what was.
        bound = max(r[pulling][fit.inliers], default=0.0)
        self.outliers_ = r > bound
        self.outliers_[pulling] = ~fit.inliers
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Xβ + a, (n,).

        Args:
            X: (n, p).
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(X @ self.coef_ + self.intercept_)


def check_choices(t: Any, threshold: Any) -> None:
    """Raises where t is neither a criterion nor a time, or the threshold not a positive number."""
    number = isinstance(t, numbers.Real) and 0 < float(t) < math.inf
    if not (number or (isinstance(t, str) and t in CRITERIA)):
        raise ValueError(f"t must be a positive number or one of {', '.join(CRITERIA)}; got {t!r}")
    if not (isinstance(threshold, numbers.Real) and 0 < float(threshold) < math.inf):
        raise ValueError(f"threshold must be a positive finite number, got {threshold!r}")


def chosen_fit(
    model: Any, A: np.ndarray, y: np.ndarray, w: np.ndarray
) -> tuple[Fit, MeanShiftPath, float, np.ndarray]:
    """The fit an estimator's arguments ask for, its path, t, and γ at t.

    Args:
        model: has `t`, `threshold`, `kappa`, `alpha`, `nt`, `ratio`, `cv`, `max_iter`, `start`
            and `random_state`.
        A: (n, q), with the column of the intercept.
        y: (n,).
        w: (n,), positive.
    """
    core = _core(model, A, y, w)
    most = max(int(np.count_nonzero(core) // 2 + np.count_nonzero(~core)), 1)
    number = not isinstance(model.t, str)
    limits = Limits(
        nt=model.nt, ratio=float(model.ratio), max_iter=model.max_iter,
        max_support=None if number else most, t_max=float(model.t) if number else None,
    )  # fmt: skip
    path = mean_shift_path(
        A, y, kappa=model.kappa, alpha=model.alpha, weights=w * core, limits=limits
    )
    if model.t == "threshold":
        fit = settled(A, y, w, most_consistent(A, y, w, path, core), model.threshold)
        t = path.unit / (model.threshold * fit.scale)
        t = float(np.clip(t, path.ts[0], path.ts[-1]))
        return fit, path, t, path.at(t)
    if number:
        t = min(float(model.t), float(path.ts[-1]))
    else:
        score = (
            _held_out(model, A, y, w * core, path)
            if model.t == "cv"
            else criterion(A, y, w, path, model.t)
        )
        t = float(path.ts[int(np.argmin(score))])
    shifts = path.at(t)
    return settled(A, y, w, shifts == 0, model.threshold), path, t, shifts


def _core(model: Any, A: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Samples that pull β along the path."""
    rng = check_random_state(model.random_state)
    if model.start is None:
        return np.ones(len(y), bool)
    if model.start == "lts":
        first = least_trimmed(A, y, w, _SUBSETS, rng)
    else:
        # The column of ones is among those of A.
        ransac = RANSACRegressor(
            min_samples=min(A.shape[1] + 1, len(y)), max_trials=1000, random_state=rng,
            estimator=_Plane(),
        )  # fmt: skip
        first = ransac.fit(A, y).inlier_mask_
    return settled(A, y, w, first, model.threshold).inliers


class _Plane(RegressorMixin, BaseEstimator):
    """Least squares by `least_squares`, also where A lacks rank."""

    def fit(self, A: np.ndarray, y: np.ndarray) -> "_Plane":
        self.coef_ = least_squares(A, y, np.ones(len(y)))
        return self

    def predict(self, A: np.ndarray) -> np.ndarray:
        return np.asarray(A @ self.coef_)


def _held_out(
    model: Any, A: np.ndarray, y: np.ndarray, w: np.ndarray, path: MeanShiftPath
) -> np.ndarray:
    """Trimmed squares of held-out samples at each snapshot, mean over folds; (T,)."""
    loss = []
    for train, test in check_cv(model.cv).split(A, y):
        # The same threshold λ = unit/t for a fold, whose own unit differs.
        fold = mean_shift_path(
            A[train], y[train], kappa=model.kappa, alpha=model.alpha, weights=w[train],
            limits=Limits(nt=model.nt, ratio=float(model.ratio), max_iter=model.max_iter),
        )  # fmt: skip
        row = []
        for t in path.ts * fold.unit / path.unit:
            inliers = fold.at(min(float(t), float(fold.ts[-1]))) == 0
            kept = w[train] * inliers
            if kept.sum() < w[train].sum() / 2:
                row.append(np.inf)
                continue
            coefs = least_squares(A[train], y[train], kept)
            row.append(trimmed(y[test] - A[test] @ coefs, np.maximum(w[test], 1e-12)))
        loss.append(row)
    return np.asarray(np.mean(loss, axis=0))
