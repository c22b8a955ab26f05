"""Making a network wider without a change of its outputs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.structure import channels
from dessilbi_jax.dependency.trace import channel_groups
from dessilbi_jax.frameworks import Network, as_network, fitted
from dessilbi_jax.growing.layout import widened
from dessilbi_jax.growing.state import grown_state
from dessilbi_jax.slimming.compare import Differs, difference
from dessilbi_jax.slimming.optimizer_state import check_opt_state
from dessilbi_jax.text import changes
from dessilbi_jax.tree import is_inexact, leaf_paths, words

Init = Callable[[str, tuple[int, ...], jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Grown:
    """A network that has been made wider.

    Attributes:
        model: the wider network: a module where one was given, else the larger tree.
        opt_state: the optimizer's state, grown alike; None where none was given.
        plan: what to keep of it to have the first network again: `dl.slim(model, plan, …)`.
        groups: the channel groups of the wider network.
        params: numbers in the tree (before, after).
        flops: floating-point operations on the example inputs (before, after).
        difference: largest difference of an output on the example inputs, over the largest output.
        fn: the function that runs `model`, as `Slim.fn`.
    """

    model: Any
    opt_state: Any
    plan: Plan
    groups: ChannelGroups
    params: tuple[int, int]
    flops: tuple[int, int]
    difference: float
    fn: Callable[..., Any]

    def __str__(self) -> str:
        lines = changes({"numbers": self.params, "FLOPs": self.flops})
        return "\n".join([*lines, f"outputs     differ by {self.difference:.1e}"])


def grow(
    model: Any,
    sizes: Mapping[str, int],
    *example_inputs: Any,
    key: jax.Array,
    fn: Callable[..., Any] | None = None,
    opt_state: Any = None,
    rebuild: Callable[[Any], Any] | None = None,
    init: Init | None = None,
) -> Grown:
    """A wider network with the same outputs, which goes on training.

    The slices that make new channels are drawn, and those that read them are zero: nothing that
    stands behind them sees them yet, but their readers have a gradient at once, and they themselves
    have one as soon as these have moved. Where a root-mean-square normalisation would mix new
    channels into the others it is the other way round: kernels make them of zeros and what reads
    them is drawn, and its scale is multiplied by √(before/after).

    Args:
        model: a Flax NNX module; an Equinox module or another callable pytree; or a tree of
            arrays, with `fn`. It is left as it is.
        sizes: by the name of a set of channels, as `dl.channel_groups` prints it
            (`'conv1/kernel'`), how many it is to have; others keep theirs.
        example_inputs: inputs of the network, small ones will do.
        key: of what is drawn.
        fn: `fn(model, *inputs)`, for a model that is not called so itself.
        opt_state: any Optax state over the parameters. What belongs to old channels stays; for new
            ones momentum and moments, V and Γ are zero, as at `init`. With `dl.channels` groups it
            fits a transformation made with `dl.channels(grown.groups)`.
        rebuild: as for `dl.slim`.
        init: `init(path, shape, key)` gives a whole leaf of the wider network as it is initialised;
            new slices are taken from it. By default kernels are normal with variance 1 / fan-in
            (LeCun et al., 1998), as Flax initialises them, biases and running means 0, scales and
            running variances 1.

    Returns:
        A `Grown`; its `model` and `opt_state` go on training.

    Raises:
        ValueError: channels that are not there or cannot grow, with the reason and its line; fewer
            of them than there are; a state of another network; outputs that differ.
        TypeError: a network that cannot be traced, or that cannot run with larger arrays; example
            inputs that are no arrays.

    References:
        T. Chen, I. Goodfellow and J. Shlens, "Net2Net: Accelerating Learning via Knowledge
        Transfer", ICLR 2016, for networks that grow with their function kept.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))}
        >>> def net(p, x):
        ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> wide = dl.grow(params, {"a": 5}, jnp.ones((1, 4)), key=jax.random.key(0), fn=net)
        >>> jax.tree.map(jnp.shape, wide.model), wide.difference
        ({'a': (4, 5), 'b': (5, 3)}, 0.0)
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(example_inputs)):
        raise TypeError(
            "the example inputs are shapes without values, on which outputs cannot be compared: "
            "give arrays, such as jnp.ones(shape, dtype)"
        )
    network = as_network(model, fn)
    groups = channel_groups(network.fn, network.tree, *example_inputs)
    plan = widened(groups, sizes)
    every = np.ones(groups.count, bool)
    if opt_state is not None:
        check_opt_state(opt_state, groups.plan_of(every))
    tree = _larger(network, groups, plan, key, init)
    wider = network.put(tree)
    if rebuild is not None and callable(wider):
        wider = rebuild(wider)
    function = fitted(fn or _call, groups.plan_of(every))
    if rebuild is not None and not callable(wider):
        function = rebuild(wider)
    taken = as_network(wider, function)
    try:
        got = jax.jit(taken.fn)(taken.tree, *example_inputs)
        after = channel_groups(taken.fn, taken.tree, *example_inputs)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise TypeError(
            f"the network cannot run with larger arrays: {first} ({type(error).__name__}); its "
            "code seems to keep sizes of its own: let it read them from its arrays, or correct "
            "them in rebuild="
        ) from error
    try:
        apart = difference(jax.jit(network.fn)(network.tree, *example_inputs), got)
    except Differs as error:
        raise ValueError(
            f"the wider network's outputs differ from the first one's: {error}; what it does with "
            "new channels is more than reading them"
        ) from None
    now = np.ones(after.count, bool)
    state = opt_state
    if opt_state is not None:
        state = grown_state(opt_state, plan, channels(after), network.tree, taken.tree)
    return Grown(
        wider, state, plan, after,
        (groups.params_of(every), after.params_of(now)),
        (groups.flops_of(every), after.flops_of(now)),
        apart, function,
    )  # fmt: skip


def _call(model: Any, *inputs: Any) -> Any:
    return model(*inputs)


def _larger(
    network: Network, groups: ChannelGroups, plan: Plan, key: jax.Array, init: Init | None
) -> Any:
    """The arrays of the wider network."""
    mixed = {int(n) for _, numbers, _ in groups.scales for n in numbers if n >= 0}
    leaves: list[Any] = jax.tree.leaves(plan.spread(network.tree))
    for i, (path, old) in enumerate(leaf_paths(network.tree)):
        if path not in plan.keep:
            continue
        new = np.zeros(plan.shapes[path], bool)  # what is drawn
        zero = np.zeros(plan.shapes[path], bool)
        # A scale or a bias by itself makes nothing of zeros, and as zero could not be learnt.
        kernel = len(plan.shapes[path]) > 1
        for axis, kept in plan.keep[path].items():
            numbers = groups.numbers[path, axis]
            fresh = np.ones(plan.shapes[path][axis], bool)
            fresh[list(kept)] = False
            # New positions stand behind those of their own set.
            before = np.maximum.accumulate(np.where(fresh, -1, np.arange(len(fresh))))
            index = np.cumsum(~fresh) - 1
            of_mixed = np.array([int(numbers[index[max(b, 0)]]) in mixed for b in before])
            reads = (path, axis) in groups.reads
            drawn = fresh & (of_mixed if reads else ~(of_mixed & kernel))
            shape = [-1 if j == axis else 1 for j in range(new.ndim)]
            new |= drawn.reshape(shape)
            zero |= (fresh & ~drawn).reshape(shape)
        if not is_inexact(old):
            continue
        if new.any():
            make = init or _initial
            value = make(path, plan.shapes[path], jax.random.fold_in(key, i))
            array = np.where(new & ~zero, np.asarray(value), np.asarray(leaves[i]))
            leaves[i] = jnp.asarray(array, leaves[i].dtype)
    tree = jax.tree.unflatten(jax.tree.structure(network.tree), leaves)
    return _rescaled(tree, groups, plan)


def _rescaled(tree: Any, groups: ChannelGroups, plan: Plan) -> Any:
    """The arrays with scales for means over more channels."""
    times: dict[str, float] = {}
    for path, numbers, power in groups.scales:
        places = [
            (len(groups.numbers[k]), plan.shapes[k[0]][k[1]])
            for k in groups.numbers
            if np.array_equal(groups.numbers[k], numbers)
        ]
        if places and places[0][0] != places[0][1]:
            times[path] = times.get(path, 1.0) * (places[0][0] / places[0][1]) ** power
    leaves = [
        leaf * jnp.asarray(times[path], leaf.dtype) if path in times else leaf
        for path, leaf in leaf_paths(tree)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _initial(path: str, shape: tuple[int, ...], key: jax.Array) -> np.ndarray:
    """A leaf as it is initialised: kernels by LeCun's rule, the rest by its name."""
    last = words(path.rpartition("/")[2])
    if len(shape) < 2:
        one = last & {"scale", "var", "weight", "gamma"}
        return np.ones(shape) if one else np.zeros(shape)
    if "bias" in last:
        return np.zeros(shape)
    if "embedding" in last:
        fan = shape[-1]
    elif "weight" in last:  # outputs first, as in PyTorch and Equinox
        fan = math.prod(shape[1:])
    else:
        fan = math.prod(shape[:-1])
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    drawn: np.ndarray = draw.normal(0, 1 / math.sqrt(max(fan, 1)), shape)
    return drawn
