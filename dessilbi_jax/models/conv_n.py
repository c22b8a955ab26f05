"""Conv-2, Conv-4 and Conv-6 (Frankle & Carbin, 2019): VGG cut down for 32x32 colour images."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network


def _pair(layers: tuple[nnx.Conv, nnx.Conv], x: jax.Array) -> jax.Array:
    """Two convolutions with ReLU, then 2x2 max pooling."""
    for layer in layers:
        x = jax.nn.relu(layer(x))
    return _common.max_pool(x)


class ConvN(Network):
    """Pairs of 3x3 convolutions, each followed by 2x2 max pooling, then three dense layers.

    At 32x32x3 and ten classes Conv-2 has 4,301,642 parameters, Conv-4 2,425,930 and Conv-6
    2,262,602. Kernels are drawn after Glorot & Bengio (2010), as in the publication. Layers are
    named `conv1`, `conv2`, …, `fc1`, `fc2`, `fc3`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: filters of each convolution, an even number of them, then units of `fc1` and
            `fc2`.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each pair, and each hidden layer, is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: images of which the poolings leave nothing.

    Examples:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: ConvN(widths=(4, 5, 7, 6), rngs=nnx.Rngs(0)))
        >>> model.conv2.kernel.shape, model.fc1.kernel.shape
        ((3, 3, 4, 5), (1280, 7))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (64, 64, 256, 256),
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        *filters, units1, units2 = widths
        self.pairs = len(filters) // 2
        if min(height, width) < 2**self.pairs:
            raise ValueError(
                f"conv{len(filters)} needs images of {2**self.pairs}x{2**self.pairs} pixels or "
                f"more, got {height}x{width}: its poolings leave nothing of a smaller one"
            )
        self.input_shape = input_shape
        self.remat = remat
        draw = _common.glorot_normal
        for i, (before, after) in enumerate(itertools.pairwise((channels, *filters)), start=1):
            layer = _common.conv(before, after, 3, dtype=dtype, kernel_init=draw, rngs=rngs)
            setattr(self, f"conv{i}", layer)
        flat = (height >> self.pairs) * (width >> self.pairs) * filters[-1]
        self.fc1 = _common.dense(flat, units1, dtype=dtype, kernel_init=draw, rngs=rngs)
        self.fc2 = _common.dense(units1, units2, dtype=dtype, kernel_init=draw, rngs=rngs)
        self.fc3 = _common.dense(units2, classes, kernel_init=draw, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of each convolution, then units of `fc1` and `fc2`."""
        convolutions = (getattr(self, f"conv{i}") for i in range(1, 2 * self.pairs + 1))
        return tuple(_common.width(layer) for layer in (*convolutions, self.fc1, self.fc2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        pair = _common.recomputed(_pair, self.remat)
        for i in range(1, 2 * self.pairs, 2):
            x = pair((getattr(self, f"conv{i}"), getattr(self, f"conv{i + 1}")), x)
        hidden = _common.recomputed(_common.activated, self.remat)
        x = hidden(self.fc2, hidden(self.fc1, x.reshape(x.shape[0], -1)))
        return self.fc3(x)


def _entry(filters: tuple[int, ...]) -> Entry:
    return Entry(
        make=ConvN,
        input_shape=(32, 32, 3),
        classes=10,
        widths=(*filters, 256, 256),
        counts=(len(filters) + 2,),
        meaning="filters of each convolution, units of fc1, units of fc2",
        source="Frankle & Carbin (2019), The lottery ticket hypothesis, Figure 2",
    )


NETWORKS = {
    "conv2": _entry((64, 64)),
    "conv4": _entry((64, 64, 128, 128)),
    "conv6": _entry((64, 64, 128, 128, 256, 256)),
}
