"""Cutting a ticket out of a network: parameters, batch statistics and optimizer state together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.reasons import Reason
from dessilbi_jax.dependency.trace import channel_groups
from dessilbi_jax.frameworks import Network, as_network, fitted
from dessilbi_jax.slimming.compare import Differs, difference
from dessilbi_jax.slimming.constants import NotFolded, fold
from dessilbi_jax.slimming.optimizer_state import _cut_state, check_opt_state
from dessilbi_jax.tree import is_inexact, leaf_paths


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
        lines = [
            f"{name:10}  {a:>15,} -> {b:>15,}  ({b / max(a, 1):.1%})"
            for name, (a, b) in (("numbers", self.params), ("FLOPs", self.flops))
        ]
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
    cut = _Cut(network, groups, masks, fn, rebuild)
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


@dataclasses.dataclass
class _Made:
    """A smaller network, and how it was found."""

    model: Any
    plan: Plan
    kept: np.ndarray
    notes: list[str]
    difference: float | None = None


@dataclasses.dataclass(frozen=True)
class _Cut:
    """What is cut, and how it is put together again."""

    network: Network
    groups: ChannelGroups
    masks: Mapping[str, np.ndarray]
    fn: Callable[..., Any] | None
    rebuild: Callable[[Any], Any] | None

    @property
    def masked(self) -> Any:
        """The arrays under the ticket's masks."""
        paths = [path for path, _ in leaf_paths(self.network.tree)]
        leaves, treedef = jax.tree.flatten(self.network.tree)
        masks = [self.masks.get(path) for path in paths]
        # All at once: leaf by leaf, each shape would be compiled for itself.
        there = [i for i, mask in enumerate(masks) if mask is not None and not mask.all()]
        zeroed = jax.jit(lambda *pairs: [jnp.where(m, x, jnp.zeros_like(x)) for x, m in pairs])
        for i, new in zip(there, zeroed(*((leaves[i], masks[i]) for i in there)), strict=True):
            leaves[i] = new
        return jax.tree.unflatten(treedef, leaves)

    def made(self, kept: np.ndarray, tree: Any = None) -> _Made:
        """The network without the other channels."""
        plan = self.groups.plan_of(kept)
        scales = self.groups.scaled_by(kept)

        def cut(tree: Any) -> Any:
            return jax.tree.map(jnp.copy, _scaled(plan.apply(tree), scales))

        # Compiled as a whole, not leaf by leaf; copies, so that donating one leaves the other.
        smaller = self.network.put(jax.jit(cut)(self.masked if tree is None else tree))
        if self.rebuild is not None and callable(smaller):
            smaller = self.rebuild(smaller)
        notes = _unseen(self.groups, plan, self.network.tree)
        if scales:
            listed = ", ".join(f"{path} by {times:.6g}" for path, times in scales.items())
            notes.append(f"for means over fewer channels, multiplied: {listed}")
        return _Made(smaller, plan, kept, notes)

    def function(self, made: _Made) -> Callable[..., Any]:
        """What runs the smaller network, of it and the inputs."""
        if self.rebuild is not None and not callable(made.model):
            rebuilt: Callable[..., Any] = self.rebuild(made.model)
            return rebuilt
        return fitted(self.fn or _call, made.plan)

    def taken_apart(self, made: _Made) -> Network:
        """The smaller network as a function of its arrays."""
        return as_network(made.model, self.function(made))

    def traced(self, made: _Made, inputs: Sequence[Any], ignore: Sequence[str]) -> ChannelGroups:
        """The channels of the smaller network."""
        network = self.taken_apart(made)
        return channel_groups(
            network.fn, network.tree, *inputs, ignore=ignore, approximate=self.groups.approximate
        )

    def run(self, made: _Made, inputs: Sequence[Any]) -> Any:
        """The outputs of the smaller network."""
        try:
            network = self.taken_apart(made)
            return jax.jit(network.fn)(network.tree, *inputs)
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise TypeError(
                f"the network cannot run with smaller arrays: {first} ({type(error).__name__}); "
                f"{_HINT}"
            ) from error

    def tried(self, kept: np.ndarray, inputs: Sequence[Any]) -> _Made:
        """The network without the other channels, with the outputs of the masked one.

        Raises:
            ValueError: other outputs, whatever is folded or kept.
        """
        masked = self.masked
        expected = jax.jit(self.network.fn)(masked, *inputs)
        made = self.made(kept, masked)
        try:
            got = self.run(made, inputs)
        except TypeError as error:
            return self._without_fixed(kept, inputs, error)
        if self.groups.approximate:
            made.difference = difference(expected, got, float("inf"))
            if made.plan.keep:
                made.notes.append(
                    "approximate: means that layer normalisations take were taken for zero; the "
                    f"outputs differ by {made.difference:.1e} of the largest"
                )
            return made
        try:
            made.difference = difference(expected, got)
            return made
        except Differs as error:
            first = error
        if self.groups.scaled_by(kept):
            return self._without_means(kept, inputs, first)
        notes: list[str] = []
        while True:
            try:
                tree, changed = fold(self.network.fn, masked, self._unread(masked, kept), inputs)
                break
            except NotFolded as error:
                more = self._read_by(error.source, kept)
                if not more.any():
                    raise _refused(first) from None
                notes.append(self._stays(more))
                kept = kept | more
        made = self.made(kept, tree)
        try:
            made.difference = difference(expected, self.run(made, inputs))
        except Differs as error:
            raise _refused(error) from None
        paths = [path for path, _ in leaf_paths(self.network.tree)]
        if changed:
            names = ", ".join(paths[i] for i in sorted(changed))
            notes.append(f"{names} took the constants of channels that were removed")
        made.notes += notes
        if not made.plan.keep:
            raise ValueError(
                "nothing can be removed with the outputs of the masked network: " + "; ".join(notes)
            )
        return made

    def _without_fixed(self, kept: np.ndarray, inputs: Sequence[Any], error: TypeError) -> _Made:
        """The network that keeps those channels of which the code keeps the number.

        Raises:
            TypeError: the network runs with fewer channels of no set, or of each by itself.
        """
        stay = np.zeros_like(kept)
        sets = [each for each in self.groups.sets if not kept[each.groups].all()]
        for each in sets:
            one = np.ones_like(kept)
            one[each.groups] = kept[each.groups]
            smaller = self.made(one)
            network = self.taken_apart(smaller)
            try:
                jax.eval_shape(network.fn, network.tree, *inputs)
            except Exception:  # whatever the network's code makes of other lengths
                stay[each.groups] = True
        if not (stay & ~kept).any() or kept[~stay].all():
            raise error
        made = self.tried(kept | stay, inputs)
        made.notes.append(f"channels that stay: {self._named(stay & ~kept)}, as {error}")
        return made

    def _without_means(self, kept: np.ndarray, inputs: Sequence[Any], error: Differs) -> _Made:
        """The network that keeps channels over which means are taken.

        What stands beside a mean against division by zero counts for more where few are left.
        """
        stay = np.zeros_like(kept)
        for _, numbers, _ in self.groups.scales:
            stay[numbers[numbers >= 0]] = True
        made = self.tried(kept | stay, inputs)
        made.notes.append(
            f"channels that stay: {self._named(stay & ~kept)}. Means are taken over them beside "
            f"an ε that is not small, so that {error}; dl.channel_groups(..., approximate=True) "
            "lets them go"
        )
        return made

    def _unread(self, tree: Any, kept: np.ndarray) -> Any:
        """The arrays with zeros in the slices that read removed channels."""
        leaves, treedef = jax.tree.flatten(tree)
        for i, (path, _) in enumerate(leaf_paths(tree)):
            for axis in range(np.ndim(leaves[i])):
                numbers = self.groups.numbers.get((path, axis))
                if numbers is not None and (path, axis) in self.groups.reads:
                    alive = np.append(kept, True)[numbers]
                    shape = [-1 if j == axis else 1 for j in range(np.ndim(leaves[i]))]
                    leaves[i] = _zeroed(leaves[i], alive.reshape(shape))
        return jax.tree.unflatten(treedef, leaves)

    def _read_by(self, number: int, kept: np.ndarray) -> np.ndarray:
        """The removed channels that a leaf reads."""
        path, _ = leaf_paths(self.network.tree)[number]
        out = np.zeros(self.groups.count, bool)
        for (leaf, axis), numbers in self.groups.numbers.items():
            if leaf == path and (leaf, axis) in self.groups.reads:
                out[numbers[numbers >= 0]] = True
        read: np.ndarray = out & ~kept
        return read

    def _stays(self, channels: np.ndarray) -> str:
        """In words, which channels cannot go."""
        return (
            f"channels that stay: {self._named(channels)}. Their weights are zero, but they are "
            "not, and nothing behind them can hold what they are: mask what reads them too, or "
            "give the layer behind them a bias"
        )

    def _named(self, channels: np.ndarray) -> str:
        """In words, how many channels of which sets."""
        return ", ".join(
            f"{int(channels[each.groups].sum())} of {each.name}"
            for each in self.groups.sets
            if channels[each.groups].any()
        )


def _call(model: Any, *inputs: Any) -> Any:
    return model(*inputs)


_HINT = (
    "its code seems to keep sizes of its own; let it read them from its arrays, or correct them in "
    "rebuild="
)


def _refused(error: Differs) -> ValueError:
    return ValueError(
        f"the smaller network's outputs differ from the masked one's: {error}; {_HINT}"
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


def _unseen(groups: ChannelGroups, plan: Plan, tree: Any) -> list[str]:
    """A note on leaves that the traced function does not use, which are not cut."""
    unused = [
        path
        for path, leaf in leaf_paths(tree)
        if np.ndim(leaf)
        and is_inexact(leaf)
        and all(
            (why := groups.reasons.get((path, axis))) is not None and why.reason is Reason.UNUSED
            for axis in range(np.ndim(leaf))
        )
    ]
    if not unused or not plan.keep:
        return []
    return [
        f"{', '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used by the network as it "
        "was traced, and so not cut: what uses them, such as a part for training alone, may not "
        "fit the smaller network"
    ]


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


def _scaled(tree: Any, scales: Mapping[str, float]) -> Any:
    leaves = [
        leaf * jnp.asarray(scales[path], leaf.dtype) if path in scales else leaf
        for path, leaf in leaf_paths(tree)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _zeroed(leaf: Any, mask: Any) -> Any:
    if mask is None or mask.all():
        return leaf
    return jnp.where(jnp.asarray(mask), leaf, jnp.zeros_like(leaf))
