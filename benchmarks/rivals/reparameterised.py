"""Rivals that train the weights through another form of them.

A soft threshold that is learned with the weights (STR, Kusupati et al. 2020), and a mask in
[0, 1] that is (Fracastoro et al. 2025). Neither run knows of a density: one run serves them all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.work import Work
from benchmarks.rivals.rival import Found, Rival, spent
from dessilbi_jax.train.step import nothing

Tree = Any


def soft(w: jax.Array, s: jax.Array) -> jax.Array:
    """sign(w)·relu(|w| − sigmoid(s)) (STR, Eq. 3 and 7)."""
    return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))


def thresholded(trained: Tree) -> Tree:
    """The network of {"params", "threshold"}: each kernel behind its own threshold."""
    s = iter(trained["threshold"])
    return jax.tree.map(lambda w: soft(w, next(s)) if w.ndim >= 2 else w, trained["params"])


def relaxed(trained: Tree) -> Tree:
    """The network of {"params", "mask"}: m·w in the kernels."""
    return jax.tree.map(
        lambda w, m: m * w if w.ndim >= 2 else w, trained["params"], trained["mask"]
    )


def _decayed(trained: Tree) -> Tree:
    return {
        "params": jax.tree.map(lambda p: p.ndim >= 2, trained["params"]),
        "threshold": True,
    }


@functools.lru_cache(16)
def decaying_sgd(rate: Any, momentum: float, decay: float) -> optax.GradientTransformation:
    """SGD with decay·w and decay·s in the gradient, before the momentum; biases have none."""
    return optax.chain(optax.add_decayed_weights(decay, _decayed), optax.sgd(rate, momentum))


def _into_the_box(updates: Tree, state: Any, trained: Tree) -> tuple[Tree, Any]:
    inside = jax.tree.map(lambda u, m: jnp.clip(m + u, 0, 1) - m, updates["mask"], trained["mask"])
    return {**updates, "mask": inside}, state


@functools.lru_cache(4)
def projected_sgd(rate: Any, momentum: float) -> optax.GradientTransformation:
    """SGD on weights and mask; the mask is projected on [0, 1] after each step."""
    project = optax.GradientTransformation(lambda _: optax.EmptyState(), _into_the_box)
    return optax.chain(optax.sgd(rate, momentum), project)


@functools.lru_cache(16)
def penalty(lam: float, eps: float | None = None) -> Callable[[Tree], jax.Array]:
    """λ·Σ m, or the strictly concave λ·Σ log(1 + m/ε)/log(1 + 1/ε), which is equal at 0 and 1."""

    def of(m: jax.Array) -> jax.Array:
        return m if eps is None else jnp.log1p(m / eps) / np.log1p(1 / eps)

    return lambda trained: lam * sum(jnp.sum(of(m)) for m in masks.kernels(trained["mask"]))


def closing(work: Work, start: float, eps: float | None) -> float:
    """The λ under which a mask that the loss does not touch goes from `start` to 0 in one run.

    An entry then moves by λR'(m) times the rate, which momentum multiplies by 1/(1 − τ), so that
    λ·Σ rate/(1 − τ) is the integral of 1/R' from 0 to `start`.
    """
    way = start if eps is None else float(np.log1p(1 / eps)) * (start**2 / 2 + eps * start)
    return way * (1 - work.setting.momentum) / work.time()


def ranked(params: Tree, first: Tree, second: Tree, density: float) -> Tree:
    """The mask of the highest entries of |first|; equal ones in the order of |second|."""
    one, two = (
        np.concatenate([np.abs(np.ravel(np.asarray(leaf))) for leaf in masks.kernels(tree)])
        for tree in (first, second)
    )
    place = np.empty(one.size)
    place[np.lexsort((two, one))] = np.arange(one.size)
    shapes = [leaf.shape for leaf in masks.kernels(params)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    pieces = np.split(place, ends)
    return masks.top(params, [p.reshape(s) for p, s in zip(pieces, shapes, strict=True)], density)


def _found(work: Work, ran: Tree, network: Tree, mask: Tree, before: Any) -> Found:
    nonzero = jax.tree.map(lambda w: jnp.asarray(w) != 0, network)
    told = {"reached": round(masks.density(nonzero), 5)}
    params = dl.project(jax.tree.map(jnp.asarray, network), mask)
    return Found(mask, spent(work, before), params, ran.get("stats") or None, told)


def _run(
    work: Work, name: str, tx: Any, start: Tree, view: Any, penalty: Any = nothing
) -> dict[str, Any]:
    """What is trained and the batch statistics after one run, kept."""

    def make() -> dict[str, Any]:
        trained = work.train(tx, start, view=view, penalty=penalty)
        return {**trained.params, "stats": trained.stats}

    return work.kept(name, make)


def soft_threshold(work: Work, density: float, *, decay: float, start: float) -> Found:
    """STR: weights and one threshold a kernel, all under the same weight decay.

    Args:
        work: the network and its budget.
        density: of the mask.
        decay: λ, of w and s. It draws s, which starts far below zero, up towards zero.
        start: s before training.
    """
    before = work.cost
    tx = decaying_sgd(work.rate(), work.setting.momentum, decay)
    first = {
        "params": work.params,
        "threshold": jnp.full(len(masks.kernels(work.params)), start, jnp.float32),
    }
    ran = _run(work, f"str decay={decay:g} start={start:g}", tx, first, thresholded)
    network = thresholded(ran)
    return _found(work, ran, network, ranked(network, network, ran["params"], density), before)


def relaxed_mask(
    work: Work, density: float, *, pull: float, start: float = 1.0, eps: float | None = None
) -> Found:
    """min over w and m in [0, 1]^d of loss(m·w) + λR(m), the largest m taken.

    Args:
        work: the network and its budget.
        density: of the mask.
        pull: λ, in multiples of what `closing` says.
        start: m before training.
        eps: of the logarithmic penalty; None for l1.
    """
    before = work.cost
    lam = float(f"{pull * closing(work, start, eps):.3g}")
    tx = projected_sgd(work.rate(), work.setting.momentum)
    mask = jax.tree.map(lambda p: jnp.full(p.shape if p.ndim >= 2 else (), start), work.params)
    ran = _run(
        work, f"relaxed mask lam={lam:g} start={start:g} eps={eps}", tx,
        {"params": work.params, "mask": mask}, relaxed, penalty(lam, eps),
    )  # fmt: skip
    network = relaxed(ran)
    chosen = ranked(network, ran["mask"], ran["params"], density)
    return _found(work, ran, network, chosen, before)


_FRACASTORO = (
    "Fracastoro, Fosson, Migliorati and Calafiore, Playing the Lottery With Concave Regularizers"
    " for Sparse Trainable Neural Networks, IEEE TNNLS 2025"
)
_RELAXED = (
    "One round of one run; the mask has the weights' rate and momentum, and the exact size is"
    " taken by the largest m, equal ones by |w|. λ is a trial's, in multiples of that under which a"
    " mask without a loss just closes in the run. "
)

RIVALS = (
    Rival(
        "STR",
        soft_threshold,
        tuple(
            {"decay": decay, "start": start}
            for start in (-5.0, -3.0)
            for decay in (2e-3, 1e-3, 5e-3, 1e-2)
        ),
        "Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity,"
        " ICML 2020",
        assumed="STR has no density to ask for, its decay decides: the decay is a trial's, and the"
        " exact size is taken by |w_eff|, weights at zero by |w|. Where fewer are left than asked"
        " for, the others of the mask are zero in the network itself. Biases and normalisation"
        " have no decay.",
        nested=True,
    ),
    Rival(
        "relaxed mask, l1",
        relaxed_mask,
        tuple(
            {"pull": pull, "start": start} for start in (1.0, 0.5) for pull in (1.0, 0.5, 0.75, 1.5)
        ),
        _FRACASTORO,
        assumed=f"{_RELAXED}The start of m is a trial's too.",
        nested=True,
    ),
    Rival(
        "relaxed mask, log",
        relaxed_mask,
        tuple({"pull": pull, "eps": eps} for eps in (0.1, 0.01) for pull in (1.0, 0.5, 0.75, 1.5)),
        _FRACASTORO,
        assumed=f"{_RELAXED}The penalty is divided by log(1 + 1/ε), so that it is 1 at m = 1, as l1"
        " is; m starts at 1; ε is a trial's too.",
        nested=True,
    ),
)
