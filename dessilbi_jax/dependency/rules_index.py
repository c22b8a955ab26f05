"""Following channels through what reads and writes by index, and chooses among kernels."""

import math
from typing import Any

from dessilbi_jax.dependency.axes import WILD, Axis, is_open
from dessilbi_jax.dependency.follower import Follower, Rule, primitive, unknown
from dessilbi_jax.dependency.reasons import DATA, Reason
from dessilbi_jax.dependency.values import Value, fixed, shapes

RULES: dict[str, Rule] = {}
_SCATTERS = """scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add
    scatter_max scatter_min scatter_mul scatter_sub"""


@primitive(RULES, "gather")
def _gather(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    table, index = ins
    dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
    kept = []
    for at, (axis, taken) in enumerate(zip(table.axes, sizes, strict=True)):
        full = taken == eqn.invars[0].aval.shape[at] and at not in gone
        if not full:
            self.fix(axis, Reason.LOOKED_UP.at(self.where(eqn)))
        if at not in gone:
            kept.append(axis.now() if full else Axis(taken, DATA))
    for axis in index.axes:
        self.fix(axis, Reason.INDEX.at(self.where(eqn)))
    features = [a for a in kept if a is not WILD]
    kernel = not table.data and len([a for a in features if is_open(a)]) > 1
    if not kernel:  # what a kernel's axes are is told by what it is multiplied with
        self.label(features)
    axes, rest = list(fixed(shapes(eqn)[0])), iter(kept)
    for at in dims.offset_dims:
        axes[at] = next(rest)
    return [Value(tuple(axes), table.data or index.data, chosen=kernel)]


@primitive(RULES, "dynamic_slice")
def _dynamic_slice(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    axes = []
    for axis, n, taken in zip(
        ins[0].axes, eqn.invars[0].aval.shape, eqn.params["slice_sizes"], strict=True
    ):
        if taken != n:
            self.fix(axis, Reason.LOOKED_UP.at(self.where(eqn)))
        axes.append(axis.now() if taken == n else Axis(taken, DATA))
    return [Value(tuple(axes), any(v.data for v in ins))]


@primitive(RULES, "dynamic_update_slice")
def _dynamic_update_slice(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    target, update = ins[:2]
    pairs = []
    for a, b in zip(target.axes, update.axes, strict=True):
        if a.size == b.size or WILD in (a, b):
            pairs.append((a, b))
            continue
        for axis in (a, b):
            self.fix(axis, Reason.WRITTEN_BY_INDEX.at(self.where(eqn)))
    self.align(pairs, Reason.WRITTEN.at(self.where(eqn)))
    axes = tuple(
        b.now() if a is WILD else a.now() for a, b in zip(target.axes, update.axes, strict=True)
    )
    return [Value(axes, any(v.data for v in ins))]


@primitive(RULES, _SCATTERS)
def _scatter(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    """Rows written by index: axes that each row has whole go on, as features of a graph's nodes."""
    target, index, rows = ins
    dims = eqn.params["dimension_numbers"]
    by_index = (*dims.inserted_window_dims, *dims.operand_batching_dims)
    windows = [i for i in range(len(target.axes)) if i not in by_index]
    written = Reason.WRITTEN_BY_INDEX.at(self.where(eqn))
    pairs = []
    for i, j in zip(windows, dims.update_window_dims, strict=True):
        whole = eqn.invars[0].aval.shape[i] == eqn.invars[2].aval.shape[j]
        if whole and i not in dims.scatter_dims_to_operand_dims:
            pairs.append((i, j))
            continue
        for axis in (target.axes[i], rows.axes[j]):
            self.fix(axis, written)
    for i in by_index:
        self.fix(target.axes[i], written)
    for axis in index.axes:
        self.fix(axis, Reason.INDEX.at(self.where(eqn)))
    for j, axis in enumerate(rows.axes):
        if j not in dims.update_window_dims:
            self.fix(axis, written)
    laid = [(target.axes[i], rows.axes[j]) for i, j in pairs]
    self.align(laid, Reason.WRITTEN.at(self.where(eqn)))
    axes = list(target.axes)
    for i, j in pairs:
        axes[i] = rows.axes[j].now() if axes[i] is WILD else axes[i].now()
    axes = [Axis(n, DATA) if a is WILD and i in by_index else a
            for i, (a, n) in enumerate(zip(axes, shapes(eqn)[0], strict=True))]  # fmt: skip
    return [Value(tuple(axes), any(v.data for v in ins))]


@primitive(RULES, "ragged_dot ragged_dot_general")
def _ragged_dot(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    """A product of each row with the kernel of its group, as a mixture of experts has it."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    left, right, sizes = ins
    groups, ragged = numbers.rhs_group_dimensions, numbers.lhs_ragged_dimensions
    if any(i in (*lc, *lb) for i in ragged) or lb or rb:
        return unknown(self, eqn, ins)
    for i in groups:
        self.fix(right.axes[i], Reason.EXPERTS.at(self.where(eqn)))
    for axis in sizes.axes:
        self.fix(axis, Reason.INDEX.at(self.where(eqn)))
    for j in rc if left.data and not right.data else ():
        right.axes[j].mark_summed()
        self.read.append((left, right.axes[j]))
    pairs = [(left.axes[i], right.axes[j]) for i, j in zip(lc, rc, strict=True)]
    self.align(pairs, Reason.MULTIPLIED.at(self.where(eqn)))
    lfree = [a.now() for i, a in enumerate(left.axes) if i not in lc]
    rfree = [a.now() for i, a in enumerate(right.axes) if i not in (*rc, *groups)]
    self.label([a for a in (*lfree, *rfree) if a is not WILD])
    out = (*lfree, *rfree)
    sizes_of = (*shapes(eqn)[0], *(eqn.invars[0].aval.shape[i] for i in lc))
    every = list(zip((*out, *(a.now() for a, _ in pairs)), sizes_of, strict=True))
    self.cost(
        2 * math.prod(n for a, n in every if a is WILD), [a for a, _ in every if a is not WILD]
    )
    return [Value(out, left.data or right.data)]


@primitive(RULES, "fft")
def _fft(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    over = len(eqn.params["fft_lengths"])
    why = Reason.TRANSFORMED.at(self.where(eqn))
    for axis in ins[0].axes[-over:]:
        self.fix(axis, why)
    kept = tuple(a.now() for a in ins[0].axes[:-over])
    return [Value((*kept, *fixed(shapes(eqn)[0][-over:], why)), ins[0].data)]
