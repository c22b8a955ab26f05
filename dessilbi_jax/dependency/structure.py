"""The structure whose groups are the removable channels of a network."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.reasons import Reason
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.tree import dtype_of, find_leaf, is_inexact, leaf_paths, shape_of


@dataclasses.dataclass(frozen=True)
class Channels:
    """A structure whose groups are removable channels, across all leaves that make them.

    Attributes:
        groups: what `channel_groups` found.
        members: "all" for kernels, biases and normalisation, or "kernels" for leaves of two axes
            or more only.
    """

    groups: ChannelGroups
    members: str = "all"

    def __post_init__(self) -> None:
        if self.members not in ("all", "kernels"):
            raise ValueError(f"members must be 'all' or 'kernels', got {self.members!r}")

    def masks(self, params: Any, kept: np.ndarray) -> dict[str, np.ndarray]:
        """By leaf path, the elements that a choice of channels keeps, as a ticket's masks are.

        Args:
            params: parameters, or their shapes.
            kept: by group, whether it stays, as `ChannelGroups.kept` has it.

        Example:
            >>> import jax.numpy as jnp, numpy as np
            >>> import dessilbi_jax as dl
            >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
            >>> groups = dl.channel_groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
            >>> dl.channels(groups).masks(params, np.array([True, False, True]))["a"].tolist()
            [[True, False, True], [True, False, True]]
        """
        gone = np.flatnonzero(~kept)
        out = {}
        for leaf in self.resolve(params):
            mask = np.ones(leaf.shape, bool)
            if leaf.counts is not None and leaf.joint is not None:
                mask = ~np.isin(leaf.joint, gone).reshape(leaf.counts)
                for axis, n in enumerate(leaf.shape):
                    mask = mask.repeat(n // mask.shape[axis], axis)
            out[leaf.path] = mask
        return out

    def resolve(self, params: Any) -> list[LeafGroups]:
        """The groups of every leaf of `params`, in the order of its leaves.

        Raises:
            ValueError: a leaf that was not traced, or had another shape then.
        """
        return [self._leaf(path, leaf) for path, leaf in leaf_paths(params)]

    def _leaf(self, path: str, leaf: Any) -> LeafGroups:
        shape = shape_of(leaf)
        traced = find_leaf(self.groups.shapes, path)
        if self.groups.shapes[traced] != shape:
            raise ValueError(
                f"{path} has shape {shape}, but {self.groups.shapes[traced]} was traced; call "
                "dl.channel_groups for this network"
            )
        if not is_inexact(leaf):
            return LeafGroups(path, shape, None, reason=f"holds {dtype_of(leaf)}")
        if self.members == "kernels" and len(shape) < 2:
            return LeafGroups(path, shape, None, reason="not a kernel")
        # What makes channels comes before what has to be zero besides.
        places = [(axis, (traced, axis) in self.groups.reads) for axis in range(len(shape))]
        for axis, read in sorted(places, key=lambda place: place[1]):
            size, numbers = shape[axis], self.groups.numbers.get((traced, axis))
            if numbers is None or (read and (traced, axis) not in self.groups.completing):
                continue
            block = _block(numbers)
            counts = tuple(size // block if i == axis else 1 for i in range(len(shape)))
            cells = numbers[::block]
            # What has to stay in the network beside channels that can go is a group by itself.
            cells = np.where(cells < 0, self._own(traced) + np.arange(len(cells)), cells)
            return LeafGroups(
                path, shape, counts, "channels", joint=tuple(cells.tolist()), kind=path
            )
        whys = [self.groups.reasons.get((traced, i)) for i in reversed(range(len(shape)))]
        told = (str(why) for why in whys if why is not None and why.reason is not Reason.DATA)
        return LeafGroups(path, shape, None, reason=next(told, "makes no channel"))

    def _own(self, path: str) -> int:
        """The first number for groups of one leaf that are no channels of the network."""
        before = itertools.takewhile(lambda item: item[0] != path, self.groups.shapes.items())
        return self.groups.count + sum(max(shape, default=0) for _, shape in before)


def _block(numbers: np.ndarray) -> int:
    """Length of the longest equal blocks that lie within one group each."""
    edges = np.flatnonzero(np.diff(numbers)) + 1
    return int(np.gcd.reduce([*edges.tolist(), len(numbers)]))


def channels(groups: ChannelGroups, members: str = "all") -> Channels:
    """The structure whose groups are the removable channels of a network.

    Γ's groups then span every leaf that makes a channel: the kernel's output slice, its bias, the
    scale and bias of the normalisation behind it, and all branches that are added to it. Input
    slices of kernels behind it are not among them: each belongs to the groups of its own outputs.

    Args:
        groups: from `channel_groups`.
        members: "all", or "kernels" to leave biases and normalisation dense.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}
        >>> groups = dl.channel_groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
        >>> [(leaf.path, leaf.counts) for leaf in dl.channels(groups).resolve(params)]
        [('a', (1, 8)), ('b', None)]
    """
    return Channels(groups, members)
