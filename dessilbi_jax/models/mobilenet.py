"""MobileNetV2 (Sandler et al., 2018)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network
from dessilbi_jax.models.resnet import block_names

# Table 2 of the publication: blocks of each stage, and strides of its first one.
_STAGES = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))
_EXPANSION = 6  # of all blocks but the first, which has none


class InvertedResidual(nnx.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 one, and a 1x1 one that narrows.

    All have batch normalisation, the first two ReLU6 behind it.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        inner: channels between; None: those of the input, without the first convolution.
        strides: of the depthwise convolution.
        adds: whether the input is added to the output.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> block = nnx.eval_shape(lambda: InvertedResidual(16, 24, 96, rngs=nnx.Rngs(0)))
        >>> block.depthwise.kernel.shape, block.project.kernel.shape
        ((3, 3, 1, 96), (1, 1, 96, 24))
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        inner: int | None,
        *,
        strides: int = 1,
        adds: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(_common.batch_norm, dtype=dtype, rngs=rngs)
        self.expands, self.adds = inner is not None, adds
        middle = channels_in
        if inner is not None:
            middle = inner
            self.expand, self.expand_bn = conv(channels_in, middle, 1), norm(middle)
        self.depthwise = conv(middle, middle, 3, strides=strides, padding=1, groups=middle)
        self.depthwise_bn = norm(middle)
        self.project, self.project_bn = conv(middle, channels_out, 1), norm(channels_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, ceil(H/strides), ceil(W/strides), channels_out]."""
        y = jax.nn.relu6(self.expand_bn(self.expand(x))) if self.expands else x
        y = jax.nn.relu6(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        return x + y if self.adds else y


class MobileNetV2(Network):
    """A first convolution, 17 inverted residuals in seven stages, a last one, mean, dense layer.

    At 224x224x3 and 1000 classes it has 3,504,872 parameters and takes 0.30 billion
    multiplications an image. It has no dropout. Layers are named `conv1`, `bn1`,
    `stage1_block1/depthwise`, `stage1_block1/project`, `stage2_block1/expand`, …, `conv2`, `bn2`,
    `fc`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: in short, channels of `conv1`, of each stage and of `conv2`; a block widens its
            input six times, those of the first stage do not. In full, those of `conv1`, for each
            stage its channels and, but for the first, those inside each of its blocks, and those
            of `conv2`.
        stages: of each stage, the number of its blocks and the strides of its first one; the
            first stage has one block.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each block is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: widths of a number that fits neither form.

    Examples:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: MobileNetV2(rngs=nnx.Rngs(0)))  # shapes only
        >>> model.widths[:6]
        (32, 16, 24, 96, 144, 32)
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (224, 224, 3),
        classes: int = 1000,
        widths: tuple[int, ...] = (32, 16, 24, 32, 64, 96, 160, 320, 1280),
        stages: tuple[tuple[int, int], ...] = _STAGES,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = input_shape
        self.remat = remat
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        channels, *rest, last = _in_full(widths, stages)
        self.blocks = tuple(count for count, _ in stages)
        self.block_names = block_names(self.blocks)
        sizes, names = iter(rest), iter(self.block_names)
        self.conv1 = conv(input_shape[2], channels, 3, strides=2, padding=1)
        self.bn1 = _common.batch_norm(channels, dtype=dtype, rngs=rngs)
        for stage, (count, strides) in enumerate(stages):
            wide = next(sizes)
            for b in range(count):
                made = InvertedResidual(
                    channels,
                    wide,
                    next(sizes) if stage > 0 else None,
                    strides=strides if b == 0 else 1,
                    adds=b > 0,
                    dtype=dtype,
                    rngs=rngs,
                )
                setattr(self, next(names), made)
                channels = wide
        self.conv2 = conv(channels, last, 1)
        self.bn2 = _common.batch_norm(last, dtype=dtype, rngs=rngs)
        self.fc = _common.dense(last, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in full."""
        out, names = [_common.width(self.conv1)], iter(self.block_names)
        for count in self.blocks:
            blocks = [getattr(self, next(names)) for _ in range(count)]
            out.append(_common.width(blocks[0].project))
            out += [_common.width(block.expand) for block in blocks if block.expands]
        return (*out, _common.width(self.conv2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        After `model.train()` the batch's own statistics normalise it and update the running
        ones; after `model.eval()` the running ones do.

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        x = jax.nn.relu6(self.bn1(self.conv1(x)))
        for name in self.block_names:
            x = _common.recomputed(_common.call, self.remat)(getattr(self, name), x)
        x = jax.nn.relu6(self.bn2(self.conv2(x)))
        return self.fc(_common.image_mean(x))


def _in_full(widths: tuple[int, ...], stages: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """The widths in full, from either form."""
    short = len(stages) + 2
    full = short + sum(count for count, _ in stages[1:])
    if len(widths) not in (short, full):
        raise ValueError(
            f"widths must be {short} numbers in short or {full} in full, got {len(widths)}"
        )
    if len(widths) == full:
        return widths
    out = [widths[0]]
    channels = widths[0]
    for stage, (wide, (count, _)) in enumerate(zip(widths[1:-1], stages, strict=True)):
        out.append(wide)
        for _ in range(count):
            out += [_EXPANSION * channels] * (stage > 0)
            channels = wide
    return (*out, widths[-1])


NETWORKS = {
    "mobilenet-v2": Entry(
        make=MobileNetV2,
        input_shape=(224, 224, 3),
        classes=1000,
        widths=(32, 16, 24, 32, 64, 96, 160, 320, 1280),
        counts=(9, 25),
        meaning="channels of conv1, of each stage and of conv2; or those of conv1, for each stage "
        "its channels and those inside each block but the first, and those of conv2",
        source="Sandler, Howard, Zhu, Zhmoginov & Chen (2018), MobileNetV2: inverted residuals and "
        "linear bottlenecks",
    )
}
