"""Linear models at the point of their LBI path that cross-validation chooses."""

from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv

from dessilbi_jax.stats.estimators.common import PathClassifier, PathRegressor
from dessilbi_jax.stats.estimators.linear import LinearPath
from dessilbi_jax.stats.folds import follow_folds
from dessilbi_jax.stats.problem import MAX_ITER, Problem
from dessilbi_jax.stats.result import predicted


class CrossValidatedPath(LinearPath):
    """K-fold cross-validation over t, the folds followed together."""

    def __init__(
        self,
        *,
        kappa: float = 20.0,
        alpha: float | None = None,
        cv: Any = 5,
        one_standard_error: bool = True,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        nt: int = 100,
        ratio: float | None = None,
        t_max: float | None = None,
        max_support: int | None = None,
        max_iter: int = MAX_ITER,
    ):
        super().__init__(
            kappa=kappa, alpha=alpha, groups=groups, fit_intercept=fit_intercept,
            standardize=standardize, nt=nt, ratio=ratio, t_max=t_max, max_support=max_support,
            max_iter=max_iter,
        )  # fmt: skip
        del self.t  # it is what is looked for
        self.cv = cv
        self.one_standard_error = one_standard_error

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "CrossValidatedPath":
        """Follows the path of all samples and those of the folds, and chooses t.

        Args:
            X: (n, p), dense or sparse; float32 is computed in float32.
            y: (n,).
            sample_weight: (n,), not negative; None: all 1. They weigh in training and in the loss.

        Returns:
            Itself.

        Raises:
            ValueError: as scikit-learn words it, or arguments out of range; a class that is not
                among a fold's training samples.
        """
        X, y, family = self._read(X, y)
        problem, path = self._path(X, y, family, sample_weight, self.t_max)
        splits = list(check_cv(self.cv, y, classifier=is_classifier(self)).split(X, y))
        weights = np.stack([training_weights(problem, train) for train, _ in splits])
        coefs, intercepts = follow_folds(
            problem, weights, self.kappa, self.alpha, self.groups, path.ts, self.max_iter
        )
        self.cv_ts_ = path.ts
        self.cv_loss_ = np.stack(
            [
                held_out_loss(problem, X, test, c, a)
                for (_, test), c, a in zip(splits, coefs, intercepts, strict=True)
            ]
        )
        best = chosen(self.cv_loss_, self.one_standard_error)
        return self._take(path, float(path.ts[best]))


def training_weights(problem: Problem, train: np.ndarray) -> np.ndarray:
    """The samples' weights with those outside a fold's training set at 0, of sum 1.

    Raises:
        ValueError: none of a class is left, or nothing at all.
    """
    w = np.zeros_like(problem.w)
    w[train] = problem.w[train]
    if not w.sum() > 0:
        raise ValueError("a training set of the cross-validation has no samples of positive weight")
    w /= w.sum()
    if problem.classes is not None:
        y = problem.y if problem.y.ndim > 1 else np.stack([problem.y < 0, problem.y > 0])
        missing = problem.classes[(y > 0) @ w == 0]
        if len(missing):
            raise ValueError(
                "a training set of the cross-validation holds no sample of class "
                f"{missing.tolist()[0]!r}: use fewer folds, or stratified ones"
            )
    return w


def held_out_loss(
    problem: Problem, X: Any, test: np.ndarray, coefs: np.ndarray, intercepts: np.ndarray
) -> np.ndarray:
    """Weighted mean loss of a test set at each snapshot, (T,): squared error, or log loss."""
    eta = predicted(X[test], coefs, intercepts)
    w = problem.w[test]
    w = w / w.sum() if w.sum() > 0 else np.full(len(w), 1 / len(w))
    if problem.classes is None:
        y = problem.y_origin + problem.y_unit * problem.y[test]
        return np.asarray(w @ (y[:, None] - eta) ** 2)
    return np.asarray(w @ problem.loss.value(eta, problem.y[..., test]))


def chosen(loss: np.ndarray, one_standard_error: bool) -> int:
    """The snapshot of the least mean loss; or the first within a standard error of it.

    Args:
        loss: (K, T), by fold and snapshot.
        one_standard_error: whether to take the earlier one.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.estimators.cross_validated import chosen
        >>> loss = np.array([[3.0, 1.1, 1.0], [3.0, 1.3, 1.3]])
        >>> chosen(loss, False), chosen(loss, True)
        (2, 1)
    """
    mean = loss.mean(axis=0)
    best = int(np.argmin(mean))
    if not one_standard_error or len(loss) < 2:
        return best
    error = loss[:, best].std(ddof=1) / np.sqrt(len(loss))
    return int(np.argmax(mean <= mean[best] + error))


class LBIRegressorCV(PathRegressor, CrossValidatedPath):
    """Sparse least squares at the point of the path of `lbi_path` that cross-validation chooses.

    Args:
        cv: number of folds, a splitter of scikit-learn, or pairs of indices (train, test).
        one_standard_error: whether to take the earliest t whose mean squared error is within one
            standard error (over folds) of the least; else the t of the least.
        kappa, alpha, groups, fit_intercept, standardize, nt, ratio, t_max, max_support, max_iter:
            as for `LBIRegressor`.

    Attributes:
        cv_ts_: (T,), the times that were compared.
        cv_loss_: (K, T), mean squared error of each held-out fold.
        coef_, intercept_, path_, t_, entry_times_, n_iter_, n_features_in_, feature_names_in_: as
            for `LBIRegressor`; the path is that of all samples.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from dessilbi_jax.stats import LBIRegressorCV
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = LBIRegressorCV().fit(X, y)
        >>> model.get_support(indices=True)
        array([2, 3, 6, 8])
    """


class LBIClassifierCV(PathClassifier, CrossValidatedPath):
    """Sparse logistic or multinomial regression, t by cross-validation.

    Args:
        cv: number of folds (stratified), a splitter of scikit-learn, or pairs of indices.
        one_standard_error: as for `LBIRegressorCV`, of the log loss.
        kappa, alpha, groups, fit_intercept, standardize, nt, ratio, t_max, max_support, max_iter:
            as for `LBIClassifier`.

    Attributes:
        cv_ts_: (T,), the times that were compared.
        cv_loss_: (K, T), log loss of each held-out fold.
        classes_, coef_, intercept_, path_, t_, entry_times_, n_iter_: as for `LBIClassifier`.
        n_features_in_, feature_names_in_: as scikit-learn has them.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from dessilbi_jax.stats import LBIClassifierCV
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> LBIClassifierCV(t_max=50.0, cv=3).fit(X, y).score(X, y) > 0.93
        True
    """
