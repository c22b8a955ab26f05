"""Channels that live and die together, read from the computation itself."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dessilbi_jax.dependency import (
    follower,
    rules_control,
    rules_index,
    rules_product,
    rules_shape,
)
from dessilbi_jax.dependency.axes import Axis, Question
from dessilbi_jax.dependency.choices import best, runs_with_fewer
from dessilbi_jax.dependency.follower import Follower
from dessilbi_jax.dependency.groups import ChannelGroups, Place
from dessilbi_jax.dependency.reasons import DATA, Reason, Why
from dessilbi_jax.dependency.tape import VARIES
from dessilbi_jax.dependency.values import Value
from dessilbi_jax.frameworks import as_network, is_module
from dessilbi_jax.text import check_pattern
from dessilbi_jax.tree import leaf_paths

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
        check_pattern(pattern, "ignore")
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
        return runs_with_fewer(fn, params, example_inputs, closed, groups, walk)

    return best(found, runs)


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


def _leaf_axis(path: str, axis: int, size: int) -> Axis:
    return Axis(size, DATA if size == 1 else None, leaf=(path, axis))


def _traced(fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> Any:
    try:
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
