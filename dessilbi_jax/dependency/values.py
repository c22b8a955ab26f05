"""What is known of an array of a jaxpr, and what can be said of one equation by itself."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.axes import WILD, Axis, Question
from dessilbi_jax.dependency.means import Factor
from dessilbi_jax.dependency.reasons import DATA, Reason, Why

_LARGE = 1 << 20  # constants of more numbers are not looked at


class Value(NamedTuple):
    """What is known of an array.

    Attributes:
        axes: its axes.
        data: whether it depends on the network's inputs.
        node: its number on the tape, None before it has one.
        number: the number in the program that all its entries are, or None.
        summed: of a sum over channels, what was asked of it, over which axis, and how many
            numbers were summed.
        factor: what it is multiplied by where means over channels have fewer (`means`).
        of: the leaf that it is a view of, or None.
        positive: whether no entry is below zero, as far as is known.
        chosen: whether it is a leaf of which the inputs choose a part, such as a kernel by index.
    """

    axes: tuple[Axis, ...]
    data: bool
    node: int | None = None
    number: Any = None
    summed: tuple[Question, Axis, int] | None = None
    factor: Factor = ()
    of: str | None = None
    positive: bool = False
    chosen: bool = False

    @property
    def flows(self) -> bool:
        """Whether it is data, rather than a leaf that works on them."""
        return self.data and not self.chosen


class Cost(NamedTuple):
    """Floating-point operations of one equation: `factor` times the lengths of some axes."""

    factor: int
    axes: tuple[Axis, ...]


def as_now(value: Value) -> Value:
    """The value with its axes as they are by now."""
    return value._replace(axes=tuple(axis.now() for axis in value.axes))


def shapes(eqn: Any) -> list[tuple[int, ...]]:
    """The shapes of an equation's results."""
    return [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]


def fixed(shape: Sequence[int], why: Why = DATA) -> tuple[Axis, ...]:
    """Axes that stay, and why."""
    return tuple(Axis(n, why) for n in shape)


def literal(number: Any) -> Value:
    """A number written in the program."""
    return Value(fixed(np.shape(number)), False, number=number if np.ndim(number) == 0 else None)


def constant(const: Any) -> tuple[Axis, ...]:
    """The axes of an array of the program: one along which it is the same may be any length."""
    shape = np.shape(const)
    why = Why(Reason.CONSTANT)
    if math.prod(shape) > _LARGE or not hasattr(const, "dtype"):
        return fixed(shape, why)
    try:
        array = np.asarray(const)
    except TypeError:  # keys of random numbers
        return fixed(shape, why)
    return tuple(
        WILD if n > 1 and bool((array == array.take([0], axis=i)).all()) else Axis(n, why)
        for i, n in enumerate(shape)
    )


def evaluated(eqn: Any, numbers: Sequence[Any]) -> Any:
    """The number that comes of numbers; None where it is more than one."""
    if len(eqn.outvars) != 1 or math.prod(shapes(eqn)[0]) != 1 or eqn.effects:
        return None
    try:
        given = [jnp.asarray(x, var.aval.dtype) for x, var in zip(numbers, eqn.invars, strict=True)]
        return np.asarray(eqn.primitive.bind(*given, **eqn.params)).item()
    except Exception:  # whatever has no meaning for single numbers
        return None


def summed_over(eqn: Any) -> set[tuple[int, int]]:
    """(operand, axis) of what a product or a convolution sums over."""
    if eqn.primitive.name == "dot_general":
        (left, right), _ = eqn.params["dimension_numbers"]
        return {(0, i) for i in left} | {(1, i) for i in right}
    if eqn.primitive.name.startswith("ragged_dot"):
        left, right = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0]
        return {(0, i) for i in left} | {(1, i) for i in right}
    if eqn.primitive.name == "conv_general_dilated":
        dims = eqn.params["dimension_numbers"]
        return {(0, dims.lhs_spec[1]), (1, dims.rhs_spec[1])}
    return set()
