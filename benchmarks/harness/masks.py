"""Which weights are pruned, and masks of exact sizes.

Pruned are the kernels: leaves with two axes or more. Biases and normalisation are kept whole and
not counted. A density is a share of the kernels' weights; a mask of a density holds exactly
round(density · weights) of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def kernels(tree: Tree) -> list[Any]:
    """The leaves that are pruned, in the tree's order."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim >= 2]


def size(params: Tree) -> int:
    """How many weights can be pruned."""
    return sum(leaf.size for leaf in kernels(params))


def with_kernels(params: Tree, pieces: Iterable[Any]) -> Tree:
    """A mask from one boolean array a kernel; all else is kept."""
    rest = iter(pieces)
    return jax.tree.map(
        lambda p: jnp.asarray(next(rest)) if p.ndim >= 2 else jnp.ones(p.shape, bool), params
    )


def everything(params: Tree) -> Tree:
    """The mask that keeps all."""
    return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)


def density(mask: Tree) -> float:
    """The share of weights that a mask keeps."""
    return sum(int(np.asarray(m).sum()) for m in kernels(mask)) / size(mask)


def by_layer(mask: Tree) -> list[float]:
    """The share that each kernel keeps."""
    return [round(float(np.mean(m)), 5) for m in kernels(mask)]


def top(params: Tree, scores: Sequence[np.ndarray], share: float) -> Tree:
    """The mask of the highest scores of all kernels together; −inf is never chosen."""
    flat = np.concatenate([np.ravel(s) for s in scores])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[: round(share * flat.size)]] = True
    chosen &= flat > -np.inf
    pieces = np.split(chosen, np.cumsum([np.size(s) for s in scores])[:-1])
    return with_kernels(
        params, [c.reshape(np.shape(s)) for c, s in zip(pieces, scores, strict=True)]
    )


def top_each(params: Tree, scores: Sequence[np.ndarray], shares: Sequence[float]) -> Tree:
    """The mask of each kernel's own highest scores, a share of every kernel by itself."""
    pieces = []
    for score, share in zip(scores, shares, strict=True):
        flat = np.ravel(score)
        chosen = np.zeros(flat.size, bool)
        chosen[np.argsort(-flat, kind="stable")[: round(share * flat.size)]] = True
        pieces.append((chosen & (flat > -np.inf)).reshape(np.shape(score)))
    return with_kernels(params, pieces)


def magnitude(params: Tree, share: float, within: Tree = None) -> Tree:
    """The largest weights of all kernels together, among those of `within`."""
    scores = [np.abs(np.asarray(w)) for w in kernels(params)]
    if within is not None:
        scores = [
            np.where(np.asarray(m), s, -np.inf)
            for s, m in zip(scores, kernels(within), strict=True)
        ]
    return top(params, scores, share)


def random_like(mask: Tree, seed: int) -> Tree:
    """A random mask with the same number of kept weights in every kernel."""
    draw = np.random.default_rng(seed)
    return with_kernels(
        mask,
        [draw.permuted(np.ravel(np.asarray(m))).reshape(m.shape) for m in kernels(mask)],
    )


def erdos_renyi(params: Tree, share: float) -> list[float]:
    """Each kernel's density by Erdős–Rényi-Kernel (Evci et al. 2020), `share` of all together.

    In proportion to (sum of all axes) / (product of all axes); kernels that would pass 1 are
    dense, and the others share what is left.
    """
    shapes = [leaf.shape for leaf in kernels(params)]
    sizes = np.array([np.prod(s) for s in shapes], float)
    raw = np.array([sum(s) for s in shapes]) / sizes
    dense = np.zeros(len(shapes), bool)
    while not dense.all():
        left = share * sizes.sum() - sizes[dense].sum()
        scale = left / (raw * sizes)[~dense].sum()
        full = ~dense & (scale * raw >= 1)
        if not full.any():
            return [1.0 if d else float(scale * r) for d, r in zip(dense, raw, strict=True)]
        dense |= full
    return [1.0] * len(shapes)


def apportioned(shares: Sequence[float], room: Sequence[int], total: int) -> list[int]:
    """Whole numbers as near to `shares` as can be, at most `room` each and `total` together."""
    counts = np.minimum(np.floor(shares), room).astype(int)
    while counts.sum() < min(total, sum(room)):
        counts[np.argmax(np.where(counts < room, np.subtract(shares, counts), -np.inf))] += 1
    while counts.sum() > total:
        counts[np.argmin(np.where(counts > 0, np.subtract(shares, counts), np.inf))] -= 1
    return counts.tolist()


def random(params: Tree, shares: Sequence[float], density: float, seed: int) -> Tree:
    """A random mask with the given share of each kernel, rounded so that its size is exact."""
    sizes = [k.size for k in kernels(params)]
    wanted = np.multiply(shares, sizes).tolist()
    counts = apportioned(wanted, sizes, round(density * sum(sizes)))
    draw = np.random.default_rng(seed)
    scores = [draw.random(k.shape) for k in kernels(params)]
    return top_each(params, scores, [n / size for n, size in zip(counts, sizes, strict=True)])
