"""How far the outputs of two networks are apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-5


class Differs(ValueError):
    """Outputs that are further apart than rounding explains, or that cannot be compared."""


def difference(expected: Any, got: Any, allowed: float = TOLERANCE) -> float:
    """The largest difference of an output, over the largest output of its array.

    Entries that are infinite or NaN are compared by position: both have to be the same infinity,
    or both NaN.

    Args:
        expected, got: trees of arrays, or what the two networks give.
        allowed: difference that is no error.

    Raises:
        Differs: shapes that differ, more than is allowed (or 8 times the precision of the dtype),
            other infinite or NaN entries, or not a single finite entry to compare.
    """
    worst, finite, entries = 0.0, 0, 0
    here, there = jax.tree.leaves(expected), jax.tree.leaves(got)
    if len(here) != len(there):
        raise Differs(f"{len(there)} outputs instead of {len(here)}")
    for a, b in zip(here, there, strict=True):
        if jnp.shape(a) != jnp.shape(b):
            raise Differs(f"an output has shape {jnp.shape(b)} instead of {jnp.shape(a)}")
        x, y = (_numbers(z) for z in (a, b))
        both = np.isfinite(x) & np.isfinite(y)
        odd = ~both & (x != y) & ~(np.isnan(x) & np.isnan(y))
        if odd.any():
            raise Differs(
                f"{np.count_nonzero(odd)} of {x.size} entries of an output are infinite or NaN "
                "in one of the two networks only"
            )
        scale = max(float(np.abs(x[both]).max(initial=0.0)), 1e-30)
        apart = float(np.abs(x[both] - y[both]).max(initial=0.0)) / scale
        tolerance = allowed
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            finfo: Any = jnp.finfo  # which JAX leaves without types
            tolerance = max(tolerance, 8 * float(finfo(jnp.result_type(a)).eps))
        if not apart <= tolerance:
            raise Differs(
                f"outputs differ by {apart:.1e} of the largest, more than {tolerance:.0e}"
            )
        worst, finite, entries = max(worst, apart), finite + int(both.sum()), entries + x.size
    if entries and not finite:
        raise Differs("no entry of the outputs is finite, so that nothing can be compared")
    return worst


def _numbers(x: Any) -> np.ndarray:
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    numbers: np.ndarray = np.asarray(x).astype(np.complex128)
    return numbers
