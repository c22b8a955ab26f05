"""Robust ranking from paired comparisons."""

import numbers
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import KFold, check_cv
from sklearn.utils import check_consistent_length
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from dessilbi_jax.stats.estimators.outliers import check_choices, chosen_fit
from dessilbi_jax.stats.linear import Limits
from dessilbi_jax.stats.mean_shift import least_squares, mean_shift_path
from dessilbi_jax.stats.problem import MAX_ITER
from dessilbi_jax.stats.ranking import (
    components,
    follow_users,
    incidence,
    log_probabilities,
    numbered,
)

FORMS = ("auto", "pairs", "differences")


def _knows_users(ranker: "RobustRanker") -> bool:
    return hasattr(ranker, "users_")


class RobustRanker(RegressorMixin, BaseEstimator):
    """Scores of items from comparisons of two, some of which are wrong.

    Without users, y = s_i − s_j + γ + ε over comparisons (i, j), with a sparse γ: HodgeRank's
    least squares, without the comparisons that the path of γ (`mean_shift_path`) shifts first.
    Only cycles of the comparison graph can tell which are wrong; the scores sum to 0 over each of
    its connected components, and mean nothing across them.

    With users, votes are y = 1 (first item preferred), −1, or 0 (a tie), and iSplit LBI finds who
    votes differently: s^u = c + p^u, λ^u = c_λ + p_λ^u > 0, P(1) = 1 − Φ(λ^u − Δ^u), P(−1) =
    Φ(−λ^u − Δ^u), with Δ^u = s^u_i − s^u_j and (p^u, p_λ^u) a group that is 0 for most users.

    Args:
        comparisons: what X is. "pairs": (m, 2), the items compared, by numbers or names.
            "differences": (m, p), rows x_i − x_j of features; scores are then xβ. "auto": pairs if
            X has two columns that are not floats.
        features: (n, p), features of the items 0, …, n − 1, for scores that are linear in them;
            None: each item has its own. For pairs.
        prune: without users, how many comparisons are left out: a number (int) or a share (float
            below 1) of the first on the path; None: as t says.
        t: the point of the path. Without users as for `OutlierRegressor`, None: "threshold", which
            is for y with normal noise: of votes ±1 it prunes few, or none, so give `prune`. With
            users "cv" (held-out log likelihood; None is the same), or a time.
        position_bias: whether the first item has an advantage, one for all or, with users, also
            one each: a further feature of every comparison that is 1.
        threshold: as for `OutlierRegressor`.
        kappa, alpha: κ > 0 and the length of a step.
        nu: ν of the split model of users.
        nt: number of snapshots.
        ratio: last over first time; None: 100, or 20 with users.
        cv: folds: their number, a splitter, or pairs of indices.
        max_iter: most steps; `sklearn.exceptions.ConvergenceWarning` tells if they were too few.
        random_state: of the folds.

    Attributes:
        items_: the labels of the items, sorted (pairs only).
        scores_: (n,), of the items; 0 is the mean of each component (pairs only).
        components_: (n,), the component of each item in the comparison graph (pairs only).
        coef_: (p,), of the features; `scores_` where items have none.
        position_bias_: the advantage of the first item, 0 unless asked for.
        outliers_: bool (m,), comparisons that were left out (without users).
        path_: the path, of comparisons or of users (`UserPath`).
        entry_times_: when each comparison, or user, first entered, inf if never.
        t_, n_iter_, n_features_in_, feature_names_in_: as for `OutlierRegressor`.
        users_: the labels of the users, sorted.
        abnormal_users_: bool (U,), who deviates at `t_`.
        user_coef_: (U, q), p^u, dense; the last column is that of the position bias if asked for.
        tie_, user_tie_: c_λ, and λ^u (U,).

    References:
        Q. Xu, J. Xiong, Q. Huang and Y. Yao, "Robust evaluation for quality of experience in
        crowdsourcing", ACM Multimedia 2013; Q. Xu, J. Xiong, Z. Yang, X. Cao, Q. Huang and Y. Yao,
        "Who likes what? SplitLBI in exploring preferential diversity of ratings", AAAI 2020.

    Example:
        >>> from dessilbi_jax.stats import RobustRanker
        >>> pairs = [["a", "b"], ["b", "c"], ["c", "d"], ["a", "c"], ["b", "d"], ["a", "d"]]
        >>> model = RobustRanker(prune=1).fit(pairs, [1.0, 1, 1, 2, 2, -3])  # the last is wrong
        >>> model.items_.tolist(), model.scores_.round(6), model.outliers_.nonzero()[0]
        (['a', 'b', 'c', 'd'], array([ 1.5,  0.5, -0.5, -1.5]), array([5]))
    """

    def __init__(
        self,
        *,
        comparisons: str = "auto",
        features: Any = None,
        prune: int | float | None = None,
        t: float | str | None = None,
        position_bias: bool = False,
        threshold: float = 2.5,
        kappa: float = 10.0,
        alpha: float | None = None,
        nu: float = 1.0,
        nt: int = 100,
        ratio: float | None = None,
        cv: Any = 5,
        max_iter: int = MAX_ITER,
        random_state: Any = 0,
    ):
        self.comparisons = comparisons
        self.features = features
        self.prune = prune
        self.t = t
        self.position_bias = position_bias
        self.threshold = threshold
        self.kappa = kappa
        self.alpha = alpha
        self.nu = nu
        self.nt = nt
        self.ratio = ratio
        self.cv = cv
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, users: Any = None) -> "RobustRanker":
        """Finds scores, and comparisons or users that do not fit them.

        Args:
            X: (m, 2) items or (m, p) differences, see `comparisons`.
            y: (m,), by how much the first is preferred: numbers, or 1, 0 and −1 with users.
            users: (m,), who compared; None: nobody is told apart.

        Returns:
            Itself.

        Raises:
            ValueError: an item compared with itself, fewer than two items, NaN, other lengths,
                votes that are none, arguments out of range.

        Warns:
            UserWarning: the comparison graph is not connected.
        """
        self._check(users is not None)
        pairs = self._are_pairs(X)
        dtype = None if pairs else np.float64
        X, y = validate_data(self, X, y, dtype=dtype, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(column_or_1d(y), np.float64)
        self.pairs_ = pairs
        if pairs:
            self._read_items(X)
        A = self._design(X)
        if _knows_users(self):  # of an earlier fit
            del self.users_
        if users is None:
            self._fit_shifts(A, y)
        else:
            check_consistent_length(X, users)
            self._fit_users(A, y, column_or_1d(np.asarray(users)))
        return self

    def _check(self, users: bool) -> None:
        if self.comparisons not in FORMS:
            raise ValueError(
                f"comparisons must be one of {', '.join(FORMS)}; got {self.comparisons!r}"
            )
        t = self.t if self.t is not None else "threshold"
        check_choices(t, self.threshold)
        if users and self.t is not None and isinstance(self.t, str) and self.t != "cv":
            raise ValueError(f"with users, t must be 'cv' or a positive number; got {self.t!r}")
        if users and self.prune is not None:
            raise ValueError("prune is for comparisons; with users it is they who are selected")

    def _are_pairs(self, X: Any) -> bool:
        if self.comparisons != "auto":
            return self.comparisons == "pairs"
        if self.features is not None:
            return True
        x = np.asarray(X)
        return x.ndim == 2 and x.shape[1] == 2 and x.dtype.kind != "f"

    def _read_items(self, X: np.ndarray) -> None:
        if X.shape[1] != 2:
            raise ValueError(f"pairs have two columns, the items compared; got shape {X.shape}")
        if self.features is None:
            self.items_ = np.unique(X)
        else:
            self._phi = np.asarray(self.features, np.float64)
            if self._phi.ndim != 2 or not np.isfinite(self._phi).all():
                raise ValueError("features must be a finite matrix, one row an item")
            self.items_ = np.arange(len(self._phi))
        place = numbered(X, self.items_)
        if len(self.items_) < 2:
            raise ValueError("a ranking needs at least 2 items")
        self.components_ = components(place, len(self.items_))
        apart = int(self.components_.max()) + 1
        if apart > 1 and self.features is None:
            warnings.warn(
                f"the comparison graph falls into {apart} components: scores sum to 0 over each, "
                "and cannot be compared across them",
                UserWarning,
                stacklevel=3,
            )

    def _design(self, X: np.ndarray) -> np.ndarray:
        """(m, q), with the column of the position bias behind."""
        if self.pairs_:
            place = numbered(X, self.items_)
            if self.features is None:
                X = incidence(place, len(self.items_))
            else:
                X = self._phi[place[:, 0]] - self._phi[place[:, 1]]
        return np.column_stack([X, np.ones(len(X))]) if self.position_bias else X

    def _take(self, coefs: np.ndarray) -> None:
        self.coef_ = coefs[:-1] if self.position_bias else coefs
        self.position_bias_ = float(coefs[-1]) if self.position_bias else 0.0
        if self.pairs_:
            self.scores_ = self.coef_ if self.features is None else self._phi @ self.coef_

    def _fit_shifts(self, A: np.ndarray, y: np.ndarray) -> None:
        w = np.ones(len(y))
        if self.prune is None:
            fit, path, t, _ = chosen_fit(_Shifts(self), A, y, w)
            inliers, coefs = fit.inliers, fit.coefs
        else:
            count = self._count(len(y))
            path = mean_shift_path(
                A, y, kappa=self.kappa, alpha=self.alpha, limits=_limits(self, 100.0)
            )
            inliers = np.ones(len(y), bool)
            inliers[path.order[:count]] = False
            coefs = least_squares(A, y, 1.0 * inliers)
            last = path.entry_times[path.order[count - 1]] if count else path.ts[0]
            t = min(float(last), float(path.ts[-1]))
        self._take(coefs)
        self.path_: Any = path
        self.outliers_, self.t_ = ~inliers, t
        self.entry_times_, self.n_iter_ = path.entry_times, path.n_iter

    def _count(self, m: int) -> int:
        prune: Any = self.prune
        if isinstance(prune, numbers.Integral) and 0 <= int(prune) < m:
            return int(prune)
        if isinstance(prune, numbers.Real) and 0 <= float(prune) < 1:
            return round(float(prune) * m)
        raise ValueError(
            f"prune must be a share below 1 or a number below the {m} comparisons, got {prune!r}"
        )

    def _fit_users(self, A: np.ndarray, y: np.ndarray, users: np.ndarray) -> None:
        if not np.isin(y, (-1, 0, 1)).all():
            bad = y[~np.isin(y, (-1, 0, 1))][0]
            raise ValueError(f"with users, y must be 1, 0 (a tie) or −1; got {bad:g}")
        self.users_, user = np.unique(users, return_inverse=True)
        last = None if self.t is None or isinstance(self.t, str) else float(self.t)
        limits = _limits(self, 20.0, last)
        given: dict[str, Any] = {"kappa": self.kappa, "nu": self.nu, "alpha": self.alpha}
        w = np.ones(len(y))
        path = follow_users(A, y, user, w, limits=limits, **given)
        k = len(path.ts) - 1
        if last is None:
            loss = []
            cv = self.cv
            if isinstance(cv, numbers.Integral):
                cv = KFold(cv, shuffle=True, random_state=self.random_state)
            for train, test in check_cv(cv).split(A):
                w = np.zeros(len(y))
                w[train] = 1
                fold = follow_users(
                    A, y, user, w, limits=Limits(ts=path.ts, max_iter=self.max_iter), **given
                )
                loss.append(_held_out(fold, A[test], y[test], user[test]))
            self.cv_loss_ = np.stack(loss)
            k = int(np.argmin(self.cv_loss_.mean(axis=0)))
        self.path_ = path
        self.t_ = float(path.ts[k])
        self._common, self._own = path.common[k], path.own[k]
        self._take(path.common[k])
        if self.pairs_ and self.features is None:
            self.scores_ = _centred(self.scores_, self.components_)
            self.coef_ = self.scores_
        self.tie_ = float(path.ties[k])
        self.user_coef_, self.user_tie_ = self._own[:, :-1], self.tie_ + self._own[:, -1]
        self.abnormal_users_ = path.gammas[k].any(axis=1)
        self.entry_times_, self.n_iter_ = path.entry_times, path.n_iter

    def predict(self, X: Any, users: Any = None) -> np.ndarray:
        """By how much the first is preferred, (m,); after a fit with users the likeliest vote.

        Args:
            X: comparisons, as in `fit`.
            users: (m,), who compares; unknown ones, and None, vote as all do.

        Raises:
            ValueError: an item that `fit` did not see, or one compared with itself.
        """
        check_is_fitted(self)
        if _knows_users(self):
            return np.asarray(self.predict_proba(X, users).argmax(axis=1) - 1)
        coefs = [*self.coef_, self.position_bias_] if self.position_bias else self.coef_
        return np.asarray(self._read(X) @ np.asarray(coefs))

    @available_if(_knows_users)
    def predict_proba(self, X: Any, users: Any = None) -> np.ndarray:
        """P of −1, 0 and 1, (m, 3), after a fit with users. Arguments as for `predict`."""
        check_is_fitted(self, "users_")
        A = self._read(X)
        own = np.zeros((len(A), A.shape[1] + 1))
        if users is not None:
            check_consistent_length(X, users)
            users = column_or_1d(np.asarray(users))
            place = np.minimum(np.searchsorted(self.users_, users), len(self.users_) - 1)
            known = self.users_[place] == users
            own[known] = self._own[place[known]]
        return np.exp(log_probabilities(A, self._common, self.tie_, own))

    def _read(self, X: Any) -> np.ndarray:
        dtype = None if self.pairs_ else np.float64
        return self._design(validate_data(self, X, reset=False, dtype=dtype))


class _Shifts:
    """The arguments of `chosen_fit` that a ranker has, and those it has not."""

    def __init__(self, ranker: RobustRanker):
        self.t = "threshold" if ranker.t is None else ranker.t
        self.ratio = 100.0 if ranker.ratio is None else ranker.ratio
        self.start = None
        for name in ("threshold", "kappa", "alpha", "nt", "cv", "max_iter", "random_state"):
            setattr(self, name, getattr(ranker, name))


def _limits(ranker: RobustRanker, ratio: float, t_max: float | None = None) -> Limits:
    return Limits(nt=ranker.nt, ratio=ranker.ratio or ratio, t_max=t_max, max_iter=ranker.max_iter)


def _centred(scores: np.ndarray, component: np.ndarray) -> np.ndarray:
    mean = np.bincount(component, scores) / np.bincount(component)
    return np.asarray(scores - mean[component])


def _held_out(fold: Any, A: np.ndarray, y: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Mean −log P of held-out votes at each snapshot, (T,); what a fold did not reach, the last."""
    column = y.astype(int) + 1
    rows = np.arange(len(y))
    return np.array(
        [
            -log_probabilities(A, c, tie, own[user])[rows, column].mean()
            for c, tie, own in zip(fold.common, fold.ties, fold.own, strict=True)
        ]
    )
