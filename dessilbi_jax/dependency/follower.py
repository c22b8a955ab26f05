"""Following channels through the primitives of a jaxpr.

One rule a primitive says what becomes of the axes of its operands. A primitive without a rule is
noted with its source line, and whatever it touches can no longer be removed: nothing is guessed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Literal

from dessilbi_jax.dependency.axes import WILD, Axes, Axis, Labels, Question, is_open
from dessilbi_jax.dependency.means import VIEWS, Means, is_positive
from dessilbi_jax.dependency.reasons import DATA, Reason, Why
from dessilbi_jax.dependency.source import user_line
from dessilbi_jax.dependency.tape import Tape
from dessilbi_jax.dependency.values import (
    Cost,
    Value,
    as_now,
    constant,
    evaluated,
    fixed,
    literal,
    shapes,
    summed_over,
)

Rule = Callable[["Follower", Any, list[Value]], list[Value]]
RULES: dict[str, Rule] = {}
_SPREADING = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"})
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "branches", "body_jaxpr")
_ELEMENTWISE = """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e
    bessel_i1e cbrt ceil clamp complex conj convert_element_type copy copy_p cos cosh
    digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
    not or pcast pmax pmin population_count pow psum psum_invariant pvary real reduce_precision rem
    round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sharding_constraint sign sin sinh sqrt square
    stop_gradient sub tan tanh to_edtype from_edtype xor"""
_RANDOM = """random_bits random_fold_in random_seed random_split random_unwrap random_wrap
    rng_bit_generator rng_uniform threefry2x32"""


def primitive(table: dict[str, Rule], names: str) -> Callable[[Rule], Rule]:
    """Enters a rule into a table, for the primitives named."""

    def enter(rule: Rule) -> Rule:
        table.update(dict.fromkeys(names.split(), rule))
        return rule

    return enter


class Follower(Axes):
    """A walk through one jaxpr.

    Attributes:
        rules: a rule for each primitive that can be followed.
        costs: what its products and convolutions cost.
        unknown: (primitive, where) of what could not be followed.
        tape: what was computed from what.
        read: (value, axis of a leaf that is summed over with it), for each read.
        sums: (value, axis) of sums over channels that were taken for ones which zeros leave as
            they are; of a product, one of its two factors has to be zero.
        means: those sums that are divided by how many they are.
        cuts: (equation, dimension, axis) of cuts that were taken to be at lengths of other arrays.
        cut_at: by the id of each of those equations, (dimension, group of each position).
        wrong: whether one of `sums` turned out not to be of zeros.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        choices: Mapping[Question, int] | None = None,
        approximate: bool = False,
    ) -> None:
        super().__init__(choices)
        self.rules = rules
        self.here: Any = None  # the equation that is being followed
        self.costs: list[Cost] = []
        self.unknown: dict[tuple[str, str], None] = {}
        self.times = 1
        self.callers: list[Any] = []  # the equations whose inner jaxprs are being walked
        self.tape = Tape()
        self.read: list[tuple[Value, Axis]] = []
        self.sums: list[tuple[tuple[Value, Axis], ...]] = []
        self.means = Means(approximate)
        self.cuts: list[tuple[Any, int, Axis]] = []
        self.cut_at: dict[int, list[tuple[int, np.ndarray]]] = {}
        self.wrong = False

    def question(self, labels: Labels) -> Question:
        """What is asked where labels lie over several axes: at which line, and of which lengths."""
        return (*super().question(labels), self.line(self.here))

    def line(self, eqn: Any) -> str:
        """The line of code that an equation comes from, a library's too."""
        for each in (eqn, *reversed(self.callers)):  # JAX's own functions tell nothing
            path, _, _ = source_info_util.summarize(each.source_info).partition(" (")
            if path:
                return str(path)
        return ""

    def where(self, eqn: Any) -> str:
        """Where in the user's source an equation comes from: `net.py:12 (block)`."""
        for each in (eqn, *reversed(self.callers)):
            found = user_line(each.source_info.traceback)
            if found:
                return found
        return "an unknown line"

    def run(self, jaxpr: Any, args: Sequence[Value], caller: Any = None) -> list[Value]:
        """The values of a jaxpr's results from those of its arguments."""
        if caller is not None:
            self.callers.append(caller)
            out = self.run(jaxpr, args)
            self.callers.pop()
            return out
        consts = getattr(jaxpr, "consts", ())
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env: dict[Any, Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = Value(constant(const), False)
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(var: Any) -> Value:
            return literal(var.val) if isinstance(var, Literal) else env[var]

        skipped = _for_nothing(jaxpr)
        for eqn in jaxpr.eqns:
            if eqn in skipped:
                env.update(
                    (var, Value((WILD,) * len(shape), False))
                    for var, shape in zip(eqn.outvars, shapes(eqn), strict=True)
                )
                continue
            ins = [as_now(read(var)) for var in eqn.invars]
            rule, self.here = self.rules.get(eqn.primitive.name, unknown), eqn
            outs = [self.told_apart(v) for v in rule(self, eqn, ins)]
            self._mark_made(eqn, ins, outs)
            if not any(name in eqn.params for name in _INNER):
                outs = self._told(eqn, ins, outs)
            outs = [v if v.node is not None else self.tape.add(v, eqn, ins) for v in outs]
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _told(self, eqn: Any, ins: Sequence[Value], outs: Sequence[Value]) -> list[Value]:
        """The results of an equation, with what is known of their numbers."""
        name = eqn.primitive.name
        factor = self.means.factor(eqn, ins)
        known: dict[str, Any] = {"factor": factor, "positive": is_positive(eqn, ins)}
        if name in _SPREADING or name == "sqrt":
            known |= {"number": ins[0].number, "summed": ins[0].summed}
        elif ins and all(v.number is not None for v in ins):
            known |= {"number": evaluated(eqn, [v.number for v in ins])}
        if name in VIEWS:
            known |= {"of": ins[0].of, "chosen": ins[0].chosen}
        return [v._replace(**known) if v.node is None else v for v in outs]

    def _mark_made(self, eqn: Any, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        """Notes which leaves the data have an axis from: those make its channels."""
        if not any(v.data for v in outs) or all(v.flows for v in ins):
            return
        if any(name in eqn.params for name in _INNER):  # what it is made of has been walked
            return
        labelled = [a.now().labels for v in outs for a in v.axes]
        there = [self.partition.find(x.atoms.ravel()) for x in labelled if x is not None]
        if not there:
            return
        roots = np.unique(np.concatenate(there))
        summed = summed_over(eqn)
        for at, v in enumerate(ins):
            for i, axis in enumerate(v.axes if not v.flows else ()):
                labels = axis.now().labels
                if labels is None or (at, i) in summed or not axis.now().origins:
                    continue
                if np.isin(self.partition.find(labels.atoms.ravel()), roots).any():
                    axis.now().mark_made()

    def told_apart(self, value: Value) -> Value:
        """The value with no axis twice, as the outer product of a vector with itself has it."""
        axes: list[Axis] = []
        for axis in value.axes:
            if axis is not WILD and axis.fixed is None and axis in axes:
                axis = self.copied(axis)
            axes.append(axis)
        return value._replace(axes=tuple(axes))

    def copied(self, axis: Axis) -> Axis:
        """Another axis that loses the same positions."""
        self.label([axis])
        if axis.labels is not None:
            self.decide(axis.labels)
        if axis.labels is None:
            return Axis(axis.size, axis.fixed)
        return self.derived(axis.labels.atoms, [[axis]])[0]

    def cost(self, factor: int, axes: Sequence[Axis]) -> None:
        """Notes what an equation costs, as often as the loops around it run."""
        self.costs.append(Cost(factor * self.times, tuple(axes)))

    def every(self, axes: Sequence[Axis], at: int, start: int, step: int) -> list[Axis]:
        """The axes after every `step`-th position was taken along one of them.

        The `step` neighbours go together, so that the rest is still taken in turns.
        """
        axis = axes[at]
        self.label([axis] if is_open(axis) else [])
        if axis.labels is not None:
            neighbours = np.moveaxis(axis.labels.atoms, axis.labels.axes.index(axis), 0)
            neighbours = neighbours.reshape(-1, step, *neighbours.shape[1:])
            self.partition.join(neighbours, neighbours[:, :1])
        return self.part(axes, at, np.arange(start, axis.size, step))

    def repeated(self, axis: Axis, groups: int, size: int) -> Axis:
        """An axis of `size` positions, made of each group of another one in equal shares."""
        if axis is WILD:
            return axis
        if axis.labels is not None:
            self.decide(axis.labels)
        if axis.labels is None or axis.size != groups:
            return Axis(size, axis.fixed or DATA)
        atoms = np.repeat(axis.labels.atoms, size // groups)
        return self.derived(atoms, [[axis]])[0]

    def part(self, axes: Sequence[Axis], at: int, index: np.ndarray) -> list[Axis]:
        """The axes after positions have been taken along one of them."""
        axis = axes[at]
        if axis is WILD and len(index) > 1:
            return list(axes)
        self.label([axis] if is_open(axis) else [])
        labels = axis.labels
        if labels is None:
            new = Axis(len(index), axis.fixed or DATA, origins=axis.origins)
            return [new if i == at else other for i, other in enumerate(axes)]
        atoms = labels.atoms.take(index, axis=labels.axes.index(axis))
        new_axes = dict(
            zip(map(id, labels.axes), self.derived(atoms, [[a] for a in labels.axes]), strict=True)
        )
        return [new_axes.get(id(other), other) for other in axes]

    def group_labels(self, axis: Axis, groups: int) -> np.ndarray:
        """Labels of an axis that is cut into groups, one row each; pinned where it is fixed."""
        if axis.labels is not None:
            self.decide(axis.labels)
        if axis.labels is not None:
            return axis.labels.atoms.reshape(groups, -1)
        atoms = self.partition.fresh(axis.size)
        self.partition.pin(atoms, axis.fixed or DATA)
        return atoms.reshape(groups, -1)

    def equal_part(
        self, axes: Sequence[Axis], at: int, start: int, length: int, why: Why
    ) -> list[Axis]:
        """The axes after [start, start + length) has been cut from one of them.

        The parts of an axis cut into equal ones lose the same positions, so that code which cuts
        by the axis's length goes on doing so. Where nothing comes of that, the parts may be taken
        for ones that code cuts by the lengths of other arrays.
        """
        axis = axes[at]
        if axis is WILD or length == axis.size:
            return list(axes)
        self.label([axis] if is_open(axis) else [])
        labels = axis.labels
        question = ("cut", axis.size, self.line(self.here))
        if labels is not None and self.choice(question, 2, labels.atoms):
            self.decide(labels)
            self.cuts.append((self.here, at, axis))
        elif labels is not None:
            if axis.size % length or start % length:
                self.fix(axis, why)
                new = Axis(length, axis.fixed or why)
                return [new if i == at else other for i, other in enumerate(axes)]
            parts = np.moveaxis(labels.atoms, labels.axes.index(axis), 0)
            parts = parts.reshape(-1, length, *parts.shape[1:])
            self.partition.join(parts, parts[:1])
        return self.part(axes, at, np.arange(start, start + length))


def _for_nothing(jaxpr: Any) -> set[Any]:
    """The equations that only serve to make arrays without elements, as `jnp.pad` has them."""
    users: dict[int, list[Any]] = {id(var): [None] for var in jaxpr.outvars}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            users.setdefault(id(var), []).append(eqn)
    found: set[Any] = set()
    for eqn in reversed(jaxpr.eqns):
        uses = [user for var in eqn.outvars for user in users.get(id(var), [])]
        empty = all(0 in getattr(var.aval, "shape", ()) for var in eqn.outvars)
        if eqn.outvars and (empty or (uses and all(user in found for user in uses))):
            found.add(eqn)
    return found


def unknown(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    """What cannot be followed pins all that goes into it."""
    touched = [a for v in ins for a in v.axes if a is not WILD and a.fixed is None]
    why = Reason.NOT_FOLLOWED.at(eqn.primitive.name, self.where(eqn))
    if touched:
        self.unknown[eqn.primitive.name, self.where(eqn)] = None
    for axis in touched:
        self.pin(axis, why)
    data = any(v.data for v in ins)
    return [Value(fixed(shape, why if touched else DATA), data) for shape in shapes(eqn)]


@primitive(RULES, _RANDOM)
def _random(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    why = Reason.RANDOM.at(self.where(eqn))
    return [Value(fixed(shape, why), False) for shape in shapes(eqn)]


@primitive(RULES, "iota")
def _iota(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    return [
        Value(fixed(shape, Reason.NUMBERED.at(self.where(eqn))), False) for shape in shapes(eqn)
    ]


@primitive(RULES, _ELEMENTWISE)
def elementwise(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    """Arrays laid over each other lose the same positions."""
    shape = shapes(eqn)[0]
    data = any(v.data for v in ins)
    if not shape:
        return [Value((), data) for _ in eqn.outvars]
    arrays = [  # an axis of length 1 that is stretched is a broadcast one
        [WILD if a.size == 1 and n != 1 else a for a, n in zip(v.axes, shape, strict=True)]
        for v in ins
        if len(v.axes) == len(shape)
    ]
    axes, *others = arrays or [[WILD] * len(shape)]
    for other in others:
        self.align(list(zip(axes, other, strict=True)), Reason.COMBINED.at(self.where(eqn)))
        axes = [(o if a is WILD else a).now() for a, o in zip(axes, other, strict=True)]
    return [Value(tuple(axes), data) for _ in eqn.outvars]


@primitive(RULES, "bitcast_convert_type")
def _bits(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    alike = len(ins[0].axes) == len(shapes(eqn)[0])  # else bits have an axis of their own
    return (elementwise if alike else unknown)(self, eqn, ins)


@primitive(RULES, "optimization_barrier reshard")
def _identity(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    return ins
