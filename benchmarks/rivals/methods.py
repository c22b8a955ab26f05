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
    dessilbi.SETTLED,
    *magnitude.RIVALS,
    *foresight.RIVALS,
    *dynamic.RIVALS,
    *bregman.RIVALS,
    *splitting.RIVALS,
    *reparameterised.RIVALS,
)
# The control for what Γ adds: as `matched decay`, but with DessiLBI's own ν instead of the one
# that its trials found best.
SAME_NU = Rival(
    "matched decay, same ν",
    magnitude.matched_decay,
    (),
    "control: DessiLBI with Γ = 0 throughout",
    "ν is DessiLBI's",
    nested=True,
)
# Not tuned: they have DessiLBI's setting.
UNTUNED: tuple[Rival, ...] = (SAME_NU, *dessilbi.READINGS)


def named(name: str) -> Rival:
    """A method by name."""
    return next(rival for rival in (*RIVALS, *UNTUNED) if rival.name == name)
