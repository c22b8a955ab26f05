"""What a choice of channels leaves of a network: its parameters or its operations, when tracing."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.tree import find_leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Amount:
    """A sum of products of how long axes are, as a function of which channels are left.

    Attributes:
        positions: [axes, groups], how many positions of each axis are of each group.
        fixed: [axes], how many are of none.
        terms: (factor, axes) of each product.
        groups: number of channel groups.
    """

    positions: np.ndarray
    fixed: np.ndarray
    terms: tuple[tuple[float, tuple[int, ...]], ...]
    groups: int

    @classmethod
    def of(cls, groups: ChannelGroups, unit: str, paths: Sequence[str]) -> "Amount":
        """The "flops" of the traced inputs, or the "params" of some leaves."""
        costs: Sequence[tuple[int, tuple[Any, ...]]] = groups.costs
        if unit == "params":
            costs = [
                (1, tuple(groups.numbers.get((path, axis), n) for axis, n in enumerate(shape)))
                for path, shape in ((p, groups.shapes[p]) for p in _traced(groups, paths))
            ]
        known: dict[bytes, int] = {}
        rows: list[np.ndarray] = []
        products: dict[tuple[int, ...], float] = {}
        for factor, axes in costs:
            places = []
            for axis in axes:
                if isinstance(axis, int):
                    factor *= axis
                    continue
                row = np.bincount(
                    np.where(axis < 0, groups.count, axis), minlength=groups.count + 1
                )
                places.append(known.setdefault(row.tobytes(), len(rows)))
                if places[-1] == len(rows):
                    rows.append(row)
            key = tuple(sorted(places))
            products[key] = products.get(key, 0) + factor
        table = np.stack(rows) if rows else np.zeros((0, groups.count + 1), np.int64)
        terms = tuple((float(factor), key) for key, factor in products.items())
        return cls(table[:, :-1].astype(np.float32), table[:, -1].astype(np.float32), terms,
                   groups.count)  # fmt: skip

    def left(self, alive: Any) -> jax.Array:
        """What is left where only some groups are, float32."""
        lengths = jnp.where(alive, self.positions, 0).sum(axis=1) + self.fixed
        total = jnp.zeros([], jnp.float32)
        for factor, axes in self.terms:
            total += factor * math.prod([lengths[i] for i in axes], start=jnp.float32(1))
        return total

    def exactly(self, alive: np.ndarray) -> int:
        """The same as an integer, on the host."""
        lengths = [
            int(x) for x in self.positions.astype(np.int64) @ alive + self.fixed.astype(np.int64)
        ]
        return sum(int(f) * math.prod(lengths[i] for i in axes) for f, axes in self.terms)


def _traced(groups: ChannelGroups, paths: Sequence[str]) -> list[str]:
    return [find_leaf(groups.shapes, path) for path in paths]
