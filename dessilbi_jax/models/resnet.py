"""Residual networks (He et al., 2016a): for 32x32 colour images, and for ImageNet."""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models import _common
from dessilbi_jax.models._blocks import BasicBlock, Bottleneck
from dessilbi_jax.models._entry import Entry, Network

Block = type[BasicBlock] | type[Bottleneck]


def block_names(blocks: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the blocks of stages with so many each.

    Examples:
        >>> block_names((1, 2))
        ('stage1_block1', 'stage2_block1', 'stage2_block2')
    """
    counts = enumerate(blocks, start=1)
    return tuple(f"stage{s}_block{b}" for s, count in counts for b in range(1, count + 1))


class ResNet(Network):
    """A first convolution, stages of blocks that each halve the image, mean, dense layer.

    With the default widths and one block a stage this is ResNet-8: 78,042 parameters at 32x32x3
    and ten classes, 12.5 million multiplications an image; `blocks=3` gives ResNet-20. Layers
    are named `conv1`, `bn1`, `stage1_block1/conv1`, …, `fc`. Where channels or resolution change,
    at the first block of a stage, the shortcut is a 1x1 convolution with batch normalisation:
    option B of the publication. (Its own networks for CIFAR-10 have option A, zero padding, whose
    channels cannot be removed one by one.) Elsewhere it is the identity.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: in short, channels of each stage; those of the first are the first convolution's
            too, and with bottlenecks the output has four times as many. In full, for each stage
            its channels and then those inside each of its blocks (one number for a basic block,
            two for a bottleneck); with bottlenecks, the first convolution's before all.
        blocks: blocks in each stage; one number for all stages takes as many stages as there are
            widths, up to four in short.
        block: `BasicBlock` or `Bottleneck`.
        imagenet: whether the first convolution is 7x7 at stride 2 and followed by 3x3 max pooling
            at stride 2, and 3x3 convolutions are padded by one zero on every side, as in
            torchvision; else it is 3x3, and they are padded as "SAME" does.
        dtype: what all but the logits is computed in; parameters are float32.
        remat: whether each block is computed again in the backward pass.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: widths of a number that fits neither form.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = ResNet(widths=(4, 8), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
        >>> full = nnx.eval_shape(lambda: ResNet(widths=(4, 3, 8, 5, 9, 6), rngs=nnx.Rngs(0)))
        >>> full.stage2_block1.conv1.kernel.shape, full.stage2_block1.conv2.kernel.shape
        ((3, 3, 4, 5), (3, 3, 5, 8))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (16, 32, 64),
        blocks: int | tuple[int, ...] = 1,
        *,
        block: Block = BasicBlock,
        imagenet: bool = False,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = input_shape
        self.remat, self.imagenet = remat, imagenet
        stem, stages = _sizes(widths, blocks, block)
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        if imagenet:
            self.conv1 = conv(input_shape[2], stem, 7, strides=2, padding=3)
        else:
            self.conv1 = conv(input_shape[2], stem, 3)
        self.bn1 = _common.batch_norm(stem, dtype=dtype, rngs=rngs)
        self.blocks = tuple(len(inner) for _, inner in stages)
        self.block_names = block_names(self.blocks)
        names, channels = iter(self.block_names), stem
        for stage, (wide, inner) in enumerate(stages):
            for b, inside in enumerate(inner):
                strides = 2 if stage > 0 and b == 0 else 1
                made = block(
                    channels,
                    wide,
                    inside,  # type: ignore[arg-type]
                    strides=strides,
                    # not by comparing widths: a slimmed network may have equal ones by chance
                    projects=b == 0 and (stage > 0 or block is Bottleneck),
                    padding=1 if imagenet else "SAME",
                    dtype=dtype,
                    rngs=rngs,
                )
                setattr(self, next(names), made)
                channels = wide
        self.fc = _common.dense(channels, classes, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in full.

        Raises:
            ValueError: fewer than five, which would be read as the channels of each stage: a
                network of one or two stages with one basic block each.
        """
        names = iter(self.block_names)
        out = []
        for count in self.blocks:
            blocks = [getattr(self, next(names)) for _ in range(count)]
            out += [blocks[0].channels_out, *itertools.chain(*(b.widths for b in blocks))]
        if isinstance(getattr(self, self.block_names[0]), Bottleneck):
            out = [_common.width(self.conv1), *out]
        elif len(out) <= _SHORT:
            raise ValueError(
                f"the widths of this network cannot be told in full: {len(out)} numbers are read "
                f"as the channels of {len(out)} stages; give it three stages or more"
            )
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
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for name in self.block_names:
            x = _common.recomputed(_common.call, self.remat)(getattr(self, name), x)
        return self.fc(_common.image_mean(x))


_SHORT = 4  # stages at most where `widths` alone says how many there are
Stage = tuple[int, tuple[tuple[int, ...], ...]]  # channels, and those inside each block


def _sizes(
    widths: tuple[int, ...], blocks: int | tuple[int, ...], block: Block
) -> tuple[int, list[Stage]]:
    """Channels of the first convolution and of each stage, from widths in short or in full."""
    inside, growth = (2, 4) if block is Bottleneck else (1, 1)
    if isinstance(blocks, int):
        short = len(widths) <= _SHORT
        blocks = (blocks,) * (len(widths) if short else len(widths) // (1 + inside * blocks))
    else:
        short = len(widths) == len(blocks)
    if short:
        wide = zip(widths, blocks, strict=True)
        return widths[0], [(growth * w, ((w,) * inside,) * n) for w, n in wide]
    apart = int(block is Bottleneck)
    full = apart + sum(1 + inside * n for n in blocks)
    if len(widths) != full:
        raise ValueError(
            f"widths must be the channels of each stage or, for {len(blocks)} stages in full, "
            f"{full} numbers, got {len(widths)}"
        )
    rest = iter(widths[apart:])
    stages = [(next(rest), tuple(_taken(rest, inside) for _ in range(n))) for n in blocks]
    return widths[0], stages


def _taken(numbers: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(numbers, count))


_SOURCE = "He, Zhang, Ren & Sun (2016), Deep residual learning for image recognition"
_FULL = "channels of each stage; or for each stage its channels and those inside each block"


def _cifar(depth: int) -> Entry:
    blocks = (depth - 2) // 6
    return Entry(
        make=functools.partial(ResNet, blocks=(blocks,) * 3),
        input_shape=(32, 32, 3),
        classes=10,
        widths=(16, 32, 64),
        counts=(3, 3 * (1 + blocks)),
        meaning=_FULL,
        source=f"{_SOURCE}, section 4.2, with shortcuts of option B",
    )


def _imagenet(block: Block, blocks: tuple[int, ...]) -> Entry:
    wide = block is Bottleneck
    full = wide + sum(1 + (1 + wide) * n for n in blocks)
    return Entry(
        make=functools.partial(ResNet, blocks=blocks, block=block, imagenet=True),
        input_shape=(224, 224, 3),
        classes=1000,
        widths=(64, 128, 256, 512),
        counts=(4, full),
        meaning="inner channels of each stage; or those of conv1, and for each stage its channels "
        "and the two numbers inside each block"
        if wide
        else _FULL,
        source=f"{_SOURCE}, section 4.1",
    )


NETWORKS = {
    "resnet-small": Entry(
        make=ResNet,
        input_shape=(32, 32, 3),
        classes=10,
        widths=(16, 32, 64),
        counts=(1, 2, 3, 4, 6, 8),
        meaning="channels of each of up to four stages; or for each of three or four stages its "
        "channels and those inside its block",
        source=f"after {_SOURCE}, section 4.2",
    ),
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": _imagenet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _imagenet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _imagenet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _imagenet(Bottleneck, (3, 4, 23, 3)),
}
