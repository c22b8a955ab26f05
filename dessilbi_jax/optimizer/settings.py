"""The arguments of the transformations, and their checks."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]
Lam: TypeAlias = ScalarOrSchedule | Literal["auto"] | None


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


def _no_target(**given: Any) -> None:
    """What belongs to lam="auto" may not be given without it."""
    at = given.pop("at")
    extra = [name for name, value in given.items() if value is not None]
    if isinstance(at, numbers.Number) and at != 1:  # a traced `at` is the default passed on
        extra.append("at")
    if extra:
        raise TypeError(f"{', '.join(extra)} can only be given together with lam='auto'")


def _every_rule_has_lam(structure: Any) -> bool:
    rules: Sequence[Any] = getattr(structure, "rules", ())
    return bool(rules) and all(rule[1] is None or rule[2].get("lam") for rule in rules)
