"""The ways to sparse weights, in the order of the tables."""

from benchmarks.rivals import (
    bregman,
    dessilbi,
    dynamic,
    foresight,
    magnitude,
    reparameterised,
    splitting,
)
from benchmarks.rivals.rival import Rival

RIVALS: tuple[Rival, ...] = (
    dessilbi.DESSILBI,
    dessilbi.TWICE,
    *magnitude.RIVALS,
    *foresight.RIVALS,
    *dynamic.RIVALS,
    *bregman.RIVALS,
    *splitting.RIVALS,
    *reparameterised.RIVALS,
)


def named(name: str) -> Rival:
    """A method, or another reading of DessiLBI's run, by name."""
    return next(rival for rival in (*RIVALS, *dessilbi.READINGS) if rival.name == name)
