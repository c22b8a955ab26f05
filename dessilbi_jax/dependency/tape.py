"""What a channel still is when all that makes it is zero: zero, a number, or still data.

A walk notes on a tape which value is computed from which. Once it is known which positions are one
channel, the values are gone through again, with all leaves that make a channel at zero there:

- a *number* (0.0 for most): an activation that keeps zero, or one that makes a constant of it;
- `CONSTANT`: some number that does not depend on the data, such as a normalised zero;
- `VARIES`: it depends on the data still, as the output of an attention head whose query is zero.

A channel that varies where a kernel reads it is only gone when that kernel's slice is zero too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

CONSTANT, VARIES = "constant", "varies"
State = float | str | None  # None: nothing is known yet

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general", "mul", "and"})
_QUOTIENTS = frozenset({"div", "rem"})
_SUMS = frozenset({"reduce_sum", "cumsum", "reduce_window_sum", "fft", "psum", "psum_invariant"})
_MIXED = frozenset({"reduce_prod", "cumprod", "reduce_window"})
_MOVES = """broadcast_in_dim concatenate convert_element_type copy copy_p cumlogsumexp cummax cummin
    dynamic_slice dynamic_update_slice gather name pad pcast pmax pmin pvary reduce_max reduce_min
    reduce_precision reduce_window_max reduce_window_min reshape reshard rev scatter scatter-add
    scatter-max scatter-min scatter_add scatter_max scatter_min sharding_constraint slice sort
    split squeeze stack stop_gradient tile top_k transpose unstack"""
_SAME = frozenset(_MOVES.split())


class _Entry(NamedTuple):
    """How a value came about; no equation: it is one of the others."""

    eqn: Any
    ins: tuple[int | None, ...]
    known: tuple[Any, ...]
    data: tuple[bool, ...]
    out: int


class Tape:
    """The values of a walk, numbered, and the equations between them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._entries: list[_Entry] = []

    def leaf(self, value: Any) -> Any:
        """The value of a leaf or an input, numbered."""
        self.values.append(value)
        return value._replace(node=len(self.values) - 1)

    def add(self, value: Any, eqn: Any, ins: Sequence[Any]) -> Any:
        """The value of an equation's result, numbered.

        Args:
            value: what is known of the result.
            eqn: the equation.
            ins: the values of its operands.
        """
        out = self.leaf(value)
        nodes, known, data = (
            tuple(getattr(v, name) for v in ins) for name in ("node", "number", "data")
        )
        self._entries.append(_Entry(eqn, nodes, known, data, out.node))
        return out

    def either(self, value: Any, ins: Sequence[Any]) -> Any:
        """A value that is one of others, as what a branch gives is."""
        out = self.leaf(value)
        for v in ins:
            self.also(out, v)
        return out

    def also(self, value: Any, other: Any) -> None:
        """Notes that a value may be another one too, as what a loop carries is."""
        ins = (other.node,), (other.number,), (other.data,)
        self._entries.append(_Entry(None, *ins, value.node))

    def states(
        self, channels: Callable[[Any], frozenset[int]], leaves: Sequence[int]
    ) -> list[dict[int, State]]:
        """By node and channel, what it is once its makers are zero.

        Args:
            channels: of a value, the sets of channels that its axes carry.
            leaves: nodes of the leaves.
        """
        carried = [channels(value) for value in self.values]
        states: list[dict[int, State]] = [{} for _ in self.values]
        for node in leaves:
            states[node] = dict.fromkeys(carried[node], 0.0)
        changed = True
        while changed:
            changed = False
            for entry in self._entries:
                for channel in carried[entry.out]:
                    before = states[entry.out].get(channel)
                    if before == VARIES:
                        continue
                    now = either(before, _state(entry, channel, states, carried))
                    if now != before:
                        states[entry.out][channel] = now
                        changed = True
        return states


def either(a: State, b: State) -> State:
    """What is known of something that is one of two.

    Example:
        >>> either(0.0, 0.0), either(0.0, 1.0), either(None, "varies")
        (0.0, 'constant', 'varies')
    """
    if a is None or b is None:
        return b if a is None else a
    if VARIES in (a, b):
        return VARIES
    return a if a == b else CONSTANT


def _state(
    entry: _Entry,
    channel: int,
    states: Sequence[dict[int, State]],
    carried: Sequence[frozenset[int]],
) -> State:
    operands: list[State] = []
    having = []
    for node, known, data in zip(entry.ins, entry.known, entry.data, strict=True):
        if node is not None and channel in carried[node]:
            operands.append(states[node].get(channel))
            having.append(operands[-1])
        elif known is not None:
            operands.append(_number(known))
        else:
            operands.append(VARIES if data else CONSTANT)
    if any(x is None for x in having):
        return None
    name = "" if entry.eqn is None else entry.eqn.primitive.name
    if entry.eqn is None or name in _SAME:
        out: State = None
        for x in having or operands:
            out = either(out, x)
        return out
    if name == "select_n":
        out = None
        for x in operands[1:]:
            out = either(out, x)
        return out
    if name in _PRODUCTS and 0.0 in operands:
        return 0.0
    if name in _QUOTIENTS and operands[0] == 0.0:
        return 0.0
    if VARIES in operands:
        return VARIES
    if name in _SUMS:
        return 0.0 if all(x == 0.0 for x in having) else CONSTANT
    if name in _MIXED or CONSTANT in operands or name in _PRODUCTS - {"mul", "and"}:
        return CONSTANT
    return _evaluated(entry.eqn, operands)


def _number(x: Any) -> State:
    try:
        return float(x)
    except (TypeError, ValueError):
        return CONSTANT


def _evaluated(eqn: Any, operands: Sequence[Any]) -> State:
    """An elementwise equation of numbers."""
    try:
        dtypes = [var.aval.dtype for var in eqn.invars]
        given = [jnp.asarray(x, dtype) for x, dtype in zip(operands, dtypes, strict=True)]
        out = float(eqn.primitive.bind(*given, **eqn.params))
    except Exception:  # whatever has no meaning for single numbers
        return CONSTANT
    return out if np.isfinite(out) else CONSTANT
