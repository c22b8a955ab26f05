"""Paths of split models, sparse in Dβ: `split_lbi_path`."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from dessilbi_jax.stats import losses, path
from dessilbi_jax.stats.design import (
    Entries,
    HostMatrix,
    back,
    entries,
    padded,
    times,
    top_eigenvalue,
)
from dessilbi_jax.stats.differences import difference_matrix, projected
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.limits import Limits, tell_early, tell_unfinished
from dessilbi_jax.stats.linear import (
    Array,
    Moments,
    Samples,
    gram_pays,
    intercept_of,
    noise,
    prepared,
    start_of,
)
from dessilbi_jax.stats.losses import Loss
from dessilbi_jax.stats.precision import padded_size, precision_of
from dessilbi_jax.stats.problem import MAX_ITER, Problem, group_numbers, read
from dessilbi_jax.stats.result import PathResult


class Split(NamedTuple):
    """Data of a split model: those of the loss, D, and 1/ν."""

    inner: Samples | Moments
    D: Entries
    pull: Array


def _split(loss: Loss, by_gram: bool) -> path.Model:
    """∇_β = ∇ℓ + Dᵀ(Dβ − γ)/ν, ∇_γ = (γ − Dβ)/ν; u is (β, a)."""

    def gradients(data: Split, u: Any, gamma: jax.Array) -> tuple[Any, jax.Array]:
        beta, intercept = u
        apart = (times(beta, data.D) - gamma) * data.pull
        inner: Any = data.inner
        if by_gram:
            to_beta, to_intercept = beta @ inner.gram - inner.cross, jnp.zeros_like(intercept)
        else:
            eta = inner.design.eta(beta) + intercept[..., None]
            r = inner.w * loss.slope(eta, inner.y)
            to_beta, to_intercept = inner.design.back(r), inner.lift * jnp.sum(r, axis=-1)
        return (to_beta + back(apart, data.D), to_intercept), -apart

    return path.Model(gradients)


MODELS = {
    (loss.name, by_gram): _split(loss, by_gram)
    for loss in losses.FAMILIES.values()
    for by_gram in (False, True)
}


@dataclasses.dataclass(frozen=True, repr=False)
class SplitPath(PathResult):
    """A path of a split model; `coefs` are sparse: the dense ones projected on the support of γ.

    What enters are the rows of D: `dual`, `entry_times`, `entry_signs` and `order` are theirs, so
    the shape of γ is (m,) or (C, m).

    Attributes:
        dense_coefs: β, in the shape of `coefs`, in the units of X and y: the ones that predict
            best, since they keep what is too weak to be selected.
        dense_intercepts: the intercepts that go with them.
        nu: ν.
    """

    dense_coefs: np.ndarray = dataclasses.field(kw_only=True)
    dense_intercepts: np.ndarray = dataclasses.field(kw_only=True)
    nu: float = dataclasses.field(kw_only=True)
    _D: HostMatrix = dataclasses.field(kw_only=True)

    def selected(self, t: float) -> np.ndarray:
        """Which rows of D are selected at t, bool (m,) or (C, m). Raises as `at` does."""
        return self._groups.shrunk_on_host(self._between(self.dual, t)) != 0

    def dense_at(self, t: float) -> np.ndarray:
        """β at t, in the units of X and y. Raises as `at` does."""
        return self._between(self.dense_coefs, t)

    def at(self, t: float) -> np.ndarray:
        """The sparse coefficients at t: β projected on {β : (Dβ)_j = 0 for all j not selected}.

        Raises:
            ValueError: t is not positive, or behind the end of the path.
        """
        standard = self.dense_at(t) / self._back
        out: np.ndarray = projected_all(standard, self._D, self.selected(t)) * self._back
        return out.astype(self.coefs.dtype)

    def dense_intercept_at(self, t: float) -> Any:
        """The intercept that goes with `dense_at`. Raises as `at` does."""
        return self._between(self.dense_intercepts, t)

    def parts(
        self, t: float, threshold: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """β at t as strong + weak + noise (MSplit LBI), each in its shape.

        Strong is the sparse estimate, `at(t)`. Of what is left, in standardised units, entries
        above the threshold are weak signals and the others noise.

        Args:
            t: the time. Raises as `at` does.
            threshold: in standardised units; None: 2.5 · 1.4826 times the median modulus of what
                is left, so that little of a normal bulk passes. The choice is ours.

        References:
            B. Zhao, X. Sun, Y. Fu, Y. Yao and Y. Wang, "MSplit LBI: realizing feature selection
            and dense estimation simultaneously in few-shot and zero-shot learning", ICML 2018.
        """
        strong = self.at(t)
        rest = self.dense_at(t) - strong
        size = np.abs(rest / self._back)
        if threshold is None:
            threshold = 2.5 * 1.4826 * float(np.median(size[size > 0])) if size.any() else 0.0
        weak = np.where(size > threshold, rest, 0)
        return strong, weak, rest - weak

    @property
    def _back(self) -> np.ndarray:
        """From standardised coefficients to those of X; constant columns have none."""
        return np.where(self._factor == 0, 1, self._factor)


def projected_all(beta: np.ndarray, D: HostMatrix, support: np.ndarray) -> np.ndarray:
    """`projected` of (p,), or of each row of (C, p)."""
    if beta.ndim == 1:
        return projected(beta, D, support)
    return np.stack([projected(b, D, s) for b, s in zip(beta, support, strict=True)])


def split_lbi_path(
    X: Any,
    y: Any,
    *,
    D: Any = None,
    edges: Any = None,
    nu: float | None = None,
    kappa: float = 10.0,
    alpha: float | None = None,
    family: str = "gaussian",
    groups: Any = None,
    fit_intercept: bool = True,
    standardize_y: bool = True,
    sample_weight: Any = None,
    ts: Any = None,
    nt: int = 100,
    ratio: float | None = None,
    t_max: float | None = None,
    max_support: int | None = None,
    until_all_entered: bool = False,
    max_iter: int = MAX_ITER,
    gram: bool | str = "auto",
) -> SplitPath:
    """Path of a linear model that is sparse in Dβ, by Split LBI.

    Of L(β, a) + ‖Dβ − γ‖²/(2ν), with γ = κ·prox(V) and L as in `lbi_path`,

        β ← β − κα(∇_β L + Dᵀ(Dβ − γ)/ν),   a ← a − κα‖X‖² ∇_a L,   V ← V − α(γ − Dβ)/ν.

    γ says what is selected; β is dense, and its projection on what is selected sparse. The larger
    ν, the less correlated columns hide each other, and the looser β follows γ.

    Args:
        ts, nt, t_max, max_support, until_all_entered, max_iter, gram: as for `lbi_path`.
        X, y, kappa, family, fit_intercept, standardize_y, sample_weight: as there. Columns of X are
            divided each by its standard deviation if D is the identity, all by one number if not,
            so that D acts on coefficients of the same units.
        D: (m, p), dense or sparse; None: the identity; "fused": differences of neighbours;
            "graph": differences along `edges`.
        edges: (m, 2), pairs of columns; `grid_edges` gives those of a grid.
        nu: ν > 0; None: ‖D‖²/(2Λ₀), with Λ₀ the largest eigenvalue of the Hessian of L in β.
        alpha: length of a step; None: 1/(κΛ), Λ = (1 + ‖D‖²)/ν + Λ₀.
        groups: None, or labels (m,) of the rows of D that enter together.
        ratio: last over first time; 100 by default.

    Returns:
        The path; `coefs` are the sparse coefficients, `dense_coefs` β.

    Raises:
        ValueError: as `lbi_path`; D of another width; ν out of range.

    References:
        C. Huang, X. Sun, J. Xiong and Y. Yao, "Boosting with structural sparsity: a differential
        inclusion approach", Applied and Computational Harmonic Analysis 48(1), 2020.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats import split_lbi_path
        >>> X = np.array([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])  # orthogonal
        >>> path = split_lbi_path(X, X @ [3.0, -1, 0], nu=1.0, kappa=50, standardize_y=False)
        >>> path.entry_times.round(3)  # (1 + ν)/|β|
        array([0.667, 2.   ,   inf])
        >>> path.at(1.0).round(2), path.dense_at(1.0).round(2)
        (array([3., 0., 0.]), array([ 3. , -0.5,  0. ]))
    """
    problem = read(
        X, y, family=family, sample_weight=sample_weight, fit_intercept=fit_intercept,
        scaled="each" if D is None else "common", standardize_y=standardize_y,
    )  # fmt: skip
    matrix = difference_matrix(D, problem.shape[-1], edges)
    limits = Limits(
        ts, nt, 100.0 if ratio is None else ratio, t_max, max_support, until_all_entered, max_iter
    )
    out = follow(problem, matrix, nu, kappa, alpha, groups, limits, gram)
    tell_early(out, limits)
    return out


def follow(
    problem: Problem,
    D: HostMatrix,
    nu: float | None,
    kappa: float,
    alpha: float | None,
    groups: Any,
    limits: Limits,
    gram: bool | str = "auto",
) -> SplitPath:
    """`split_lbi_path` of a problem that was read."""
    n, p = problem.columns.x.shape
    m = D.shape[0]
    numbers = group_numbers(groups, m, "rows of D")
    by_gram = problem.loss is losses.GAUSSIAN and (gram_pays(n, p) if gram == "auto" else gram)
    shift, inv = problem.columns.moments(problem.w)
    size = top_eigenvalue(D @ D.T if m < p else D.T @ D)
    tall, wide = padded_size(m), padded_size(p)
    shape = (*problem.shape[:-1], tall)
    real = np.broadcast_to(np.arange(tall) < m, shape).reshape(-1)
    penalty = Groups(shape)
    if numbers is not None:
        count = int(numbers.max()) + 1
        joint = (*numbers.tolist(), *[count] * (tall - m))
        penalty = Groups(shape, (*[1] * (len(shape) - 1), tall), joint)
        real = np.arange(len(set(joint))) < count
    with precision_of(problem.dtype):
        _, inner, _, bound = prepared(problem, problem.w, bool(by_gram))
        if nu is None:
            nu = size / (2 * bound) if bound > 0 else 1.0
        if not 0 < nu < math.inf:
            raise ValueError(f"nu must be a positive finite number, got {nu}")
        alpha = path.step_length(kappa, bound + (1 + size) / nu, alpha)
        start = _start(problem, D, nu, shift, inv)
        first = (padded(start[0], (*problem.shape[:-1], wide)), start[1])
        data = Split(inner, entries(D, problem.dtype, (tall, wide)), np.asarray(1 / nu))
        data, first = jax.tree.map(
            lambda x: jnp.asarray(x, problem.dtype if x.dtype == np.float64 else x.dtype),
            (data, first),
        )
        trace = path.finished(
            path.run(
                MODELS[problem.loss.name, bool(by_gram)], penalty, data, first, kappa=kappa,
                alpha=alpha, floor=noise(problem) * math.sqrt(size) / nu,
                **limits.arguments(False, int(real.sum())),
            )
        )  # fmt: skip
    tell_unfinished(trace, limits)
    factor = problem.columns.factor(inv) * problem.y_unit
    centre = problem.columns.centre(shift) * problem.fit_intercept
    beta = np.asarray(trace.u[0])[..., :p].astype(np.float64)
    chosen = np.asarray(trace.gamma)[..., :m] != 0
    thin = _projections(beta, D, chosen)
    base = (
        np.asarray(trace.u[1]) if problem.loss.with_intercept else intercept_of(problem, problem.w)
    )
    coefs, dense = (np.moveaxis(b * factor, 0, -1).astype(problem.dtype) for b in (thin, beta))
    base = np.moveaxis(np.asarray(trace.u[1]), 0, -1)  # zeros for the Gaussian
    if not problem.loss.with_intercept:
        base = base + intercept_of(problem, problem.w)
    intercepts, dense_intercepts = (
        (base - np.einsum("...pt,p->...t", b, centre)).astype(problem.dtype) for b in (coefs, dense)
    )
    order = path.ranking(penalty, trace)
    times_ = np.asarray(trace.entry_times).reshape(-1)[penalty.firsts][real]
    inner_shape = (*problem.shape[:-1], m)
    cells = None if penalty.counts is None else (*penalty.counts[:-1], m)
    return SplitPath(
        ts=np.asarray(trace.ts),
        coefs=coefs,
        intercepts=intercepts,
        dual=np.moveaxis(np.asarray(trace.v)[..., :m], 0, -1),
        entry_times=times_.reshape(inner_shape) if numbers is None else times_,
        entry_signs=np.asarray(trace.entry_signs)[..., :m].astype(np.int8),
        order=(np.cumsum(real) - 1)[order[real[order]]],
        kappa=float(kappa),
        alpha=float(alpha),
        n_iter=int(trace.n_iter),
        _groups=Groups(inner_shape, cells, None if numbers is None else tuple(numbers.tolist())),
        _factor=factor,
        _centre=centre,
        dense_coefs=dense,
        dense_intercepts=dense_intercepts,
        nu=float(nu),
        _D=D,
    )


def _projections(beta: np.ndarray, D: HostMatrix, chosen: np.ndarray) -> np.ndarray:
    return np.stack([projected_all(b, D, s) for b, s in zip(beta, chosen, strict=True)])


def _start(
    problem: Problem, D: HostMatrix, nu: float, shift: np.ndarray, inv: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(β₀, a₀) = argmin L(β, a) + ‖Dβ‖²/(2ν): by its equation for the Gaussian, else L-BFGS."""
    columns, w, y = problem.columns, problem.w, problem.y
    if problem.loss is losses.GAUSSIAN:
        matrix = columns.gram(w, shift, inv) + (D.T @ D).toarray() / nu
        values, vectors = np.linalg.eigh(matrix)
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
        scaled = (columns.slope(w * y, shift, inv) @ vectors) / np.where(kept, values, 1)
        return vectors @ np.where(kept, scaled, 0), np.zeros(())
    intercept = np.asarray(start_of(problem, w), np.float64)

    def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[: -intercept.size].reshape(problem.shape), x[-intercept.size :].reshape(
            intercept.shape
        )

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        beta, a = both(x)
        eta = columns.eta(beta, shift, inv) + a[..., None]
        r = w * problem.loss.slope_on_host(eta, y)
        out = (D @ beta.T).T
        slope = columns.slope(r, shift, inv) + (D.T @ out.T).T / nu
        to_a = r.sum(axis=-1) * problem.fit_intercept
        total = w @ problem.loss.value(eta, y) + np.sum(out**2) / (2 * nu)
        return float(total), np.append(slope.reshape(-1), to_a)

    begin = np.append(np.zeros(problem.shape), intercept)
    options = {"maxiter": 5000, "maxfun": 10_000, "gtol": 1e-10, "ftol": 1e-15}
    found = optimize.minimize(value, begin, jac=True, method="L-BFGS-B", options=options)
    return both(found.x)
