"""Order of the images in an epoch, and augmentation that runs inside jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def epoch_order(seed: int, epoch: int, n: int, batch: int) -> np.ndarray:
    """Which images make up each batch of an epoch: a permutation of 0…n-1, cut into batches.

    It depends on `seed` and `epoch` alone, so a resumed run sees the same batches. The images
    that do not fill a last batch are left out of this epoch; which ones changes with the epoch.

    Args:
        seed: of the run, not negative.
        epoch: number of the epoch, from 0.
        n: number of images.
        batch: images in a batch.

    Returns:
        int32 [n // batch, batch].

    Raises:
        ValueError: a batch below 1 or larger than `n`, or a negative seed or epoch.

    Examples:
        >>> epoch_order(seed=0, epoch=1, n=10, batch=4).shape
        (2, 4)
    """
    if not 1 <= batch <= n:
        raise ValueError(f"batch must lie between 1 and the number of images, {n}; got {batch}")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    order = np.random.default_rng([seed, epoch]).permutation(n)
    steps = n // batch
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)


def augment(key: jax.Array, images: jax.Array, *, pad: int = 4) -> jax.Array:
    """Each image moved by up to `pad` pixels and, with probability 1/2, mirrored left to right.

    Equal to padding by reflection on all sides, cropping to the old size at a random place and
    flipping: the usual augmentation of CIFAR-10. May be called under jit.

    Args:
        key: a JAX random key.
        images: [batch, height, width, channels], of any type.
        pad: largest shift in pixels.

    Returns:
        An array of the shape and type of `images`.

    Raises:
        ValueError: not four axes, a negative pad, or a pad not smaller than height and width.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> augment(jax.random.key(0), jnp.ones((2, 32, 32, 3))).shape
        (2, 32, 32, 3)
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must be [batch, height, width, channels], got {list(images.shape)}"
        )
    height, width = images.shape[1:3]
    if not 0 <= pad < min(height, width):
        raise ValueError(
            f"pad must be at least 0 and less than height and width, {height}x{width}; got {pad}"
        )
    return _augmented(key, images, pad)


@functools.partial(jax.jit, static_argnames="pad")
def _augmented(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """`augment` once its arguments are known to be good."""
    batch, height, width, _ = images.shape
    row_key, column_key, flip_key = jax.random.split(key, 3)
    rows = _shifted(row_key, batch, height, pad)
    columns = _shifted(column_key, batch, width, pad)
    flip = jax.random.bernoulli(flip_key, shape=(batch, 1))
    columns = jnp.where(flip, columns[:, ::-1], columns)
    # one gather of source pixels; the padded images are never made
    return images[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _shifted(key: jax.Array, batch: int, size: int, pad: int) -> jax.Array:
    """Source index of each of `size` pixels after a random shift, reflected at both ends."""
    shift = jax.random.randint(key, (batch, 1), -pad, pad + 1)
    index = jnp.abs(jnp.arange(size)[None, :] + shift)
    return (size - 1) - jnp.abs(size - 1 - index)
