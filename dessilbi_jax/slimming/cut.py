"""Cutting a ticket out of a network: parameters, batch statistics and optimizer state together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.trace import channel_groups
from dessilbi_jax.frameworks import as_network
from dessilbi_jax.slimming.optimizer_state import _cut_state, check_opt_state
from dessilbi_jax.slimming.smaller import Cut
from dessilbi_jax.text import changes
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
        difference: largest difference of an output on the example inputs from the network under
            the ticket's masks, over the largest output; None where it was not computed.
        fn: the function that runs `model`, `fn(model, *inputs)`: the one that was given, with its
            Linen modules as wide as their variables (`fitted`), or what `rebuild` made of it.
        notes: what has to be said, in words: leaves that took the constants of removed channels,
            channels that stay although all that makes them is masked, leaves that were not seen.
    """

    model: Any
    opt_state: Any
    plan: Plan
    groups: ChannelGroups
    params: tuple[int, int]
    flops: tuple[int, int]
    difference: float | None
    fn: Callable[..., Any]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = changes({"numbers": self.params, "FLOPs": self.flops})
        if self.difference is not None:
            lines.append(f"outputs     differ from the masked network's by {self.difference:.1e}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def slim(
    model: Any,
    ticket: Any,
    *example_inputs: Any,
    fn: Callable[..., Any] | None = None,
    opt_state: Any = None,
    round_to: int = 1,
    ignore: Sequence[str] = (),
    approximate: bool = False,
    groups: ChannelGroups | None = None,
    rebuild: Callable[[Any], Any] | None = None,
    check: bool = True,
) -> Slim:
    """Cuts out of a network the channels that a ticket leaves empty.

    A channel goes where all slices that make it, in the leaves that the ticket structured, are
    masked, and with it its biases, normalisation, batch statistics and the input slices of all
    that read it. It also goes where nothing that reads it is kept.

    The smaller network gives the outputs of the one under the ticket's masks, which is
    `dl.project(params, ticket.mask(params))`: it is run on the example inputs and held against
    that. Where a channel is a constant under the masks, as behind a sigmoid, the constant is added
    to the bias, or running mean, behind what reads it; where there is none that can hold it, the
    channel stays. `Slim.notes` says both.

    Args:
        model: a Flax NNX module; an Equinox module or another callable pytree; or a tree of
            arrays, with `fn`. It is left as it is.
        ticket: a `Ticket`, masks (a tree of bool arrays or a dict of them by path), or a `Plan`,
            which stands for zeros in all that it removes, made or read.
        example_inputs: inputs of the network, small ones will do.
        fn: `fn(model, *inputs)`, for a model that is not called so itself.
        opt_state: any Optax state over the parameters (momentum, Adam's moments, V and Γ).
        round_to: widths become multiples of it, by keeping some channels that were masked.
        ignore: as for `channel_groups`.
        approximate: as for `channel_groups`: layer normalisations do not keep their channels. The
            outputs are then not held to those of the masked network; `Slim.difference` and a note
            say how far they are.
        groups: the channel groups of this network, where `channel_groups` has traced it already;
            by default it is traced on the example inputs. `Slim.flops` are then those of the
            inputs that it was traced on.
        rebuild: makes a smaller network usable where it keeps sizes that the library does not
            know: for a module it is given the cut one and returns the corrected one; for a tree
            it is given the smaller tree and returns the function to use instead of `fn`.
        check: whether to run both networks and compare them; without, no constant is looked for.

    Returns:
        A `Slim`; its `model` and `opt_state` go on training.

    Raises:
        ValueError: no ticket, or one that does not fit or leaves a layer empty; groups or an
            optimizer state of another network; a plan that would remove what cannot be removed;
            or a smaller network with other outputs.
        TypeError: a network that cannot be traced, or that cannot run with smaller arrays; `ignore`
            or `approximate` beside `groups`, which were traced with their own.

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
        groups = channel_groups(
            network.fn, network.tree, *example_inputs, ignore=ignore, approximate=approximate
        )
    elif ignore or approximate:
        name = "ignore" if ignore else "approximate"
        raise TypeError(f"{name}= has no use with groups=: give it to dl.channel_groups")
    else:
        _check_groups(groups.shapes, network.tree)
    if opt_state is not None:
        check_opt_state(opt_state, groups.plan_of(np.ones(groups.count, bool)))
    if isinstance(ticket, Plan):
        kept = groups.kept_by(ticket)
        masks = dict(leaf_paths(ticket.mask(network.tree)))
    else:
        kept, masks = groups.kept(ticket), groups.masks(ticket)
        _check_torn(groups, kept, masks)
        kept = groups.rounded(kept, round_to, network.tree)
    cut = Cut(network, groups, masks, fn, rebuild)
    out = cut.tried(kept, example_inputs) if check else cut.made(kept)
    return Slim(
        out.model,
        None
        if opt_state is None
        else _cut_state(
            opt_state,
            out.plan,
            network.tree,
            as_network(out.model, fn).tree,
            (lambda: cut.traced(out, example_inputs, ignore)) if example_inputs else None,
        ),
        out.plan,
        groups,
        (groups.params_of(np.ones(groups.count, bool)), groups.params_of(out.kept)),
        (groups.flops_of(np.ones(groups.count, bool)), groups.flops_of(out.kept)),
        out.difference,
        cut.function(out),
        tuple(out.notes),
    )


def _check_torn(groups: ChannelGroups, kept: np.ndarray, masks: Mapping[str, np.ndarray]) -> None:
    """A ticket that empties parts of channels, and not one as a whole, is not of these groups.

    Raises:
        ValueError: naming a leaf that loses its part, and one that does not.
    """
    if not kept.all():
        return
    made: dict[int, dict[bool, str]] = {}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) in groups.reads or path not in masks or masks[path].ndim < 2:
            continue
        others = tuple(i for i in range(masks[path].ndim) if i != axis)
        alive = np.asarray(masks[path].any(axis=others))
        for number in np.unique(numbers[numbers >= 0]).tolist():
            made.setdefault(number, {})[bool(alive[numbers == number].any())] = path
    torn = [found for found in made.values() if len(found) == 2]
    if torn:
        raise ValueError(
            f"the ticket empties no channel: one that {torn[0][False]} and {torn[0][True]} make "
            "together is masked in the first alone, and so are all others that it masks; take a "
            "ticket whose groups are dl.channels(groups)"
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
