"""VGG (Simonyan & Zisserman, 2015) with batch normalisation, small and in full."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network

Layers = tuple[tuple[nnx.Conv, nnx.BatchNorm], ...]


def _convolved(layers: Layers, x: jax.Array) -> jax.Array:
    for conv, norm in layers:
        x = jax.nn.relu(norm(conv(x)))
    return x


def _pooled(layers: Layers, x: jax.Array) -> jax.Array:
    return _common.max_pool(_convolved(layers, x))


class VGG(Network):
    """3x3 convolutions with batch normalisation, max pooling between, and dense layers.

    By default every second convolution is followed by 2x2 max pooling, as long as an image of
    more than one pixel is left; the mean over what remains of the image goes to the classifier.
    With the default widths: 288,746 parameters at 32x32x3 and ten classes, and 39 million
    multiplications an image. Layers are named `conv1`, `bn1`, …, `fc1`, …, `fc`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: filters of each convolution; where `pooled` is given, behind them the units of
            each hidden dense layer, `fc1`, `fc2`, ….
        pooled: the convolutions behind which the image is pooled, ascending, the last of them
            the last convolution; None: every second.
        flatten: whether the dense layers are given all of what remains of the image, as in the
            publication, instead of the mean over it.
        use_bias: whether the convolutions have a bias, as in torchvision. It has no effect on
            training, because the normalisation cancels it.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether what lies between two poolings, and each hidden dense layer, is computed
            again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: images too small to be flattened behind the last pooling.

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
        input_shape: tuple[int, ...] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (32, 32, 64, 64, 128, 128),
        *,
        pooled: tuple[int, ...] | None = None,
        flatten: bool = False,
        use_bias: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = input_shape
        self.input_shape = input_shape
        self.flatten, self.remat = flatten, remat
        self.convolutions = len(widths) if pooled is None else pooled[-1]
        self.pooled = tuple(range(2, len(widths) + 1, 2)) if pooled is None else pooled
        filters, units = widths[: self.convolutions], widths[self.convolutions :]
        if flatten and min(height, width) < 2 ** len(self.pooled):
            raise ValueError(
                f"this VGG needs images of {2 ** len(self.pooled)}x{2 ** len(self.pooled)} pixels "
                f"or more, got {height}x{width}: its poolings leave nothing of a smaller one; use "
                "one with the head for CIFAR"
            )
        for i, (before, after) in enumerate(itertools.pairwise((channels, *filters)), start=1):
            layer = _common.conv(before, after, 3, use_bias=use_bias, dtype=dtype, rngs=rngs)
            setattr(self, f"conv{i}", layer)
            setattr(self, f"bn{i}", _common.batch_norm(after, dtype=dtype, rngs=rngs))
        places = (height >> len(self.pooled)) * (width >> len(self.pooled)) if flatten else 1
        sizes = (places * filters[-1], *units)
        self.hidden = len(units)
        for i, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
            setattr(self, f"fc{i}", _common.dense(before, after, dtype=dtype, rngs=rngs))
        self.fc = _common.dense(sizes[-1], classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of each convolution, then units of each hidden dense layer."""
        names = [f"conv{i}" for i in range(1, self.convolutions + 1)]
        names += [f"fc{i}" for i in range(1, self.hidden + 1)]
        return tuple(_common.width(getattr(self, name)) for name in names)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        After `model.train()` the batch's own statistics normalise it and update the running
        ones; after `model.eval()` the running ones do.

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        ends = (0, *self.pooled)
        if ends[-1] != self.convolutions:
            ends = (*ends, self.convolutions)
        for first, last in itertools.pairwise(ends):
            layers = tuple(
                (getattr(self, f"conv{i}"), getattr(self, f"bn{i}"))
                for i in range(first + 1, last + 1)
            )
            smaller = last in self.pooled and (self.flatten or min(x.shape[1:3]) > 1)
            x = _common.recomputed(_pooled if smaller else _convolved, self.remat)(layers, x)
        x = x.reshape(x.shape[0], -1) if self.flatten else _common.image_mean(x)
        for i in range(1, self.hidden + 1):
            x = _common.recomputed(_common.activated, self.remat)(getattr(self, f"fc{i}"), x)
        return self.fc(x)


_SOURCE = "Simonyan & Zisserman (2015), Very deep convolutional networks for large-scale image "
_SOURCE += "recognition"
_SIXTEEN = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_NINETEEN = (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)
_POOLED = {13: (2, 4, 7, 10, 13), 16: (2, 4, 8, 12, 16)}


def _cifar(filters: tuple[int, ...]) -> Entry:
    """With one dense layer behind the mean; two widths more give it two hidden layers."""
    n = len(filters)
    return Entry(
        make=functools.partial(VGG, pooled=_POOLED[n]),
        input_shape=(32, 32, 3),
        classes=10,
        widths=filters,
        counts=(n, n + 2),
        meaning=f"filters of each of the {n} convolutions, and units of two hidden dense layers "
        "where it is to have them",
        source=f"{_SOURCE}, with the heads in use for CIFAR-10",
    )


def _imagenet(filters: tuple[int, ...]) -> Entry:
    """With the publication's head and torchvision's biases."""
    n = len(filters)
    return Entry(
        make=functools.partial(VGG, pooled=_POOLED[n], flatten=True, use_bias=True),
        input_shape=(224, 224, 3),
        classes=1000,
        widths=(*filters, 4096, 4096),
        counts=(n + 2,),
        meaning=f"filters of each of the {n} convolutions, units of fc1, units of fc2",
        source=f"{_SOURCE}, with batch normalisation as in torchvision",
    )


NETWORKS = {
    "vgg-small": Entry(
        make=VGG,
        input_shape=(32, 32, 3),
        classes=10,
        widths=(32, 32, 64, 64, 128, 128),
        counts=None,
        meaning="filters of each convolution",
        source=f"after {_SOURCE}",
    ),
    "vgg16": _cifar(_SIXTEEN),
    "vgg19": _cifar(_NINETEEN),
    "vgg16-imagenet": _imagenet(_SIXTEEN),
    "vgg19-imagenet": _imagenet(_NINETEEN),
}
