"""What the networks share: initialisation, named layers, pooling and the check of the input."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models._conv import convolve

_BLOCK = 1 << 15
_LARGE_BLOCK = 1 << 20  # of kernels with more numbers than this

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
Padding = str | int


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """A kernel drawn from N(0, 2 / fan_in), not truncated: He et al. (2015), Eq. 10.

    The fan-in is the product of all axes but the last. Numbers are drawn in blocks of two sizes,
    because XLA compiles its generator anew for every shape, most of a second each time on a CPU.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> kernel = he_normal(jax.random.key(0), (800, 500), jnp.float32)
        >>> print(f"{kernel.std():.3f}")
        0.050
    """
    return draw_normal(key, shape, dtype, math.sqrt(2 / math.prod(shape[:-1])))


def glorot_normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """A kernel drawn from N(0, 2 / (fan_in + fan_out)): Glorot & Bengio (2010), Eq. 12.

    Fan-in and fan-out are the sizes of the last two axes, times the positions of a convolution.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> kernel = glorot_normal(jax.random.key(0), (300, 500), jnp.float32)
        >>> print(f"{kernel.std():.3f}")
        0.050
    """
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return draw_normal(key, shape, dtype, math.sqrt(2 / fans))


def draw_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, deviation: float
) -> jax.Array:
    """Numbers from N(0, deviation²) in the given shape.

    They are drawn in blocks of two sizes, because XLA compiles its generator anew for every shape,
    most of a second each time on a CPU.
    """
    block = _BLOCK if math.prod(shape) <= _LARGE_BLOCK else _LARGE_BLOCK
    blocks = [
        jax.random.normal(jax.random.fold_in(key, i), (block,), dtype)
        for i in range(-(-math.prod(shape) // block))
    ]
    return _scaled(blocks, deviation, shape)


@functools.partial(jax.jit, static_argnames="shape")
def _scaled(blocks: list[jax.Array], scale: float, shape: tuple[int, ...]) -> jax.Array:
    """The first numbers of `blocks` times `scale`, in the given shape."""
    return (jnp.concatenate(blocks)[: math.prod(shape)] * scale).reshape(shape)


def dense(
    fan_in: int,
    units: int,
    *,
    dtype: DTypeLike = jnp.float32,
    kernel_init: Initializer = he_normal,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A dense layer with an (in, out) kernel and a zero bias, both float32.

    It computes in `dtype`. Layers that give logits are made without it: they stay in float32.

    Examples:
        >>> from flax import nnx
        >>> dense(784, 300, rngs=nnx.Rngs(0)).kernel.shape
        (784, 300)
    """
    return nnx.Linear(fan_in, units, dtype=dtype, kernel_init=kernel_init, rngs=rngs)


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    *,
    strides: int = 1,
    padding: Padding = "SAME",
    use_bias: bool = True,
    groups: int = 1,
    dtype: DTypeLike = jnp.float32,
    kernel_init: Initializer = he_normal,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with a square HWIO kernel and, if asked for, a zero bias, both float32.

    Args:
        channels_in: channels of the input.
        channels_out: filters.
        size: rows and columns of the kernel.
        strides: of the kernel, in both directions.
        padding: "SAME", "VALID", or the zeros on every side.
        use_bias: whether a bias is added.
        groups: parts of the channels that are convolved by themselves; as many as there are
            channels make it depthwise.
        dtype: what it computes in.
        kernel_init: gives the kernel.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> conv(1, 20, 5, rngs=nnx.Rngs(0)).kernel.shape
        (5, 5, 1, 20)
    """
    return nnx.Conv(
        channels_in,
        channels_out,
        (size, size),
        strides=(strides, strides),
        padding=padding,
        use_bias=use_bias,
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def batch_norm(channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation whose running statistics keep 0.9 of their old value at each step.

    Flax's default of 0.99 needs several hundred steps to forget its starting values, more than
    a short run has. It computes in float32 and gives `dtype`.

    Examples:
        >>> from flax import nnx
        >>> batch_norm(16, rngs=nnx.Rngs(0)).scale.shape
        (16,)
    """
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, dtype=dtype, promote_dtype=_as_they_are, rngs=rngs
    )


def _as_they_are(arrays: Any, /, *, dtype: Any = None, **_: Any) -> Any:
    """Leaves the statistics in float32, where Flax would round them to the compute type first."""
    return arrays


def width(layer: nnx.Conv | nnx.Linear) -> int:
    """Outputs of a layer, read from its kernel.

    Examples:
        >>> from flax import nnx
        >>> width(conv(1, 20, 5, rngs=nnx.Rngs(0)))
        20
    """
    return int(layer.kernel.shape[-1])


def recomputed(block: Callable[..., jax.Array], remat: bool) -> Callable[..., jax.Array]:
    """`block`, or with `remat` one that keeps only its inputs for the backward pass.

    What lies between is computed once more there: less memory for one more forward pass.

    Args:
        block: `block(module, x)`, where the module may be a tuple of several.
        remat: whether to recompute.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> layer = dense(3, 4, rngs=nnx.Rngs(0))
        >>> recomputed(lambda layer, x: layer(x), True)(layer, jnp.zeros((2, 3))).shape
        (2, 4)
    """
    return nnx.remat(block) if remat else block


def call(module: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`module(x)`: what `recomputed` takes of a block that is a module by itself.

    Examples:
        >>> from flax import nnx
        >>> layer = dense(3, 4, rngs=nnx.Rngs(0))
        >>> call(layer, jax.numpy.zeros((2, 3))).shape
        (2, 4)
    """
    return module(x)


def activated(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A layer with ReLU.

    Examples:
        >>> import jax.numpy as jnp
        >>> activated(jnp.negative, jnp.array([-2.0, 3.0]))
        Array([2., 0.], dtype=float32)
    """
    return jax.nn.relu(layer(x))


def image_mean(x: jax.Array) -> jax.Array:
    """The mean over each image, in float32: [N, H, W, C] to [N, C].

    Examples:
        >>> import jax.numpy as jnp
        >>> image_mean(jnp.arange(8.0, dtype=jnp.bfloat16).reshape(1, 2, 2, 2))
        Array([[3., 4.]], dtype=float32)
    """
    return x.mean(axis=(1, 2), dtype=jnp.float32)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The largest value of each 2x2 window, at stride 2: [N, H, W, C] to [N, H//2, W//2, C].

    An odd last row or column is dropped. Equal to `nnx.max_pool(x, (2, 2), (2, 2))`; written as
    a maximum of four slices because XLA differentiates the windowed form several times slower
    on a CPU. Where values are equal the gradient is shared as `jnp.maximum` does: in halves
    between the two of a row, and in halves between the rows. Forward mode raises `TypeError`, but
    may be taken of a gradient.

    Examples:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    return _pooled(x)[0]


def _pooled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = jnp.maximum(x[:, 0:height:2, 0:width:2], x[:, 0:height:2, 1:width:2])
    bottom = jnp.maximum(x[:, 1:height:2, 0:width:2], x[:, 1:height:2, 1:width:2])
    return jnp.maximum(top, bottom), x


def _unpooled(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    """The gradient by comparisons in place; that of slices would be four padded arrays added."""
    n, high, wide, channels = dy.shape
    whole = x[:, : 2 * high, : 2 * wide].reshape(n, high, 2, wide, 2, channels)
    left, right = whole[..., 0, :], whole[..., 1, :]
    rows = jnp.maximum(left, right)
    dy = jnp.stack(_shared(rows[:, :, 0], rows[:, :, 1], dy), axis=2)
    dx = jnp.stack(_shared(left, right, dy), axis=4).reshape(n, 2 * high, 2 * wide, channels)
    odd = ((0, 0), (0, x.shape[1] - 2 * high), (0, x.shape[2] - 2 * wide), (0, 0))
    return (jnp.pad(dx, odd),)


def _shared(a: jax.Array, b: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of a maximum of two."""
    half, none = jnp.where(a == b, dy / 2, dy), jnp.zeros_like(dy)
    return jnp.where(a >= b, half, none), jnp.where(b >= a, half, none)


max_pool.defvjp(_pooled, _unpooled)


def check_input(x: jax.Array, input_shape: tuple[int, ...]) -> None:
    """Raises unless `x` is a batch of floating-point images of the shape the network was built for.

    Raises:
        ValueError: the shape is not [batch, height, width, channels] with the built sizes.
        TypeError: the pixels are not floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> check_input(jnp.zeros((2, 28, 28, 1)), (28, 28, 1))
    """
    if x.ndim != 4 or x.shape[1:] != input_shape:
        wanted = ", ".join(map(str, input_shape))
        raise ValueError(
            f"this network was built for images of shape [batch, {wanted}], got {list(x.shape)}: "
            "add the missing axis, or build it with another input_shape"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"this network takes floating-point images, got {x.dtype}: "
            "scale the pixels to about unit range first, for example images / 255"
        )
