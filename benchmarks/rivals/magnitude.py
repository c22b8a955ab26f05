"""Pruning by magnitude: once, in rounds, along a run, with rewinding; and a random control."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Trained, Work
from benchmarks.rivals.rival import Found, Rival, spent

Tree = Any

ANCHORS = (1.0, 0.5, 0.2, 0.05, 0.02, 0.01)  # densities that one chain of rounds meets
HALVES = 0.5  # kept in a round of iterative pruning
FIFTHS = 0.8  # kept in a round of a lottery ticket


@functools.lru_cache(16)
def optimizer(
    rate: optax.Schedule, momentum: float, decay: float, decoupled: bool
) -> optax.GradientTransformation:
    """SGD under a mask in its state, with weight decay of the kernels.

    L2:         m' = τ m + g + decay·W,  W' = W − lr·m'
    decoupled:  m' = τ m + g,            W' = W − lr·(m' + decay·W)
    """
    parts = [optax.trace(momentum)]
    if decay:
        kernels = functools.partial(jax.tree.map, lambda p: p.ndim >= 2)
        parts.insert(int(decoupled), optax.add_decayed_weights(decay, mask=kernels))
    return optax.chain(
        *parts, optax.scale_by_learning_rate(rate), dl.keep_support(masks.everything)
    )


def masked(state: Tree, mask: Tree) -> Tree:
    """A state of `optimizer` with another mask."""
    return (*state[:-1], state[-1]._replace(mask=mask))


def _train(
    work: Work, tx: optax.GradientTransformation, mask: Tree, params: Tree, stats: Tree,
    count: int = 0, **words: Any,
) -> Trained:  # fmt: skip
    """Trains under a mask, without momentum from before; the schedule starts at `count`."""
    start = dl.project(params, mask)
    state = masked(tx.init(start), mask)
    state = optax.tree_utils.tree_set(state, count=jnp.asarray(count, jnp.int32))
    return work.train(tx, start, stats, state, **words)


def dense(work: Work, decay: float = 0.0, decoupled: bool = False, rewind: float = 0.0) -> Tree:
    """A dense run: its "params" and "stats" and, under "early", those after `rewind` epochs."""
    if not (decay or rewind):
        return work.dense()
    tx = optimizer(work.rate(), work.setting.momentum, decay, decoupled)
    early: Tree = {}
    at = work.steps(rewind) if rewind else None

    def watch(step: int, params: Tree, stats: Tree, state: Tree) -> None:
        if step == at:
            early.update(jax.tree.map(np.asarray, {"params": params, "stats": stats}))

    def make() -> Tree:
        run = _train(
            work, tx, masks.everything(work.params), work.params, work.stats,
            watch=watch if rewind else None, every=at,
        )  # fmt: skip
        return {"params": run.params, "stats": run.stats, "early": early}

    kind = "decoupled" if decoupled else "l2"
    return work.kept(f"dense {kind}={decay:g} early={rewind:g}", make)


def _top_counts(params: Tree, scores: Sequence[np.ndarray], counts: Sequence[int]) -> Tree:
    shares = [n / s.size for n, s in zip(counts, scores, strict=True)]
    return masks.top_each(params, scores, shares)


def by_layer(params: Tree, density: float, within: Tree, rates: Sequence[float]) -> Tree:
    """Each kernel's largest weights among those of `within`.

    Kernels lose weights in proportion to `rates`, so much that round(density · weights) are left.
    """
    scores = [
        np.where(np.asarray(m), np.abs(np.asarray(w)), -np.inf)
        for w, m in zip(masks.kernels(params), masks.kernels(within), strict=True)
    ]
    left = np.array([int((s > -np.inf).sum()) for s in scores])
    total = round(density * masks.size(params))
    rate = (left.sum() - total) / np.dot(left, rates)
    counts = masks.apportioned(left * (1 - rate * np.asarray(rates)), left.tolist(), total)
    return _top_counts(params, scores, counts)


def _pruned(params: Tree, density: float, within: Tree, layerwise: bool) -> Tree:
    """The largest weights of each kernel in the same share, or of all kernels together."""
    if layerwise:
        return by_layer(params, density, within, [1.0] * len(masks.kernels(params)))
    return masks.magnitude(params, density, within)


def chain(density: float, factor: float) -> list[float]:
    """The densities of the rounds that lead to one, each about `factor` times the one before.

    Evenly spaced in log density between the anchors, which are met after
    round(log density / log factor) rounds; another density leaves from the nearest anchor above.
    """
    stops = [a for a in ANCHORS if a > density * (1 + 1e-9)] + [density]
    out: list[float] = []
    for above, below in itertools.pairwise(stops):
        count = max(1, round(math.log(below) / math.log(factor)) - len(out))
        out += [above * (below / above) ** (i / count) for i in range(1, count)] + [below]
    return out


def one_shot(work: Work, density: float, decay: float = 0.0, layerwise: bool = False) -> Found:
    """The largest weights of one dense run with L2 decay; `layerwise`: of each kernel alike."""
    before = work.cost
    return _projected(work, dense(work, decay), density, layerwise, before)


def matched_decay(work: Work, density: float, nu: float = 20.0) -> Found:
    """The largest weights of one dense run with decoupled decay 1/ν.

    W' = W − lr·(m' + W/ν) is DessiLBI's step for as long as Γ = 0.
    """
    before = work.cost
    return _projected(work, dense(work, 1 / nu, decoupled=True), density, False, before)


def _projected(work: Work, net: Tree, density: float, layerwise: bool, before: Cost) -> Found:
    params = net["params"]
    mask = _pruned(params, density, masks.everything(params), layerwise)
    return Found(mask, spent(work, before), dl.project(params, mask), net.get("stats", {}))


def scaled_magnitude(params: Tree, density: float, within: Tree) -> Tree:
    """The largest |W| / std(W), the deviation over what is left of each kernel.

    One threshold for all of these is Han et al.'s: a quality parameter times each layer's
    standard deviation.
    """
    scores = []
    for w, m in zip(masks.kernels(params), masks.kernels(within), strict=True):
        w, m = np.asarray(w), np.asarray(m)
        deviation = np.std(w[m]) if m.any() else 1.0
        scores.append(np.where(m, np.abs(w) / max(deviation, 1e-30), -np.inf))
    return masks.top(params, scores, density)


def iterative(
    work: Work, density: float, decay: float = 5e-4, peak: float = 0.1, share: float = 0.25,
    scaled: bool = True,
) -> Found:  # fmt: skip
    """Han et al.: prune, fine-tune what is left from where it is, and again.

    Args:
        decay: L2, of the dense run and of fine-tuning.
        peak: of fine-tuning's learning rate, in that of the dense run.
        share: length of each fine-tuning, in dense runs.
        scaled: whether weights are compared in standard deviations of their layer.
    """
    before = work.cost
    net = dense(work, decay)
    steps = max(1, round(share * work.steps()))
    tx = optimizer(work.rate(steps, peak * work.setting.rate), work.setting.momentum, decay, False)
    prune = scaled_magnitude if scaled else masks.magnitude
    net = {**net, "mask": masks.everything(work.params)}
    path = chain(density, HALVES)
    for i in range(len(path)):

        def make(i: int = i, net: Tree = net) -> Tree:
            mask = prune(net["params"], path[i], net["mask"])
            first = work.steps() + i * steps  # the order of images goes on
            run = _train(
                work, tx, mask, net["params"], net.get("stats", {}),
                first=first, steps=first + steps,
            )  # fmt: skip
            return {"params": run.params, "stats": run.stats, "mask": mask}

        settings = f"decay={decay:g} peak={peak:g} share={share:g} scaled={scaled}"
        net = work.kept(f"iterative {settings} to {path[: i + 1]}", make)
    mask = jax.tree.map(jnp.asarray, net["mask"])
    told = {"sparse_runs": 1 + share * sum(path)}
    return Found(mask, spent(work, before), net["params"], net.get("stats", {}), told)


def sparsity(t: float, final: float, begin: float, end: float) -> float:
    """s_t = s_f + (s_i − s_f)·(1 − (t − t_0) / (nΔt))³ from s_i = 0, nΔt long."""
    return final - final * (1 - (t - begin) / (end - begin)) ** 3


def gradual(
    work: Work, density: float, layerwise: bool = True, end: float = 0.75, decay: float = 0.0,
    begin: float = 0.1, times: int = 30,
) -> Found:  # fmt: skip
    """Zhu and Gupta: within one run, weights leave along a cubic schedule and stay at zero.

    Args:
        layerwise: whether each kernel has the schedule's sparsity, or all of them together.
        begin, end: of pruning, in shares of the run.
        decay: L2.
        times: how often weights are pruned, at even distances.
    """
    before = work.cost
    tx = optimizer(work.rate(), work.setting.momentum, decay, False)
    mask = masks.everything(work.params)
    run = Trained(work.params, work.stats, masked(tx.init(work.params), mask))
    done, there = 0, 0.0
    for k in range(1, times + 1):
        t = begin + (end - begin) * k / times
        at = round(t * work.steps())
        run = work.train(tx, *run, first=done, steps=at)
        there, done = there + (at - done) * masks.density(mask), at
        share = density if k == times else 1 - sparsity(t, 1 - density, begin, end)
        mask = _pruned(run.params, share, mask, layerwise)
        run = Trained(dl.project(run.params, mask), run.stats, masked(run.state, mask))
    run = work.train(tx, *run, first=done)
    there += (work.steps() - done) * density
    told = {"sparse_runs": there / work.steps()}
    return Found(mask, spent(work, before), run.params, run.stats, told)


def lottery(
    work: Work, density: float, decay: float = 0.0, layerwise: bool = False, rewind: float = 0.0
) -> Found:
    """Frankle and Carbin: train, prune a fifth of what is left, rewind, and again.

    Args:
        decay: decoupled, in every round.
        layerwise: whether each kernel loses its own fifth and the output layer half of that.
        rewind: epochs after which the weights are those that training goes back to.
    """
    before = work.cost
    path = chain(density, FIFTHS)
    decoupled = decay > 0  # without decay it is the run of all others
    net = dense(work, decay, decoupled, rewind)
    start = net["early"] if rewind else {"params": work.params, "stats": work.stats}
    first = work.steps(rewind) if rewind else 0
    tx = optimizer(work.rate(), work.setting.momentum, decay, decoupled)
    prune = functools.partial(by_layer, rates=_rates(work)) if layerwise else masks.magnitude

    mask = prune(net["params"], path[0], within=masks.everything(work.params))
    for i in range(1, len(path)):

        def make(i: int = i, mask: Tree = mask) -> Tree:
            run = _train(
                work, tx, mask, start["params"], start.get("stats", {}), first, first=first
            )
            return prune(run.params, path[i], within=mask)

        settings = f"decay={decay:g} layerwise={layerwise} rewind={rewind:g}"
        kept = work.kept(f"lottery {settings} to {path[: i + 1]}", make)
        mask = jax.tree.map(jnp.asarray, kept)
    # The first round is dense, the others have what the ones before them left.
    told = {"rounds": len(path), "sparse_runs": 1 + sum(path[:-1])}
    return Found(mask, spent(work, before), told=told)


def _rates(work: Work) -> list[float]:
    """Half the rate for the output layer: the last matrix with a column for each class."""
    classes = work.classes
    shapes = [k.shape for k in masks.kernels(work.params)]
    last = max(i for i, s in enumerate(shapes) if len(s) == 2 and s[-1] == classes)
    return [0.5 if i == last else 1.0 for i in range(len(shapes))]


def random(work: Work, density: float, layers: tuple[float, ...] | None = None) -> Found:
    """A random mask; `layers`: the density of each kernel, None for Erdős–Rényi-Kernel's."""
    shares = masks.erdos_renyi(work.params, density) if layers is None else layers
    return Found(masks.random(work.params, shares, density, work.seed), Cost())


RIVALS = (
    Rival(
        "one-shot", one_shot,
        (
            {}, {"decay": 1e-4}, {"decay": 5e-4}, {"decay": 1e-3}, {"decay": 2e-3},
            {"decay": 5e-3}, {"layerwise": True}, {"layerwise": True, "decay": 5e-4},
        ),
        "magnitude pruning after training, as in Han et al. 2015, in one step",
        "All kernels compared together; decay is L2, of kernels only.",
        nested=True,
    ),
    Rival(
        "iterative (Han)", iterative,
        tuple(
            {"peak": peak, "decay": decay, "scaled": scaled}
            for scaled in (True, False) for decay in (5e-4, 2e-3) for peak in (0.1, 1.0)
        ),
        "Han et al. 2015, arXiv:1506.02626",
        "The paper names neither rounds nor their lengths: 40 to 63 % is kept a round, "
        "each fine-tuned for a quarter of a run with the run's own schedule. Thresholds are in "
        "standard deviations of what is left of a layer, with one quality parameter for all "
        "layers. Fine-tuning at a tenth of the learning rate is the paper's for LeNet.",
        nested=True,
    ),
    Rival(
        "gradual (Zhu-Gupta)", gradual,
        tuple(
            {"layerwise": layerwise, "end": end, "decay": decay}
            for layerwise in (True, False) for end in (0.75, 0.5) for decay in (0.0, 5e-4)
        ),
        "Zhu and Gupta 2017, arXiv:1710.01878",
        "Pruned 30 times from a tenth of the run on, which is every 62 or 101 updates in a run of "
        "4680; a weight once pruned stays at zero and never returns.",
    ),
    Rival(
        "lottery (IMP)", lottery,
        tuple(
            {"decay": decay, "layerwise": layerwise}
            for layerwise in (False, True) for decay in (0.0, 0.01, 0.02, 0.05)
        ),
        "Frankle and Carbin 2019, arXiv:1803.03635",
        "Rounds keep 79 to 83 %, so that the densities 50, 20, 5, 2 and 1 % are met exactly by "
        "one chain. Default: all kernels together; the paper's LeNet prunes by layer. Momentum is "
        "zero after rewinding, and the order of images is that of the dense run.",
        nested=True,
    ),
    Rival(
        "matched decay", matched_decay,
        tuple({"nu": nu} for nu in (20.0, 5.0, 10.0, 35.0, 50.0, 100.0, 200.0, 500.0)),
        "control: DessiLBI with Γ = 0 throughout",
        "All kernels compared together; biases do not decay.",
        nested=True,
    ),
    Rival(
        "random", random, ({},), "control",
        "Nothing to tune, so that there is one trial. Densities by layer are those of DessiLBI's "
        "ticket, whose run is part of the cost; in the trial, Erdős–Rényi-Kernel's.",
        nested=True,
    ),
)  # fmt: skip
