"""Splitting by ADMM: weights that are pulled towards their own projection on k entries.

min L(W) subject to Z = W, where Z has k non-zero entries (Zhang et al. 2018; Ye et al. 2018). Where
DessiLBI lets Γ grow from zero, Z has its final size from the start.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals.dynamic import largest
from benchmarks.rivals.rival import Found, Rival, spent

Tree = Any
Pieces = list[jax.Array]

DENSE_SHARE = 0.25  # of the run: stands for the trained network that the papers start from


class ADMMState(NamedTuple):
    """Z and U of the kernels, in their order; k, the size of Z."""

    count: jax.Array
    k: jax.Array
    z: Pieces
    u: Pieces


def projection(pieces: Pieces, k: jax.Array) -> Pieces:
    """The k largest magnitudes of all pieces together, zeros elsewhere; k may be traced."""
    flat = jnp.concatenate([p.ravel() for p in pieces])
    kept = jnp.where(largest(jnp.abs(flat), k), flat, 0)
    out, at = [], 0
    for p in pieces:
        out.append(kept[at : at + p.size].reshape(p.shape))
        at += p.size
    return out


@functools.lru_cache(16)
def pull(rho: float, interval: int, first: int) -> optax.GradientTransformation:
    """Adds the gradient of ρ/2 ‖W − Z + U‖² to that of the loss; stands first in the chain.

    Every `interval` updates from `first` on: Z ← the projection of W + U on its k largest entries,
    then U ← U + W − Z. Until the first time Z and U are not there and nothing is added.

    Args:
        rho: ρ.
        interval: updates between two of Z.
        first: number of updates done before the first one.
    """

    def init(params: Tree) -> ADMMState:
        zeros = [jnp.zeros_like(w) for w in masks.kernels(params)]
        size = jnp.asarray(masks.size(params), jnp.int32)
        return ADMMState(jnp.zeros((), jnp.int32), size, zeros, zeros)

    def split(w: Pieces, u: Pieces, k: jax.Array) -> tuple[Pieces, Pieces]:
        sums = [a + b for a, b in zip(w, u, strict=True)]
        z = projection(sums, k)
        return z, [a - b for a, b in zip(sums, z, strict=True)]

    def update(grads: Tree, state: ADMMState, params: Tree) -> tuple[Tree, ADMMState]:
        w = masks.kernels(params)
        since = state.count - first
        z, u = jax.lax.cond(
            (since >= 0) & (since % interval == 0),
            lambda: split(w, state.u, state.k),
            lambda: (state.z, state.u),
        )
        there = rho * (since >= 0)
        rest = iter([there * (a - b + c) for a, b, c in zip(w, z, u, strict=True)])
        pulled = jax.tree.map(lambda g: g + next(rest) if g.ndim >= 2 else g, grads)
        return pulled, ADMMState(state.count + 1, state.k, z, u)

    return optax.GradientTransformation(init, update)


@functools.lru_cache(16)
def _admm(
    rate: optax.Schedule, momentum: float, rho: float, interval: int, first: int
) -> optax.GradientTransformation:
    return optax.chain(pull(rho, interval, first), optax.sgd(rate, momentum))


def admm(work: Work, density: float, *, rho: float = 1e-2, interval: int | None = None) -> Found:
    """One run of ADMM, then W on the support of the projection of W + U.

    Args:
        work: what is trained.
        density: of Z.
        rho: ρ.
        interval: updates between two of Z; an epoch unless told.
    """
    before = work.cost
    first = round(DENSE_SHARE * work.steps())
    tx = _admm(work.rate(), work.setting.momentum, rho, interval or work.steps(1), first)
    fresh = tx.init(work.params)
    k = round(density * masks.size(work.params))
    state = (fresh[0]._replace(k=jnp.asarray(k, jnp.int32)), *fresh[1:])
    end = work.train(tx, state=state)
    sums = [a + b for a, b in zip(masks.kernels(end.params), end.state[0].u, strict=True)]
    mask = masks.top(work.params, [abs(s) for s in sums], density)
    return Found(mask, spent(work, before), dl.project(end.params, mask), end.stats)


RIVALS: tuple[Rival, ...] = (
    Rival(
        name="ADMM",
        find=admm,
        trials=tuple(
            {"rho": rho, "interval": interval}
            for interval in (None, 100)
            for rho in (1e-2, 3e-3, 3e-2, 1e-1)
        ),
        source="Zhang et al. 2018, A systematic DNN weight pruning framework using ADMM; Ye et al. "
        "2018, Progressive weight pruning of deep neural networks using ADMM",
        assumed="One size for all kernels together instead of one a kernel, as none is asked for. "
        "The trained network that the papers start from is the first quarter of the one run. ρ is "
        "constant. Momentum goes on between updates of Z. The mask is the support of a last "
        "projection of W + U. Its own network is W cut to it; the retraining of what is left, with "
        "which the papers end, is that of all methods here.",
    ),
)
