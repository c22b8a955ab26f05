"""Channels that live and die together, read from the computation itself."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dessilbi_jax.dependency import follower, rules_control, rules_product, rules_shape
from dessilbi_jax.dependency.axes import Axis
from dessilbi_jax.dependency.follower import Follower, Value
from dessilbi_jax.dependency.groups import ChannelGroups, Place
from dessilbi_jax.dependency.reasons import DATA, Reason, Why
from dessilbi_jax.frameworks import as_network, is_module
from dessilbi_jax.tree import leaf_paths

_RULES = {
    name: rule
    for table in (follower, rules_control, rules_shape, rules_product)
    for name, rule in table.RULES.items()
}


def channel_groups(
    fn: Any, params: Any, *example_inputs: Any, ignore: Sequence[str] = ()
) -> ChannelGroups:
    """Finds which axes of which leaves are the same channels, from the jaxpr of `fn`.

    `fn(params, *example_inputs)` is traced, not run. Axes are followed through its primitives:
    what is added, multiplied, normalised or concatenated together loses the same positions; a
    kernel that sums over an axis loses its input slices. An axis that is reduced over together
    with its fellows (layer norm over features, softmax over classes), that comes from the
    network's inputs or reaches its outputs, or that meets a primitive without a rule, is not
    removable, and printing the result says why.

    Args:
        fn: the network as a function, in evaluation mode; or a Flax NNX module or an Equinox
            module, which the example inputs follow at once.
        params: a tree of all that lives with channels: parameters and batch statistics. Arrays
            or their shapes.
        example_inputs: what else `fn` takes; arrays or their shapes.
        ignore: regular expressions: channels of a leaf whose path one of them is found in stay.

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
        return channel_groups(network.fn, network.tree, params, *example_inputs, ignore=ignore)
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
    walk = Follower(_RULES)
    leaves = {
        path: Value(tuple(_leaf_axis(path, i, n) for i, n in enumerate(np.shape(leaf))), False)
        for path, leaf in named
    }
    inputs = [
        Value(tuple(Axis(n, Why(Reason.INPUT)) for n in np.shape(leaf)), True)
        for leaf in jax.tree.leaves(example_inputs)
    ]
    outputs = walk.run(closed, [*leaves.values(), *inputs])
    for axis in (a for v in outputs for a in v.axes):
        walk.pin(axis, Why(Reason.OUTPUT))
    for path, value in leaves.items():
        for axis in value.axes:
            if any(re.search(pattern, path) for pattern in ignore):
                walk.pin(axis, Why(Reason.IGNORED))
    return _result(walk, leaves)


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
    return ChannelGroups(
        {path: tuple(a.size for a in v.axes) for path, v in leaves.items()},
        numbers,
        frozenset(p for p, a in places.items() if a.reads),
        reasons,
        tuple(walk.unknown),
        tuple(costs),
    )
