"""Channels that live and die together, read from the computation itself."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from dessilbi_jax.dependency import (
    follower,
    rules_control,
    rules_index,
    rules_product,
    rules_shape,
)
from dessilbi_jax.dependency.axes import Axis, Question
from dessilbi_jax.dependency.follower import Follower, Value
from dessilbi_jax.dependency.groups import ChannelGroups, Place
from dessilbi_jax.dependency.reasons import DATA, Reason, Why
from dessilbi_jax.dependency.tape import VARIES
from dessilbi_jax.frameworks import as_network, is_module
from dessilbi_jax.tree import dtype_of, leaf_paths

_TRIES = 8  # walks to find out which axis is to lose positions
_RULES = {
    name: rule
    for table in (follower, rules_control, rules_shape, rules_product, rules_index)
    for name, rule in table.RULES.items()
}


def channel_groups(
    fn: Any,
    params: Any,
    *example_inputs: Any,
    ignore: Sequence[str] = (),
    approximate: bool = False,
) -> ChannelGroups:
    """Finds which axes of which leaves are the same channels, from the jaxpr of `fn`.

    `fn(params, *example_inputs)` is traced, not run. Axes are followed through its primitives:
    what is added, multiplied, normalised or concatenated together loses the same positions; a
    kernel that sums over an axis loses its input slices. An axis that is reduced over together
    with its fellows (layer norm over features, softmax over classes), that comes from the
    network's inputs or reaches its outputs, or that meets a primitive without a rule, is not
    removable, and printing the result says why. A sum that zeros leave as it is does not keep
    its channels, nor does a root-mean-square normalisation, whose scales then make up for the
    channels that are missing (`ChannelGroups.scales`).

    Args:
        fn: the network as a function, in evaluation mode; or a Flax NNX module or an Equinox
            module, which the example inputs follow at once.
        params: a tree of all that lives with channels: parameters and batch statistics. Arrays
            or their shapes.
        example_inputs: what else `fn` takes; arrays or their shapes.
        ignore: regular expressions: channels of a leaf whose path one of them is found in stay.
        approximate: whether channels that a layer normalisation takes the mean of count as
            removable, as the features of a transformer. Outputs then change: the mean of what is
            left is taken for zero. `slim` says by how much.

    Raises:
        TypeError: `fn` cannot be traced with these inputs: it has side effects on traced
            values, needs their values in Python, or fails on their shapes.
        ValueError: an `ignore` pattern matches nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"fc1": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
        ...           "fc2": {"kernel": jnp.ones((8, 3))}}
        >>> def net(p, x):
        ...     x = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        ...     return x @ p["fc2"]["kernel"]
        >>> groups = dl.channel_groups(net, params, jnp.ones((1, 4)))
        >>> groups.count, groups.removable("fc1/kernel", -1).all()
        (8, np.True_)
        >>> groups.removable("fc2/kernel", -1).any()
        np.False_
    """
    if is_module(fn):
        network = as_network(fn)
        return channel_groups(
            network.fn, network.tree, params, *example_inputs, ignore=ignore,
            approximate=approximate,
        )  # fmt: skip
    named = leaf_paths(params)
    if len({path for path, _ in named}) < len(named):
        raise ValueError("two leaves of the parameters have the same path; give a plain dict")
    for pattern in ignore:
        if not any(re.search(pattern, path) for path, _ in named):
            raise ValueError(
                f"ignore pattern {pattern!r} matches no leaf; the paths are: "
                f"{', '.join(path for path, _ in named)}"
            )
    closed = _traced(fn, params, example_inputs)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in named}
    given = [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(example_inputs)]

    def found(choices: Mapping[Question, int]) -> tuple[ChannelGroups, Follower]:
        walk = Follower(_RULES, choices, approximate)
        leaves = _walked(walk, closed, shapes, given, ignore)
        return _result(walk, leaves), walk

    def runs(groups: ChannelGroups, walk: Follower) -> bool:
        kept = np.ones(groups.count, bool)
        for each in groups.sets:
            if len(each.groups) > 1:
                kept[each.groups[0]] = False
        smaller = _smaller(fn, params, example_inputs, groups, kept)
        return smaller is not None and _alike(closed.jaxpr, smaller.jaxpr, walk, kept)

    return _best(found, runs)


def _walked(
    walk: Follower,
    closed: Any,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[tuple[int, ...]],
    ignore: Sequence[str],
) -> dict[str, Value]:
    """The leaves after a walk through the network."""
    leaves = {
        path: walk.tape.leaf(
            Value(tuple(_leaf_axis(path, i, n) for i, n in enumerate(shape)), False, of=path)
        )
        for path, shape in shapes.items()
    }
    data = [Value(tuple(Axis(n, Why(Reason.INPUT)) for n in shape), True) for shape in inputs]
    outputs = walk.run(closed, [*leaves.values(), *data])
    walk.means.lost(*(v.factor for v in outputs))
    for axis in (a for v in outputs for a in v.axes):
        walk.pin(axis, Why(Reason.OUTPUT))
    for path, value in leaves.items():
        for axis in value.axes:
            if any(re.search(pattern, path) for pattern in ignore):
                walk.pin(axis, Why(Reason.IGNORED))
    return leaves


def _best(
    found: Callable[[Mapping[Question, int]], tuple[ChannelGroups, Follower]],
    runs: Callable[[ChannelGroups, Follower], bool],
) -> ChannelGroups:
    """The groups with which most weights can go, of a few choices of axes.

    A choice is tried anew where nothing has come of it, each of its axes in turn. Another one is
    taken where the network runs with one channel less of each set, as code does that reads its
    lengths from its arrays, and has the same numbers in it then.
    """
    choices: dict[Question, int] = {}
    groups, walk = found(choices)
    most, tries = _free(groups), 0
    tried: set[frozenset[tuple[Question, int]]] = set()
    while tries < _TRIES:
        untried = (frozenset(c - choices.items()) for c in _changes(walk))
        change = next((c for c in untried if c and c not in tried), None)
        if change is None:
            break
        tried.add(change)
        tries += 1
        wanted = {**choices, **dict(change)}
        other, other_walk = found(wanted)
        if _free(other) > most and not other_walk.wrong and runs(other, other_walk):
            choices, groups, walk, most = wanted, other, other_walk, _free(other)
    return groups


def _changes(walk: Follower) -> list[frozenset[tuple[Question, int]]]:
    """What could be answered otherwise, of the questions that nothing has come of.

    All sums together come first: the normalisations of a network stand and fall together.
    """
    lost = {
        question: asked.options
        for question, asked in walk.asked.items()
        if question not in walk.means.hopeless
        and all(walk.partition.pinned(a.ravel()).all() for a in asked.atoms)
    }
    sums = frozenset((question, 1) for question in lost if question[0] in ("summed", "cut"))
    single = [frozenset({(q, at)}) for q, options in lost.items() for at in range(1, options)]
    return [sums, *single] if len(sums) > 1 else single


def _smaller(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    groups: ChannelGroups,
    kept: np.ndarray,
) -> Any:
    """The jaxpr of the network with some channels less; None where it does not run."""
    plan = groups.plan_of(kept)
    leaves = [
        jax.ShapeDtypeStruct(plan.shape(path), dtype_of(leaf)) for path, leaf in leaf_paths(params)
    ]
    try:
        return jax.make_jaxpr(fn)(jax.tree.unflatten(jax.tree.structure(params), leaves), *inputs)
    except Exception:  # whatever the network's code makes of other lengths
        return None


def _alike(here: Any, there: Any, walk: Follower, kept: np.ndarray) -> bool:
    """Whether the program for fewer channels differs from another one only as it should.

    Numbers in it are the same, but for those that means divide by: code that computes a number
    from a width, as a scale of 1/√d, does not only lose zeros. And where it cuts an axis into parts
    of other arrays' lengths, the same channels are in each part.
    """
    for a, b in zip(here.eqns, there.eqns, strict=False):
        if a.primitive is not b.primitive:
            return True  # other code, for other widths: running both will tell
        means = walk.means.approximate or id(a) in walk.means.equations
        for x, y in zip(a.invars, b.invars, strict=True):
            numbers = [v.val for v in (x, y) if isinstance(v, Literal) and np.ndim(v.val) == 0]
            if len(numbers) == 2 and numbers[0] != numbers[1] and not means:
                return False
        if id(a) in walk.cut_at and not any(
            _parts(b, at) == [int(np.append(kept, True)[part].sum()) for part in _cut(a, at, n)]
            for at, n in walk.cut_at[id(a)]
        ):
            return False
        for x, y in zip(_inner(a), _inner(b), strict=False):
            if not _alike(x, y, walk, kept):
                return False
    return True


def _cut(eqn: Any, at: int, numbers: np.ndarray) -> list[np.ndarray]:
    """The groups before, in and behind what a slice takes, or those of each part of a split."""
    if eqn.primitive.name == "split":
        return np.split(numbers, np.cumsum(eqn.params["sizes"])[:-1])
    return np.split(numbers, [eqn.params["start_indices"][at], eqn.params["limit_indices"][at]])


def _parts(eqn: Any, at: int) -> list[int]:
    """How many positions lie in each of these parts."""
    return [len(part) for part in _cut(eqn, at, np.arange(eqn.invars[0].aval.shape[at]))]


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    found = [each for p in eqn.params.values() for each in (p if isinstance(p, tuple) else (p,))]
    return [getattr(each, "jaxpr", each) for each in found if hasattr(each, "eqns")
            or hasattr(each, "jaxpr")]  # fmt: skip


def _free(groups: ChannelGroups) -> tuple[float, int]:
    """How many weights lie in positions that can be removed, and in how many groups."""
    total = 0.0
    for path, shape in groups.shapes.items():
        stay = 1.0
        for axis in range(len(shape)):
            numbers = groups.numbers.get((path, axis))
            if numbers is not None:
                stay *= float(np.mean(numbers < 0))
        total += (1 - stay) * math.prod(shape)
    return total, groups.count


def _leaf_axis(path: str, axis: int, size: int) -> Axis:
    return Axis(size, DATA if size == 1 else None, leaf=(path, axis))


def _traced(fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> Any:
    try:
        with jax.checking_leaks():
            closed = jax.make_jaxpr(fn)(params, *inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(np.shape(x))) for x in jax.tree.leaves(inputs))
        first = str(error).strip().split("\n")[0]
        raise TypeError(
            f"the network cannot be traced on inputs of shape {shapes}: {first} "
            f"({type(error).__name__}). It must be a pure function of arrays, (params, *inputs), "
            "whose shapes do not depend on their values"
        ) from error
    if closed.effects:
        raise TypeError(
            f"the network has side effects ({', '.join(map(str, closed.effects))}); give it "
            "without them"
        )
    return closed


def _result(walk: Follower, leaves: Mapping[str, Value]) -> ChannelGroups:
    """What the walk has found, in plain numbers."""
    partition = walk.partition
    places = {axis.leaf: axis for v in leaves.values() for axis in v.axes if axis.leaf}
    for axis in (*places.values(), *(axis for cost in walk.costs for axis in cost.axes)):
        if (labels := axis.now().labels) is not None:
            walk.decide(labels)
    makers = [
        labels.atoms
        for axis in places.values()
        if not axis.reads and (labels := axis.now().labels) is not None
    ]
    made = np.unique(partition.find(np.concatenate(makers))) if makers else np.zeros(0, np.int64)
    for axis in places.values():
        if (labels := axis.now().labels) is None:
            continue
        roots = partition.find(labels.atoms)
        partition.pin(roots[~np.isin(roots, made)], Why(Reason.NO_MAKER))
        if (roots == roots[0]).all():
            partition.pin(roots, Why(Reason.ALL_TOGETHER))
    number: dict[int, int] = {}
    numbers: dict[Place, np.ndarray] = {}
    reasons: dict[Place, Why] = {}

    def numbered(axis: Axis) -> np.ndarray | int:
        labels = axis.now().labels
        if labels is None or partition.pinned(labels.atoms).all():
            return axis.size
        roots, pinned = partition.find(labels.atoms), partition.pinned(labels.atoms)
        return np.array(
            [-1 if p else number.setdefault(int(r), len(number)) for r, p in zip(roots, pinned,
             strict=True)]
        )  # fmt: skip

    for place, axis in places.items():
        found = numbered(axis)
        if isinstance(found, np.ndarray):
            numbers[place] = found
        labels = axis.now().labels
        if labels is None:
            reasons[place] = axis.now().fixed or Why(Reason.UNUSED)
        elif (why := partition.why(labels.atoms)) is not None:
            reasons[place] = why
    known = len(number)
    costs = []
    for cost in walk.costs:
        axes = [numbered(axis) for axis in cost.axes]
        fixed = math.prod(a for a in axes if isinstance(a, int))
        costs.append((cost.factor * fixed, tuple(a for a in axes if not isinstance(a, int))))
    if len(number) > known:  # channels of constants alone: they stay
        costs = [
            (f, tuple(np.where(a < known, a, -1) for a in axes)) for f, axes in costs
        ]  # fmt: skip
    for eqn, at, axis in walk.cuts:
        if isinstance(found := numbered(axis), np.ndarray):
            walk.cut_at.setdefault(id(eqn), []).append((at, found))
    scales = []
    for leaf, mean, power in walk.means.scales():
        if isinstance(found := numbered(mean.axis), np.ndarray) and (found < known).all():
            scales.append((leaf, found, power))
    return ChannelGroups(
        {path: tuple(a.size for a in v.axes) for path, v in leaves.items()},
        numbers,
        frozenset(p for p, a in places.items() if a.reads),
        reasons,
        tuple(walk.unknown),
        tuple(costs),
        _completing(walk, leaves, numbers, number),
        tuple(scales),
        walk.means.approximate,
    )


def _completing(
    walk: Follower,
    leaves: Mapping[str, Value],
    numbers: Mapping[Place, np.ndarray],
    number: Mapping[int, int],
) -> frozenset[Place]:
    """Axes that only read channels, which vary on when all that makes them is zero."""
    members: dict[int, list[Place]] = {}
    for place, found in numbers.items():
        for group in np.unique(found[found >= 0]).tolist():
            members.setdefault(group, []).append(place)
    sets: dict[tuple[Place, ...], int] = {}
    of = {
        root: sets.setdefault(tuple(members[group]), len(sets))
        for root, group in number.items()
        if group in members
    }
    seen: dict[int, frozenset[int]] = {}

    def carried(axis: Axis) -> frozenset[int]:
        labels = axis.now().labels
        if labels is None:
            return frozenset()
        if id(labels) not in seen:
            roots = np.unique(walk.partition.find(labels.atoms.ravel())).tolist()
            seen[id(labels)] = frozenset(of[root] for root in roots if root in of)
        return seen[id(labels)]

    states = walk.tape.states(
        lambda value: frozenset().union(*map(carried, value.axes)),
        [v.node for v in leaves.values() if v.node is not None],
    )
    walk.wrong = any(
        any(
            not any(
                value.node is not None and states[value.node].get(channel) == 0.0
                for value, _ in factors
            )
            for channel in frozenset().union(*(carried(axis) for _, axis in factors))
        )
        for factors in walk.sums
    ) or any(walk.choices.get(question) for question in walk.means.hopeless)
    out: set[Place] = set()
    for value, axis in walk.read:
        if value.node is None or not any(
            states[value.node].get(channel) == VARIES for channel in carried(axis)
        ):
            continue
        out |= {o.leaf for o in axis.now().origins if o.leaf and o.reads and o.leaf in numbers}
    return frozenset(out)
