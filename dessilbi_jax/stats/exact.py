"""The inverse scale space of least squares, exactly: `iss_path`, the limit of LBI for large κ."""

from typing import Any

import numpy as np
from scipy import optimize

from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.limits import Limits
from dessilbi_jax.stats.linear import intercept_of
from dessilbi_jax.stats.problem import Problem, read
from dessilbi_jax.stats.result import ExactPath

_TOLERANCE = 1e-9  # of ρ against ±1, and of slopes against the steepest at the start


def iss_path(
    X: Any,
    y: Any,
    *,
    fit_intercept: bool = True,
    standardize_X: bool = True,
    standardize_y: bool = True,
    sample_weight: Any = None,
    t_max: float | None = None,
    max_support: int | None = None,
    until_all_entered: bool = False,
    max_iter: int = 10_000,
) -> ExactPath:
    """The inverse scale space of a linear model, exactly: LBI for κ → ∞ and α → 0.

        dρ/dt = X̃ᵀ(y − X̃β)/n,   ρ ∈ ∂‖β‖₁

    ρ moves on lines while β stands still, until some |ρ_j| reaches 1. There β jumps to the least
    squares fit over {|ρ| = 1} with the signs of ρ. So t ↦ β(t) is constant between knots, not
    shrunk, and ends with least squares.

    Args:
        X: (n, p), dense or sparse (a sparse one is made dense).
        y: (n,) numbers.
        fit_intercept, standardize_X, standardize_y, sample_weight: as for `lbi_path`.
        t_max: where to end; None: at least squares.
        max_support: stop at the knot at which so many are not zero.
        until_all_entered: stop at the knot at which all have entered.
        max_iter: most knots.

    Returns:
        The path; its snapshots are the knots, its `dual` is ρ. κ is inf and α 0.

    Raises:
        ValueError: data as scikit-learn's estimators refuse them, or arguments out of range.

    References:
        M. Burger, M. Möller, M. Benning and S. Osher, "An adaptive inverse scale space method for
        compressed sensing", Mathematics of Computation 82, 2013.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from dessilbi_jax.stats import iss_path
        >>> X, y = load_diabetes(return_X_y=True)
        >>> path = iss_path(X, y, standardize_y=False)
        >>> path.ts[:3].round(8)
        array([0.02214348, 0.02364047, 0.04642083])
    """
    limits = Limits(
        t_max=t_max, max_support=max_support, until_all_entered=until_all_entered,
        max_iter=max_iter,
    )  # fmt: skip
    problem = read(
        X, y, sample_weight=sample_weight, fit_intercept=fit_intercept,
        scaled="each" if standardize_X else "no", standardize_y=standardize_y,
    )  # fmt: skip
    columns, w = problem.columns, problem.w
    shift, inv = columns.moments(w)
    dense = columns.x if isinstance(columns.x, np.ndarray) else columns.x.toarray()
    root = np.sqrt(w)
    knots = _knots((dense - shift) * inv * root[:, None], problem.y * root, limits)
    return _result(problem, knots, shift, inv)


def _knots(X: np.ndarray, y: np.ndarray, limits: Limits) -> list[tuple[float, Any, Any]]:
    """(t, β, ρ) at each knot, of (n, p) and (n,) that samples' weights are multiplied into."""
    p = X.shape[1]
    beta, rho, t = np.zeros(p), np.zeros(p), 0.0
    entered = np.zeros(p, bool)
    end = np.inf if limits.t_max is None else limits.t_max
    slopes = X.T @ y
    least = _TOLERANCE * np.abs(slopes).max(initial=0)
    if np.linalg.norm(slopes, np.inf) <= 1e-14 * np.linalg.norm(y):
        return [(1.0, beta, rho)]
    out: list[tuple[float, Any, Any]] = []
    while len(out) < limits.max_iter:
        moves = (beta == 0) & (np.abs(slopes) > least)
        # One that stands at its bound and is pushed against it has β ≠ 0: rounding, if not.
        moves &= ~((np.abs(rho) == 1) & (rho * slopes > 0))
        way = np.full(p, np.inf)
        way[moves] = (np.sign(slopes[moves]) - rho[moves]) / slopes[moves]
        step = way.min(initial=np.inf)
        if not (np.isfinite(step) and t + step <= end):
            if np.isfinite(end) and out:
                rho = np.where(moves, rho + (end - t) * slopes, rho)
                out.append((end, beta, rho))
            break
        t += step
        rho = np.where(moves, rho + step * slopes, rho)
        reached = moves & (way <= step * (1 + _TOLERANCE))
        rho[reached] = np.sign(slopes[reached])
        active = np.abs(rho) == 1
        fitted, _ = optimize.nnls(X[:, active] * rho[active], y)
        beta = np.zeros(p)
        beta[active] = rho[active] * fitted
        entered |= beta != 0
        slopes = X.T @ (y - X @ beta)
        slopes[beta != 0] = 0
        out.append((t, beta, rho.copy()))
        if limits.max_support is not None and np.count_nonzero(beta) >= limits.max_support:
            break
        if limits.until_all_entered and entered.all():
            break
    if not out:
        raise ValueError(
            f"the path ends at t_max={end:.6g}, before the first entry at t={t + step:.6g}; "
            "nothing is selected there: give a later t_max"
        )
    return out


def _result(problem: Problem, knots: list[tuple[float, Any, Any]], shift: Any, inv: Any) -> Any:
    ts = np.array([t for t, _, _ in knots])
    beta, rho = (np.stack(each, axis=-1) for each in list(zip(*knots, strict=True))[1:])
    factor = problem.columns.factor(inv) * problem.y_unit
    centre = problem.columns.centre(shift) * problem.fit_intercept
    first = (beta != 0).argmax(axis=1)
    there = (beta != 0).any(axis=1)
    times = np.where(there, ts[first], np.inf)
    signs = np.where(there, np.sign(rho[np.arange(len(rho)), first]), 0).astype(np.int8)
    coefs = beta * factor[:, None]
    return ExactPath(
        ts=ts,
        coefs=coefs.astype(problem.dtype),
        intercepts=(intercept_of(problem, problem.w) - centre @ coefs).astype(problem.dtype),
        dual=rho.astype(problem.dtype),
        entry_times=times,
        entry_signs=signs,
        order=np.lexsort((-np.abs(rho[:, -1]) / ts[-1], times)),
        kappa=np.inf,
        alpha=0.0,
        n_iter=len(ts),
        _groups=Groups(problem.shape),
        _factor=factor,
        _centre=centre,
    )
