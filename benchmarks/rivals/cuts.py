"""Groups of filters, orders of them, and what is left when the last ones are cut out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import dessilbi_jax as dl
from benchmarks.harness.work import Work
from dessilbi_jax import models
from dessilbi_jax.tree import leaf_paths

Tree = Any


class Cut(NamedTuple):
    """A network that was cut out of another one, before it is trained on.

    Attributes:
        work: of the smaller network, whose own training it counts.
        params, stats: of the smaller network.
        plan: what was kept.
        flops, numbers: share of the FLOPs and of the parameters that is left.
        difference: of its outputs from the masked network's, over the largest of them.
    """

    work: Work
    params: Tree
    stats: Tree
    plan: dl.Plan
    flops: float
    numbers: float
    difference: float


def norms(groups: dl.ChannelGroups, params: Tree, power: int) -> np.ndarray:
    """By group: the sum of |w|^power over the slices of the kernels that make it."""
    total = np.zeros(groups.count)
    for _, axis, numbers, leaf in _makers(groups, params):
        if leaf.ndim >= 2:
            others = tuple(i for i in range(leaf.ndim) if i != axis)
            np.add.at(total, numbers, np.sum(np.abs(leaf) ** power, axis=others))
    return total


def scales(groups: dl.ChannelGroups, params: Tree) -> np.ndarray:
    """By group: the mean of |γ| over the normalisations that its channel goes through."""
    total, count = np.zeros(groups.count), np.zeros(groups.count)
    for path, _, numbers, leaf in _makers(groups, params):
        if path.endswith("scale"):
            np.add.at(total, numbers, np.abs(leaf))
            np.add.at(count, numbers, 1)
    return total / np.maximum(count, 1)


def _makers(groups: dl.ChannelGroups, params: Tree) -> list[tuple[str, int, np.ndarray, Any]]:
    """(path, axis, group of each position, array) of all parameters that make a group.

    Axes of which some channels must stay make none here: the networks of the tables have no such.
    """
    leaves = dict(leaf_paths(params))
    return [
        (path, axis, numbers, np.asarray(leaves[path]))
        for (path, axis), numbers in groups.numbers.items()
        if (path, axis) not in groups.reads and path in leaves and (numbers >= 0).all()
    ]


def everywhere(groups: dl.ChannelGroups, scores: np.ndarray) -> np.ndarray:
    """All groups by falling score, the best of each set before all others."""
    order = np.argsort(-scores, kind="stable")
    first = [each.groups[np.argmax(scores[each.groups])] for each in groups.sets]
    return np.concatenate([first, order[~np.isin(order, first)]]).astype(int)


def in_each(groups: dl.ChannelGroups, scores: np.ndarray) -> np.ndarray:
    """All groups such that every beginning holds the same share of each set: its best."""
    place = np.zeros(groups.count)
    for each in groups.sets:
        falling = each.groups[np.argsort(-scores[each.groups], kind="stable")]
        place[falling] = np.arange(len(falling)) / len(falling)
    return np.argsort(place, kind="stable")


def beginning(groups: dl.ChannelGroups, order: np.ndarray, share: float) -> np.ndarray:
    """Which groups stay: the longest beginning of the order whose FLOPs are within the share."""

    def first(n: int) -> np.ndarray:
        kept = np.zeros(groups.count, bool)
        kept[order[:n]] = True
        return kept

    low, high = len(groups.sets), groups.count  # what is kept at least: one of each set
    limit = share * groups.flops()
    if groups.flops_of(first(low)) > limit:
        raise ValueError(f"one channel in each layer is more than {share:.1%} of the FLOPs")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if groups.flops_of(first(middle)) <= limit else (low, middle - 1)
    return first(low)


def as_masks(
    groups: dl.ChannelGroups, kept: np.ndarray, kernels: bool = False
) -> dict[str, np.ndarray]:
    """Masks by path of all that makes the groups, or of the kernels alone."""
    masks = {path: np.ones(shape, bool) for path, shape in groups.shapes.items()}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) not in groups.reads and not (kernels and len(groups.shapes[path]) < 2):
            masks[path][(slice(None),) * axis + (~np.append(kept, True)[numbers],)] = False
    return masks


def cut(work: Work, params: Tree, stats: Tree, ticket: Any) -> Cut:
    """The smaller network that a ticket or masks leave of these weights."""
    model = nnx.merge(work.network.evaluating, params, stats)
    # The check against the masked network needs products in full precision, also on a GPU.
    with jax.default_matmul_precision("highest"):
        small = dl.slim(model, ticket, work.arrays["train_x"][:4])
    widths = models.widths(small.model)
    setting = dataclasses.replace(work.setting, widths=widths)
    _, left, statistics = nnx.split(small.model, nnx.Param, nnx.BatchStat)
    return Cut(
        Work(setting, work.seed, work.data_dir, work.folder),
        nnx.to_pure_dict(left), nnx.to_pure_dict(statistics), small.plan,
        small.flops[1] / small.flops[0], small.params[1] / small.params[0],
        float(small.difference or 0.0),
    )  # fmt: skip
