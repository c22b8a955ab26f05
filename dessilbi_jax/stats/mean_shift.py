"""Outliers as a sparse mean shift, y = Xβ + γ + ε: the path of γ and robust fits along it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dessilbi_jax.stats import path
from dessilbi_jax.stats.design import padded
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.linear import Limits, tell_unfinished
from dessilbi_jax.stats.precision import LEAST_ROWS, padded_size, precision_of
from dessilbi_jax.stats.result import PathResult

# The median modulus of a standard normal number.
MEDIAN_MODULUS = float(special.ndtri(0.75))
_CONCENTRATIONS, _SETTLING = 30, 50


class Rows(NamedTuple):
    """Data of a mean shift: y, and P = I − left·rightᵀ, never written out."""

    y: jax.Array
    left: jax.Array
    right: jax.Array


def _gradients(data: Rows, u: Any, gamma: jax.Array) -> tuple[Any, jax.Array]:
    """∇_γ = −P(y − γ), for γ (n,) or (n, C)."""
    z = gamma - data.y
    return (), z - data.left @ (data.right.T @ z)


MODEL = path.Model(_gradients)


@dataclasses.dataclass(frozen=True, repr=False)
class MeanShiftPath(PathResult):
    """The path of a mean shift; `coefs` are γ, (n, T), in the units of y, one row a sample.

    Attributes:
        unit: what y was divided by: κ, α and t are in its units. A sample enters at t where its
            residual has held |r| = unit/t on the average until then.
    """

    unit: float = dataclasses.field(kw_only=True)


def profile(A: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """left and right with P = I − left·rightᵀ, which takes y to its residuals.

    They are those of least squares under the weights w: rows of weight 0 have a residual and do
    not pull. With weights 1, P is the projector on the complement of the columns of A. A may lack
    rank, as an incidence matrix does: singular values are cut at the rounding error.

    Args:
        A: (n, q).
        w: (n,), not negative.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.mean_shift import profile
        >>> left, right = profile(np.ones((4, 2)), np.array([1.0, 1, 1, 0]))
        >>> y = np.array([0.0, 3, 3, 9])
        >>> y - left @ (right.T @ y)
        array([-2.,  1.,  1.,  7.])
    """
    root = np.sqrt(w)[:, None]
    _, size, vt = np.linalg.svd(root * A, full_matrices=False)
    kept = size > max(A.shape) * np.finfo(np.float64).eps * max(size.max(initial=0), 1e-300)
    left = A @ (vt[kept].T / size[kept])
    return left, w[:, None] * left


def least_squares(A: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The coefficients of least squares under weights w; of several, the shortest."""
    root = np.sqrt(w)
    # An eigenvalue of the rounding error's size is no direction that the data know.
    cut = max(A.shape) * np.finfo(np.float64).eps
    return np.asarray(np.linalg.lstsq(A * root[:, None], y * root, rcond=cut)[0])


def weighted_median(x: np.ndarray, w: np.ndarray) -> float:
    """The median of numbers that each stand for w of their kind.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.mean_shift import weighted_median
        >>> weighted_median(np.array([5.0, 1.0]), np.array([1.0, 3.0]))
        1.0
    """
    order = np.argsort(x)
    x, total = x[order], np.cumsum(w[order])
    half = total[-1] / 2
    slack = 1e-12 * total[-1]
    low = min(int(np.searchsorted(total, half - slack)), len(x) - 1)
    high = min(int(np.searchsorted(total, half + slack, side="right")), len(x) - 1)
    return float(x[low] + x[high]) / 2


def mad(r: np.ndarray, w: np.ndarray, within: float = math.inf) -> float:
    """σ of normal residuals by their median modulus; of those up to `within`·σ only, if so cut."""
    share = special.erf(within / math.sqrt(2))
    return weighted_median(np.abs(r), w) / float(special.ndtri(0.5 + share / 4))


def mean_shift_path(
    A: np.ndarray,
    y: np.ndarray,
    *,
    kappa: float,
    alpha: float | None = None,
    weights: np.ndarray | None = None,
    limits: Limits | None = None,
) -> MeanShiftPath:
    """Path of the shifts γ of y = Aβ + γ + ε by linearized Bregman iterations, β profiled out.

    Of L(γ) = min_β ½‖y − γ − Aβ‖² = ½‖P(y − γ)‖², with γ = κ·sgn(V)(|V| − 1)₊,

        V ← V + α P(y − γ).

    The Hessian is a projector, so Λ = 1. y is divided by the normal σ that the median modulus of
    Py has. Penalised by λ‖γ‖₁ in place of followed along t, L is Huber's loss:
    min_γ ½(r − γ)² + λ|γ| is Huber_λ(r), at γ = sgn(r)(|r| − λ)₊.

    Args:
        A: (n, q), with a column of ones if there is an intercept; of any rank.
        y: (n,).
        kappa: κ > 0, the larger, the less are shifts shrunk.
        alpha: length of a step; None: 1/κ.
        weights: (n,), by which samples pull β; None: all 1. What has weight 0 can only be shifted.
        limits: where snapshots lie and what ends the path; None: 100 of them, until half of the
            samples are shifted or t is 100 times that of the first entry.

    Raises:
        ValueError: κ or α out of range.

    References:
        Y. She and A. B. Owen, "Outlier detection using nonconvex penalized regression", Journal
        of the American Statistical Association 106(494), 2011; Y. Fu, T. M. Hospedales, T. Xiang,
        J. Xiong, S. Gong, Y. Wang and Y. Yao, "Robust subjective visual property prediction from
        crowdsourced pairwise labels", IEEE PAMI 38(3), 2016.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.mean_shift import mean_shift_path
        >>> shifts = mean_shift_path(np.ones((5, 1)), np.array([0.0, 1, 2, 1, 9]), kappa=10)
        >>> shifts.order.tolist()[0], shifts.support(shifts.ts[20]).tolist()
        (4, [False, False, False, False, True])
    """
    n, q = A.shape
    w = np.ones(n) if weights is None else weights
    limits = limits or Limits(max_support=max(n // 2, 1), ratio=100)
    left, right = profile(A, w)
    r = y - left @ (right.T @ y)
    noise = 100 * np.finfo(np.float64).eps * np.abs(y).max(initial=0)
    pulling = w > 0
    unit = mad(r[pulling], w[pulling])
    if unit <= noise:  # more than half are fitted exactly
        unit = float(np.sqrt(np.average(r**2))) if np.abs(r).max(initial=0) > noise else 1.0
    alpha = path.step_length(kappa, 1.0, alpha)
    tall, wide = padded_size(n, LEAST_ROWS), padded_size(q)
    penalty = Groups((tall,))
    with precision_of(np.float64):
        data = Rows(
            jnp.asarray(padded(y / unit, (tall,))),
            *(jnp.asarray(padded(x, (tall, wide))) for x in (left, right)),
        )
        trace = path.finished(
            path.run(
                MODEL, penalty, data, (), kappa=float(kappa), alpha=alpha, floor=noise / unit,
                **limits.arguments(False, n),
            )
        )  # fmt: skip
    tell_unfinished(trace, limits)
    order = path.ranking(penalty, trace)
    return MeanShiftPath(
        ts=np.asarray(trace.ts),
        coefs=(np.asarray(trace.gamma)[:, :n] * unit).T,
        intercepts=np.zeros(len(trace.ts)),
        dual=np.asarray(trace.v)[:, :n].T,
        entry_times=np.asarray(trace.entry_times)[:n],
        entry_signs=np.asarray(trace.entry_signs)[:n].astype(np.int8),
        order=order[order < n],
        kappa=float(kappa),
        alpha=float(alpha),
        n_iter=int(trace.n_iter),
        _groups=Groups((n,)),
        _factor=np.full(n, unit),
        _centre=np.zeros(n),
        unit=float(unit),
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """A least-squares fit of the samples taken for inliers.

    Attributes:
        coefs: (q,).
        inliers: bool (n,), all that lie within the threshold of the fit.
        scale: σ̂: the MAD of the inliers, as that of a normal cut at the threshold.
    """

    coefs: np.ndarray
    inliers: np.ndarray
    scale: float


def settled(
    A: np.ndarray, y: np.ndarray, w: np.ndarray, inliers: np.ndarray, threshold: float
) -> Fit:
    """Refits and leaves out |r| > threshold·σ̂ to a fixed point; then flags by the MAD of all.

    On the way σ̂ is the MAD of the inliers, as that of a normal cut at the threshold (the first
    one that of all): outliers do not widen it, so they are not let in by and by. The flags, and
    the last fit, are by the MAD of all residuals: larger where there are outliers, so that few
    inliers are flagged.

    Args:
        A, y, w: as for `least_squares`.
        inliers: bool (n,), where to begin.
        threshold: in units of σ̂.
    """
    pulling = w > 0
    freedom = math.sqrt(w.sum() / max(w.sum() - A.shape[1], 1))
    floor = 100 * np.finfo(np.float64).eps * max(float(np.abs(y).max(initial=0)), 1e-300)
    seen: set[bytes] = set()

    def near(r: np.ndarray, over: np.ndarray, within: float) -> tuple[np.ndarray, float]:
        scale = max(mad(r[over], w[over], within) * freedom, floor)
        out = np.abs(r) <= threshold * scale
        return (out if w[out].sum() > A.shape[1] else pulling), scale

    while inliers.tobytes() not in seen and len(seen) < _SETTLING:
        r = y - A @ least_squares(A, y, w * inliers)
        over, within = (pulling & inliers, threshold) if seen else (pulling, math.inf)
        seen.add(inliers.tobytes())
        inliers = near(r, over, within)[0]
    r = y - A @ least_squares(A, y, w * inliers)
    inliers = near(r, pulling, math.inf)[0]
    coefs = least_squares(A, y, w * inliers)
    scale = near(y - A @ coefs, pulling & inliers, threshold)[1]
    return Fit(coefs, inliers, scale)


def trimmed(r: np.ndarray, w: np.ndarray, share: float = 0.5) -> float:
    """The mean of the smallest squares of residuals, a share of their weight, as in LTS."""
    order = np.argsort(np.abs(r))
    square, weight = r[order] ** 2, w[order]
    kept = np.minimum(weight, np.maximum(share * weight.sum() - np.cumsum(weight) + weight, 0))
    return float(kept @ square / kept.sum())


def least_trimmed(
    A: np.ndarray, y: np.ndarray, w: np.ndarray, starts: int, rng: np.random.RandomState
) -> np.ndarray:
    """The half of the samples whose least squares has the smallest squares: (n,), bool.

    Fits of few random samples, each improved by concentration: refit on the half that fits best.
    It holds against leverage, since a start of inliers alone is likely among many: with q
    coefficients and a share ε of outliers, each is one with probability (1 − ε)^q.

    References:
        P. J. Rousseeuw and K. Van Driessen, "Computing LTS regression for large data sets", Data
        Mining and Knowledge Discovery 12, 2006.
    """
    rows = np.flatnonzero(w > 0)
    half = min(max((len(rows) + A.shape[1] + 1) // 2, 1), len(rows))

    def best_half(chosen: np.ndarray) -> tuple[np.ndarray, float]:
        r = y - A @ least_squares(A[chosen], y[chosen], w[chosen])
        near = rows[np.argpartition(np.abs(r[rows]), half - 1)[:half]]
        return near, float(w[near] @ r[near] ** 2)

    few = []
    for _ in range(starts):
        chosen = rng.choice(rows, min(A.shape[1] + 1, len(rows)), replace=False)
        for _ in range(3):
            chosen, value = best_half(chosen)
        few.append((value, chosen))
    few.sort(key=lambda each: each[0])
    best = (math.inf, few[0][1])
    for value, chosen in few[:5]:
        for _ in range(_CONCENTRATIONS):
            chosen, new = best_half(chosen)
            if new >= value * (1 - 1e-12):
                break
            value = new
        best = min(best, (value, chosen), key=lambda each: each[0])
    out = np.zeros(len(y), bool)
    out[best[1]] = True
    return out


CRITERIA = ("threshold", "bic", "aic", "cv")


def most_consistent(
    A: np.ndarray, y: np.ndarray, w: np.ndarray, shifts: MeanShiftPath, start: np.ndarray
) -> np.ndarray:
    """Inliers among those of the snapshots whose refit has the least trimmed squares: bool (n,).

    λ = 2.5σ̂ needs a σ̂, and where a third of the samples lie on one side, that of the first fit
    hides them. So the path offers a candidate at each snapshot, with the best half of the
    residuals of its refit for a judge, which no minority of outliers can bribe.

    Args:
        A, y, w: as for `least_squares`.
        shifts: the path.
        start: bool (n,), a further candidate.
    """
    best, chosen, seen = math.inf, start, set()
    for inliers in (start, *(shifts.coefs == 0).T):
        if inliers.tobytes() in seen or w[inliers].sum() < w.sum() / 2:
            continue
        seen.add(inliers.tobytes())
        value = trimmed(y - A @ least_squares(A, y, w * inliers), w)
        if value < best * (1 - 1e-9):
            best, chosen = value, inliers
    return chosen


def criterion(
    A: np.ndarray, y: np.ndarray, w: np.ndarray, shifts: MeanShiftPath, per_outlier: str
) -> np.ndarray:
    """BIC* = m·log(RSS/m) + k(log m + 1) of the refit at each snapshot, m = n − rank A; (T,).

    k counts outliers; from n/2 of them on it is inf. "aic" has 2k in place of the last term.
    """
    rank = profile(A, w)[0].shape[1]
    m = max(float(w.sum()) - rank, 1.0)
    cost = 2.0 if per_outlier == "aic" else math.log(m) + 1
    out = np.full(len(shifts.ts), np.inf)
    floor = (100 * np.finfo(np.float64).eps * max(float(np.abs(y).max(initial=0)), 1e-300)) ** 2
    for k, inliers in enumerate((shifts.coefs == 0).T):
        outliers = float(w[~inliers].sum())
        if outliers <= w.sum() / 2:
            r = y - A @ least_squares(A, y, w * inliers)
            rss = float((w * inliers) @ r**2)
            out[k] = m * math.log(max(rss / m, floor)) + cost * outliers
    return out
