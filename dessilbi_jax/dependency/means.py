"""Means over channels: what they become where there are fewer, and which leaf can make up for it.

The mean of k numbers that are left of n, where the others are zero, is n/k times the mean of all
n. That factor is followed through what comes next: a root of it, a quotient by it. Where the value
meets a leaf as a factor (the scale of a root-mean-square normalisation, or the kernel behind one
without a scale), the leaf can be multiplied by the inverse, and the outputs are what they were: for
x·g/√(Σx²/n) these are scales times √(n/k). (The ε beside the mean is taken for small.)

A mean that is put to other use, such as being subtracted, keeps its channels; with `approximate`
it does not, and what is subtracted is taken to be zero, as for the mean in a layer normalisation.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dessilbi_jax.dependency.axes import Axis, Question

Factor = tuple[tuple[int, float], ...]  # (number of a mean, power of its n/k), in order

_VIEWS = """broadcast_in_dim convert_element_type copy copy_p reshape squeeze stop_gradient
    transpose"""
_MOVES = """abs expand_dims name neg optimization_barrier reduce_max reduce_min reduce_precision
    reduce_sum rev sharding_constraint slice"""
VIEWS = frozenset(_VIEWS.split())
MOVES = VIEWS | frozenset(_MOVES.split())
_ALIKE = frozenset({"add", "add_any", "concatenate", "max", "min", "select_n", "sub"})
_PRODUCTS = frozenset({"mul", "dot_general", "conv_general_dilated"})
_POSITIVE = frozenset({"abs", "exp", "logistic", "square", "exp2", "softplus"})
_SMALL = 1e-2  # what may stand beside a mean, against division by zero


class Mean(NamedTuple):
    """A mean over channels: what was asked of the sum, over which axis, and how many there are."""

    question: Question
    axis: Axis


class Means:
    """The means of one walk.

    Attributes:
        found: all of them.
        equations: ids of the equations that divide by a number of channels.
        hopeless: questions of sums that change with the number of channels, and nothing can make
            up for it.
    """

    def __init__(self, approximate: bool = False) -> None:
        self.approximate = approximate
        self.found: list[Mean] = []
        self.equations: set[int] = set()
        self.hopeless: set[Question] = set()
        self._uses: dict[str, int] = {}
        self._taken: dict[str, list[Factor]] = {}

    def lost(self, *factors: Factor) -> None:
        """Notes that nothing can make up for these."""
        if not self.approximate:
            self.hopeless |= {self.found[i].question for factor in factors for i, _ in factor}

    def factor(self, eqn: Any, ins: Sequence[Any]) -> Factor:
        """The factor of an equation's results, from those of its operands."""
        name = eqn.primitive.name
        made = self._mean(eqn, ins)
        for v in ins:
            if v.of is not None and name not in VIEWS:
                self._uses[v.of] = self._uses.get(v.of, 0) + 1
        factors = [v.factor for v in ins]
        if not made and not any(factors):
            return ()
        out = self._homogeneous(eqn, name, ins)
        if out is None and not self.approximate:
            self.lost(*factors, made)
            return ()
        out = _sum(_approximate(name, factors) if out is None else out, made, 1)
        if name in _PRODUCTS and out:
            for v in ins:
                if v.of is not None and not v.factor:
                    self._taken.setdefault(v.of, []).append(out)
                    return ()
        return out

    def _homogeneous(self, eqn: Any, name: str, ins: Sequence[Any]) -> Factor | None:
        """The factor of what is homogeneous in its operands; None where it is not."""
        first: Factor = ins[0].factor
        if name in MOVES:
            return first
        if name in _PRODUCTS or name == "div":
            return _sum(first, ins[1].factor, -1 if name == "div" else 1)
        if name in ("sqrt", "rsqrt", "square", "integer_pow"):
            power = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2}.get(name)
            return _times(first, eqn.params["y"] if power is None else power)
        if name == "pow" and ins[1].number is not None:
            return _times(first, float(ins[1].number))
        if name not in _ALIKE:
            return None
        ins = ins[1:] if name == "select_n" else ins
        there: set[Factor] = {v.factor for v in ins if v.factor}
        small = all(
            v.factor or (v.number is not None and abs(float(v.number)) <= _SMALL) for v in ins
        )
        return there.pop() if len(there) == 1 and small else None

    def _mean(self, eqn: Any, ins: Sequence[Any]) -> Factor:
        """The factor that comes of dividing a sum over channels by how many they are."""
        name = eqn.primitive.name
        if name not in ("div", "mul"):
            return ()
        for v, by in ((ins[0], ins[-1]), (ins[-1], ins[0])):
            if v.summed is None or by.number is None or (name == "div" and by is ins[0]):
                continue
            question, axis, n = v.summed
            for power in (1.0, 0.5, -0.5, -1.0):
                if math.isclose(float(by.number), n ** (power if name == "div" else -power),
                                rel_tol=1e-5) and n > 1:  # fmt: skip
                    self.equations.add(id(eqn))
                    self.found.append(Mean(question, axis))
                    return ((len(self.found) - 1, power),)
        return ()

    def scales(self) -> list[tuple[str, Mean, float]]:
        """(leaf, mean, power): the leaf is to be multiplied by that power of the mean's n/k.

        Leaves that are used otherwise too make the means that they were to make up for hopeless.
        """
        out = []
        for leaf, factors in self._taken.items():
            if len(factors) < self._uses[leaf] or len(set(map(self._shape, factors))) > 1:
                self.hopeless |= {self.found[i].question for factor in factors for i, _ in factor}
                continue
            out += [(leaf, self.found[i], -power) for i, power in factors[0]]
        return out

    def _shape(self, factor: Factor) -> tuple[Any, ...]:
        return tuple((self.found[i].axis.size, power) for i, power in factor)


def is_positive(eqn: Any, ins: Sequence[Any]) -> bool:
    """Whether no entry of an equation's result is below zero."""
    name = eqn.primitive.name
    if name in VIEWS or name in ("reduce_sum", "reduce_max", "reduce_min", "sqrt"):
        return bool(ins[0].positive)
    if name == "max":
        return any(v.positive or (v.number is not None and float(v.number) >= 0) for v in ins)
    even = name == "integer_pow" and eqn.params["y"] % 2 == 0
    return name in _POSITIVE or even


def _sum(a: Factor, b: Factor, sign: int) -> Factor:
    powers = dict(a)
    for i, power in b:
        powers[i] = powers.get(i, 0.0) + sign * power
    return tuple(sorted((i, power) for i, power in powers.items() if power))


def _times(a: Factor, by: float) -> Factor:
    return tuple((i, power * by) for i, power in a)


def _approximate(name: str, factors: Sequence[Factor]) -> Factor:
    """Of a sum, the factor of what others are added to or subtracted from; else the first."""
    if name in ("sub", "add", "add_any"):
        return factors[0]
    return next((factor for factor in factors if factor), ())
