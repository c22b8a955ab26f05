"""The caller's dtype, whatever JAX's global setting is, and few shapes to compile."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_SMALL = 128  # up to here compiling costs far more than computing
LEAST_ROWS = 32  # of a design
_STEPS = 8  # sizes between a power of two and the next, above


@contextlib.contextmanager
def precision_of(dtype: Any) -> Iterator[None]:
    """Context in which JAX computes in float64 if the dtype is that, and in float32 if not.

    The global setting stays as it is; what was made inside keeps its dtype outside.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from dessilbi_jax.stats.precision import precision_of
        >>> with precision_of(np.float64):
        ...     print(jnp.asarray(np.ones(2)).dtype)
        float64
    """
    with jax.enable_x64(bool(np.dtype(dtype) == np.float64)):
        yield


def padded_size(n: int, least: int = 16) -> int:
    """The next of the sizes 16, 32, 64, 128, 144, 160, …: at most an eighth more, from 128 on.

    A path is compiled for its shapes. With rows of weight 0 and columns of zeros, which change
    nothing, folds and small problems share a few of them.

    Args:
        n: the size.
        least: the smallest there is, a power of two.

    Example:
        >>> from dessilbi_jax.stats.precision import padded_size
        >>> [padded_size(n) for n in (1, 17, 33, 1000, 1025)]
        [16, 32, 64, 1024, 1152]
    """
    power = max(least, 1 << (n - 1).bit_length())
    step = power if power <= _SMALL else power // (2 * _STEPS)
    return -(-n // step) * step
