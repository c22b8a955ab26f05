"""Paths of many folds at once: one X, weights for each, under `jax.vmap`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.stats import path
from dessilbi_jax.stats.design import Design, padded
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.linear import (
    DIRECT,
    WHOLE_GRAM,
    Moments,
    Samples,
    gram_pays,
    grouped,
    intercept_of,
    noise,
    prepared,
    start_of,
)
from dessilbi_jax.stats.losses import GAUSSIAN
from dessilbi_jax.stats.precision import LEAST_ROWS, padded_size, precision_of
from dessilbi_jax.stats.problem import Problem

# Matrices of this size still fit the caches; larger ones are better shared.
_GRAM_UP_TO = 128
_OVER_FOLDS = Samples(Design(None, 0, 0), None, 0, 0)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames=("model", "penalty"))
def _follow(
    model: path.Model, penalty: Groups, data: Any, start: Any, alpha: Any, **limits: Any
) -> Any:
    def one(data: Any, start: Any, alpha: Any) -> Any:
        trace = path.follow(model, penalty, data, start, alpha=alpha, **limits)
        return trace.gamma, trace.u

    shared = _OVER_FOLDS if isinstance(data, Samples) else 0
    return jax.vmap(one, in_axes=(shared, 0, 0))(data, start, alpha)


def follow_folds(
    problem: Problem, weights: np.ndarray, kappa: float, alpha: float | None, groups: Any,
    ts: np.ndarray, max_iter: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Coefficients and intercepts at the same times for different weights of the samples.

    Args:
        problem: what was read; the units of y, and so of κ, α and ts, are its own.
        weights: (K, n), each of sum 1; 0 leaves a sample out.
        kappa, alpha, groups, max_iter: as for `lbi_path`; α None: each its own.
        ts: times of the snapshots.

    Returns:
        (K, p, T) and (K, T), or (K, C, p, T) and (K, C, T), in the units of X and y.
    """
    penalty, _ = grouped(problem, groups)
    n, p = problem.columns.x.shape
    by_gram = problem.loss is GAUSSIAN and gram_pays(n, p) and p <= _GRAM_UP_TO
    moments = [problem.columns.moments(w) for w in weights]
    shift, inv = (np.stack(each) for each in zip(*moments, strict=True))
    with precision_of(problem.dtype):
        data: Any
        if by_gram:
            model = WHOLE_GRAM
            each = [prepared(problem, w, True) for w in weights]
            data = Moments(
                *(np.stack(part) for part in zip(*(one[1] for one in each), strict=True))
            )
            bounds = [one[3] for one in each]
        else:
            model = DIRECT[problem.loss.name]
            squares = [
                problem.columns.square_norm(w, *moment)
                for w, moment in zip(weights, moments, strict=True)
            ]
            rows = padded_size(n, LEAST_ROWS)
            data = Samples(
                problem.columns.on_device(shift, inv, problem.dtype),
                padded(problem.y, (*problem.y.shape[:-1], rows)).astype(problem.dtype),
                padded(weights, (len(weights), rows)).astype(problem.dtype),
                np.asarray(squares, problem.dtype) * problem.fit_intercept,
            )
            bounds = [problem.loss.curvature * square for square in squares]
        starts = [start_of(problem, w) for w in weights]
        start = np.stack(starts) if problem.loss.with_intercept else ()
        lengths = [path.step_length(kappa, bound, alpha) for bound in bounds]
        data, start = jax.tree.map(jnp.asarray, (data, start))
        gamma, u = _follow(
            model, penalty, data, start, jnp.asarray(np.asarray(lengths, problem.dtype)),
            kappa=kappa, ts=jnp.asarray(ts, problem.dtype), max_iter=max_iter,
            floor=noise(problem),
        )  # fmt: skip
    coefs, intercepts = [], []
    for k, w in enumerate(weights):
        factor = problem.columns.factor(inv[k]) * problem.y_unit
        centre = problem.columns.centre(shift[k]) * problem.fit_intercept
        coefs.append(np.moveaxis(np.asarray(gamma[k])[..., :p] * factor, 0, -1))
        free = problem.loss.with_intercept
        base: Any = np.moveaxis(np.asarray(u[k]), 0, -1) if free else intercept_of(problem, w)
        intercepts.append(base - np.einsum("...pt,p->...t", coefs[-1], centre))
    return np.stack(coefs), np.stack(intercepts)
