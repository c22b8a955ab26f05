"""What a run is asked for: λ by a density (`dl.auto`), a size at its end (`dl.settle`)."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]
FEWEST_UPDATES = 20  # before the density is due; with fewer there is nothing to estimate from
_BUDGETS = {
    "density": "weights", "weights": "weights", "groups": "groups", "group_density": "groups",
    "params": "parameters", "flops": "FLOPs",
}  # fmt: skip


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
                f"is due, got steps={self.steps} and at={self.at}: run longer, or give a later at"
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


class Budget(NamedTuple):
    """What is to be left.

    Attributes:
        amount: how much.
        unit: "weights", "groups", "parameters" or "FLOPs".
        share: whether the amount is a share of all.
    """

    amount: float
    unit: str
    share: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settle:
    """When and to what the support of W shrinks; made by `dl.settle`, which says what fields are.

    Raises:
        TypeError: more than one budget, or something of the wrong kind.
        ValueError: numbers out of range.
    """

    density: float | None = None
    weights: int | None = None
    groups: int | None = None
    group_density: float | None = None
    params: int | float | None = None
    flops: int | float | None = None
    begin: float = 0.1
    end: float = 0.75
    cuts: int = 30
    steps: int | jax.Array | None = None
    minimum: int = 1

    def __post_init__(self) -> None:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise TypeError(f"dl.settle takes one budget, got {' and '.join(given)}")
        for name in ("density", "group_density"):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (real and 0 < value <= 1):
                raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
        for name in ("params", "flops"):
            check_size(name, getattr(self, name))
        for name, low in (("weights", 1), ("groups", 1), ("cuts", 1), ("minimum", 0), ("steps", 1)):
            value = getattr(self, name)
            if value is None or isinstance(value, jax.Array):
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        for name in ("begin", "end"):
            check_number(name, getattr(self, name), low=0.0, low_allowed=True)
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"begin and end are fractions of the run, 0 <= begin < end <= 1, got "
                f"begin={self.begin} and end={self.end}"
            )

    @property
    def budget(self) -> Budget:
        """What is to be left."""
        for name, unit in _BUDGETS.items():
            value = getattr(self, name)
            if value is not None:
                share = name.endswith("density") or not isinstance(value, numbers.Integral)
                return Budget(value, unit, share)
        raise ValueError("no budget")

    def of(self, lam: "Lam") -> "Settle":
        """With a budget and steps, those of `dl.auto` where there are none.

        Raises:
            TypeError: neither has them, or those of `dl.auto` are not known when tracing.
        """
        changes: dict[str, Any] = {}
        auto = lam if isinstance(lam, Auto) else None
        if all(getattr(self, name) is None for name in _BUDGETS):
            if auto is None or isinstance(auto.share, jax.Array):
                raise TypeError(
                    "settle has no budget: with λ from dl.auto(density=…, steps=…) it is that, "
                    "else give dl.settle(density=…), weights=, groups=, group_density=, params= or "
                    "flops="
                )
            name = "group_density" if auto.by_group else "density"
            changes[name] = float(auto.share)
        if self.steps is None:
            if auto is None:
                raise TypeError(
                    "settle does not know how long the run is: with λ from dl.auto it is its "
                    "steps, else give dl.settle(steps=…), the number of optimizer updates"
                )
            changes["steps"] = auto.steps
        return dataclasses.replace(self, **changes)


def settle(
    *,
    density: float | None = None,
    weights: int | None = None,
    groups: int | None = None,
    group_density: float | None = None,
    params: int | float | None = None,
    flops: int | float | None = None,
    begin: float = 0.1,
    end: float = 0.75,
    cuts: int = 30,
    steps: int | jax.Array | None = None,
    minimum: int = 1,
) -> Settle:
    """A run that ends with the network: its support shrinks to a budget and the rest trains on.

    From `begin` on, what may be nonzero shrinks in `cuts` cuts to exactly the budget at `end`; what
    leaves is zero from then on in W, in momentum or Adam's moments, in V and in Γ. Behind `end`,
    `dl.support(state)` is the support of W itself.

    Args:
        density: share of the structured leaves' elements that is to be left, in (0, 1].
        weights: the same as a number.
        groups: number of groups to be left.
        group_density: the same as a share.
        params: parameters to be left in the network: a share of all, as a float in (0, 1], or a
            number. With `dl.channels` those of the network without the channels that leave.
        flops: operations to be left, likewise; for `dl.channels`, of the inputs that it was traced
            on. One of the six, or none: that of `dl.auto`.
        begin, end: the first and the last cut, as fractions of `steps`.
        cuts: how many cuts; what is left beyond the budget follows (1 − k/cuts)³. A single one is
            made at `end`.
        steps: optimizer updates of the whole run; by default those of `dl.auto`.
        minimum: groups that every layer keeps.

    Returns:
        What `settle` of `dl.dessilbi` and `dl.wrap` takes: frozen and hashable. With groups of
        different sizes, or a budget of weights in groups, of parameters or operations in channels,
        as many are left as fit.

    Raises:
        TypeError, ValueError: see `Settle`; at `init`, a budget that the structure cannot have.

    Example:
        >>> import jax.numpy as jnp, dessilbi_jax as dl
        >>> tx = dl.dessilbi(0.1, momentum=0.9, lam=dl.auto(density=0.25, steps=40),
        ...                  structure=dl.weights, settle=True)
        >>> params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
        >>> state = tx.init(params)
        >>> for _ in range(40):
        ...     updates, state = tx.update({"kernel": jnp.zeros((2, 4))}, state, params)
        ...     params = {"kernel": params["kernel"] + updates["kernel"]}
        >>> (params["kernel"] != 0).tolist()
        [[False, False, False, False], [False, False, True, True]]
        >>> dl.support(state)["kernel"].sum(), dl.get_state(state).settled.done
        (Array(2, dtype=int32), Array(True, dtype=bool))
    """
    return Settle(
        density=density, weights=weights, groups=groups, group_density=group_density,
        params=params, flops=flops, begin=begin, end=end, cuts=cuts, steps=steps, minimum=minimum,
    )  # fmt: skip


def check_size(name: str, value: Any) -> None:
    """A size is a share of the whole, above 0 and below 1, or a number of at least 1.

    Raises:
        TypeError, ValueError: neither.
    """
    if value is None:
        return
    whole = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not (whole or isinstance(value, float)):
        raise TypeError(f"{name} must be a share or a whole number, got {value!r}")
    if not (value >= 1 if whole else 0 < value <= 1):
        raise ValueError(
            f"{name} must be a share of the whole, above 0 and below 1, or a whole number of at "
            f"least 1, got {value!r}"
        )


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
