"""From the records of a path to a ticket: which units, how many, and what is said of them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dessilbi_jax.provenance import versions
from dessilbi_jax.tickets.budget import (
    RULES,
    Units,
    check_arguments,
    choose,
    gather,
    order,
    request,
)
from dessilbi_jax.tickets.group_masks import GroupMasks
from dessilbi_jax.tickets.liveness import births, check_network
from dessilbi_jax.tickets.records import Records
from dessilbi_jax.tickets.ticket import Ticket, make_ticket
from dessilbi_jax.tree import find_leaf

Counts = Callable[[Mapping[str, np.ndarray]], float]


class Asked(NamedTuple):
    """The arguments of `SolutionPath.ticket`, which says what they are; sizes by their names."""

    sizes: Mapping[str, float | None]
    count: Counts | None  # type: ignore[assignment]  # hides tuple.count
    per_layer: bool | Mapping[str, float]
    minimum: int
    rank: str
    network: Any


def draw(records: Records, asked: Asked) -> Ticket:
    """The ticket that `SolutionPath.ticket` describes, with its errors."""
    sizes, count, per_layer, minimum, rank, network = asked
    check_arguments(sizes, count, per_layer, minimum, rank)
    if network is not None:
        check_network(network)
    at: Any = sizes["at"]
    record = records.record_of(at)
    units = _gathered(records, rank)
    _check_finite(records, record)
    notes: list[str] = []
    given: dict[str, Any] = {name: x for name, x in sizes.items() if x is not None}
    if at is not None:
        masks = records.masks_at(record)
        if not any(chosen.any() for chosen in masks.bits.values()):
            raise ValueError(f"the ticket of step {at} is empty: {_first_open(records)}")
    elif not records.ranked:
        raise ValueError(
            f"nothing is ranked yet at step {records.steps[-1]}: no λ was in force (dl.auto "
            "first sets it a tenth of the way); take the ticket later"
        )
    else:
        left = None if count is None else partial(_left, records, count, units)
        ranked = order(units)
        if network is not None:
            ranked = _by_birth(records, network, units, ranked)
        size = request(sizes, units, _parameters(records, asked), left)
        kept, short = choose(units, ranked, size, per_layer, minimum)
        masks = records.masks(units.spread(kept))
        dead = int(units.sizes()[kept & units.dead].sum())
        notes += [short] if short else []
        if dead:
            notes.append(f"{dead} of the kept weights were zero before: others are too few")
        shares = dict(per_layer) if isinstance(per_layer, Mapping) else per_layer
        given |= {"per_layer": shares, "minimum": minimum}
    card: dict[str, Any] = {
        "records": {"number": len(records.steps), "steps": [records.steps[0], records.steps[-1]]},
        "request": given,
        "rule": "the support of Γ at the step" if at is not None else RULES[rank],
        "groups": list(masks.held()),
        "metrics": {
            name: values[record]
            for name, values in records.metrics.items()
            if math.isfinite(values[record])
        },
        "versions": versions(),
    }
    if network is None:
        notes.append("whether input and output are still connected was not looked at")
    else:
        live = _live(records, network, masks)
        card["live"] = live
        notes += _said_of(live, masks)
    note = "; ".join(notes)
    return make_ticket(masks, records.steps[record], masks.structured, note, card, records.hidden)


def _check_finite(records: Records, record: int) -> None:
    """A support in which weights that are not finite had no say is no ticket."""
    lost = records.lost(record)
    if lost:
        raise ValueError(
            f"the weights were not finite when step {records.steps[record]} was recorded ({lost} "
            "entries of V could not move since the record before): take the ticket of an earlier "
            "record with at=, or go on from one with path.truncate(step)"
        )


def _first_open(records: Records) -> str:
    """In words, where something is selected."""
    step = records.first_open()
    if step is None:
        return "no recorded step has anything selected yet; ask by size, as with density="
    return f"the first recorded step with anything selected is {step}"


def _left(records: Records, count: Counts, units: Units, kept: np.ndarray) -> float:
    return count(records.masks(units.spread(kept)))


def _gathered(records: Records, rank: str) -> Units:
    """All units, with the two numbers that order them.

    Raises:
        ValueError: no strengths, or none that order anything.
    """
    groups = records.groups
    each = {p: math.prod(records.shapes[p]) // math.prod(shape) for p, shape in groups.items()}
    dead = records.dead()
    if rank == "entry":
        return gather(records.entry, records.rank, dead, each, records.ties)
    if set(records.last) != set(groups):
        raise ValueError("this path was written by a version that kept no strengths")
    if any(np.isposinf(beyond).any() for beyond in records.last.values()):
        raise ValueError(
            f"rank='strength' orders nothing at step {records.steps[-1]}: λ was 0, so ‖V_g‖/λ is "
            "infinite; take rank='entry', or run with a λ above 0"
        )
    alike = {path: np.zeros_like(entry) for path, entry in records.entry.items()}
    return gather(alike, records.last, dead, each, records.ties)


def _parameters(records: Records, asked: Asked) -> int:
    """All parameters of the network.

    Raises:
        ValueError: they are asked for, but there are leaves whose size is not known.
    """
    total = sum(map(math.prod, records.shapes.values()))
    if not records.hidden or asked.sizes["params"] is None or asked.count is not None:
        return total
    if asked.network is None:
        raise ValueError(
            f"params= counts all parameters, but {', '.join(records.hidden)} is hidden from the "
            "state (optax.partition, optax.masked) and its size not known: record with "
            "path.record(step, state, params), or give network="
        )
    shapes = asked.network.shapes
    seen = {find_leaf(shapes, path) for path in records.shapes}
    return total + sum(int(math.prod(s)) for path, s in shapes.items() if path not in seen)


def _by_birth(records: Records, network: Any, units: Units, ranked: np.ndarray) -> np.ndarray:
    """The units in the order in which they come to lie on a path from input to output."""
    place = np.empty(ranked.size)
    place[ranked] = np.arange(ranked.size)
    place[units.dead] = np.inf
    born = births(network, records.shapes, units.spread(place))
    birth = np.full(ranked.size, np.inf)
    for path, cells in units.cells.items():
        np.minimum.at(birth, cells, born[path])
    return ranked[np.argsort(birth[ranked], kind="stable")]


def _live(records: Records, network: Any, masks: GroupMasks) -> int:
    """How many of the kept weights lie on paths from input to output."""
    dead = records.dead()
    places = {path: np.where(bits & ~dead[path], 0.0, np.inf) for path, bits in masks.bits.items()}
    born = births(network, records.shapes, places)
    live = 0
    for path, cells in born.items():
        each = math.prod(records.shapes[path]) // cells.size
        live += int(np.count_nonzero(cells < np.inf)) * each
    return live


def _said_of(live: int, masks: GroupMasks) -> list[str]:
    kept = sum(masks.size(path)[0] for path in masks.bits)
    if not live:
        return ["nothing passes: no path of kept weights leads from input to output"]
    if live < kept:
        return [f"{kept - live} of the kept weights lie on no path from input to output"]
    return []
