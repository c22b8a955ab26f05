"""Which weights lie on a path from input to output, and from which size on.

A network is a graph of channels: a kernel's weight leads from the channel that its leaf reads to
the one that it makes. A weight is *live* in a set of weights if a path of kept weights leads from
the input to it and another one from it to the output. Let every weight have the place that it has
in an order, and t of a path be the latest place on it. Then

    fed(channel)   = min over weights that make it   of max(place, fed(what the weight reads)),
    leads(channel) = min over weights that read it   of max(place, leads(what the weight makes)),
    birth(weight)  = max(place, fed(what it reads), leads(what it makes)),

and birth is the length of the shortest prefix of the order in which the weight is live (a
bottleneck path, by relaxation until nothing changes). Weights in the order of their birth make
nested sets which are, up to the last birth begun, all live.

An upper bound: where channels were not found to be separable (an axis that is normalised over,
whatever could not be followed) signals pass; so they do where one factor of a product is alive,
a depthwise kernel among them; a channel of a residual stream is one, before and behind what is
added; and signs are not looked at, so that a ReLU may stop what is counted here.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dessilbi_jax.tree import find_leaf

_ALWAYS, _NEVER = -math.inf, math.inf


class _Kernel(NamedTuple):
    """A leaf with two axes or more.

    Attributes:
        place: of each cell of its grid, in the order.
        makes: by axis, the channel of each position that the leaf puts out, −1 = not known.
        reads: by axis, the channel of each position that it sums over.
    """

    place: np.ndarray
    makes: dict[int, np.ndarray]
    reads: dict[int, np.ndarray]

    def latest(self, known: Mapping[int, np.ndarray], of: np.ndarray) -> np.ndarray:
        """The later of each cell's place and what its channels have in `of`, over some axes."""
        out = self.place
        for axis, numbers in known.items():
            # A cell of several positions is as early as the first of them.
            each = of[numbers].reshape(out.shape[axis], -1).min(axis=1)
            out = np.maximum(out, each.reshape([-1 if i == axis else 1 for i in range(out.ndim)]))
        return out


def check_network(network: Any) -> None:
    """Something else than `ChannelGroups` as `network` is an error.

    Raises:
        TypeError: saying how to make one.
    """
    if not all(hasattr(network, name) for name in ("shapes", "numbers", "reads")):
        raise TypeError(
            "network must be dl.channel_groups(network, example input), got "
            f"{type(network).__name__}"
        )


def births(
    network: Any, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By leaf path, the shortest prefix of an order in which each cell is live, inf = in none.

    Args:
        network: `ChannelGroups`.
        shapes: the shape of every leaf.
        places: by leaf path, the place of each cell of its grid in the order, inf for what never
            carries anything; leaves that are not named are always there.

    Raises:
        ValueError: shapes of another network.
    """
    kernels = _kernels(network, shapes, places)
    count = 1 + max((int(n.max(initial=-1)) for n in network.numbers.values()), default=-1)
    # One more than there are channels: the number −1, of what is always there.
    fed, leads = np.full(count + 1, _ALWAYS), np.full(count + 1, _ALWAYS)
    for kernel in kernels.values():
        for numbers in kernel.makes.values():
            fed[numbers[numbers >= 0]] = _NEVER
        for numbers in kernel.reads.values():
            leads[numbers[numbers >= 0]] = _NEVER
    for times, ends, begins, row in (
        (fed, "makes", "reads", list(kernels.values())),
        (leads, "reads", "makes", list(kernels.values())[::-1]),
    ):
        changed = True
        while changed:
            before = times.copy()
            for kernel in row:
                cells = kernel.latest(getattr(kernel, begins), times)
                for axis, numbers in getattr(kernel, ends).items():
                    others = tuple(i for i in range(cells.ndim) if i != axis)
                    each = cells.min(axis=others)
                    each = np.repeat(each, numbers.size // each.size)
                    np.minimum.at(times, numbers, each)
            changed = not np.array_equal(before, times)
    out = {}
    for path, place in places.items():
        kernel = kernels.get(path, _Kernel(place, {}, {}))
        out[path] = np.maximum(kernel.latest(kernel.reads, fed), kernel.latest(kernel.makes, leads))
    return out


def _kernels(
    network: Any, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, np.ndarray]
) -> dict[str, _Kernel]:
    known = dict(network.shapes)
    own: dict[str, str] = {}
    for path, shape in shapes.items():
        traced = find_leaf(known, path)
        if tuple(known[traced]) != tuple(shape):
            raise ValueError(
                f"network= does not fit {path}: it was traced with shape {known[traced]}, the "
                f"path has {shape}"
            )
        own[traced] = path
    out: dict[str, _Kernel] = {}
    for traced, shape in known.items():
        if len(shape) < 2:
            continue
        axes = [(axis, network.numbers.get((traced, axis))) for axis in range(len(shape))]
        sides: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
        for axis, numbers in axes:
            if numbers is not None:
                sides[(traced, axis) in network.reads][axis] = numbers
        named = own.get(traced) or traced
        place = places.get(named, np.full((1,) * len(shape), _ALWAYS))
        out[named] = _Kernel(place, *sides)
    return out
