"""LeNet-300-100 (the paper's LeNet-3) and the convolutional LeNet-5 (Caffe's version)."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network


def _conv(layer: nnx.Conv, x: jax.Array) -> jax.Array:
    return _common.max_pool(jax.nn.relu(layer(x)))


class LeNet300(Network):
    """Dense ReLU layers on flattened images; LeNet-300-100 by default.

    At 28x28x1 and ten classes it has 266,610 parameters. Layers are named `fc1`, `fc2`, …; the
    last gives the logits.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: units of each hidden layer, one or more.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each hidden layer is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = LeNet300(rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (28, 28, 1),
        classes: int = 10,
        widths: tuple[int, ...] = (300, 100),
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        self.input_shape = input_shape
        self.remat = remat
        self.layers = len(widths) + 1
        sizes = (height * width * channels, *widths, classes)
        for i, (fan_in, units) in enumerate(itertools.pairwise(sizes), start=1):
            kind = dtype if i < self.layers else jnp.float32
            setattr(self, f"fc{i}", _common.dense(fan_in, units, dtype=kind, rngs=rngs))

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return tuple(_common.width(getattr(self, f"fc{i}")) for i in range(1, self.layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        x = x.reshape(x.shape[0], -1)
        hidden = _common.recomputed(_common.activated, self.remat)
        for i in range(1, self.layers):
            x = hidden(getattr(self, f"fc{i}"), x)
        return getattr(self, f"fc{self.layers}")(x)


class LeNet5(Network):
    """Two 5x5 convolutions without padding, each with ReLU and 2x2 max pooling, then two dense.

    The widths are those of Caffe's LeNet, as in the paper: 20 and 50 filters and 500 units, at
    28x28x1 and ten classes 431,080 parameters. Layers are named `conv1`, `conv2`, `fc1`, `fc2`.

    Args:
        input_shape: (height, width, channels) of an image, at least 16x16.
        classes: number of logits.
        widths: filters of `conv1`, filters of `conv2`, units of `fc1`.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each layer but the last is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: images smaller than 16x16, of which nothing would be left to classify.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = LeNet5(widths=(4, 6, 12), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 28, 28, 1))).shape, model.fc1.kernel.shape
        ((2, 10), (96, 12))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (28, 28, 1),
        classes: int = 10,
        widths: tuple[int, ...] = (20, 50, 500),
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        if min(height, width) < 16:
            raise ValueError(
                f"lenet5 needs images of 16x16 pixels or more, got {height}x{width}: its two 5x5 "
                "convolutions and poolings leave nothing of a smaller one; use lenet300 instead"
            )
        filters1, filters2, units = widths
        rows, columns = ((side - 4) // 2 for side in (height, width))
        rows, columns = ((side - 4) // 2 for side in (rows, columns))
        self.input_shape = input_shape
        self.remat = remat
        self.conv1 = _common.conv(channels, filters1, 5, padding="VALID", dtype=dtype, rngs=rngs)
        self.conv2 = _common.conv(filters1, filters2, 5, padding="VALID", dtype=dtype, rngs=rngs)
        self.fc1 = _common.dense(rows * columns * filters2, units, dtype=dtype, rngs=rngs)
        self.fc2 = _common.dense(units, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of `conv1`, filters of `conv2`, units of `fc1`."""
        return tuple(_common.width(layer) for layer in (self.conv1, self.conv2, self.fc1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        convolved = _common.recomputed(_conv, self.remat)
        x = convolved(self.conv2, convolved(self.conv1, x))
        x = _common.recomputed(_common.activated, self.remat)(self.fc1, x.reshape(x.shape[0], -1))
        return self.fc2(x)


_DIGITS = (28, 28, 1)
NETWORKS = {
    "lenet300": Entry(
        make=LeNet300,
        input_shape=_DIGITS,
        classes=10,
        widths=(300, 100),
        counts=None,
        meaning="units of each hidden layer",
        source="LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to "
        "document recognition",
    ),
    "lenet5": Entry(
        make=LeNet5,
        input_shape=_DIGITS,
        classes=10,
        widths=(20, 50, 500),
        counts=(3,),
        meaning="filters of conv1, filters of conv2, units of fc1",
        source="LeCun et al. (1998) with the widths of Caffe's example",
    ),
}
