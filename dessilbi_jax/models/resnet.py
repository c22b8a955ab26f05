"""A small residual network for 32x32 colour images (He et al., 2016, section 4.2)."""

import jax
from flax import nnx

from dessilbi_jax.models import _common


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut, summed, then ReLU.

    The shortcut is the identity where shapes agree, else a 1x1 convolution with batch
    normalisation (`shortcut`, `shortcut_bn`).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        strides: of the first convolution and the shortcut.
        rngs: random keys for the initialisation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = BasicBlock(16, 32, strides=2, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((1, 8, 8, 16))).shape
        (1, 4, 4, 32)
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, strides: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = _common.conv(
            channels_in, channels_out, 3, strides=strides, use_bias=False, rngs=rngs
        )
        self.bn1 = _common.batch_norm(channels_out, rngs=rngs)
        self.conv2 = _common.conv(channels_out, channels_out, 3, use_bias=False, rngs=rngs)
        self.bn2 = _common.batch_norm(channels_out, rngs=rngs)
        self.projects = strides != 1 or channels_in != channels_out
        if self.projects:
            self.shortcut = _common.conv(
                channels_in, channels_out, 1, strides=strides, use_bias=False, rngs=rngs
            )
            self.shortcut_bn = _common.batch_norm(channels_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, ceil(H/strides), ceil(W/strides), channels_out]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + (self.shortcut_bn(self.shortcut(x)) if self.projects else x))


class ResNet(nnx.Module):
    """A first convolution, stages of basic blocks that each halve the image, mean, dense layer.

    With the default widths and one block a stage this is ResNet-8: 78,042 parameters at 32x32x3
    and ten classes, 12.5 million multiplications an image; `blocks=3` gives ResNet-20. Layers
    are named `conv1`, `bn1`, `stage1_block1/conv1`, …, `fc`.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        widths: channels of each stage; the first convolution has those of the first stage.
        blocks: basic blocks in each stage.
        rngs: random keys for the initialisation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = ResNet(widths=(4, 8), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        classes: int = 10,
        widths: tuple[int, ...] = (16, 32, 64),
        blocks: int = 1,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = input_shape
        self.conv1 = _common.conv(input_shape[2], widths[0], 3, use_bias=False, rngs=rngs)
        self.bn1 = _common.batch_norm(widths[0], rngs=rngs)
        self.block_names = tuple(
            f"stage{s}_block{b}" for s in range(1, len(widths) + 1) for b in range(1, blocks + 1)
        )
        channels = widths[0]
        for i, name in enumerate(self.block_names):
            stage, first_of_stage = i // blocks, i % blocks == 0
            strides = 2 if stage > 0 and first_of_stage else 1
            setattr(self, name, BasicBlock(channels, widths[stage], strides=strides, rngs=rngs))
            channels = widths[stage]
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
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return self.fc(x.mean(axis=(1, 2)))
