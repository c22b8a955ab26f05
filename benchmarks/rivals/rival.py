"""What a way to sparse weights is: one function and the settings it may be tried with."""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.harness import masks
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Work

Tree = Any


@dataclasses.dataclass(frozen=True)
class Found:
    """A ticket, and the sparse network that the procedure itself ends with, if it has one.

    Attributes:
        mask: True where a weight is kept.
        cost: all that was trained to know it.
        params, stats: a network whose weights outside the mask are zero; None where the method
            only chooses a mask.
        told: anything else worth a place in the result. "sparse_runs": the cost in dense runs if
            weights at zero cost nothing, in proportion to the weights that are there.
    """

    mask: Tree
    cost: Cost
    params: Tree = None
    stats: Tree = None
    told: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rival:
    """A method under its name.

    Attributes:
        name: as in the tables.
        find: find(work, density, **setting) → Found, for one density.
        trials: the eight settings that are tried on held-out images; the first is the default.
        source: the paper.
        assumed: what the paper leaves open, and how it was read.
        nested: whether one search gives the tickets of all densities, the costliest of which
            covers the others.
    """

    name: str
    find: Callable[..., Found]
    trials: tuple[dict[str, Any], ...]
    source: str
    assumed: str = ""
    nested: bool = False


def spent(work: Work, before: Cost) -> Cost:
    """What was trained since."""
    return work.cost - before


def exact(found: Found, density: float) -> bool:
    """Whether a mask holds exactly round(density · weights) weights."""
    size = masks.size(found.mask)
    return round(masks.density(found.mask) * size) == round(density * size)
