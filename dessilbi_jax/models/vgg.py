"""A small VGG (Simonyan & Zisserman, 2015) with batch normalisation, for 32x32 colour images."""

import jax
from flax import nnx

from dessilbi_jax.models import _common


class VGG(nnx.Module):
    """3x3 convolutions with batch normalisation, in pairs between poolings, then one dense layer.

    Convolutions 2, 4, 6, … are followed by 2x2 max pooling, as long as an image of more than one
    pixel is left; the mean over what remains of the image goes to the classifier. With the
    default widths: 288,746 parameters at 32x32x3 and ten classes, and 39 million multiplications
    an image. Layers are named `conv1`, `bn1`, …, `fc`; the convolutions have no bias, because
    the normalisation would cancel it.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: filters of each convolution.
        rngs: random keys for the initialisation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = VGG(widths=(4, 4, 8, 8), rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (32, 32, 64, 64, 128, 128),
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = input_shape
        self.convolutions = len(widths)
        channels = input_shape[2]
        for i, filters in enumerate(widths, start=1):
            kernel = _common.conv(channels, filters, 3, use_bias=False, rngs=rngs)
            setattr(self, f"conv{i}", kernel)
            setattr(self, f"bn{i}", _common.batch_norm(filters, rngs=rngs))
            channels = filters
        self.fc = _common.dense(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        After `model.train()` the batch's own statistics normalise it and update the running
        ones; after `model.eval()` the running ones do.

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        for i in range(1, self.convolutions + 1):
            x = jax.nn.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            if i % 2 == 0 and min(x.shape[1:3]) > 1:
                x = _common.max_pool(x)
        return self.fc(x.mean(axis=(1, 2)))
