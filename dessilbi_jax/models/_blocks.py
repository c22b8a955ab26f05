"""The blocks of residual networks (He et al., 2016a)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dessilbi_jax.models import _common


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut, summed, then ReLU.

    The shortcut is the identity, or a 1x1 convolution with batch normalisation (`shortcut`,
    `shortcut_bn`).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        inner: channels between the two; None: as many as of the output.
        strides: of the first convolution and the shortcut.
        projects: whether the shortcut is a convolution; None: where shapes differ.
        padding: of the 3x3 convolutions.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = BasicBlock(16, 32, strides=2, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((1, 8, 8, 16))).shape
        (1, 4, 4, 32)
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        inner: tuple[int] | None = None,
        *,
        strides: int = 1,
        projects: bool | None = None,
        padding: _common.Padding = "SAME",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        (middle,) = (channels_out,) if inner is None else inner
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(_common.batch_norm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(channels_in, middle, 3, strides=strides, padding=padding)
        self.bn1 = norm(middle)
        self.conv2 = conv(middle, channels_out, 3, padding=padding)
        self.bn2 = norm(channels_out)
        differs = strides != 1 or channels_in != channels_out
        self.projects = differs if projects is None else projects
        if self.projects:
            self.shortcut = conv(channels_in, channels_out, 1, strides=strides)
            self.shortcut_bn = norm(channels_out)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels between the convolutions."""
        return (_common.width(self.conv1),)

    @property
    def channels_out(self) -> int:
        """Channels of the output."""
        return _common.width(self.conv2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, ceil(H/strides), ceil(W/strides), channels_out]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + (self.shortcut_bn(self.shortcut(x)) if self.projects else x))


class Bottleneck(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with batch normalisation beside a shortcut, then ReLU.

    The stride is that of the 3x3 convolution, as in torchvision ("ResNet v1.5"); the publication
    has it in the first one, which skips three quarters of the input.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        inner: channels behind the first and the second convolution; None: a quarter of the
            output's.
        strides: of the 3x3 convolution and the shortcut.
        projects: whether the shortcut is a convolution; None: where shapes differ.
        padding: of the 3x3 convolution.
        dtype: what it computes in; parameters are float32.
        rngs: random keys for the initialisation.

    Examples:
        >>> from flax import nnx
        >>> block = nnx.eval_shape(lambda: Bottleneck(16, 32, rngs=nnx.Rngs(0)))
        >>> block.conv2.kernel.shape, block.conv3.kernel.shape, block.projects
        ((3, 3, 8, 8), (1, 1, 8, 32), True)
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        inner: tuple[int, int] | None = None,
        *,
        strides: int = 1,
        projects: bool | None = None,
        padding: _common.Padding = "SAME",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        first, second = (channels_out // 4,) * 2 if inner is None else inner
        conv = functools.partial(_common.conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(_common.batch_norm, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = conv(channels_in, first, 1), norm(first)
        self.conv2 = conv(first, second, 3, strides=strides, padding=padding)
        self.bn2 = norm(second)
        self.conv3, self.bn3 = conv(second, channels_out, 1), norm(channels_out)
        differs = strides != 1 or channels_in != channels_out
        self.projects = differs if projects is None else projects
        if self.projects:
            self.shortcut = conv(channels_in, channels_out, 1, strides=strides)
            self.shortcut_bn = norm(channels_out)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels behind the first and the second convolution."""
        return _common.width(self.conv1), _common.width(self.conv2)

    @property
    def channels_out(self) -> int:
        """Channels of the output."""
        return _common.width(self.conv3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels_in] to [N, ceil(H/strides), ceil(W/strides), channels_out]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(y + (self.shortcut_bn(self.shortcut(x)) if self.projects else x))
