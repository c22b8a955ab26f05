"""The arguments of the transformations: checked once, then passed on as one object."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.rules import StructureLike, as_structure

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]
NU = 20.0  # ν where none is given
# λ where none is in force: no V reaches it. Not infinity, of which `jax_debug_infs` complains.
CLOSED = 2.0**96
FEWEST_UPDATES = 20  # before the density is due; with fewer there is nothing to estimate from


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Auto:
    """λ to be found inside the run; made by `dl.auto`, which says what the fields are.

    Equal where all fields are equal numbers or the same arrays. Not callable, so that
    `optax.inject_hyperparams` does not take it for a schedule.

    Raises:
        TypeError: not exactly one share, or steps that are no integer.
        ValueError: numbers out of range, or too few steps to estimate anything. Traced numbers
            cannot be looked at.
    """

    steps: int | jax.Array
    density: float | jax.Array | None = None
    group_density: float | jax.Array | None = None
    at: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        if (self.density is None) == (self.group_density is None):
            got = "neither" if self.density is None else "both"
            raise TypeError(f"dl.auto needs exactly one of density= and group_density=, got {got}")
        name = "density" if self.group_density is None else "group_density"
        for what, value in ((name, self.share), ("at", self.at)):
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not isinstance(value, jax.Array) and not (real and 0 < value <= 1):
                raise ValueError(f"{what} must lie in (0, 1], got {value!r}")
        if isinstance(self.steps, jax.Array):
            return
        if not isinstance(self.steps, numbers.Integral) or isinstance(self.steps, bool):
            raise TypeError(f"steps must be an integer, got {self.steps!r}")
        if not isinstance(self.at, jax.Array) and self.due < FEWEST_UPDATES:
            raise ValueError(
                f"λ can only be found with at least {FEWEST_UPDATES} updates before the density "
                f"is due, got steps={self.steps} and at={self.at}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Auto) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        share = "density" if self.group_density is None else "group_density"
        return f"auto({share}={self.share!r}, steps={self.steps!r}, at={self.at!r})"

    def _key(self) -> tuple[Any, ...]:
        each = (self.steps, self.density, self.group_density, self.at)
        return tuple(id(x) if isinstance(x, jax.Array) else x for x in each)

    @property
    def share(self) -> Any:
        """The share asked for, of elements or of groups."""
        return self.density if self.group_density is None else self.group_density

    @property
    def by_group(self) -> bool:
        """Whether groups are counted instead of elements."""
        return self.group_density is not None

    @property
    def due(self) -> Any:
        """The count of updates at which the share is to be reached."""
        if isinstance(self.steps, jax.Array) or isinstance(self.at, jax.Array):
            return jnp.round(jnp.asarray(self.at) * self.steps).astype(jnp.int32)
        return round(float(self.at) * int(self.steps))


def auto(
    *,
    steps: int | jax.Array,
    density: float | jax.Array | None = None,
    group_density: float | jax.Array | None = None,
    at: float | jax.Array = 1.0,
) -> Auto:
    """λ found inside the run, so that Γ holds a wanted share at a wanted moment.

    Γ is zero before the first estimate; λ is estimated eight times on the way, last at 0.8 of
    it, from the speed at which V is seen to move, and constant from then on. The share half way
    is kept below the one asked for, so that the path goes from simple to complex. The way begins
    with the first update whose learning rate is not zero, and where V does not move nothing is
    estimated.

    A state keeps the plan it was made for. Where it is restored into a transformation with
    another one (a run made longer or shorter, another density), the estimates are laid anew over
    the updates that remain; with steps that have passed already nothing is estimated any more,
    and the λ in force stays.

    Args:
        steps: optimizer updates of the whole run, counted from `init`: updates that reach the
            transformation, neither epochs nor batches. With accumulation over k batches
            (`optax.MultiSteps`) divide the number of batches by k.
        density: share of the structured leaves' elements that Γ is to hold, in (0, 1].
        group_density: the same as a share of the groups; exactly one of the two.
        at: fraction of `steps` at which it is to be reached, in (0, 1].

    Returns:
        What `lam` of `dl.dessilbi`, `dl.add_split_lbi` and `dl.wrap` takes: frozen and hashable.

    Raises:
        TypeError, ValueError: see `Auto`.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.auto(density=0.05, steps=1000)
        auto(density=0.05, steps=1000, at=1.0)
    """
    return Auto(steps=steps, density=density, group_density=group_density, at=at)


Lam: TypeAlias = ScalarOrSchedule | Auto | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the step of DessiLBI is given once for all updates.

    Attributes:
        learning_rate: the step of W, a number or a schedule.
        kappa: κ > 0.
        nu: ν > 0.
        lam: λ > 0, a number, a schedule, `Auto`, or None where every rule has its own.
        structure: whatever a user may give; it is turned into an object with `resolve`.
        lean: whether no Γ is stored.
        penalty: Ω; None for the group lasso.
        finished: whether updates are already steps of W, as those of `dl.wrap` are.

    Raises:
        TypeError: λ missing, or something of the wrong kind.
        ValueError: a number out of range.
    """

    learning_rate: ScalarOrSchedule
    kappa: float | jax.Array
    nu: float | jax.Array
    lam: Lam
    structure: StructureLike
    lean: bool
    penalty: Penalty | None
    finished: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "structure", as_structure(self.structure))
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate)
        check_number("kappa", self.kappa)
        check_number("nu", self.nu)
        if isinstance(self.lam, str):
            raise TypeError(
                f"lam must be a number, a schedule or dl.auto(density=…, steps=…), got {self.lam!r}"
            )
        if not (isinstance(self.lam, Auto) or callable(self.lam) or self.lam is None):
            check_number("lam", self.lam)
        if self.lam is None and not _every_rule_has_lam(self.structure):
            raise TypeError(
                "lam is missing: give a number, a schedule, dl.auto(density=…, steps=…), or a "
                "lam in every rule; dl.calibrate suggests a number"
            )
        if self.penalty is not None and not isinstance(self.penalty, Penalty):
            raise TypeError(
                "penalty must be made by dl.group_lasso, dl.sparse_group_lasso or "
                f"dl.elastic_net, got {self.penalty!r}"
            )

    @property
    def auto(self) -> Auto | None:
        """How λ is found inside the run, or None where it is given."""
        return self.lam if isinstance(self.lam, Auto) else None

    def penalty_of(self, leaf: LeafGroups) -> Penalty:
        """Ω of a leaf: its rule's own, or the one for all."""
        return leaf.penalty or self.penalty or _GROUP_LASSO

    def rate_at(self, count: jax.Array) -> Any:
        """The learning rate of an update, of which `count` were made before it."""
        return self.learning_rate(count) if callable(self.learning_rate) else self.learning_rate

    def lam_at(self, count: jax.Array) -> Any:
        """λ of an update where it is given, else `CLOSED`.

        As it was given: float64 leaves are thresholded at that, only the state rounds it.
        """
        value = self.lam(count) if callable(self.lam) else self.lam
        return CLOSED if value is None or isinstance(value, Auto) else value

    def strength_at(self, count: jax.Array) -> Any:
        """The factor of W − Γ in the update: 1/ν, or −learning_rate/ν in a finished one."""
        return -self.rate_at(count) / self.nu if self.finished else 1 / self.nu

    def pace_at(self, count: jax.Array) -> Any:
        """The factor of W − Γ in V: learning_rate/(κν)."""
        return self.rate_at(count) / (self.kappa * self.nu)


_GROUP_LASSO = Penalty()


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, low_allowed: bool = False
) -> None:
    """Bounds of plain numbers; traced ones (`inject_hyperparams`) cannot be looked at."""
    if isinstance(value, jax.core.Tracer | jax.Array):
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    if not (low <= value if low_allowed else low < value) or not value < high:
        left = "[" if low_allowed else "("
        raise ValueError(f"{name} must be finite and lie in {left}{low:g}, {high:g}), got {value}")


def _every_rule_has_lam(structure: Any) -> bool:
    rules: Sequence[Any] = getattr(structure, "rules", ())
    return bool(rules) and all(rule[1] is None or rule[2].get("lam") for rule in rules)
