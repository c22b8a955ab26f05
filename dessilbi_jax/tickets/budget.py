"""Which units a ticket of an asked size keeps: the order of units, and how far along it to go."""

import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

RULES = {
    "entry": (
        "by entry step; of one record by how far ‖V_g‖/λ was beyond 1, largest first; those that "
        "never entered last, by ‖V_g‖/λ at the last record; then as the leaves stand"
    ),
    "strength": "by ‖V_g‖/λ at the last record, largest first; then as the leaves stand",
}
_ROUNDING = 1 + 1e-12  # 0.3 · 10 elements are three


class Units(NamedTuple):
    """What can be selected by itself, over all structured leaves; a joint group is one unit.

    Attributes:
        cells: by leaf path, the unit that each cell of its grid belongs to, in the grid's shape.
        each: by leaf path, the elements of one cell.
        entry: by unit, the record at which it entered, −1 = never.
        rank: by unit, ‖V_g‖/λ at its entry, or at the last record, as the rule has it.
        dead: by unit, whether all its weights are zero.
    """

    cells: dict[str, np.ndarray]
    each: dict[str, int]
    entry: np.ndarray
    rank: np.ndarray
    dead: np.ndarray

    def sizes(self) -> np.ndarray:
        """By unit, its elements in all leaves."""
        size = np.zeros(self.entry.size, np.int64)
        for path, cells in self.cells.items():
            np.add.at(size, cells, self.each[path])
        return size

    def spread(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """By leaf path, the group bits, from which units are kept."""
        return {path: kept[cells] for path, cells in self.cells.items()}

    def by_leaf(self, ranked: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By leaf path, its units in the given order and the cells of each in that leaf."""
        place = np.empty(ranked.size, np.int64)
        place[ranked] = np.arange(ranked.size)
        out = {}
        for path, cells in self.cells.items():
            own, count = np.unique(cells, return_counts=True)
            along = np.argsort(place[own])
            out[path] = own[along], count[along]
        return out


def gather(
    entry: Mapping[str, np.ndarray],
    rank: Mapping[str, np.ndarray],
    dead: Mapping[str, np.ndarray],
    each: Mapping[str, int],
    ties: Mapping[str, np.ndarray],
) -> Units:
    """The units of all leaves; cells with one number in `ties`, of any leaf, are one unit."""
    joint = np.unique(np.concatenate([t.ravel() for t in ties.values()] or [np.empty(0, int)]))
    total, cells = joint.size, {}
    for path, own in entry.items():
        if path in ties:
            cells[path] = np.searchsorted(joint, ties[path])
        else:
            cells[path] = np.arange(total, total + own.size).reshape(own.shape)
            total += own.size
    entries, ranks = np.empty(total, np.int32), np.empty(total, np.float32)
    nothing = np.ones(total, bool)
    for path, where in cells.items():
        entries[where], ranks[where] = entry[path], rank[path]
        np.logical_and.at(nothing, where, dead[path])
    return Units(cells, dict(each), entries, ranks, nothing)


def order(units: Units) -> np.ndarray:
    """The units from the first to be kept to the last: the dead last, by entry, then by rank."""
    never = np.iinfo(units.entry.dtype).max
    entry = np.where(units.entry < 0, never, units.entry)
    return np.lexsort((-units.rank, entry, units.dead))


class Request(NamedTuple):
    """A size that the kept units must not exceed.

    Attributes:
        name: the argument it came from.
        value: what was given.
        limit: the same in the unit of `measure`.
        measure: the size of the units that a bool array names.
        noun: what `measure` counts.
        fixed: how much of it stays whatever is asked for.
    """

    name: str
    value: float
    limit: float
    measure: Callable[[np.ndarray], float]
    noun: str
    fixed: int = 0


def check_arguments(
    sizes: Mapping[str, float | None],
    count: Any,
    per_layer: bool | Mapping[str, float],
    minimum: int,
    rank: str,
) -> None:
    """The arguments of `SolutionPath.ticket` against each other.

    Raises:
        TypeError: not exactly one size, or an argument that is missing, has no use or is of
            another type.
        ValueError: a negative minimum, or a rank of another name.
    """
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != 1 and (given or not isinstance(per_layer, Mapping)):
        raise TypeError(
            f"give exactly one of {', '.join(f'{name}=' for name in sizes)} (or shares as "
            f"per_layer= alone), got {', '.join(given) or 'none'}"
        )
    if not isinstance(per_layer, bool | Mapping):
        raise TypeError(f"per_layer must be True or a dict of shares, got {per_layer!r}")
    if given == ["at"] and per_layer:
        raise TypeError("per_layer= has no use with at=, which is the support of that step")
    if rank not in RULES:
        raise ValueError(f"rank must be one of {', '.join(RULES)}, got {rank!r}")
    if given == ["at"] and rank != "entry":
        raise TypeError("rank= has no use with at=, which is the support of that step")
    if count is not None and given not in (["params"], ["flops"]):
        raise TypeError("count= serves params= and flops= alone")
    if count is None and given == ["flops"]:
        raise TypeError("flops= needs count=, which tells the operations left under masks")
    for name in given:
        if isinstance(sizes[name], bool) or not isinstance(sizes[name], numbers.Real):
            raise TypeError(f"{name} must be a number, got {sizes[name]!r}")
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
        raise ValueError(f"minimum must be a whole number ≥ 0, got {minimum!r}")


def request(
    sizes: Mapping[str, float | None],
    units: Units,
    parameters: int,
    left: Callable[[np.ndarray], float] | None,
) -> Request | None:
    """The size among `sizes` that is not None, as the measure of units that it limits.

    Args:
        sizes: by the name of the argument.
        units: what can be kept.
        parameters: number of parameters of the whole network.
        left: what is left with the units that a bool array names, where it is not elements.

    Raises:
        ValueError: a density outside (0, 1], or groups that are no whole number.
    """
    given = [(name, value) for name, value in sizes.items() if value is not None]
    if not given:
        return None
    name, value = given[0]
    if name == "groups":
        if value != value // 1:
            raise ValueError(f"groups must be a whole number, got {value}")
        return Request(name, value, value, np.count_nonzero, "groups")
    if left is not None:
        counted = left

        def finite(kept: np.ndarray) -> float:
            number = float(counted(kept))
            if not math.isfinite(number):
                raise ValueError(f"count gave {number}, expected a finite number")
            return number

        return Request(name, value, value, finite, "parameters" if name == "params" else "FLOPs")
    size = units.sizes()
    dense, limit = 0, value
    if name == "params":
        dense = parameters - int(size.sum())
    elif name == "density":
        if not 0 < value <= 1:
            raise ValueError(f"density must lie in (0, 1], got {value}")
        limit = value * int(size.sum())
    noun = "parameters" if name == "params" else "elements"
    return Request(name, value, limit, lambda kept: dense + int(size[kept].sum()), noun, dense)


def choose(
    units: Units,
    ranked: np.ndarray,
    request: Request | None,
    per_layer: bool | Mapping[str, float],
    minimum: int,
) -> tuple[np.ndarray, str]:
    """The longest prefix of the order within a request.

    The first `minimum` units of every leaf are put at the head of the order: that changes nothing
    for a size whose plain prefix holds them anyway, and keeps tickets of growing size nested.
    With shares, units are ordered by the share of its share that their leaf has reached with
    them, so that all leaves fill up alike.

    Args:
        units: what can be kept.
        ranked: the units in their order.
        request: the size; None where the shares of `per_layer` are the size.
        per_layer: False, True for equal shares, or shares by leaf path or pattern.
        minimum: units kept in each leaf.

    Returns:
        Which units are kept, and in words what was not as asked ('' if nothing).

    Raises:
        ValueError: a request or share that cannot be met, with the nearest that can.
    """
    leaves = units.by_leaf(ranked)
    reserved = np.zeros(ranked.size, bool)
    for own, _ in leaves.values():
        reserved[own[:minimum]] = True
    reached, shares = np.zeros(ranked.size), dict.fromkeys(leaves, 1.0)
    if per_layer is not False:
        if isinstance(per_layer, Mapping):
            shares = _shares(per_layer, list(leaves))
        for path, (own, count) in leaves.items():
            upto = np.cumsum(count) / units.cells[path].size
            upto = upto / shares[path] if shares[path] else np.full(own.size, np.inf)
            reached[own] = np.maximum(reached[own], upto)  # a joint group waits for all its leaves
        ranked = ranked[np.argsort(reached[ranked], kind="stable")]
    head = reserved[ranked]
    final = np.concatenate([ranked[head], ranked[~head]])

    def prefix(taken: int, of: np.ndarray = final) -> np.ndarray:
        kept = np.zeros(of.size, bool)
        kept[of[:taken]] = True
        return kept

    if request is None:
        plain = reached <= _ROUNDING
        kept = plain | reserved
        if not kept.any():
            raise ValueError("the shares of per_layer leave an empty ticket; raise one of them")
        notes = _missing_of_shares(units, kept, shares)
    else:
        taken = _longest(request, prefix, max(int(head.sum()), 1), units, minimum)
        kept, plain = prefix(taken), prefix(taken, ranked)
        gap = int(request.limit * _ROUNDING - request.measure(kept))
        notes = []
        if gap > 0:
            notes.append(f"{gap} {request.noun} fewer than asked: the next group would exceed it")
    few = [f"{p} ({own.size})" for p, (own, _) in leaves.items() if own.size < minimum]
    if few:
        notes.append(f"fewer groups than minimum={minimum} in {', '.join(few)}: all are kept")
    ahead = kept & ~plain
    if ahead.any():
        where = [p for p, cells in units.cells.items() if ahead[cells].any()]
        notes.append(
            f"{int(ahead.sum())} kept out of turn in {', '.join(where)} for minimum={minimum}"
        )
    return kept, "; ".join(notes)


def _longest(
    request: Request,
    prefix: Callable[[int], np.ndarray],
    least: int,
    units: Units,
    minimum: int,
) -> int:
    """The most units within the request; `measure` never falls as units are added."""
    name, value, limit, measure, noun, fixed = request
    whole = measure(np.ones(units.entry.size, bool))
    if not 0 < limit <= whole * _ROUNDING:
        raise ValueError(f"{name} must lie between 1 and {whole:.0f}, got {value}")
    smallest = measure(prefix(least))
    if smallest > limit * _ROUNDING:
        nearest = f"{smallest:.0f}"
        stays = f", {fixed} of which stay as they are" if fixed else ""
        if name == "density":
            nearest = f"{np.ceil(smallest / whole * 1e6) / 1e6:g}"
        if minimum == 0:
            raise ValueError(
                f"{name} {value} is less than the first unit; the nearest that can be kept is "
                f"{name}={nearest}{stays}"
            )
        raise ValueError(
            f"{name}={value} cannot keep minimum={minimum} groups in each of {len(units.cells)} "
            f"layers; the nearest that can is {name}={nearest} ({smallest:.0f} {noun}{stays}), or "
            "allow empty layers by minimum=0"
        )
    low, high = least, units.entry.size
    while low < high:
        middle = (low + high + 1) // 2
        if measure(prefix(middle)) <= limit * _ROUNDING:
            low = middle
        else:
            high = middle - 1
    return low


def _shares(given: Mapping[str, float], leaves: list[str]) -> dict[str, float]:
    """The share of each leaf: by its path, else by the first pattern found in it."""
    for pattern, share in given.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the share of {pattern!r} must lie in [0, 1], got {share}")
        try:
            found = any(re.search(pattern, path) for path in leaves)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if pattern not in leaves and not found:
            raise ValueError(
                f"per_layer: {pattern!r} matches no structured leaf; there are {', '.join(leaves)}"
            )
    out = {}
    for path in leaves:
        match = [s for p, s in given.items() if p == path] or [
            s for p, s in given.items() if re.search(p, path)
        ]
        if not match:
            raise ValueError(
                f"per_layer gives no share for {path}; name it, or add a last pattern '' for the "
                "rest"
            )
        out[path] = float(match[0])
    return out


def _missing_of_shares(units: Units, kept: np.ndarray, shares: Mapping[str, float]) -> list[str]:
    """A sentence on what the leaves hold less than their shares, if anything."""
    missing = 0
    for path, cells in units.cells.items():
        gap = shares[path] * cells.size - int(kept[cells].sum())
        missing += int(max(gap, 0) * units.each[path] * _ROUNDING)
    if not missing:
        return []
    return [f"{missing} elements fewer than the shares: the next group would exceed one"]
