"""How the kernels of `kernels.py` see a leaf: as (batch, rows, lanes), cut into blocks.

Neighbouring axes are merged such that, within an entry of the batch, the groups depend on the row
alone or on the lane alone: then one factor a row or a lane goes into the kernel, and one sum of
squares a row or a lane, for each block, comes out of it.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Elements in a block: on TPUs some megabytes of the on-chip memory for all arrays together, on
# GPUs sixteen elements a thread.
BLOCK = {"tpu": 2**16, "gpu": 2**11}
INTERPRETED = "tpu"  # whose blocks are interpreted where there is neither


class View(NamedTuple):
    """A leaf as (batch, rows, lanes).

    Attributes:
        batch, rows, lanes: their lengths; the product is the leaf's size.
        by_lane: whether groups depend on the lane, else on the row.
        sizes: the leaf's axes, row-major, those that are cut into pieces as two; none of length 1.
        indexes: which of `sizes` index groups.
        along: which of `sizes` make up the batch and the lanes, or the batch and the rows.
    """

    batch: int
    rows: int
    lanes: int
    by_lane: bool
    sizes: tuple[int, ...]
    indexes: tuple[bool, ...]
    along: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, rows, lanes)."""
        return self.batch, self.rows, self.lanes

    def spread(self, groups: jax.Array) -> jax.Array:
        """One number a group, as one number a lane (batch, 1, lanes) or a row (batch, rows, 1)."""
        short = [self.sizes[i] if self.indexes[i] else 1 for i in self.along]
        long = jnp.broadcast_to(groups.reshape(short), [self.sizes[i] for i in self.along])
        return long.reshape((self.batch, 1, -1) if self.by_lane else (self.batch, -1, 1))

    def gather(self, partial: jax.Array, counts: tuple[int, ...]) -> jax.Array:
        """The sums over groups, from those of blocks: (batch, blocks, …), one a lane or a row."""
        each = jnp.sum(partial, axis=1).reshape([self.sizes[i] for i in self.along])
        rest = tuple(k for k, i in enumerate(self.along) if not self.indexes[i])
        return jnp.sum(each, axis=rest).reshape(counts)


def view(shape: tuple[int, ...], counts: tuple[int, ...], elementwise: bool) -> View:
    """How a leaf is seen by its kernel: the way that moves least.

    There is one for all groups: the first reduced axis as rows, those before it as the batch and
    those behind it as lanes.

    Args:
        shape: of the leaf, without axes of length 0.
        counts: number of groups along each axis (`LeafGroups.counts`).
        elementwise: whether groups are single elements, for which every view fits.

    Example:
        >>> from dessilbi_jax.optimizer.kernels.layout import view
        >>> view((3, 3, 64, 64), (1, 1, 1, 64), False).shape  # filters, by lane
        (1, 576, 64)
        >>> view((64, 32, 3, 3), (64, 1, 1, 1), False).shape  # filters of PyTorch, by row
        (1, 64, 288)
        >>> view((768, 3072), (192, 1536), False).shape  # blocks of 4 x 2, a batch of lanes
        (192, 4, 3072)
    """
    sizes: list[int] = []
    indexes: list[bool] = []
    last = 0  # the first of those that the last axis becomes
    for n, c in zip(shape, counts, strict=True):
        last = len(sizes)
        for size, index in ((c, True), (n // c, False)):
            if size > 1:
                sizes.append(size)
                indexes.append(index)
    found: list[tuple[int, View]] = []
    for p, q, by_lane in itertools.product(range(len(sizes) + 1), range(len(sizes) + 1), (1, 0)):
        rest = indexes[p:q] if by_lane else indexes[q:]  # what no factor or sum tells apart
        if p > q or not all(indexes[:p]) or (p and elementwise) or (any(rest) and not elementwise):
            continue
        along = (*range(p), *(range(q, len(sizes)) if by_lane else range(p, q)))
        batch, rows, lanes = (math.prod(part) for part in (sizes[:p], sizes[p:q], sizes[q:]))
        # What is moved of the leaf and twice of its factors, in tiles of 8 × 128; and twice the
        # leaf where its last axis is not the lanes, since all tiles are made anew then.
        wide = -(-lanes // 128) * 128
        cost = batch * (-(-rows // 8) * 8 * wide + 2 * (wide if by_lane else rows * 128))
        cost += 2 * math.prod(shape) * (q != last)
        kind = (bool(by_lane), tuple(sizes), tuple(indexes), along)
        found.append((cost, View(batch, rows, lanes, *kind)))
    return min(found, key=lambda pair: pair[0])[1]


def block(seen: View, platform: str, elements: int) -> tuple[int, int]:
    """Rows and lanes of a block of about `elements`.

    TPUs take whole axes, or multiples of tiles (16 × 128 with 16-bit numbers). GPUs take powers
    of two; tall blocks where sums run along rows, so that few sums of blocks are left.

    Example:
        >>> from dessilbi_jax.optimizer.kernels.layout import BLOCK, block, view
        >>> seen = view((3, 3, 512, 512), (1, 1, 1, 512), False)
        >>> [block(seen, platform, elements) for platform, elements in BLOCK.items()]
        [(128, 512), (32, 64)]
    """
    rows, lanes = seen.rows, seen.lanes
    if platform == "tpu":
        wide = lanes if lanes <= 1024 else 512
        tall = max(16, elements // (-(-wide // 128) * 128) // 16 * 16)
        return min(rows, tall), wide
    tall = min(_power(rows), 32) if seen.by_lane else 1
    wide = min(_power(lanes), max(elements // tall, 1), 512)
    return min(_power(rows), max(elements // wide, 1)), wide


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
