"""Paths of linear models by linearized Bregman iterations: `lbi_path`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.stats import losses, path
from dessilbi_jax.stats.design import Design, padded, top_eigenvalue
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.limits import Limits, tell_early, tell_separation, tell_unfinished
from dessilbi_jax.stats.losses import Loss
from dessilbi_jax.stats.path import Trace
from dessilbi_jax.stats.precision import LEAST_ROWS, padded_size, precision_of
from dessilbi_jax.stats.problem import MAX_ITER, Problem, group_numbers, read
from dessilbi_jax.stats.result import PathResult

# From here on the Gram matrix no longer fits the caches, and reading only the rows of Γ's support
# saves more than the detour costs.
_ROWS_FROM = 512


Array: TypeAlias = Any  # NumPy's until the driver is called, then JAX's


class Samples(NamedTuple):
    """Data of the direct form. `lift` is P of the intercept: 0 where there is none."""

    design: Design
    y: Array
    w: Array
    lift: Array


class Moments(NamedTuple):
    """Data of the Gram form: X̃ᵀWX̃ and X̃ᵀWy."""

    gram: Array
    cross: Array


def _direct(loss: Loss) -> path.Model:
    """∇_Γ L = Σ w ∂ℓ X̃, ∇_a L = Σ w ∂ℓ; the intercept moves ‖X̃‖² times as fast."""

    def gradients(data: Samples, u: Any, gamma: jax.Array) -> tuple[Any, jax.Array]:
        eta = data.design.eta(gamma)
        if loss.with_intercept:
            r = data.w * loss.slope(eta + u[..., None], data.y)
            return data.lift * jnp.sum(r, axis=-1), data.design.back(r)
        return (), data.design.back(data.w * loss.slope(eta, data.y))

    return path.Model(gradients)


def _whole_gram(data: Moments, u: Any, gamma: jax.Array) -> tuple[Any, jax.Array]:
    return (), data.gram @ gamma - data.cross


def _rows_of_gram(data: Moments, u: Any, gamma: jax.Array) -> tuple[Any, jax.Array]:
    """The same from the rows in the support of Γ: 2p|S| operations in place of 2p²."""
    p = gamma.shape[0]
    sizes = [p // 32, p // 16, p // 8, p // 4, p // 2]
    count = jnp.sum(gamma != 0)

    def product(size: int) -> Callable[[Any], jax.Array]:
        def rows(_: Any) -> jax.Array:
            index = jnp.nonzero(gamma, size=size, fill_value=0)[0]
            return jnp.where(jnp.arange(size) < count, gamma[index], 0) @ data.gram[index]

        return rows

    which = jnp.sum(jnp.asarray([count > size for size in sizes]))
    forms = [*map(product, sizes), lambda _: gamma @ data.gram]
    return (), jax.lax.switch(which, forms, None) - data.cross


DIRECT = {loss.name: _direct(loss) for loss in losses.FAMILIES.values()}
WHOLE_GRAM, ROWS_OF_GRAM = path.Model(_whole_gram), path.Model(_rows_of_gram)


def gram_pays(n: int, p: int) -> bool:
    """Whether the Gram form is the faster one: p² numbers are read a step, against 2np.

    Example:
        >>> from dessilbi_jax.stats.linear import gram_pays
        >>> gram_pays(500, 1000), gram_pays(100, 1000)
        (True, False)
    """
    return p <= 2 * n


def lbi_path(
    X: Any,
    y: Any,
    *,
    kappa: float,
    alpha: float | None = None,
    family: str = "gaussian",
    groups: Any = None,
    fit_intercept: bool = True,
    standardize_X: bool = True,
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
) -> PathResult:
    """Path of a linear model by linearized Bregman iterations (LBI).

    Of the loss L(β, a) of the standardised columns, with β = κ·prox(V),

        V ← V − α∇_β L,   a ← a − κα‖X‖² ∇_a L,

    where prox is sgn(V)(|V| − 1)₊, or by groups (1 − 1/‖V_g‖)₊V_g. L is the mean over samples of
    (y − η)²/2, log(1 + e^{−yη}) or the cross-entropy of the softmax, η = Xβ + a. As κ grows the
    path becomes that of the inverse scale space, `iss_path`, whose estimates are not shrunk as the
    lasso's are; steps grow with κ.

    Args:
        X: (n, p), dense or sparse; float32 is computed in float32, all else in float64.
        y: (n,) numbers, or labels of the classes.
        kappa: κ > 0. With `standardize_y` it does not depend on the scale of y; 10 to 100 is
            usual then.
        alpha: length of a step; None: 1/(κΛ), Λ the largest eigenvalue of the Hessian. From twice
            that on it diverges.
        family: "gaussian", "binomial" (two classes, coefficients of the second in sorted order)
            or "multinomial" (one row of coefficients a class).
        groups: None: each coefficient enters by itself. Labels (p,): columns of one label enter
            together (for all classes). "columns" (multinomial): each column is a group.
        fit_intercept: whether there is an intercept, not penalised.
        standardize_X: whether columns are divided by their standard deviation; they are centred
            in any case if there is an intercept.
        standardize_y: whether y of the Gaussian is divided by its standard deviation. If not, κ, α
            and t are in the units of y.
        sample_weight: (n,), not negative.
        ts: times of the snapshots; None: a geometric grid from the first entry on.
        nt: number of snapshots.
        ratio: last over first time; None: 100, or 20 where n < p.
        t_max: last time, in place of `ratio`.
        max_support: stop once so many coefficients or groups are not zero.
        until_all_entered: stop once all have entered.
        max_iter: most steps; a warning tells if they were too few.
        gram: whether the Gaussian computes with XᵀX (p²) in place of X (np); "auto": if p ≤ 2n.

    Returns:
        The path, coefficients in the units of X and y.

    Raises:
        ValueError: data as scikit-learn's estimators refuse them, or arguments out of range.

    Warns:
        ConvergenceWarning: `max_iter` ended it; or the classes are separated by a plane, so that
            coefficients grow with t without end, and no end was given by t_max, ts or max_support.

    References:
        S. Osher, F. Ruan, J. Xiong, Y. Yao and W. Yin, "Sparse recovery via differential
        inclusions", Applied and Computational Harmonic Analysis 41(2), 2016.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats import lbi_path
        >>> X = np.array([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])  # orthogonal
        >>> path = lbi_path(X, X @ [3.0, -1, 0], kappa=50.0, standardize_y=False)
        >>> path.entry_times  # 1/|β|
        array([0.33333333, 1.        ,        inf])
        >>> path.at(2.0).round(6)
        array([ 3., -1.,  0.])
        >>> path.order, path.support(0.5)
        (array([0, 1, 2]), array([ True, False, False]))
    """
    problem = read(
        X, y, family=family, sample_weight=sample_weight, fit_intercept=fit_intercept,
        scaled="each" if standardize_X else "no", standardize_y=standardize_y,
    )  # fmt: skip
    limits = Limits(ts, nt, ratio, t_max, max_support, until_all_entered, max_iter)
    out = follow(problem, kappa, alpha, groups, limits, gram)
    tell_early(out, limits)
    capped = any(end is not None for end in (ts, t_max, max_support))
    if problem.classes is not None and not capped:
        tell_separation(problem, X, out)
    return out


def follow(
    problem: Problem,
    kappa: float,
    alpha: float | None,
    groups: Any,
    limits: Limits,
    gram: bool | str = "auto",
) -> PathResult:
    """`lbi_path` of a problem that was read."""
    if gram not in (True, False, "auto"):
        raise ValueError(f"gram must be True, False or 'auto', got {gram!r}")
    penalty, real = grouped(problem, groups)
    n, p = problem.columns.x.shape
    by_gram = problem.loss is losses.GAUSSIAN and (gram_pays(n, p) if gram == "auto" else gram)
    with precision_of(problem.dtype):
        model, data, start, bound = prepared(problem, problem.w, bool(by_gram))
        alpha = path.step_length(kappa, bound, alpha)
        data, start = jax.tree.map(jnp.asarray, (data, start))
        limit = limits.arguments(problem.weight < p, int(real.sum()))
        trace = path.finished(
            path.run(
                model, penalty, data, start, kappa=kappa, alpha=alpha,
                floor=noise(problem), **limit,
            )
        )  # fmt: skip
    tell_unfinished(trace, limits)
    shift, inv = problem.columns.moments(problem.w)
    return result(problem, penalty, real, trace, kappa, alpha, shift, inv)


def noise(problem: Problem) -> float:
    """A slope at zero that is nothing but rounding."""
    size = math.sqrt(problem.w @ np.sum(np.atleast_2d(problem.y) ** 2, axis=0))
    return 10 * float(np.finfo(problem.dtype).eps) * size


def prepared(problem: Problem, w: np.ndarray, by_gram: bool) -> tuple[path.Model, Any, Any, float]:
    """Model, data and start for weights w of the samples, on the host but for X; and Λ."""
    columns, dtype = problem.columns, problem.dtype
    shift, inv = columns.moments(w)
    n, p = columns.x.shape
    rows, wide = padded_size(n, LEAST_ROWS), padded_size(p)
    if by_gram:
        gram = columns.gram(w, shift, inv)
        cross = columns.slope(w * problem.y, shift, inv)
        moments = Moments(
            padded(gram, (wide, wide)).astype(dtype), padded(cross, (wide,)).astype(dtype)
        )
        model = ROWS_OF_GRAM if wide >= _ROWS_FROM else WHOLE_GRAM
        top = top_eigenvalue(gram) if p <= 512 else columns.square_norm(w, shift, inv)
        return model, moments, (), problem.loss.curvature * top
    square = columns.square_norm(w, shift, inv)
    samples = Samples(
        columns.on_device(shift, inv, dtype),
        padded(problem.y, (*problem.y.shape[:-1], rows)).astype(dtype),
        padded(w, (rows,)).astype(dtype),
        np.asarray(square if problem.fit_intercept else 0.0, dtype),
    )
    return (
        DIRECT[problem.loss.name], samples, start_of(problem, w),
        problem.loss.curvature * square,
    )  # fmt: skip


def start_of(problem: Problem, w: np.ndarray) -> Any:
    """u₀: the intercept where all coefficients are zero."""
    if not problem.loss.with_intercept:
        return ()
    at = losses.start_of_intercept(problem.loss, problem.y, w)
    return (at if problem.fit_intercept else np.zeros_like(at)).astype(problem.dtype)


def grouped(problem: Problem, groups: Any) -> tuple[Groups, np.ndarray]:
    """The penalty over padded columns, and which of its groups are real ones (not padding)."""
    *classes, p = problem.shape
    wide = padded_size(p)
    shape = (*classes, wide)
    if isinstance(groups, str):
        if groups != "columns" or not classes:
            raise ValueError(
                f"groups={groups!r}: it must be labels of the columns, None, or 'columns' with "
                "family='multinomial'"
            )
        return Groups(shape, (1, wide)), np.arange(wide) < p
    numbers = group_numbers(groups, p)
    if numbers is None:
        return Groups(shape), np.broadcast_to(np.arange(wide) < p, shape).reshape(-1)
    count = int(numbers.max()) + 1
    joint = tuple(numbers.tolist()) + (count,) * (wide - p)
    cells = (1, wide) if classes else (wide,)
    return Groups(shape, cells, joint), np.arange(len(set(joint))) < count


def result(
    problem: Problem,
    penalty: Groups,
    real: np.ndarray,
    trace: Trace,
    kappa: float,
    alpha: float,
    shift: np.ndarray,
    inv: np.ndarray,
) -> PathResult:
    """A finished trace in the units of X and y, without the padding."""
    p = problem.shape[-1]
    factor = problem.columns.factor(inv) * problem.y_unit
    centre = problem.columns.centre(shift) if problem.fit_intercept else np.zeros(p)
    coefs = np.moveaxis(np.asarray(trace.gamma)[..., :p] * factor, 0, -1).astype(problem.dtype)
    if problem.loss.with_intercept:
        base = np.moveaxis(np.asarray(trace.u), 0, -1)
    else:
        base = np.full(len(trace.ts), intercept_of(problem, problem.w))
    intercepts = base - np.einsum("...pt,p->...t", coefs, centre)
    order = path.ranking(penalty, trace)
    order = (np.cumsum(real) - 1)[order[real[order]]]
    times = np.asarray(trace.entry_times).reshape(-1)[penalty.firsts][real]
    by_element = penalty.joint is None and penalty.counts is None
    joint = None if penalty.joint is None else penalty.joint[:p]
    cells = None if penalty.counts is None else (*penalty.counts[:-1], p)
    return PathResult(
        ts=np.asarray(trace.ts),
        coefs=coefs,
        intercepts=intercepts.astype(problem.dtype),
        dual=np.moveaxis(np.asarray(trace.v)[..., :p], 0, -1),
        entry_times=times.reshape(problem.shape) if by_element else times,
        entry_signs=np.asarray(trace.entry_signs)[..., :p].astype(np.int8),
        order=order,
        kappa=float(kappa),
        alpha=float(alpha),
        n_iter=int(trace.n_iter),
        _groups=Groups(problem.shape, cells, joint),
        _factor=factor,
        _centre=centre,
    )


def intercept_of(problem: Problem, w: np.ndarray) -> float:
    """The Gaussian's mean of y under weights w, in its own units."""
    if not problem.fit_intercept:
        return 0.0
    return problem.y_origin + problem.y_unit * float(w @ problem.y)
