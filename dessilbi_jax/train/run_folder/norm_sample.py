"""The norms of some groups through a run, for the picture of its path: norms.npz.

Each set of groups is followed once: those of a leaf, or those that several leaves share, as the
kernel, bias and normalisation of a channel do, by their joint norm. Of each set some groups are
drawn at the start, and some of those that enter are added, so that a path is seen also where few of
many enter; of what was added later W is not known before (NaN), and Γ was zero.
"""

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax.tickets.group_sets import GroupSet
from dessilbi_jax.tree import leaf_paths, to_host

SAMPLED = 48  # groups of a set that are drawn at the start, and of those that enter
_LARGE = 4096  # groups; of a larger leaf only the norms that are followed leave the device


class NormSample:
    """The norms that are followed, in memory.

    Args:
        seed: of the choice of the groups.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sets: list[GroupSet] = []
        self._index: dict[str, np.ndarray] = {}
        self._w: dict[str, list[np.ndarray]] = {}
        self._gamma: dict[str, list[np.ndarray]] = {}

    def add(self, path: dl.SolutionPath, params: Any, opt_state: Any) -> None:
        """Adds the norms at the last record of a path."""
        trees = dict(leaf_paths(params)), dict(leaf_paths(dl.gamma(opt_state, params)))
        self._sets = self._sets or path.sets()
        entry, last = path.entry_steps(), int(path.steps[-1])
        asked = {}
        for i, each in enumerate(self._sets):
            self._follow(each.names[0], i, each.of_groups(entry), last)
            some = self._padded(each)
            asked[each.names[0]] = [
                [_some(group_norms(tree[name], path.groups[name]), some) for tree in trees]
                for name in each.names
            ]
        found = to_host(asked)
        for each in self._sets:
            name = each.names[0]
            for side, kept in enumerate((self._w, self._gamma)):
                kept[name].append(self._joint(each, [pair[side] for pair in found[name]]))

    def grow(
        self, before: Mapping[str, tuple[int, ...]], plan: dl.Plan, path: dl.SolutionPath
    ) -> None:
        """Goes on with the path of a network that has grown; followed are the same groups.

        Args:
            before: by leaf path, the shape of its units before.
            plan: what is kept of the larger network to have the one before.
            path: of the larger network.
        """
        old, self._sets = self._sets, path.sets()
        now = {each.names[0]: each for each in self._sets}
        for each in old:
            name = each.names[0]
            # A unit of each group: where it stands now says what number its group has.
            groups, first = np.unique(each.places[name], return_index=True)
            units = first[np.searchsorted(groups, self._index[name])]
            grid, places = plan.cells(name, before[name])
            at = np.unravel_index(units, before[name])
            moved = tuple(place[i] for place, i in zip(places, at, strict=True))
            self._index[name] = now[name].places[name][np.ravel_multi_index(moved, grid)]

    def _follow(self, name: str, number: int, entry: np.ndarray, last: int) -> None:
        """Draws the first groups of a set, and adds some of those that have entered now."""
        if name not in self._index:
            chosen = np.random.default_rng([self._seed, number]).permutation(entry.size)[:SAMPLED]
            self._index[name] = np.sort(chosen)
            self._w[name], self._gamma[name] = [], []
        known = self._index[name]
        room = min(SAMPLED - int((entry[known] >= 0).sum()), 2 * SAMPLED - known.size)
        new = np.setdiff1d(np.flatnonzero(entry == last), known)
        if room <= 0 or not new.size:
            return
        some = new[np.linspace(0, new.size - 1, min(room, new.size)).astype(int)]
        self._index[name] = np.append(known, some)
        for kept, unknown in ((self._w, np.nan), (self._gamma, 0.0)):
            more = np.full(some.size, unknown, np.float32)
            kept[name] = [np.append(row, more) for row in kept[name]]

    def _padded(self, each: GroupSet) -> np.ndarray | None:
        """The groups followed of a large leaf, always as many numbers; None: all are wanted."""
        if len(each.names) > 1 or each.size <= _LARGE:
            return None
        index = self._index[each.names[0]]
        return np.pad(index, (0, 2 * SAMPLED - index.size)).astype(np.int32)

    def _joint(self, each: GroupSet, norms: list[np.ndarray]) -> np.ndarray:
        """The norms of the groups followed, from those of the parts in each leaf."""
        index = self._index[each.names[0]]
        if self._padded(each) is not None:
            return norms[0][: index.size]
        if len(each.names) == 1 and norms[0].size == each.size:
            return norms[0][index]
        square = np.zeros(each.size)
        for name, part in zip(each.names, norms, strict=True):
            np.add.at(square, each.places[name], part.astype(np.float64) ** 2)
        return np.sqrt(square).astype(np.float32)[index]

    def to_bytes(self, steps: np.ndarray) -> bytes:
        """Returns the file norms.npz: `steps`, and of each set names, groups and norms."""
        arrays: dict[str, np.ndarray] = {"steps": steps}
        for i, each in enumerate(self._sets):
            name = each.names[0]
            arrays[f"leaf_{i}_name"] = np.array(name)
            arrays[f"leaf_{i}_size"] = np.array(each.size)
            arrays[f"leaf_{i}_index"] = self._index[name]
            arrays[f"leaf_{i}_w"] = np.stack(self._w[name])
            arrays[f"leaf_{i}_gamma"] = np.stack(self._gamma[name])
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        return stream.getvalue()

    def restore(self, content: bytes, path: dl.SolutionPath) -> None:
        """Reads the file norms.npz that goes with a path."""
        self._sets = path.sets()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for i in range(sum(name.endswith("_name") for name in arrays.files)):
                name = str(arrays[f"leaf_{i}_name"])
                self._index[name] = arrays[f"leaf_{i}_index"]
                self._w[name] = list(arrays[f"leaf_{i}_w"])
                self._gamma[name] = list(arrays[f"leaf_{i}_gamma"])


def _some(norms: jax.Array, some: np.ndarray | None) -> jax.Array:
    return norms if some is None else norms[some]


@partial(jax.jit, static_argnames="units")
def group_norms(leaf: jax.Array, units: tuple[int, ...]) -> jax.Array:
    """Returns the norms [groups] of a leaf's groups, in the order of the flattened `units`.

    Args:
        leaf: an array.
        units: the shape of its groups: along each axis a divisor of the leaf's size.

    Example:
        >>> group_norms(jnp.array([[3.0, 1.0], [4.0, 0.0]]), (1, 2)).tolist()
        [5.0, 1.0]
    """
    blocks: list[int] = []
    for size, count in zip(leaf.shape, units, strict=True):
        blocks += [count, size // count]
    inner = tuple(range(1, 2 * leaf.ndim, 2))
    squares = jnp.square(leaf.astype(jnp.float32)).reshape(blocks)
    return jnp.sqrt(squares.sum(axis=inner)).reshape(-1)
