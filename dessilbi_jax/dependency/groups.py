"""What was found about a network's channels: groups, what they cost, and what a mask empties."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.reasons import Reason, Why
from dessilbi_jax.text import columns
from dessilbi_jax.tree import find_leaf, is_inexact, leaf_paths, words

Place = tuple[str, int]  # a leaf's path and one of its axes


@runtime_checkable
class Masked(Protocol):
    """What says which groups of weights stay, as a `Ticket` does."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every leaf."""

    @property
    def bits(self) -> Mapping[str, np.ndarray]:
        """By leaf path, True = kept, over a grid that cuts the leaf into equal groups."""

    @property
    def structured(self) -> tuple[str, ...]:
        """Paths of the leaves that could lose weights."""


@dataclasses.dataclass(frozen=True)
class ChannelSet:
    """Channel groups that have the same members, such as the output channels of one layer.

    Attributes:
        name: path of the leaf that makes these channels.
        groups: their numbers.
        members: (path, axis, positions a group, whether the leaf sums over them).
        params: numbers that go with each group, on average.
        flops: floating-point operations that go with each, while all others stay.
    """

    name: str
    groups: np.ndarray
    members: tuple[tuple[str, int, int, bool], ...]
    params: float
    flops: float


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """Which positions of which axes of which leaves are the same channel.

    Print it to read the plan: what could be removed and what that would save, and what could not
    be and why.

    Attributes:
        shapes: shape of each leaf by its path.
        numbers: by (path, axis): the group of each position, −1 where it cannot be removed.
        reads: the (path, axis) that the leaf sums over: removed with the group, but not its maker.
        reasons: by (path, axis): why it, or some of it, cannot be removed; `str` of it is the
            message, `reason` the `Reason`.
        unknown: (primitive, source line) of what could not be followed.
        costs: (factor, axes) of each product and convolution; an axis is its length or, where it
            can shrink, the group of each position.
        completing: the (path, axis) among `reads` that belong to their groups: what makes these
            channels does not silence them by being zero, as the query of an attention head with
            shared keys and values, so that what reads them has to be zero too.
        scales: (leaf, groups, power) for means over channels: where k of these n groups are left,
            the leaf is multiplied by (n/k)^power, so that root-mean-square normalisations give
            what they gave.
        approximate: whether means of channels were taken for zero.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[Place, np.ndarray]
    reads: frozenset[Place]
    reasons: Mapping[Place, Why]
    unknown: tuple[tuple[str, str], ...]
    costs: tuple[tuple[int, tuple[Any, ...]], ...]
    completing: frozenset[Place] = frozenset()
    scales: tuple[tuple[str, np.ndarray, float], ...] = ()
    approximate: bool = False

    @functools.cached_property
    def count(self) -> int:
        """Number of groups."""
        return 1 + max((int(n.max(initial=-1)) for n in self.numbers.values()), default=-1)

    def removable(self, path: str, axis: int) -> np.ndarray:
        """Which positions of an axis can be removed."""
        path = find_leaf(self.shapes, path)
        shape = self.shapes[path]
        axis %= max(len(shape), 1)
        return self.numbers.get((path, axis), np.full(shape[axis], -1)) >= 0

    def kept(self, masks: Any = None) -> np.ndarray:
        """Which groups stay under some masks.

        A group goes where all that makes it is masked: the slices of all kernels that put it out,
        and those of biases and scales as far as the masks name them (and of what completes it). It
        goes too where all that reads it is masked.

        Args:
            masks: a `Ticket`, a tree of bool arrays, or a dict of them by path; None keeps all.
        """
        made = np.zeros((2, self.count), np.int64)  # slices of makers and of readers, in all
        gone = np.zeros((2, self.count), np.int64)  # those that are masked
        bits, structured = _group_bits(self.shapes, masks)
        for (path, axis), numbers in self.numbers.items():
            read = int((path, axis) in self.reads)
            inside = path in structured
            if not inside and not read and len(self.shapes[path]) < 2:
                continue  # a bias or a scale that the masks say nothing of
            completes = (path, axis) in self.completing
            rows = [0, 1] if completes else [read]
            for row in rows:
                np.add.at(made[row], numbers[numbers >= 0], 1)
            if inside:
                dead = ~_alive(bits[path], axis, len(numbers)) & (numbers >= 0)
                for row in rows:
                    np.add.at(gone[row], numbers[dead], 1)
        emptied: np.ndarray = ((made > 0) & (made == gone)).any(axis=0)
        return ~emptied

    def masks(self, masks: Any) -> dict[str, np.ndarray]:
        """By leaf path, the elements that some masks keep, of the leaves that they mask."""
        bits, _ = _group_bits(self.shapes, masks)
        out = {}
        for path, kept in bits.items():
            for axis, n in enumerate(self.shapes[path]):
                kept = (
                    kept if kept.shape[axis] in (1, n) else kept.repeat(n // kept.shape[axis], axis)
                )
            out[path] = np.broadcast_to(kept, self.shapes[path])
        return out

    def kept_by(self, plan: Plan) -> np.ndarray:
        """Which groups stay under a plan.

        Raises:
            ValueError: the plan is of another network, removes what cannot be removed, or parts
                of what must go together.
        """
        for path in plan.shapes:
            if self.shapes.get(path) != plan.shapes[path]:
                raise ValueError(
                    f"the plan does not fit {path}: it was made for shape {plan.shapes[path]}, "
                    f"this network has {self.shapes.get(path, 'no such leaf')}"
                )
        gone = np.zeros(self.count, bool)
        for path, axes in plan.keep.items():
            for axis, kept in axes.items():
                out = np.setdiff1d(np.arange(self.shapes[path][axis]), kept)
                numbers = self.numbers.get((path, axis), np.full(self.shapes[path][axis], -1))
                if (numbers[out] < 0).any():
                    why = self.reasons.get((path, axis), "it is not removable")
                    raise ValueError(
                        f"the plan removes index {out[numbers[out] < 0][0]} of {path} along axis "
                        f"{axis}, which has to stay: {why}"
                    )
                gone[numbers[out]] = True
        for (path, axis), numbers in self.numbers.items():
            kept_here = plan.keep.get(path, {}).get(axis, range(self.shapes[path][axis]))
            there = np.zeros(self.shapes[path][axis], bool)
            there[list(kept_here)] = True
            torn = np.flatnonzero(there & np.append(gone, False)[numbers])
            if torn.size:
                raise ValueError(
                    f"the plan keeps index {torn[0]} of {path} along axis {axis}, but removes "
                    "other parts of the same channel"
                )
        return ~gone

    def params(self, masks: Any = None) -> int:
        """Numbers left in the traced tree once the groups that the masks empty are cut out."""
        return self.params_of(self.kept(masks))

    def flops(self, masks: Any = None) -> int:
        """Floating-point operations of products and convolutions left then, for the traced batch.

        A multiplication with its addition counts as two.
        """
        return self.flops_of(self.kept(masks))

    def params_of(self, kept: np.ndarray) -> int:
        """`params` of a choice of groups."""
        return sum(
            math.prod(
                self._length(self.numbers.get((path, axis), n), kept)
                for axis, n in enumerate(shape)
            )
            for path, shape in self.shapes.items()
        )

    def flops_of(self, kept: np.ndarray) -> int:
        """`flops` of a choice of groups."""
        return sum(
            factor * math.prod(self._length(axis, kept) for axis in axes)
            for factor, axes in self.costs
        )

    @staticmethod
    def _length(axis: Any, kept: np.ndarray) -> int:
        if isinstance(axis, int):
            return axis
        return int(np.append(kept, True)[axis].sum())  # number −1 reads the last entry

    def plan(self, masks: Any, round_to: int = 1, params: Any = None) -> Plan:
        """Which positions of which axes stay under some masks.

        Args:
            masks: as for `kept`.
            round_to: widths that are to become multiples of it keep some of their masked
                channels: those of the largest norm.
            params: the parameters, for these norms; without them the first are kept.

        Raises:
            ValueError: masks that do not fit, or a layer would be left without any channel.
        """
        return self.plan_of(self.rounded(self.kept(masks), round_to, params))

    def rounded(self, kept: np.ndarray, round_to: int, params: Any) -> np.ndarray:
        """A choice of groups with more of them, so that widths are multiples of `round_to`.

        Raises:
            ValueError: a layer without any channel left, or no positive integer.
        """
        if not isinstance(round_to, int) or round_to < 1:
            raise ValueError(f"round_to must be a positive integer, got {round_to!r}")
        kept = kept.copy()
        norms = self._norms(params)
        for each in self.sets:
            stay = kept[each.groups]
            if not stay.any():
                raise ValueError(
                    f"no channel of {each.name} would be left: ask for a larger ticket, or one "
                    "that keeps a minimum in every layer"
                )
            block = self._width(each)
            want = int(stay.sum())
            while want < len(stay) and want * block % round_to:
                want += 1
            out = each.groups[~stay]
            order = np.argsort(-norms[out], kind="stable")
            kept[out[order[: want - int(stay.sum())]]] = True
        return kept

    def plan_of(self, kept: np.ndarray) -> Plan:
        """The plan that keeps a choice of groups and all that belongs to none.

        Args:
            kept: by group, whether it stays.

        Raises:
            ValueError: nothing would be left along an axis.
        """
        keep: dict[str, dict[int, tuple[int, ...]]] = {}
        for (path, axis), numbers in self.numbers.items():
            alive = np.append(kept, True)[numbers]
            if not alive.all():
                keep.setdefault(path, {})[axis] = tuple(np.flatnonzero(alive).tolist())
        return Plan(dict(self.shapes), keep)

    def scaled_by(self, kept: np.ndarray) -> dict[str, float]:
        """By leaf, what it is to be multiplied by where only these groups are left."""
        out: dict[str, float] = {}
        for path, groups, power in self.scales:
            times = (len(groups) / self._length(groups, kept)) ** power
            if times != 1:
                out[path] = out.get(path, 1.0) * times
        return out

    def _width(self, each: ChannelSet) -> int:
        """Positions of the computed axis that one group is: of a head, its size."""
        path, axis, positions, _ = each.members[0]
        shape = self.shapes[path]
        # A kernel (inputs, heads, size) puts out heads of that size.
        return positions * (shape[2] if len(shape) == 3 and axis == 1 else 1)

    def _norms(self, params: Any) -> np.ndarray:
        """Norm of the slices that make each group; zeros without parameters."""
        square = np.zeros(self.count)
        for path, leaf in [] if params is None else leaf_paths(params):
            path = find_leaf(self.shapes, path)
            for axis in range(len(self.shapes[path])):
                numbers = self.numbers.get((path, axis))
                if numbers is None or (path, axis) in self.reads or not is_inexact(leaf):
                    continue
                others = tuple(i for i in range(len(self.shapes[path])) if i != axis)
                size = np.sum(np.abs(np.asarray(leaf).astype(np.complex128)) ** 2, axis=others)
                np.add.at(square, numbers[numbers >= 0], size[numbers >= 0])
        return np.sqrt(square)

    @functools.cached_property
    def sets(self) -> tuple[ChannelSet, ...]:
        """The groups, those with the same members together."""
        members: list[list[tuple[str, int, int, bool]]] = [[] for _ in range(self.count)]
        for (path, axis), numbers in self.numbers.items():
            found, count = np.unique(numbers[numbers >= 0], return_counts=True)
            for group, n in zip(found.tolist(), count.tolist(), strict=True):
                members[group].append((path, axis, n, (path, axis) in self.reads))
        together: dict[tuple[Any, ...], list[int]] = {}
        for group, each in enumerate(members):
            together.setdefault(tuple(sorted(each, key=lambda m: m[3])), []).append(group)
        everything = np.ones(self.count, bool)
        params, flops = self.params_of(everything), self.flops_of(everything)
        out = []
        for key, groups in together.items():
            makers = [m for m in key if not m[3]]
            kernels = [m for m in makers if len(self.shapes[m[0]]) > 1]
            # The bias of a stack of layers has two axes too.
            kernels = [m for m in kernels if words(m[0].rpartition("/")[2]) != {"bias"}] or kernels
            one = everything.copy()
            one[groups[0]] = False
            out.append(
                ChannelSet(
                    (kernels or makers)[0][0], np.array(groups),
                    tuple(sorted(key, key=lambda m: m[0] != (kernels or makers)[0][0])),
                    params - self.params_of(one), flops - self.flops_of(one),
                )
            )  # fmt: skip
        return tuple(out)

    def __str__(self) -> str:
        rows = [("channels of", "groups", "of", "also in", "parameters each", "FLOPs each")]
        for s in self.sets:
            names = dict.fromkeys(path for path, *_ in s.members if path != s.name)
            listed = ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" * (len(names) > 3))
            rows.append(
                (s.name, f"{len(s.groups):,}", f"{s.members[0][2]}", listed,
                 f"{s.params:,.0f}", f"{s.flops:,.0f}")
            )  # fmt: skip
        lines = [columns(rows, right={1, 2, 4, 5}, rule=True)]
        everything = np.ones(self.count, bool)
        lines.append(
            f"{self.count:,} groups; {self.params_of(everything):,} parameters and "
            f"{self.flops_of(everything):,} FLOPs in all"
        )
        told = {place: why for place, why in self.reasons.items() if why.reason is not Reason.DATA}
        if told:
            lines += ["", "not removable:"]
            lines += [f"  {path} axis {axis}: {why}" for (path, axis), why in told.items()]
        if self.unknown:
            lines += ["", "not followed:"]
            lines += [f"  {primitive} at {at}" for primitive, at in self.unknown]
        return "\n".join(lines)


def _alive(bits: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Which positions of an axis, of that size, have anything kept."""
    others = tuple(i for i in range(bits.ndim) if i != axis)
    return np.repeat(bits.any(axis=others), size // max(bits.shape[axis], 1))


def _group_bits(
    shapes: Mapping[str, tuple[int, ...]], masks: Any
) -> tuple[dict[str, np.ndarray], set[str]]:
    """What is kept of each leaf that was structured, over any grid of groups, and these leaves."""
    if masks is None:
        return {}, set()
    if isinstance(masks, Masked):
        for path, shape in masks.shapes.items():
            _check_fit(path, "bool", tuple(shape), shapes[find_leaf(shapes, path)])
        whole = {path: np.ones((1,) * len(shape), bool) for path, shape in masks.shapes.items()}
        kept = {**whole, **masks.bits}
        bits = {find_leaf(shapes, path): kept[path] for path in masks.structured}
        return bits, set(bits)
    pairs: Any = masks.items() if isinstance(masks, Mapping) else []
    if not pairs or not all(isinstance(k, str) and hasattr(m, "shape") for k, m in pairs):
        pairs = leaf_paths(masks)
    found: dict[str, np.ndarray] = {}
    for path, mask in pairs:
        leaf, array = find_leaf(shapes, path), np.asarray(mask)
        _check_fit(path, str(array.dtype), array.shape, shapes[leaf])
        found[leaf] = array
    return found, {path for path, mask in found.items() if not mask.all()}


def _check_fit(path: str, dtype: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if dtype != "bool" or shape != expected:
        raise ValueError(
            f"the mask does not fit {path}: got {dtype}{list(shape)}, expected bool{list(expected)}"
        )
