"""DenseNets with bottlenecks and compression (Huang et al., 2017)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network
from dessilbi_jax.models.resnet import block_names


class DenseLayer(nnx.Module):
    """Normalised and convolved by 1x1, then by 3x3; the result is joined to the input.

    Args:
        channels_in: channels of the input.
        inner: channels behind the 1x1 convolution.
        growth: channels that the layer adds.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> layer = nnx.eval_shape(lambda: DenseLayer(16, 48, 12, rngs=nnx.Rngs(0)))
        >>> layer.conv1.kernel.shape, layer.conv2.kernel.shape
        ((1, 1, 16, 48), (3, 3, 48, 12))
    """

    def __init__(
        self,
        channels_in: int,
        inner: int,
        growth: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(_common.batch_norm, dtype=dtype, rngs=rngs)
        self.bn1, self.conv1 = norm(channels_in), conv(channels_in, inner, 1)
        self.bn2, self.conv2 = norm(inner), conv(inner, growth, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, H, W, channels_in + growth]."""
        y = self.conv1(jax.nn.relu(self.bn1(x)))
        y = self.conv2(jax.nn.relu(self.bn2(y)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nnx.Module):
    """Normalisation, ReLU, a 1x1 convolution, and the mean of each 2x2 window at stride 2.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> nnx.eval_shape(lambda: Transition(16, 8, rngs=nnx.Rngs(0))).conv.kernel.shape
        (1, 1, 16, 8)
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.bn = _common.batch_norm(channels_in, dtype=dtype, rngs=rngs)
        self.conv = _common.conv(
            channels_in, channels_out, 1, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, H//2, W//2, channels_out]."""
        return nnx.avg_pool(self.conv(jax.nn.relu(self.bn(x))), (2, 2), (2, 2))


class DenseNet(Network):
    """A first convolution, dense blocks with transitions between, normalisation, mean, dense.

    DenseNet-BC-100-12 (three blocks of 16 layers, growth 12) has 769,162 parameters at 32x32x3
    and ten classes, DenseNet-121 (blocks of 6, 12, 24, 16 layers, growth 32) 7,978,856 at
    224x224x3 and 1000 classes. Layers are named `conv1`, `stage1_block1/conv1`, …,
    `transition1/conv`, …, `bn`, `fc`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: in short, the growth: channels that every layer adds; the first convolution has
            twice and each 1x1 convolution four times as many, and transitions halve. In full, the
            first convolution's channels; for each layer those of its 1x1 and its 3x3 convolution;
            behind each dense block but the last, those of the transition.
        layers: layers of each dense block.
        imagenet: whether the first convolution is 7x7 at stride 2, with normalisation (`bn1`) and
            3x3 max pooling at stride 2; else it is 3x3.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each layer and each transition is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: images of which the transitions leave nothing, or widths of a number that fits
            neither form.

    Examples:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: DenseNet(layers=(2, 1), rngs=nnx.Rngs(0)))
        >>> model.widths
        (24, 48, 12, 48, 12, 24, 48, 12)
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (12,),
        layers: tuple[int, ...] = (16, 16, 16),
        *,
        imagenet: bool = False,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, _ = input_shape
        smallest = 2 ** (len(layers) - 1) * (4 if imagenet else 1) - (3 if imagenet else 0)
        if min(height, width) < smallest:
            raise ValueError(
                f"this DenseNet needs images of {smallest}x{smallest} pixels or more, got "
                f"{height}x{width}: its transitions leave nothing of a smaller one"
            )
        self.input_shape = input_shape
        self.remat, self.imagenet = remat, imagenet
        channels, *rest = _in_full(widths, layers)
        sizes = iter(rest)
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        if imagenet:
            self.conv1 = conv(input_shape[2], channels, 7, strides=2, padding=3)
            self.bn1 = _common.batch_norm(channels, dtype=dtype, rngs=rngs)
        else:
            self.conv1 = conv(input_shape[2], channels, 3)
        self.part_names = _part_names(layers)
        for name in self.part_names:
            part: nnx.Module
            if name.startswith("transition"):
                part = Transition(channels, after := next(sizes), dtype=dtype, rngs=rngs)
                channels = after
            else:
                inner, growth = next(sizes), next(sizes)
                part = DenseLayer(channels, inner, growth, dtype=dtype, rngs=rngs)
                channels += growth
            setattr(self, name, part)
        self.bn = _common.batch_norm(channels, dtype=dtype, rngs=rngs)
        self.fc = _common.dense(channels, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in full."""
        out = [_common.width(self.conv1)]
        for name in self.part_names:
            part = getattr(self, name)
            convs = [part.conv] if isinstance(part, Transition) else [part.conv1, part.conv2]
            out += [_common.width(conv) for conv in convs]
        return tuple(out)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        After `model.train()` the batch's own statistics normalise it and update the running
        ones; after `model.eval()` the running ones do.

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        x = self.conv1(x)
        if self.imagenet:
            x = nnx.max_pool(jax.nn.relu(self.bn1(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for name in self.part_names:
            x = _common.recomputed(_common.call, self.remat)(getattr(self, name), x)
        return self.fc(_common.image_mean(jax.nn.relu(self.bn(x))))


def _part_names(layers: tuple[int, ...]) -> tuple[str, ...]:
    """Names of layers and transitions in their order."""
    names: list[str] = []
    for stage, count in enumerate(layers, start=1):
        names += [n for n in block_names(layers) if n.startswith(f"stage{stage}_")]
        names += [f"transition{stage}"] * (stage < len(layers) and count > 0)
    return tuple(names)


def _in_full(widths: tuple[int, ...], layers: tuple[int, ...]) -> tuple[int, ...]:
    """The widths in full, from either form."""
    full = len(layers) + 2 * sum(layers)
    if len(widths) not in (1, full):
        raise ValueError(
            f"widths must be 1 number (the growth) or {full} in full for blocks of {layers} "
            f"layers, got {len(widths)}"
        )
    if len(widths) > 1:
        return widths
    (growth,) = widths
    out = [2 * growth]
    channels = 2 * growth
    for name in _part_names(layers):
        if name.startswith("transition"):
            channels //= 2
            out.append(channels)
        else:
            channels += growth
            out += [4 * growth, growth]
    return tuple(out)


def _entry(growth: int, layers: tuple[int, ...], imagenet: bool) -> Entry:
    return Entry(
        make=functools.partial(DenseNet, layers=layers, imagenet=imagenet),
        input_shape=(224, 224, 3) if imagenet else (32, 32, 3),
        classes=1000 if imagenet else 10,
        widths=(growth,),
        counts=(1, len(layers) + 2 * sum(layers)),
        meaning="the growth; or the channels of conv1, of the two convolutions of each layer, and "
        "of the transition behind each block",
        source="Huang, Liu, van der Maaten & Weinberger (2017), Densely connected convolutional "
        "networks",
    )


NETWORKS = {
    "densenet-bc-100-12": _entry(12, (16, 16, 16), False),
    "densenet121": _entry(32, (6, 12, 24, 16), True),
}
