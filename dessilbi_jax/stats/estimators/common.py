"""What the estimators share: reading data, choosing t, predicting."""

import math
import numbers
from typing import Any

import numpy as np
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dessilbi_jax.stats.problem import Problem
from dessilbi_jax.stats.result import PathResult, bic, predicted

CRITERIA = ("bic", "aic", "end")


class PathEstimator(BaseEstimator):
    """Base of all: `coef_` and `intercept_` of one point of `path_`, at `t_`."""

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Which features are selected at `t_`: a mask (p,), or their numbers.

        Args:
            indices: whether to return numbers.
        """
        check_is_fitted(self)
        chosen = np.any(self._selected().reshape(-1, self.n_features_in_), axis=0)
        return np.flatnonzero(chosen) if indices else chosen

    def _selected(self) -> np.ndarray:
        return np.asarray(self.coef_) != 0

    def _linear(self, X: Any) -> np.ndarray:
        """η at the chosen point, (n,) or (n, C)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse="csr", dtype=[np.float64, np.float32])
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class PathRegressor(RegressorMixin, PathEstimator):
    """Base of those that predict a number."""

    def predict(self, X: Any) -> np.ndarray:
        """The prediction for each sample, (n,).

        Args:
            X: (n, p), dense or sparse.
        """
        return self._linear(X)

    def _read(self, X: Any, y: Any) -> tuple[Any, Any, str]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], y_numeric=True
        )
        return X, y, "gaussian"


class PathClassifier(ClassifierMixin, PathEstimator):
    """Base of those that predict a class: two by the logistic loss, more by the softmax."""

    def decision_function(self, X: Any) -> np.ndarray:
        """The log odds of the second class (n,), or one score a class (n, C)."""
        scores = self._linear(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, C)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([special.expit(-scores), special.expit(scores)], axis=1)
        return np.asarray(special.softmax(scores, axis=1))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Its logarithm."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([special.log_expit(-scores), special.log_expit(scores)], axis=1)
        return np.asarray(special.log_softmax(scores, axis=1))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample, (n,)."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[index])

    def _read(self, X: Any, y: Any) -> tuple[Any, Any, str]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        return X, y, "multinomial" if len(self.classes_) > 2 else "binomial"


def check_t(t: Any) -> None:
    """Raises where t is neither a criterion nor a time."""
    number = isinstance(t, numbers.Real) and 0 < float(t) < math.inf
    if not (number or (isinstance(t, str) and t in CRITERIA)):
        raise ValueError(f"t must be a positive number or one of {', '.join(CRITERIA)}; got {t!r}")


def last_time(t: Any, t_max: float | None, ts: Any = None) -> float | None:
    """Where a path has to end for a point at t."""
    return float(t) if t_max is None and ts is None and not isinstance(t, str) else t_max


def deviances(problem: Problem, X: Any, coefs: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """−2 log likelihood at each snapshot, the Gaussian's with its own variance; (T,).

    Args:
        problem: what was read.
        X: the columns as given.
        coefs: (p, T) or (C, p, T), in the units of X and y.
        intercepts: (T,) or (C, T).
    """
    eta = predicted(X, coefs, intercepts)
    if problem.classes is not None:
        return 2 * problem.weight * (problem.w @ problem.loss.value(eta, problem.y))
    y = problem.y_origin + problem.y_unit * problem.y
    mean = problem.w @ (y[:, None] - eta) ** 2
    tiny = np.finfo(np.float64).tiny
    return problem.weight * np.log(np.maximum(mean, tiny))


def chosen_t(
    t: Any, path: PathResult, problem: Problem, X: Any, df: np.ndarray | None = None
) -> float:
    """The time that a criterion asks for, or the one given.

    Args:
        t: a time, "end", "bic" or "aic".
        path, problem, X: the path and what it was made of.
        df: free numbers at each snapshot; None: coefficients that are not zero.
    """
    if not isinstance(t, str):
        return float(t)
    if t == "end":
        return float(path.ts[-1])
    if df is None:
        df = (path.coefs != 0).reshape(-1, len(path.ts)).sum(axis=0)
    deviance = deviances(problem, X, path.coefs, path.intercepts)
    score = bic(deviance, df, problem.weight, 2.0 if t == "aic" else None)
    # Of equal ones, where the path stands still, the first.
    return float(path.ts[int(np.argmax(score <= score.min() + 1e-9 * abs(score.min())))])
