"""The order in which one compiled update visits its arrays.

XLA's CPU backend writes each result in a loop of its own. When buffers are donated, V' may take
the place of V only after the momentum has read V, and W' that of W only after V' has read W. XLA
sees no such order in the equations, so it copies W and V first and allocates a difference as
large as the parameters: measured on two cores, that made the update about three times slower
than Adam's. `after` states the order as a dependency on one row, which costs nothing.

Other backends compute all results in one loop, and on several devices the row would have to
be sent around, so there `after` and `apart` change nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_SMALL = 2**16  # elements below which a copy costs less than stating the order
_LARGE = 1e38  # anything below float32's largest number


def matters(array: jax.Array) -> bool:
    """Whether the order is worth stating: a large array, traced for a single CPU device."""
    return array.size >= _SMALL and jax.default_backend() == "cpu" and jax.device_count() == 1


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, to be computed with anew instead of sharing earlier results.

    What stands behind it reads them from memory.
    """
    return jax.lax.optimization_barrier(arrays) if matters(arrays[0]) else arrays


def after(scalar: Any, *arrays: jax.Array, like: jax.Array) -> jax.Array:
    """The scalar as an array of the (real) dtype of `like`, not before `arrays` are written.

    The scalar is off by one part in 10⁷ where an array's first row is not finite; XLA
    cannot know that it never matters, which is the point.
    """
    now: jax.Array = jnp.asarray(scalar, jnp.real(like).dtype)
    arrays = tuple(array for array in arrays if array.size)
    if not arrays or not matters(like):
        return now
    arrays = jax.lax.optimization_barrier(arrays)
    # The largest of a row, not one element: XLA would fuse anything simpler than a reduction
    # into the loop that is to wait, and then has to copy what that loop overwrites.
    rows = [jnp.max(jnp.real(jnp.atleast_1d(x)[(0,) * max(x.ndim - 1, 0)])) for x in arrays]
    largest = functools.reduce(jnp.maximum, [row.astype(jnp.float32) for row in rows])
    return jnp.where(largest < _LARGE, now, now * (1 + 1e-7))
