"""The smaller network: made, run and held against the one under the masks."""

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
from dessilbi_jax.tree import is_inexact, leaf_paths


@dataclasses.dataclass
class Made:
    """A smaller network, and how it was found."""

    model: Any
    plan: Plan
    kept: np.ndarray
    notes: list[str]
    difference: float | None = None


@dataclasses.dataclass(frozen=True)
class Cut:
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

    def made(self, kept: np.ndarray, tree: Any = None) -> Made:
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
        return Made(smaller, plan, kept, notes)

    def function(self, made: Made) -> Callable[..., Any]:
        """What runs the smaller network, of it and the inputs."""
        if self.rebuild is not None and not callable(made.model):
            rebuilt: Callable[..., Any] = self.rebuild(made.model)
            return rebuilt
        return fitted(self.fn or _call, made.plan)

    def taken_apart(self, made: Made) -> Network:
        """The smaller network as a function of its arrays."""
        return as_network(made.model, self.function(made))

    def traced(self, made: Made, inputs: Sequence[Any], ignore: Sequence[str]) -> ChannelGroups:
        """The channels of the smaller network."""
        network = self.taken_apart(made)
        return channel_groups(
            network.fn, network.tree, *inputs, ignore=ignore, approximate=self.groups.approximate
        )

    def run(self, made: Made, inputs: Sequence[Any]) -> Any:
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

    def tried(self, kept: np.ndarray, inputs: Sequence[Any]) -> Made:
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

    def _without_fixed(self, kept: np.ndarray, inputs: Sequence[Any], error: TypeError) -> Made:
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

    def _without_means(self, kept: np.ndarray, inputs: Sequence[Any], error: Differs) -> Made:
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
