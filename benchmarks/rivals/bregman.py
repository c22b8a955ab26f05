"""Linearised Bregman iterations: few weights at the start, more as the gradient asks for them.

Bungert, Roith, Tenbrinck and Burger 2022, "A Bregman learning framework for sparse neural
networks": LinBreg v ← v − τ ∇L(θ), θ ← prox_{δJ}(δ v) with J = λ‖·‖₁ on the kernels and none on the
rest; with momentum, or with Adam's direction in place of the gradient (AdaBreg).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals.rival import Found, Rival, spent

Tree = Any

DELTA = 1.0  # δ, as in the paper's experiments
START_SHARE = 0.25  # of the density that was asked for: the weights at the start
GAIN = 0.002  # relative change of λ an update
HIGHEST = 10.0  # of λ: v = θ/δ + λ p in single precision still resolves the steps of θ


class BregmanState(NamedTuple):
    """The subgradient v of J + ‖·‖²/2δ at θ; λ; how many weights λ is steered to."""

    v: Tree
    lam: jax.Array
    wanted: jax.Array


def soft(v: Tree, lam: jax.Array) -> Tree:
    """prox_{δJ}(δ v) = δ sign(v) max(|v| − λ, 0) for kernels, δ v for the rest."""
    return jax.tree.map(
        lambda a: DELTA * (jnp.sign(a) * jnp.maximum(jnp.abs(a) - lam, 0.0) if a.ndim >= 2 else a),
        v,
    )


def subgradient(theta: Tree, lam: jax.Array) -> Tree:
    """θ/δ + λ sign(θ) for kernels, θ/δ for the rest: the v that θ starts with."""
    return jax.tree.map(lambda w: w / DELTA + lam * jnp.sign(w) * (w.ndim >= 2), theta)


def bregman(gain: float) -> optax.GradientTransformation:
    """What a step d does to θ where it is taken by v: v ← v + d, θ ← prox_{δJ}(δ v).

    Stands last in the chain. Then λ rises by `gain`, relatively, while more weights than wanted are
    not zero, up to `HIGHEST`, and falls while there are fewer. θ and p in v = θ/δ + λ p, p ∈ ∂‖θ‖₁,
    are kept then: a change of λ alone brings nothing in or out.
    """

    def init(params: Tree) -> BregmanState:
        return BregmanState(params, jnp.zeros(()), jnp.asarray(masks.size(params), jnp.int32))

    def update(steps: Tree, state: BregmanState, params: Tree) -> tuple[Tree, BregmanState]:
        v = jax.tree.map(jnp.add, state.v, steps)
        theta = soft(v, state.lam)
        there = sum(jnp.count_nonzero(w) for w in masks.kernels(theta))
        factor = jnp.minimum(1 + gain * jnp.sign(there - state.wanted), HIGHEST / state.lam)
        kept = jax.tree.map(
            lambda a, w: w / DELTA + factor * (a - w / DELTA) if a.ndim >= 2 else a, v, theta
        )
        updates = jax.tree.map(jnp.subtract, theta, params)
        return updates, BregmanState(kept, factor * state.lam, state.wanted)

    return optax.GradientTransformation(init, update)


@functools.lru_cache(16)
def _linbreg(rate: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(rate, momentum), bregman(GAIN))


@functools.lru_cache(16)
def _adabreg(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(optax.adam(rate), bregman(GAIN))


def sparse_start(params: Tree, share: float, seed: int) -> Tree:
    """Kernels with a random share of their weights, divided by √share to keep the variance."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: (
            jnp.where(draw.random(w.shape) < share, w / np.sqrt(share), 0.0) if w.ndim >= 2 else w
        ),
        params,
    )


def _found(work: Work, density: float, tx: optax.GradientTransformation, lam: float) -> Found:
    """One run; the mask is that of the largest |v|, and θ is cut to it."""
    before = work.cost
    start = sparse_start(work.params, START_SHARE * density, work.seed)
    wanted = jnp.asarray(round(density * masks.size(start)), jnp.int32)
    first = BregmanState(subgradient(start, jnp.asarray(lam)), jnp.asarray(lam), wanted)
    end = work.train(tx, start, state=(*tx.init(start)[:-1], first))
    last = end.state[-1]
    mask = masks.magnitude(last.v, density)
    reached = masks.density(jax.tree.map(lambda w: w != 0, end.params))
    told = {"density_before_cut": round(reached, 5), "lambda": float(last.lam)}
    params = jax.tree.map(lambda w, m: jnp.where(m, w, 0.0), end.params, mask)
    return Found(mask, spent(work, before), params, end.stats, told)


def linbreg(work: Work, density: float, *, rate: float = 0.05, lam: float = 0.3) -> Found:
    """LinBreg with momentum.

    Args:
        work: what is trained.
        density: what λ is steered to.
        rate: peak of the learning rate τ.
        lam: λ at the start.
    """
    return _found(work, density, _linbreg(work.rate(peak=rate), work.setting.momentum), lam)


def adabreg(work: Work, density: float, *, rate: float = 1e-3, lam: float = 1.0) -> Found:
    """AdaBreg: Adam's direction. Arguments as for `linbreg`."""
    return _found(work, density, _adabreg(work.rate(peak=rate)), lam)


_SOURCE = "Bungert et al. 2022, A Bregman learning framework for sparse neural networks"
_ASSUMED = (
    "The paper fixes λ and takes the density that results. Here λ is steered to the density that "
    "is asked for, 0.2 % an update and at most to 10; the authors' code has such a rule but also "
    "sets v back to θ/δ + λ sign(θ). What is left is cut by |v|. A quarter of the density is there "
    "at the start. Biases start as in the dense network. "
)

RIVALS: tuple[Rival, ...] = (
    Rival(
        name="LinBreg",
        find=linbreg,
        trials=tuple(
            {"rate": rate, "lam": lam} for rate in (0.05, 0.02) for lam in (0.3, 0.1, 1.0, 3.0)
        ),
        source=_SOURCE,
        assumed=_ASSUMED + "Momentum as in SGD: the paper's times 1/(1 − momentum).",
    ),
    Rival(
        name="AdaBreg",
        find=adabreg,
        trials=tuple(
            {"rate": rate, "lam": lam} for rate in (1e-3, 3e-3) for lam in (1.0, 0.3, 2.0, 4.0)
        ),
        source=_SOURCE,
        assumed=_ASSUMED,
    ),
)
