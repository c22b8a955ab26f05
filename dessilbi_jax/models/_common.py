"""What the networks share: He initialisation, named layers, pooling and the check of the input."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

_BLOCK = 1 << 15


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """A kernel drawn from N(0, 2 / fan_in), not truncated: He et al. (2015), Eq. 10.

    The fan-in is the product of all axes but the last. Numbers are drawn in blocks of one size,
    because XLA compiles its generator anew for every shape, most of a second each time on a CPU.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> kernel = he_normal(jax.random.key(0), (800, 500), jnp.float32)
        >>> print(f"{kernel.std():.3f}")
        0.050
    """
    blocks = [
        jax.random.normal(jax.random.fold_in(key, i), (_BLOCK,), dtype)
        for i in range(-(-math.prod(shape) // _BLOCK))
    ]
    return _scaled(blocks, math.sqrt(2 / math.prod(shape[:-1])), shape)


@functools.partial(jax.jit, static_argnames="shape")
def _scaled(blocks: list[jax.Array], scale: float, shape: tuple[int, ...]) -> jax.Array:
    """The first numbers of `blocks` times `scale`, in the given shape."""
    return (jnp.concatenate(blocks)[: math.prod(shape)] * scale).reshape(shape)


def dense(fan_in: int, units: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with a He-normal (in, out) kernel and a zero bias.

    Examples:
        >>> from flax import nnx
        >>> dense(784, 300, rngs=nnx.Rngs(0)).kernel.shape
        (784, 300)
    """
    return nnx.Linear(fan_in, units, kernel_init=he_normal, rngs=rngs)


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    *,
    strides: int = 1,
    padding: str = "SAME",
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with a square He-normal HWIO kernel and, if asked for, a zero bias.

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
        kernel_init=he_normal,
        rngs=rngs,
    )


def batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation whose running statistics keep 0.9 of their old value at each step.

    Flax's default of 0.99 needs several hundred steps to forget its starting values, more than
    a short run has.

    Examples:
        >>> from flax import nnx
        >>> batch_norm(16, rngs=nnx.Rngs(0)).scale.shape
        (16,)
    """
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest value of each 2x2 window, at stride 2: [N, H, W, C] to [N, H//2, W//2, C].

    An odd last row or column is dropped. Equal to `nnx.max_pool(x, (2, 2), (2, 2))`; written as
    a maximum of four slices because XLA differentiates the windowed form several times slower
    on a CPU.

    Examples:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = jnp.maximum(x[:, 0:height:2, 0:width:2], x[:, 0:height:2, 1:width:2])
    bottom = jnp.maximum(x[:, 1:height:2, 0:width:2], x[:, 1:height:2, 1:width:2])
    return jnp.maximum(top, bottom)


def check_input(x: jax.Array, input_shape: tuple[int, int, int]) -> None:
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
