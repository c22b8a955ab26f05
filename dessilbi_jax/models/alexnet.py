"""AlexNet as in torchvision: the one-tower form of Krizhevsky (2014)."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network

# Of each convolution: size of the kernel, strides, zeros on every side.
_LAYERS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
_POOLED = (1, 2, 5)  # convolutions behind which the image is pooled


def _pooled(layer: nnx.Conv, x: jax.Array) -> jax.Array:
    """Convolution and ReLU, then overlapping max pooling of 3x3 windows at stride 2."""
    return nnx.max_pool(jax.nn.relu(layer(x)), (3, 3), (2, 2))


def _left(side: int) -> int:
    """Rows or columns that the convolutions and poolings leave of an image; 0 or less: none."""
    for i, (size, strides, padding) in enumerate(_LAYERS, start=1):
        side = (side + 2 * padding - size) // strides + 1
        if i in _POOLED:
            side = (side - 3) // 2 + 1
    return side


class AlexNet(Network):
    """Five convolutions, three of them with 3x3 max pooling at stride 2, and three dense layers.

    At 224x224x3 and 1000 classes it has 61,100,840 parameters and takes 0.71 billion
    multiplications an image. It has no dropout. Layers are named `conv1` to `conv5`, `fc1` to
    `fc3`.

    Args:
        input_shape: (height, width, channels) of an image, at least 63x63.
        classes: number of logits.
        widths: filters of each convolution, units of `fc1` and `fc2`.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each layer but the last is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: images smaller than 63x63, of which nothing would be left to classify.

    Examples:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: AlexNet(rngs=nnx.Rngs(0)))  # shapes only
        >>> model.conv1.kernel.shape, model.fc1.kernel.shape
        ((11, 11, 3, 64), (9216, 4096))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (224, 224, 3),
        classes: int = 1000,
        widths: tuple[int, ...] = (64, 192, 384, 256, 256, 4096, 4096),
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        rows, columns = _left(height), _left(width)
        if min(rows, columns) < 1:
            raise ValueError(
                f"alexnet needs images of 63x63 pixels or more, got {height}x{width}: its "
                "convolutions and poolings leave nothing of a smaller one"
            )
        *filters, units1, units2 = widths
        self.input_shape = input_shape
        self.remat = remat
        pairs = itertools.pairwise((channels, *filters))
        for i, ((before, after), shape) in enumerate(zip(pairs, _LAYERS, strict=True), start=1):
            size, strides, padding = shape
            layer = _common.conv(
                before, after, size, strides=strides, padding=padding, dtype=dtype, rngs=rngs
            )
            setattr(self, f"conv{i}", layer)
        self.fc1 = _common.dense(rows * columns * filters[-1], units1, dtype=dtype, rngs=rngs)
        self.fc2 = _common.dense(units1, units2, dtype=dtype, rngs=rngs)
        self.fc3 = _common.dense(units2, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of each convolution, units of `fc1` and `fc2`."""
        convolutions = (getattr(self, f"conv{i}") for i in range(1, 6))
        return tuple(_common.width(layer) for layer in (*convolutions, self.fc1, self.fc2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        for i in range(1, 6):
            block = _pooled if i in _POOLED else _common.activated
            x = _common.recomputed(block, self.remat)(getattr(self, f"conv{i}"), x)
        x = x.reshape(x.shape[0], -1)
        for layer in (self.fc1, self.fc2):
            x = _common.recomputed(_common.activated, self.remat)(layer, x)
        return self.fc3(x)


NETWORKS = {
    "alexnet": Entry(
        make=AlexNet,
        input_shape=(224, 224, 3),
        classes=1000,
        widths=(64, 192, 384, 256, 256, 4096, 4096),
        counts=(7,),
        meaning="filters of each convolution, units of fc1, units of fc2",
        source="Krizhevsky (2014), One weird trick for parallelizing convolutional neural "
        "networks, as in torchvision",
    )
}
