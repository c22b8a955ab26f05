"""Cutting a ticket out of a network: parameters, batch statistics and optimizer state together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.trace import channel_groups
from dessilbi_jax.frameworks import as_network
from dessilbi_jax.slimming.optimizer_state import _cut_state, _own, check_opt_state
from dessilbi_jax.tree import leaf_paths


@dataclasses.dataclass(frozen=True)
class Slim:
    """A network that has been made smaller.

    Attributes:
        model: the smaller network: a module where one was given, else the smaller tree.
        opt_state: the optimizer's state, cut alike; None where none was given.
        plan: which indices of which axes were kept.
        groups: the channel groups of the network before the cut.
        params: numbers in the tree (before, after).
        flops: floating-point operations of products and convolutions on the example inputs
            (before, after).
        difference: largest difference of an output on the example inputs from the network with
            the same channels at zero, over the largest output; None where it was not computed.
    """

    model: Any
    opt_state: Any
    plan: Plan
    groups: ChannelGroups
    params: tuple[int, int]
    flops: tuple[int, int]
    difference: float | None

    def __str__(self) -> str:
        lines = [
            f"{name:10}  {a:>15,} -> {b:>15,}  ({b / max(a, 1):.1%})"
            for name, (a, b) in (("numbers", self.params), ("FLOPs", self.flops))
        ]
        if self.difference is not None:
            lines.append(f"outputs     differ from the masked network's by {self.difference:.1e}")
        return "\n".join(lines)


def slim(
    model: Any,
    ticket: Any,
    *example_inputs: Any,
    fn: Callable[..., Any] | None = None,
    opt_state: Any = None,
    round_to: int = 1,
    ignore: Sequence[str] = (),
    groups: ChannelGroups | None = None,
    rebuild: Callable[[Any], Any] | None = None,
    check: bool = True,
) -> Slim:
    """Cuts out of a network the channels that a ticket leaves empty.

    A channel goes where all slices that make it, in the leaves that the ticket structured, are
    masked, and with it its biases, normalisation, batch statistics and the input slices of all
    that read it. It also goes where nothing that reads it is kept. Then the smaller network is run
    on the example inputs and held against the one whose channels are at zero.

    Args:
        model: a Flax NNX module; an Equinox module or another callable pytree; or a tree of
            arrays, with `fn`. It is left as it is.
        ticket: a `Ticket`, masks (a tree of bool arrays or a dict of them by path), or a `Plan`.
        example_inputs: inputs of the network, small ones will do.
        fn: `fn(model, *inputs)`, for a model that is not called so itself.
        opt_state: any Optax state over the parameters (momentum, Adam's moments, V and Γ).
        round_to: widths become multiples of it, by keeping some channels that were masked.
        ignore: as for `channel_groups`.
        groups: the channel groups of this network, where `channel_groups` has traced it already;
            by default it is traced on the example inputs. `Slim.flops` are then those of the
            inputs that it was traced on.
        rebuild: makes a smaller network usable where it keeps sizes that the library does not
            know: for a module it is given the cut one and returns the corrected one; for a tree
            it is given the smaller tree and returns the function to use instead of `fn`.
        check: whether to run both networks and compare them.

    Returns:
        A `Slim`; its `model` and `opt_state` go on training.

    Raises:
        ValueError: no ticket, or one that does not fit or leaves a layer empty; groups or an
            optimizer state of another network; a plan that would remove what cannot be removed;
            or a smaller network with other outputs.
        TypeError: a network that cannot be traced, or that cannot run with smaller arrays; `ignore`
            beside `groups`, which were traced with their own.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> import dessilbi_jax as dl
        >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}
        >>> def net(p, x):
        ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> mask = {"a": np.broadcast_to(np.arange(8) < 2, (4, 8)), "b": np.ones((8, 3), bool)}
        >>> small = dl.slim(params, mask, jnp.ones((1, 4)), fn=net)
        >>> jax.tree.map(jnp.shape, small.model), small.difference
        ({'a': (4, 2), 'b': (2, 3)}, 0.0)
    """
    if ticket is None:
        raise ValueError(
            "there is no ticket, so nothing to cut out: give a Ticket, masks (a tree of bool "
            "arrays, or a dict of them by path) or a Plan"
        )
    network = as_network(model, fn)
    if groups is None:
        groups = channel_groups(network.fn, network.tree, *example_inputs, ignore=ignore)
    elif ignore:
        raise TypeError("ignore= has no use with groups=: give it to dl.channel_groups")
    else:
        _check_groups(groups.shapes, network.tree)
    if isinstance(ticket, Plan):
        plan, kept = ticket, groups.kept_by(ticket)
    else:
        plan = groups.plan(ticket, round_to, network.tree)
        kept = groups.kept_by(plan)
    if opt_state is not None:
        check_opt_state(opt_state, plan)
    cut = jax.jit(plan.apply)(network.tree)  # compiled once, not a leaf at a time
    smaller = network.put(jax.tree.map(_own, cut))
    run = fn
    if rebuild is not None and not callable(smaller):
        run = rebuild(smaller)
    elif rebuild is not None:
        smaller = rebuild(smaller)
    difference = None
    if check:
        masked = jax.tree.map(_zeroed, network.tree, plan.mask(network.tree))
        expected = jax.jit(network.fn)(masked, *example_inputs)
        difference = _difference(expected, smaller, run, example_inputs)
    everything = np.ones(groups.count, bool)
    return Slim(
        smaller,
        None
        if opt_state is None
        else _cut_state(opt_state, plan, network.tree, as_network(smaller, fn).tree),
        plan,
        groups,
        (groups.params_of(everything), groups.params_of(kept)),
        (groups.flops_of(everything), groups.flops_of(kept)),
        difference,
    )


def _check_groups(traced: Mapping[str, tuple[int, ...]], tree: Any) -> None:
    """Checks that channel groups were traced for a network with these arrays."""
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaf_paths(tree)}
    for path in [*shapes, *traced]:
        here, there = (known.get(path, "no such leaf") for known in (shapes, traced))
        if here != there:
            raise ValueError(
                f"groups= are those of another network: of {path} they know {there}, this network "
                f"has {here}; call dl.channel_groups for it, or leave groups= out"
            )


def _zeroed(leaf: Any, mask: Any) -> Any:
    return leaf if mask.all() else jnp.where(mask, leaf, jnp.zeros_like(leaf))


def _difference(
    expected: Any, smaller: Any, fn: Callable[..., Any] | None, inputs: Sequence[Any]
) -> float:
    """How far the smaller network's outputs are from those expected; at once an error if far."""
    hint = (
        "its code seems to keep sizes of its own; let it read them from its arrays, or correct "
        "them in rebuild="
    )
    try:
        network = as_network(smaller, fn)
        got = jax.jit(network.fn)(network.tree, *inputs)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise TypeError(
            f"the network cannot run with smaller arrays: {first} ({type(error).__name__}); {hint}"
        ) from error
    finfo: Any = jnp.finfo  # which JAX leaves without types
    worst = 0.0
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"an output has shape {b.shape} instead of {a.shape}; {hint}")
        tolerance = 1e-5
        if jnp.issubdtype(a.dtype, jnp.inexact):
            tolerance = max(tolerance, 8 * float(finfo(a.dtype).eps))
        x, y = (np.asarray(z).astype(np.complex128) for z in (a, b))
        scale = max(float(np.abs(x).max(initial=0.0)), 1e-30)
        worst = max(worst, float(np.abs(x - y).max(initial=0.0)) / scale)
        if not worst <= tolerance:
            raise ValueError(
                f"the smaller network's outputs differ from the masked one's by {worst:.1e} of "
                f"the largest, more than {tolerance:.0e}; {hint}"
            )
    return worst
