"""The caller's dtype, whatever JAX's global setting is, and few shapes to compile."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_STEPS = 8  # sizes between a power of two and the next


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


def padded_size(n: int) -> int:
    """The next of the sizes 8, 16, 18, 20, …, 32, 36, 40, …: at most an eighth more, from 16 on.

    A path is compiled for its shapes. With rows of weight 0 and columns of zeros, which change
    nothing, folds and small problems share a few of them.

    Example:
        >>> from dessilbi_jax.stats.precision import padded_size
        >>> [padded_size(n) for n in (1, 8, 9, 17, 1000, 1025)]
        [8, 8, 16, 18, 1024, 1152]
    """
    if n <= 2 * _STEPS:
        return _STEPS if n <= _STEPS else 2 * _STEPS
    step = max(1, 2 ** (n - 1).bit_length() // (2 * _STEPS))
    return -(-n // step) * step
