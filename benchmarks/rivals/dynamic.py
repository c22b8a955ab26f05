"""Sparse from the first update, with a mask that moves: SET and RigL.

Both start from a random mask with densities by Erdős–Rényi-Kernel. Every so many updates each
kernel drops its smallest weights and gains as many new ones, which start at zero: SET (Mocanu et
al. 2018) at random positions, RigL (Evci et al. 2020) where the gradient of the loss is largest.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals.rival import Found, Rival, spent

Tree = Any


class DynamicState(NamedTuple):
    """The mask, the momentum of what it keeps, and what new positions are drawn with."""

    count: jax.Array
    mask: Tree
    momentum: Tree
    key: jax.Array


def largest(scores: jax.Array, n: jax.Array) -> jax.Array:
    """True at exactly n of the largest scores, none below zero; n may be traced.

    The n-th largest is found bit by bit, as floats from zero on are ordered as their bits: 31
    counts instead of a sort, which is slow on a CPU. Of equal scores the first ones are taken.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32).ravel()

    def longer(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | jnp.left_shift(jnp.int32(1), 30 - i)
        return jnp.where(jnp.sum(bits >= tried) >= n, tried, found)

    nth = jax.lax.fori_loop(0, 31, longer, jnp.int32(0))
    above, equal = bits > nth, bits == nth
    chosen = above | (equal & (jnp.cumsum(equal) <= n - jnp.sum(above)))
    return chosen.reshape(scores.shape)


def rewired(
    mask: jax.Array, w: jax.Array, scores: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One kernel's next mask.

    Args:
        mask: what is there.
        w: the weights.
        scores: non-negative; the highest ones are gained.
        share: of the weights that are there to be dropped.

    Returns:
        The weights of the old mask that stay, and the new mask, which has the old one's size. A
        weight that was just dropped may be gained at once, as in RigL's algorithm.
    """
    active = jnp.sum(mask)
    staying = active - jnp.round(share * active).astype(active.dtype)
    kept = largest(jnp.where(mask, jnp.abs(w), -1.0), staying)
    gained = largest(jnp.where(kept, -1.0, scores), active - staying)
    return kept, kept | gained


@functools.lru_cache(16)
def moving_mask(
    rate: optax.Schedule,
    momentum: float,
    every: int,
    last: int,
    drop: float,
    grow: Literal["random", "gradient"],
) -> optax.GradientTransformation:
    """SGD with momentum under a mask that moves.

    As in RigL's algorithm an update that moves the mask does not move the weights.

    Args:
        rate: learning rate.
        momentum: of SGD; weights that are dropped lose it.
        every: updates between two moves.
        last: number of updates after which the mask stays as it is.
        drop: share of each kernel's weights to drop. With "gradient" it falls with time t as
            drop/2 (1 + cos(π t/last)).
        grow: where new weights come: at random, or at the largest |∇L|.
    """

    def init(params: Tree) -> DynamicState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return DynamicState(
            jnp.zeros((), jnp.int32), masks.everything(params), zeros, jax.random.key(0)
        )

    def train(grads: Tree, state: DynamicState, params: Tree) -> tuple[Tree, Tree, Tree]:
        trace = jax.tree.map(
            lambda m, v, g: jnp.where(m, momentum * v + g, 0.0), state.mask, state.momentum, grads
        )
        step = -rate(state.count)
        updates = jax.tree.map(
            lambda m, v, w: jnp.where(m, step * v, -w), state.mask, trace, params
        )
        return updates, state.mask, trace

    def move(grads: Tree, state: DynamicState, params: Tree) -> tuple[Tree, Tree, Tree]:
        share = jnp.asarray(drop)
        if grow == "gradient":
            share = 0.5 * drop * (1 + jnp.cos(jnp.pi * state.count / last))
        key = jax.random.fold_in(state.key, state.count)
        treedef = jax.tree.structure(params)
        out = []
        for i, (m, w, g, v) in enumerate(
            zip(*map(jax.tree.leaves, (state.mask, params, grads, state.momentum)), strict=True)
        ):
            if w.ndim < 2:
                out.append((jnp.zeros_like(w), m, v))
                continue
            scores = jnp.abs(g)
            if grow == "random":
                scores = jax.random.uniform(jax.random.fold_in(key, i), w.shape)
            kept, mask = rewired(m, w, scores, share)
            out.append((jnp.where(kept, 0.0, -w), mask, jnp.where(kept, v, 0.0)))
        updates, mask, trace = (treedef.unflatten(part) for part in zip(*out, strict=True))
        return updates, mask, trace

    def update(grads: Tree, state: DynamicState, params: Tree) -> tuple[Tree, DynamicState]:
        moving = (state.count > 0) & (state.count % every == 0) & (state.count <= last)
        updates, mask, trace = jax.lax.cond(moving, move, train, grads, state, params)
        return updates, DynamicState(state.count + 1, mask, trace, state.key)

    return optax.GradientTransformation(init, update)


def _found(work: Work, density: float, tx: optax.GradientTransformation) -> Found:
    before = work.cost
    shares = masks.erdos_renyi(work.params, density)
    mask = masks.random(work.params, shares, density, work.seed)
    start = dl.project(work.params, mask)
    state = tx.init(start)._replace(mask=mask, key=jax.random.key(work.seed))
    end = work.train(tx, start, state=state)
    told = {"sparse_runs": density}  # but for RigL's dense gradients where the mask moves
    return Found(end.state.mask, spent(work, before), end.params, end.stats, told)


def set_(work: Work, density: float, *, drop: float = 0.3, every: int | None = None) -> Found:
    """SET: drops a share of each kernel every so many updates, an epoch unless told."""
    every = every or work.steps(1)
    last = work.steps() - every  # at least as long after the last move as between two
    momentum = work.setting.momentum
    return _found(work, density, moving_mask(work.rate(), momentum, every, last, drop, "random"))


def rigl(work: Work, density: float, *, drop: float = 0.3, every: int = 100) -> Found:
    """RigL: drops drop/2 (1 + cos(π t/T)) of each kernel; T is 75 % of the run."""
    last = max(1, round(0.75 * work.steps()))
    momentum = work.setting.momentum
    return _found(work, density, moving_mask(work.rate(), momentum, every, last, drop, "gradient"))


_SHARED = (
    "Weights that are kept start as in the dense network. Weights that are dropped and gained "
    "again at once start at zero too. An update that moves the mask does not train. "
)

RIVALS: tuple[Rival, ...] = (
    Rival(
        name="SET",
        find=set_,
        trials=tuple(
            {"drop": drop, "every": every} for every in (None, 100) for drop in (0.3, 0.1, 0.2, 0.5)
        ),
        source="Mocanu et al. 2018, Scalable training of artificial neural networks with adaptive "
        "sparse connectivity inspired by network science",
        assumed=_SHARED + "The smallest magnitudes are dropped, positive and negative together. "
        "Densities by Erdős–Rényi-Kernel, as RigL's authors give SET.",
    ),
    Rival(
        name="RigL",
        find=rigl,
        trials=tuple(
            {"drop": drop, "every": every} for every in (100, 400) for drop in (0.3, 0.1, 0.2, 0.5)
        ),
        source="Evci et al. 2020, Rigging the lottery: making all tickets winners",
        assumed=_SHARED + "The gradient is that of the update's own batch.",
    ),
)
