"""The budget that a run settles on, and the layers whose groups compete for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dessilbi_jax.dependency.structure import Channels
from dessilbi_jax.optimizer.amounts import Amount
from dessilbi_jax.optimizer.asked import Settle
from dessilbi_jax.structure.joint import count_groups
from dessilbi_jax.structure.leaf import LeafGroups

_MOST = 2**31 - 1
_IN_CHANNELS = {"parameters": "params", "FLOPs": "flops"}


class Layer(NamedTuple):
    """Groups that compete with those of other layers: of a leaf, or joint ones of the same leaves.

    Attributes:
        leaf: number of the (structured) leaf that has their norms.
        cells: which cells of its grid they are, or None for all.
        cost: what each takes of the budget: its elements, or 1.
        members: (leaf, cells) of all that go with them.
        numbers: of joint groups, their numbers.
    """

    leaf: int
    cells: np.ndarray | None
    cost: Any
    members: tuple[tuple[int, np.ndarray | None], ...]
    numbers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is fixed when an update is traced.

    Attributes:
        groups: of the structured leaves.
        layers: their groups by layer.
        target: what is to be left.
        total: all that there is.
        amount: what channels leave; None where weights or groups are counted.
    """

    groups: tuple[LeafGroups, ...]
    layers: tuple[Layer, ...]
    target: int
    total: int
    amount: Amount | None = None


def frame(plan: Settle, every: Sequence[LeafGroups], structure: Any = None) -> Frame:
    """The layers and the budget of the structured ones among all leaves.

    Raises:
        ValueError: a budget that these leaves cannot have.
    """
    given, unit, share = plan.budget
    groups = [leaf for leaf in every if leaf.counts is not None]
    layers, amount, dense = _layers(groups, unit == "groups"), None, 0
    if isinstance(structure, Channels) and unit in _IN_CHANNELS:
        paths = [leaf.path for leaf in every]
        amount = Amount.of(structure.groups, _IN_CHANNELS[unit], paths)
        total = amount.exactly(np.ones(amount.groups, bool))
        least = amount.exactly(_fewest(layers, amount.groups, plan.minimum))
    elif unit == "FLOPs":
        raise ValueError(
            "settle counts operations only where the structure is dl.channels(groups), which knows "
            "them; take another budget, such as density="
        )
    else:
        if unit == "parameters":  # those of dense leaves stay
            dense = sum(leaf.size for leaf in every if leaf.counts is None)
        total = _total(groups, unit == "groups") + dense
        least = sum(_least(layer, groups, plan.minimum) for layer in layers) + dense
    target = round(given * total) if share else int(given)
    if total > _MOST and amount is None:
        raise ValueError(f"settling counts up to {_MOST:,} {unit}, these leaves have {total:,}")
    if not least <= target <= total:
        raise ValueError(
            f"the budget of settling is {target:,} of {total:,} {unit}; with minimum="
            f"{plan.minimum} group in each of {len(layers)} layers it has to be from {least:,} to "
            f"{total:,}"
        )
    return Frame(tuple(groups), layers, target - dense, total - dense, amount)


def _layers(groups: Sequence[LeafGroups], by_group: bool) -> tuple[Layer, ...]:
    out = []
    joint: dict[int, list[tuple[int, int]]] = {}  # by number, (leaf, cell)
    for i, leaf in enumerate(groups):
        if leaf.joint is None:
            out.append(Layer(i, None, 1 if by_group else leaf.group_size, ((i, None),)))
            continue
        for cell, number in enumerate(leaf.joint):
            joint.setdefault(number, []).append((i, cell))
    alike: dict[tuple[tuple[int, int], ...], list[list[tuple[int, int]]]] = {}
    for cells in joint.values():
        # Groups with as many cells in the same leaves are of one layer.
        key = tuple((i, sum(1 for j, _ in cells if j == i)) for i in dict.fromkeys(
            i for i, _ in cells))  # fmt: skip
        alike.setdefault(key, []).append(cells)
    for key, members in alike.items():
        home = key[0][0]
        first = np.array([next(c for i, c in cells if i == home) for cells in members])
        size = sum(n * groups[i].group_size for i, n in key)
        inside = tuple(
            (i, np.array([[c for j, c in cells if j == i] for cells in members])) for i, _ in key
        )
        numbers = np.array(groups[home].joint)[first]
        out.append(Layer(home, first, 1 if by_group else size, inside, numbers))
    return tuple(out)


def _fewest(layers: Sequence[Layer], groups: int, minimum: int) -> np.ndarray:
    """Which channels are left where each layer has the fewest that it may have."""
    alive = np.ones(groups, bool)
    for layer in layers:
        numbers = np.array([] if layer.numbers is None else layer.numbers, int)
        alive[numbers[minimum:][numbers[minimum:] < groups]] = False
    return alive


def _least(layer: Layer, groups: Sequence[LeafGroups], minimum: int) -> int:
    there = groups[layer.leaf].groups if layer.cells is None else len(layer.cells)
    return min(minimum, there) * int(layer.cost)


def _total(groups: Sequence[LeafGroups], by_group: bool) -> int:
    return count_groups(groups) if by_group else sum(leaf.size for leaf in groups)
