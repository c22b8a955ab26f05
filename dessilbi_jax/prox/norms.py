"""Counts, sums and Euclidean norms of groups."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dessilbi_jax.prox.joint import joint_sums
from dessilbi_jax.structure.joint import Numbers

_CHUNK = 2**30  # elements that are counted in one integer


def how_many(chosen: jax.Array) -> jax.Array:
    """How many entries are True, in float32, of arrays of any size.

    Counted in integers, since float32 would stop at 2^24, up to the 2^31 where these would stop.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.norms import how_many
        >>> float(how_many(jnp.array([[True, False], [True, True]])))
        3.0
    """
    whole = chosen.ndim
    while whole and math.prod(chosen.shape[whole - 1 :]) <= _CHUNK:
        whole -= 1
    if whole == chosen.ndim and whole:  # an axis that is too long by itself
        parts = range(0, chosen.shape[-1], _CHUNK)
        return functools.reduce(jnp.add, [how_many(chosen[..., i : i + _CHUNK]) for i in parts])
    counts = jnp.sum(chosen, axis=tuple(range(whole, chosen.ndim)), dtype=jnp.int32)
    return jnp.sum(counts.astype(jnp.float32))


def group_sum(x: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Sum over each group of a leaf; the result has shape `counts`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.norms import group_sum
        >>> group_sum(jnp.arange(8.0).reshape(2, 4), (1, 2)).tolist()
        [[10.0, 18.0]]
    """
    whole = tuple(i for i, c in enumerate(counts) if c == 1 and x.shape[i] != 1)
    x = jnp.sum(x, axis=whole, keepdims=True)  # keepdims: explicit sharding stays readable
    for axis, (n, c) in enumerate(zip(x.shape, counts, strict=True)):
        if n != c:
            x = jnp.sum(_cut(x, axis, c), axis=axis + 1)
    return x


def _cut(x: jax.Array, axis: int, pieces: int) -> jax.Array:
    """An axis cut in two: the pieces and their length.

    Under explicit sharding JAX cuts an axis where whole pieces lie on each device; where they
    do not, the axis is gathered first.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    if pieces % math.prod(sharding.mesh.shape[name] for name in names):
        spec = jax.P(*sharding.spec[:axis], None, *sharding.spec[axis + 1 :])
        x = jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, spec))
    return x.reshape(*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])


def expand(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One number a group, made to broadcast against the leaf (axes of length 1 stay so)."""
    for axis, n in enumerate(shape):
        if groups.shape[axis] not in (1, n):
            where = jax.typeof(groups).sharding  # explicit sharding needs to be told
            where = where if any(where.spec) else None
            groups = jnp.repeat(groups, n // groups.shape[axis], axis=axis, out_sharding=where)
    return groups


def group_norm(v: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Euclidean norm of each group, shape `counts`; its gradient at a zero group is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.norms import group_norm
        >>> group_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]), (1, 2)).tolist()
        [[5.0, 0.0]]
    """
    if counts == v.shape:
        return jnp.where(v == 0, 0, jnp.abs(v))
    return _root(_square(v, counts))


def group_norms(
    counts: Sequence[tuple[int, ...]],
    joint: Sequence[Numbers],
    v: Sequence[jax.Array],
    squares: Sequence[jax.Array | None] | None = None,
) -> list[jax.Array]:
    """`group_norm` of several leaves: a joint group is normed as a whole, over all its members.

    Args:
        counts: number of groups along each axis (`LeafGroups.counts`), for each leaf.
        joint: the joint group of every cell (`LeafGroups.joint`), for each leaf.
        v: the leaves.
        squares: their sums of squares over each cell, for the leaves where they are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.norms import group_norms
        >>> kernel, bias = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([4.0, 1.0])
        >>> norms = group_norms([(1, 2), (2,)], [(0, 1), (0, 1)], [kernel, bias])
        >>> [norm.tolist() for norm in norms]
        [[[5.0, 1.0]], [5.0, 1.0]]
    """
    known = [None] * len(v) if squares is None else squares
    own = [j is None and square is None for j, square in zip(joint, known, strict=True)]
    each = [
        x if alone else _square(x, cells) if square is None else square
        for x, cells, alone, square in zip(v, counts, own, known, strict=True)
    ]
    return [
        group_norm(x, cells) if alone else _root(x)
        for x, cells, alone in zip(joint_sums(joint, each), counts, own, strict=True)
    ]


def _square(v: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    return group_sum(jnp.real(v * jnp.conj(v)), counts)


def _root(square: jax.Array) -> jax.Array:
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
