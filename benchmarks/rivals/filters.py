"""Rivals that remove filters: each ends with a physically smaller network at a share of the FLOPs.

A filter is a group of `dl.channel_groups`: all that makes one channel. In a residual network that
is a position of the residual stream with every kernel that adds to it, so that whatever is
removed can be cut out by `dl.slim`. Every method may remove the same groups, keeps one in each
set of them, keeps the most of its own order that the FLOPs allow, and has four trials.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Kind, Trained, Work, channel_groups
from benchmarks.rivals import stored
from benchmarks.rivals.cuts import (
    Cut,
    as_masks,
    beginning,
    cut,
    everywhere,
    in_each,
    norms,
    scales,
)
from dessilbi_jax.tree import leaf_paths

Tree = Any
_STILL = optax.set_to_zero()


@dataclasses.dataclass(frozen=True)
class Slimmed:
    """The trained smaller network that a method ends with.

    Attributes:
        cut: where it was cut out; `cut.work` is the smaller network's.
        params, stats: what it ends with.
        search, training: FLOPs of training until the cut, and in all, in dense runs.
    """

    cut: Cut
    params: Tree
    stats: Tree
    search: float
    training: float

    @property
    def widths(self) -> tuple[int, ...]:
        """Those that `models.build` makes the network from."""
        return self.cut.work.setting.widths or ()


@dataclasses.dataclass(frozen=True)
class FilterRival:
    """A method under its name.

    Attributes:
        name: as in the table.
        find: find(work, share, **setting) → Slimmed, for one share of the FLOPs.
        source: the paper.
        assumed: what the paper leaves open, and how it was read.
        trials: four settings to choose from on held-out images; the first is the default.
    """

    name: str
    find: Callable[..., Slimmed]
    source: str
    trials: tuple[dict[str, Any], ...]
    assumed: str = ""


def _ended(work: Work, before: Cost, small: Cut, trained: Trained) -> Slimmed:
    search = work.cost - before
    both = search + small.work.cost
    return Slimmed(
        small, trained.params, trained.stats, work.in_runs(search), work.in_runs(both)
    )  # fmt: skip


def _pair(trained: Trained) -> dict[str, Tree]:
    return {"params": trained.params, "stats": trained.stats}


# The methods.


@functools.lru_cache(8)
def _sgd(rate: optax.ScalarOrSchedule, momentum: float) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum)


def l1_norm(work: Work, share: float, tuning: str = "paper", rate: float = 0.01) -> Slimmed:
    """Li et al. (2017): the filters of smallest l1 norm of each layer go after a dense run.

    Args:
        work: with the dense network.
        share: of the FLOPs that stays.
        tuning: "paper": a quarter of a run's epochs at a constant rate (40 of 164 epochs at
            0.001 there, a hundredth of the peak); "run": once more the dense run's schedule.
        rate: its peak, over the dense run's.
    """
    before = work.cost
    whole = work.dense()
    groups = work.groups
    kept = beginning(groups, in_each(groups, norms(groups, whole["params"], 1)), share)
    small = cut(work, whole["params"], whole["stats"], as_masks(groups, kept))
    slim, peak = small.work, rate * work.setting.rate
    constant = tuning == "paper"
    tx = _sgd(peak if constant else slim.rate(peak=peak), slim.setting.momentum)
    steps = slim.steps(slim.setting.epochs / 4 if constant else None)
    trained = slim.train(tx, small.params, small.stats, steps=steps)
    return _ended(work, before, small, trained)


@functools.lru_cache(8)
def l1_of_scales(strength: float) -> Callable[[Tree], jax.Array]:
    """strength · Σ|γ| over the scales of all normalisations, and of nothing else."""

    def penalty(params: Tree) -> jax.Array:
        found = [leaf for path, leaf in leaf_paths(params) if path.endswith("scale")]
        return strength * sum(jnp.sum(jnp.abs(leaf)) for leaf in found)

    return penalty


def network_slimming(work: Work, share: float, strength: float = 1e-4) -> Slimmed:
    """Liu et al. (2017): l1 on the scales of normalisation, the smallest of all layers go.

    Args:
        work: with the dense network.
        share: of the FLOPs that stays.
        strength: of the penalty.
    """
    before = work.cost
    made = work.kept(
        f"network slimming strength={strength}",
        lambda: _pair(work.train(work.sgd(), penalty=l1_of_scales(strength))),
    )
    groups = work.groups
    kept = beginning(groups, everywhere(groups, scales(groups, made["params"])), share)
    small = cut(work, made["params"], made["stats"], as_masks(groups, kept))
    trained = small.work.train(small.work.sgd(), small.params, small.stats)
    return _ended(work, before, small, trained)


def softened(groups: dl.ChannelGroups, params: Tree, share: float) -> tuple[Tree, np.ndarray]:
    """The network with the filters of smallest l2 norm of each layer at zero, and which stay."""
    kept = beginning(groups, in_each(groups, norms(groups, params, 2)), share)
    masks = as_masks(groups, kept, kernels=True)
    paths = [path for path, _ in leaf_paths(params)]
    leaves = [
        leaf * jnp.asarray(masks[path], leaf.dtype)
        for path, leaf in zip(paths, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves), kept


def soft_filter_pruning(
    work: Work, share: float, interval: float = 0.005, tuned: bool = False
) -> Slimmed:
    """He et al. (2018): after each interval the smallest filters are zeroed, and train on.

    Args:
        work: with the dense network.
        share: of the FLOPs that stays.
        interval: between two times, as a share of the run.
        tuned: whether the smaller network is trained for a run, or not at all.
    """
    before = work.cost
    groups = work.groups

    def run() -> dict[str, Tree]:
        now = Trained(work.params, work.stats, None)
        last = work.steps()
        each = max(1, round(interval * last))
        kept = np.ones(groups.count, bool)
        for first in range(0, last, each):
            now = work.train(work.sgd(), *now, first=first, steps=min(first + each, last))
            params, kept = softened(groups, now.params, share)
            now = now._replace(params=params)
        return {**_pair(now), "kept": kept}

    made = work.kept(f"soft filter pruning {share=} {interval=}", run)
    small = cut(work, made["params"], made["stats"], as_masks(groups, made["kept"]))
    if tuned:
        trained = small.work.train(small.work.sgd(), small.params, small.stats)
    else:
        # A zeroed filter still gave a constant behind its normalisation: the next mean holds it.
        steps = max(small.work.steps(1), 50)
        trained = small.work.train(_STILL, small.params, small.stats, steps=steps)
    return _ended(work, before, small, trained)


@functools.lru_cache(8)
def _splitting(
    kind: Kind, rate: optax.Schedule, momentum: float, steps: int, nu: float, group_density: float
) -> optax.GradientTransformation:
    return dl.dessilbi(
        rate, nu=nu, lam=dl.auto(group_density=group_density, steps=steps), momentum=momentum,
        structure=dl.channels(channel_groups(kind)),
    )  # fmt: skip


def dessilbi(
    work: Work, share: float, way: str = "tuned", shrink: float = 0.5, group_density: float = 0.5
) -> Slimmed:
    """DessiLBI on the channels; those with the strongest V of each layer are cut out and trained.

    Args:
        work: with the dense network.
        share: of the FLOPs that stays.
        way: "tuned": cut out of W after a whole run and trained for one more; "init": cut out of
            the first weights after half of a run and trained for a run; "end": cut half way,
            momentum and all, and trained for the other half.
        shrink: Σ rate/ν until the cut: by how many factors e a weight outside Γ shrinks where it
            has no gradient. ν follows from it.
        group_density: share of the channels that Γ is to hold at the cut; λ follows from it.
    """
    before = work.cost
    last = work.steps() if way == "tuned" else work.steps() // 2
    groups = work.groups
    nu = float(f"{work.time(last) / shrink:.3g}")

    def run() -> dict[str, Any]:
        tx = _splitting(work.kind, work.rate(), work.setting.momentum, last, nu, group_density)
        path = dl.SolutionPath()
        now = work.train(
            tx, steps=last, watch=lambda step, params, stats, state: path.record(step, state)
        )
        momentum = optax.tree_utils.tree_get(now.state, "trace")
        return {**_pair(now), "momentum": momentum, "path": stored.to_array(path)}

    made = work.kept(f"DessiLBI until={last} nu={nu:g} group_density={group_density}", run)
    path = stored.from_array(made["path"])
    # One order over all layers leaves the last ones nearly nothing: fewer weights follow them.
    ticket = path.ticket(
        flops=share * groups.flops(), count=groups.flops, per_layer=True, rank="strength"
    )
    first = way == "init"
    start = (work.params, work.stats) if first else (made["params"], made["stats"])
    small = cut(work, *start, ticket)
    tx = small.work.sgd()
    if way != "end":
        trained = small.work.train(tx, small.params, small.stats)
        return _ended(work, before, small, trained)
    state = optax.tree_utils.tree_set(
        tx.init(small.params), trace=small.plan.apply(made["momentum"]), count=jnp.asarray(last)
    )
    trained = small.work.train(tx, small.params, small.stats, state, first=last)
    return _ended(work, before, small, trained)


# The controls of every method.


def scratch(work: Work, found: Slimmed, budget: str) -> tuple[Work, dict[str, Tree]]:
    """Liu et al. (2019): the method's widths, freshly initialised, trained by themselves.

    The seed is the method's: the same order of images, so that the two are a pair. The first
    weights are other ones, as they are drawn for other shapes.

    Args:
        work: with the dense network.
        found: what a method ended with.
        budget: "E": for the dense run's epochs; "B": for as many as cost the dense run's FLOPs.

    Returns:
        The fresh network's own work and the "params" and "stats" that it ends with; made once
        for the same widths.
    """
    epochs = work.setting.epochs
    if budget == "B":
        epochs = round(epochs / found.cut.flops)
    setting = dataclasses.replace(work.setting, widths=found.widths, epochs=epochs)
    fresh = Work(setting, work.seed, work.data_dir, work.folder)
    return fresh, fresh.dense()


_SPANNING = "the score of a channel that several layers make is {} over them"

RIVALS = {
    rival.name: rival
    for rival in (
        FilterRival(
            "L1-norm filters", l1_norm,
            "Li et al. (2017), Pruning filters for efficient convnets",
            ({"tuning": "paper", "rate": 0.01}, {"tuning": "paper", "rate": 0.1},
             {"tuning": "run", "rate": 1.0}, {"tuning": "run", "rate": 0.1}),
            "the same share of each layer, without the paper's choice of layers to spare by hand; "
            "tuning for a whole run is tried too, as the paper's assumes a run that is long and "
            "little that is cut; " + _SPANNING.format("the sum"),
        ),
        FilterRival(
            "network slimming", network_slimming,
            "Liu et al. (2017), Learning efficient convolutional networks through network slimming",
            tuple({"strength": s} for s in (1e-4, 1e-3, 3e-3, 1e-2)),
            "scales start at 1, not at 0.5; tuned for a whole run, as the paper does; "
            + _SPANNING.format("the mean"),
        ),
        FilterRival(
            "soft filter pruning", soft_filter_pruning,
            "He et al. (2018), Soft filter pruning for accelerating deep convolutional networks",
            tuple({"interval": n, "tuned": t} for t in (False, True) for n in (0.005, 0.02)),
            "kernels are zeroed, normalisation is not, and the momentum goes on; an interval is "
            "the paper's share of the run, 1 of 200 epochs, or four times that; the network that "
            "is cut out is used as it is, as in the paper, with batch statistics taken anew, or "
            "trained for a run, as the other methods' are; "
            + _SPANNING.format("the sum of squares"),
        ),
        FilterRival(
            "DessiLBI", dessilbi, "Fu et al. (2020), DessiLBI",
            (
                {"way": "tuned", "shrink": 0.5}, {"way": "tuned", "shrink": 0.1},
                {"way": "init", "shrink": 0.5}, {"way": "end", "shrink": 0.5},
            ),
            "the groups are channels, which the paper does not cut out; the same share of each "
            "layer, by ‖V‖/λ; κ = 1, λ is automatic for half of the channels, and ν is such that "
            "a weight outside Γ shrinks by e^0.5 or e^0.1 until the cut. This and the range of "
            "the trials were chosen by about twenty networks judged on held-out images, which no "
            "rival had, after a first table of narrower networks, where one order over all layers "
            "and half of a run's search were behind",
        ),
    )
}  # fmt: skip
