"""Convolutions whose kernel gradient is fast on a CPU where they have a stride."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_MOST_POSITIONS = 9  # of a kernel: beyond them one product each was not measured
_FEWEST_CHANNELS = 8  # below them the products are too thin


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **others: Any,
) -> jax.Array:
    """What `jax.lax.conv_general_dilated` gives, with the same arguments.

    For float32 images NHWC and kernels HWIO with a stride, of 3x3 or fewer positions and without
    groups, dilation or options of precision, the gradient for the kernel is written as one matrix
    product for each position of the kernel where the program is lowered for a CPU: XLA's own form
    transposes the images for it, and takes up to twice as long, for 1x1 kernels five times. All
    else, and all of it on other platforms, is XLA's own; there is nothing to gain at stride 1.

    Such a convolution can be differentiated any number of times in reverse mode, and its gradient
    in forward mode; `jax.jvp` of itself raises `TypeError`, as of any `jax.custom_vjp`.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, kernel = jnp.ones((1, 5, 5, 8)), jnp.ones((3, 3, 8, 4))
        >>> y = convolve(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> y.shape, float(y[0, 0, 0, 0])
        ((1, 2, 2, 4), 72.0)
    """
    plain = (
        lhs.ndim == 4
        and 0 not in lhs.shape + rhs.shape
        and lhs.dtype == rhs.dtype == jnp.float32
        and feature_group_count == batch_group_count == 1
        and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        and all(value is None for value in others.values())
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    )
    if plain and _gains(rhs.shape, tuple(window_strides)):
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        pads = tuple((low, high) for low, high in padding)
        if min(*pads[0], *pads[1]) >= 0:  # negative padding crops
            return _convolve(lhs, rhs, tuple(window_strides), pads)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        **others,
    )


def _gains(kernel: Sequence[int], strides: tuple[int, ...]) -> bool:
    """Whether one product for each position of the kernel was measured faster."""
    high, wide, channels, _ = kernel
    return max(strides) > 1 and high * wide <= _MOST_POSITIONS and channels >= _FEWEST_CHANNELS


def _xla(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)


_convolve = jax.custom_vjp(_xla, nondiff_argnums=(2, 3))


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _xla(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: Strides, pads: Pads, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _xla(x, kernel, strides, pads), x)(dy)

    def by_xla(x: jax.Array, dy: jax.Array) -> jax.Array:
        (dk,) = jax.linear_transpose(lambda k: _xla(x, k, strides, pads), kernel)(dy)
        return dk

    by_positions = functools.partial(_by_positions, kernel.shape[:2], strides, pads)
    return dx, lax.platform_dependent(x, dy, cpu=by_positions, default=by_xla)


_convolve.defvjp(_forward, _backward)


def _by_positions(
    window: tuple[int, ...], strides: Strides, pads: Pads, x: jax.Array, dy: jax.Array
) -> jax.Array:
    """The kernel's gradient: for each position, the inputs it met times the gradient, summed."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (s * (n - 1) + 1 for s, n in zip(strides, dy.shape[1:3], strict=True))
    summed = (((0, 1, 2), (0, 1, 2)), ((), ()))
    parts = [
        lax.dot_general(x[:, i : i + rows : strides[0], j : j + columns : strides[1]], dy, summed)
        for i in range(window[0])
        for j in range(window[1])
    ]
    return jnp.stack(parts).reshape(*window, x.shape[-1], dy.shape[-1])
