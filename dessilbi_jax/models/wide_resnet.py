"""Wide residual networks (Zagoruyko & Komodakis, 2016), normalised before each convolution."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models import _common
from dessilbi_jax.models._entry import Entry, Network
from dessilbi_jax.models.resnet import block_names


class PreActivationBlock(nnx.Module):
    """Twice batch normalisation, ReLU and a 3x3 convolution, beside a shortcut (He et al., 2016b).

    The shortcut is the identity, or a 1x1 convolution of the normalised input.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        inner: channels between the convolutions.
        strides: of the first convolution and the shortcut.
        projects: whether the shortcut is a convolution.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> block = nnx.eval_shape(lambda: PreActivationBlock(16, 32, 24, rngs=nnx.Rngs(0)))
        >>> block.conv1.kernel.shape, block.conv2.kernel.shape
        ((3, 3, 16, 24), (3, 3, 24, 32))
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        inner: int,
        *,
        strides: int = 1,
        projects: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(_common.batch_norm, dtype=dtype, rngs=rngs)
        self.bn1, self.conv1 = norm(channels_in), conv(channels_in, inner, 3, strides=strides)
        self.bn2, self.conv2 = norm(inner), conv(inner, channels_out, 3)
        self.projects = projects
        if projects:
            self.shortcut = conv(channels_in, channels_out, 1, strides=strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, ceil(H/strides), ceil(W/strides), channels_out]."""
        y = jax.nn.relu(self.bn1(x))
        x = self.shortcut(y) if self.projects else x
        y = jax.nn.relu(self.bn2(self.conv1(y)))
        return x + self.conv2(y)


class WideResNet(Network):
    """A first convolution, three stages of wide blocks, normalisation, mean, dense layer.

    WRN-28-10 (four blocks a stage, widths 160, 320, 640) has 36,479,194 parameters at 32x32x3 and
    ten classes. It has no dropout. Layers are named `conv1`, `stage1_block1/bn1`, …, `bn`, `fc`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: in short, channels of the first convolution and of each stage; in full, those of
            the first convolution, and for each stage its channels and then those inside each of
            its blocks.
        blocks: blocks in each stage.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each block is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: widths of a number that fits neither form.

    Examples:
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: WideResNet(blocks=(1, 1, 1), rngs=nnx.Rngs(0)))
        >>> model.widths
        (16, 160, 160, 320, 320, 640, 640)
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (16, 160, 320, 640),
        blocks: tuple[int, ...] = (4, 4, 4),
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = input_shape
        self.remat, self.blocks = remat, blocks
        self.block_names = block_names(blocks)
        channels, *rest = _in_full(widths, blocks)
        sizes = iter(rest)
        self.conv1 = _common.conv(
            input_shape[2], channels, 3, use_bias=False, dtype=dtype, rngs=rngs
        )
        names = iter(self.block_names)
        for stage, count in enumerate(blocks):
            wide = next(sizes)
            for b in range(count):
                made = PreActivationBlock(
                    channels,
                    wide,
                    next(sizes),
                    strides=2 if stage > 0 and b == 0 else 1,
                    projects=b == 0,
                    dtype=dtype,
                    rngs=rngs,
                )
                setattr(self, next(names), made)
                channels = wide
        self.bn = _common.batch_norm(channels, dtype=dtype, rngs=rngs)
        self.fc = _common.dense(channels, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in full."""
        out, names = [_common.width(self.conv1)], iter(self.block_names)
        for count in self.blocks:
            blocks = [getattr(self, next(names)) for _ in range(count)]
            out += [_common.width(blocks[0].conv2), *(_common.width(b.conv1) for b in blocks)]
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
        for name in self.block_names:
            x = _common.recomputed(_common.call, self.remat)(getattr(self, name), x)
        return self.fc(_common.image_mean(jax.nn.relu(self.bn(x))))


def _in_full(widths: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    """The widths in full, from either form."""
    if len(widths) == 1 + len(blocks):
        pairs = zip(widths[1:], blocks, strict=True)
        return (widths[0], *(w for wide, n in pairs for w in (wide,) * (1 + n)))
    full = 1 + sum(1 + n for n in blocks)
    if len(widths) != full:
        raise ValueError(
            f"widths must be {1 + len(blocks)} numbers in short or {full} in full for "
            f"{len(blocks)} stages of {blocks} blocks, got {len(widths)}"
        )
    return widths


NETWORKS = {
    "wide-resnet-28-10": Entry(
        make=functools.partial(WideResNet, blocks=(4, 4, 4)),
        input_shape=(32, 32, 3),
        classes=10,
        widths=(16, 160, 320, 640),
        counts=(4, 16),
        meaning="channels of conv1 and of each stage; or those of conv1, and for each stage its "
        "channels and those inside each block",
        source="Zagoruyko & Komodakis (2016), Wide residual networks",
    )
}
