"""Following channels through products, convolutions and reductions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dessilbi_jax.dependency.axes import WILD, Axis, is_open
from dessilbi_jax.dependency.follower import Follower, Rule, elementwise, primitive, unknown
from dessilbi_jax.dependency.reasons import DATA, Reason
from dessilbi_jax.dependency.values import Value, fixed, shapes

RULES: dict[str, Rule] = {}
_REDUCTIONS = """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor"""


@primitive(RULES, "reduce_window reduce_window_max reduce_window_min reduce_window_sum")
def _reduce_window(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    p, axes = eqn.params, []
    n = len(ins[0].axes)
    steps = zip(
        p["window_dimensions"], p["window_strides"], p["padding"],
        p.get("base_dilation") or (1,) * n, strict=True,
    )  # fmt: skip
    for axis, size, step in zip(ins[0].axes, shapes(eqn)[0], steps, strict=True):
        whole = tuple(step) in ((1, 1, (0, 0), 1), (1, 1, [0, 0], 1))
        if not whole:
            self.fix(axis, Reason.POOLED.at(self.where(eqn)))
        axes.append(axis.now() if whole else Axis(size, DATA))
    return [Value(tuple(axes), ins[0].data) for _ in eqn.outvars]


@primitive(RULES, "dot_general")
def _dot_general(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = ins
    both = left.flows and right.flows
    for v, summed in ((left, lc), (right, rc)):
        for axis in (v.axes[i].now() for i in summed):
            labels = axis.labels
            if labels is not None and (both or any(a not in _at(v, summed) for a in labels.axes)):
                self.decide(labels)
    for i, j in zip(lc, rc, strict=True) if both else ():
        _between_activations(self, eqn, (left, left.axes[i].now()), (right, right.axes[j].now()))
    for v, other, summed in ((left, right, lc), (right, left, rc)):
        if not v.flows and (other.flows or v is right):
            for i in summed:
                v.axes[i].mark_summed()
                self.read.append((other, v.axes[i]))
    pairs = [(left.axes[i], right.axes[j]) for i, j in zip((*lc, *lb), (*rc, *rb), strict=True)]
    if not left.flows and not right.flows:  # as in W + A @ B: what is summed over can go too
        for axis, _ in pairs[: len(lc)]:
            self.label([axis] if axis.now().origins else [])
    for a, b in pairs[: len(lc)]:
        for axis, partner in ((a, b), (b, a)):
            if partner is WILD:
                self.fix(axis, Reason.SUMMED.at(self.where(eqn)))
    self.align(pairs, Reason.MULTIPLIED.at(self.where(eqn)))
    lfree = [a.now() for i, a in enumerate(left.axes) if i not in (*lc, *lb)]
    rfree = [a.now() for i, a in enumerate(right.axes) if i not in (*rc, *rb)]
    for free in (lfree, rfree):
        self.label([a for a in free if a is not WILD])
    batch = [a.now() if a is not WILD else b.now() for a, b in pairs[len(lc) :]]
    summed_axes = [a.now() if a is not WILD else b.now() for a, b in pairs[: len(lc)]]
    out = (*batch, *lfree, *rfree)
    wild = math.prod(n for a, n in zip(out, shapes(eqn)[0], strict=True) if a is WILD)
    self.cost(2 * wild, [a for a in (*out, *summed_axes) if a is not WILD])
    return [Value(out, left.data or right.data)]


def _between_activations(
    self: Follower, eqn: Any, left: tuple[Value, Axis], right: tuple[Value, Axis]
) -> None:
    """A sum over channels that two activations have: zeros leave it as it is."""
    why = Reason.ACTIVATIONS_SUMMED.at(self.where(eqn))
    carrying = [axis for _, axis in (left, right) if axis.labels is not None]
    labels = [axis.labels for axis in carrying if axis.labels is not None]
    if len(labels) == 2 and all(len(each.axes) == 1 for each in labels):
        question = ("summed", left[1].size, self.line(eqn))
        if self.choice(question, 2, np.concatenate([each.atoms for each in labels])):
            self.sums.append((left, right))
            return
    for axis in carrying:
        self.fix(axis, why)


def _at(value: Value, places: Sequence[int]) -> list[Axis]:
    return [value.axes[i].now() for i in places]


@primitive(RULES, "conv_general_dilated")
def _convolution(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    image, kernel = ins
    dims, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(self, eqn, ins)
    batch, channel, *space = dims.lhs_spec
    out, into, *window = dims.rhs_spec
    for axis in (*_at(image, space), *_at(kernel, window)):
        self.fix(axis, DATA if is_open(axis) else Reason.CONVOLVED_OVER.at(self.where(eqn)))
    if groups == 1:
        kernel.axes[into].mark_summed()
        self.read.append((image, kernel.axes[into]))
        self.align([(image.axes[channel], kernel.axes[into])], Reason.CONVOLVED.at(self.where(eqn)))
        self.label([kernel.axes[out].now()])
    else:
        sizes = [var.aval.shape[i] for var, i in zip(eqn.invars, (channel, out), strict=True)]
        _group(
            self, image.axes[channel], kernel.axes[into], kernel.axes[out], sizes, groups,
            self.where(eqn),
        )  # fmt: skip
    shape = shapes(eqn)[0]
    axes = list(fixed(shape))
    axes[dims.out_spec[0]] = image.axes[batch]
    made = kernel.axes[out].now()
    if groups > 1 and made is WILD:  # a kernel made for the number of channels there are
        made = self.repeated(image.axes[channel].now(), groups, shape[dims.out_spec[1]])
    axes[dims.out_spec[1]] = made
    places = math.prod(shape[i] for i in dims.out_spec[2:]) * shape[dims.out_spec[0]]
    taps = math.prod(eqn.invars[1].aval.shape[i] for i in window)
    summed = kernel.axes[into].now()
    if summed is WILD and groups == 1:
        summed = image.axes[channel].now()
    cells = [(summed, into), (made, out)]
    taps *= math.prod(eqn.invars[1].aval.shape[i] for axis, i in cells if axis is WILD)
    self.cost(2 * places * taps, [axis for axis, _ in cells if axis is not WILD])
    return [Value(tuple(axes), image.data or kernel.data)]


def _group(
    self: Follower, channel: Axis, into: Axis, out: Axis, sizes: Sequence[int], groups: int, at: str
) -> None:
    """The channels of a grouped convolution.

    A depthwise one loses whole groups, an input channel with the outputs made of it alone; any
    other keeps its groups, each of which loses the same positions.
    """
    self.label([a for a in (channel, out) if a is not WILD])
    if WILD in (channel, out):
        if sizes[0] != groups:  # each group of a constant kernel sums over its channels
            for axis in (channel, out):
                self.fix(axis, Reason.CONVOLVED.at(at))
        return
    ends = [self.group_labels(axis, groups) for axis in (channel.now(), out.now())]
    if into.size == 1:
        self.partition.join(ends[1], ends[1][:, :1])
        self.partition.join(ends[0], ends[1][:, :1])
        return
    for atoms in ends:
        self.partition.join(atoms, atoms[:1])
    into.mark_summed()
    self.align([(self.derived(ends[0][:1], [[channel]] * 2)[1], into)], Reason.CONVOLVED.at(at))


@primitive(RULES, _REDUCTIONS)
def _reduce(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    gone = eqn.params["axes"]
    why = Reason.REDUCED.at(eqn.primitive.name, self.where(eqn))
    name, summed = eqn.primitive.name, None
    # Zeros leave a sum as it is, and the largest of numbers that are none below zero.
    neutral = name == "reduce_sum" or (name == "reduce_max" and ins[0].positive)
    for axis in (ins[0].axes[i].now() for i in gone):
        labels = axis.labels
        if neutral and labels is not None and len(labels.axes) == 1 and axis.fixed is None:
            question = ("summed", axis.size, self.line(eqn))
            summed = question, axis, math.prod(eqn.invars[0].aval.shape[i] for i in gone)
            approximate = int(self.means.approximate and name == "reduce_sum")
            if self.choice(question, 2, labels.atoms, approximate):
                self.sums.append(((ins[0], axis),))
                continue
        self.fix(axis, why)
    return [
        Value(tuple(a.now() for i, a in enumerate(v.axes) if i not in gone), v.data, summed=summed)
        for v in ins[: len(eqn.outvars)]
    ]


@primitive(RULES, "cumlogsumexp cummax cummin cumprod cumsum")
def _cumulative(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    self.fix(ins[0].axes[eqn.params["axis"]], Reason.CUMULATED.at(self.where(eqn)))
    return ins


@primitive(RULES, "sort")
def _sort(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    out = elementwise(self, eqn, ins)
    self.fix(out[0].axes[eqn.params["dimension"]], Reason.SORTED.at(self.where(eqn)))
    return out


@primitive(RULES, "top_k")
def _top_k(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    *axes, last = ins[0].axes
    self.fix(last, Reason.SORTED.at(self.where(eqn)))
    out = (*axes, Axis(shapes(eqn)[0][-1], DATA))
    return [Value(out, ins[0].data)] * 2
