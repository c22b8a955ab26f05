"""The largest entries of several arrays together, exactly as many as are wanted, without sorting.

Entries are the bits of float32 numbers that are not below zero, which are ordered as the numbers
are; −1 is what is not there. Thresholds are found by bisection: sums are all that sharded arrays
have to exchange.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

TOP = 0x7F7FFFFF  # bits of the largest finite float32


def largest(
    scores: Sequence[jax.Array], costs: Sequence[int], wanted: jax.Array, minimum: int
) -> list[jax.Array]:
    """Which entries stay so that they cost at most `wanted`: the largest, the first among equals.

    Each layer keeps at least `minimum`, which come first. With costs of 1 the number is exact.
    """
    least = [min(minimum, s.size) for s in scores]

    def above(level: jax.Array, s: jax.Array) -> jax.Array:
        return jnp.sum(s > level, dtype=jnp.int32)

    def cost(counts: Sequence[jax.Array]) -> jax.Array:
        total = jnp.zeros([], jnp.int32)
        for count, each, low in zip(counts, costs, least, strict=True):
            total += jnp.maximum(count, low) * each
        return total

    # The smallest level above which no more is kept than wanted.
    level = _bisect(
        lambda x: cost([above(x, s) for s in scores]) <= wanted, jnp.int32(-1), jnp.int32(TOP)
    )
    # Of those at the level, as many as still fit, layer by layer; then the least of each layer.
    there = [above(level, s) for s in scores]
    left = wanted - cost(there)
    out = []
    for s, count, each, low in zip(scores, there, costs, least, strict=True):
        equal = jnp.sum((s == level) & (s >= 0), dtype=jnp.int32)
        base = jnp.maximum(count, low)
        more = jnp.clip(left // each, 0, jnp.maximum(count + equal - base, 0))
        left -= more * each
        out.append(_first(s, base + more))
    return out


def fitting(
    scores: Sequence[jax.Array], amount: Callable[[Sequence[jax.Array]], jax.Array],
    most: jax.Array, minimum: int,
) -> list[jax.Array]:  # fmt: skip
    """Which entries stay so that what they amount to is at most `most`, as by `largest`.

    Args:
        scores: of each layer, flat.
        amount: of what stays in each layer; it grows with each entry.
        most: the largest amount.
        minimum: entries that each layer keeps.
    """
    must = [_first(s, jnp.int32(min(minimum, s.size))) for s in scores]
    starts = [sum(s.size for s in scores[:i]) for i in range(len(scores))]

    def stay(level: jax.Array, last: jax.Array) -> list[jax.Array]:
        return [
            m | (s > level) | ((s == level) & (s >= 0) & (start + jnp.arange(s.size) <= last))
            for m, s, start in zip(must, scores, starts, strict=True)
        ]

    none = jnp.int32(-1)
    level = _bisect(lambda x: amount(stay(x, none)) <= most, none, jnp.int32(TOP))
    # The first among equals that is too much: the ones before it stay.
    total = jnp.int32(sum(s.size for s in scores))
    last = _bisect(lambda x: (amount(stay(level, x)) > most) | (x == total), none, total)
    return stay(level, last - 1)


def _first(s: jax.Array, number: jax.Array) -> jax.Array:
    """The `number` largest entries that are not below zero; the first among equals."""
    level = _bisect(
        lambda x: jnp.sum(s > x, dtype=jnp.int32) <= number, jnp.int32(-1), jnp.int32(TOP)
    )
    over = s > level
    rest = number - jnp.sum(over, dtype=jnp.int32)
    equal = (s == level) & (s >= 0)
    index = _index(s)
    last = _bisect(
        lambda x: jnp.sum(equal & (index <= x), dtype=jnp.int32) >= rest,
        jnp.int32(-1),
        jnp.int32(max(s.size - 1, 0)),
    )
    return over | (equal & (index <= last) & (rest > 0))


def _bisect(holds: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """The smallest integer in [low, high] for which something holds; it holds at `high`."""

    def halve(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = carry
        middle = low + (high - low) // 2
        true = holds(middle)
        return jnp.where(true, low, middle + 1), jnp.where(true, middle, high)

    return jax.lax.while_loop(lambda c: c[0] < c[1], halve, (low, high))[1]


def _index(s: jax.Array) -> jax.Array:
    """The place of each entry in row-major order, laid on the devices as they are."""
    where = jax.typeof(s).sharding  # explicit sharding needs to be told
    where = where if any(where.spec) else None
    index = jnp.zeros_like(s)
    for axis in range(s.ndim):
        place = jax.lax.broadcasted_iota(jnp.int32, s.shape, axis, out_sharding=where)
        index += place * math.prod(s.shape[axis + 1 :])
    return index
