"""Networks of the latency benchmark, in Flax NNX, by name."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dessilbi_jax.models import _common, resnet

# Simonyan & Zisserman (2015), configuration D: filters of each convolution, 0 = max pooling.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution of padded images as nine products: equal to `nnx.Conv`."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.add, parts)


class VGG(nnx.Module):
    """3x3 convolutions with batch normalisation and ReLU, 2x2 max pooling, one dense layer.

    Args:
        widths: filters of each convolution, 0 = max pooling.
        classes: number of logits.
        for_cpu: whether two layers are written as XLA's CPU backend runs them well. Pooling is
            then a maximum of slices, as in the library's own networks, and convolutions of images
            smaller than their kernel are matrix products: the compiler exchanges image and
            kernel of such a convolution, has no fast routine for the result, and runs it at less
            than a tenth of the others' rate.
        rngs: random keys for the initialisation.
    """

    def __init__(
        self, widths: tuple[int, ...] = VGG16, classes: int = 10, for_cpu: bool = False, *,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.for_cpu = for_cpu
        channels = 3
        layers: list[Any] = []
        for width in widths:
            if width:
                layers += [
                    nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs),
                    nnx.BatchNorm(width, rngs=rngs),
                ]
                channels = width
        self.layers = nnx.List(layers)
        self.pooled = tuple(
            i + 1 < len(widths) and not widths[i + 1] for i, width in enumerate(widths) if width
        )
        self.fc = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, pooled in enumerate(self.pooled):
            conv, norm = self.layers[2 * i], self.layers[2 * i + 1]
            small = self.for_cpu and min(x.shape[1:3]) < 3
            x = nnx.relu(norm(convolved(x, conv.kernel[...]) if small else conv(x)))
            if pooled:
                x = _common.max_pool(x) if self.for_cpu else nnx.max_pool(x, (2, 2), (2, 2))
        return self.fc(x.mean(axis=(1, 2)))


class Block(nnx.Module):
    """Causal attention and a dense layer with hidden units, each behind a layer normalisation."""

    def __init__(self, width: int, heads: int, size: int, units: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, heads * size, decode=False, keep_rngs=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, units, rngs=rngs)
        self.down = nnx.Linear(units, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder: the logits of every next word.

    Args:
        layers: number of blocks.
        width: of the residual stream.
        heads: of each block's attention.
        size: of each head.
        units: hidden units of each block's dense part.
        words: size of the vocabulary.
        length: number of positions.
        rngs: random keys for the initialisation.
    """

    def __init__(
        self, layers: int = 6, width: int = 256, heads: int = 8, size: int = 32,
        units: int = 1024, words: int = 256, length: int = 64, *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.embed = nnx.Embed(words, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, width)))
        self.blocks = nnx.List([Block(width, heads, size, units, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, words, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        mask = nnx.make_causal_mask(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


NAMES = ("vgg16", "vgg16-for-cpu", "resnet56", "transformer")


def build(name: str, seed: int) -> Any:
    """A network in evaluation mode, with statistics and scales as if it had been trained."""
    rngs = nnx.Rngs(seed)
    if name.startswith("vgg16"):
        model: Any = VGG(for_cpu=name == "vgg16-for-cpu", rngs=rngs)
    elif name == "resnet56":
        model = resnet.ResNet(blocks=9, rngs=rngs)
    else:
        model = Transformer(rngs=rngs)
    draw = np.random.default_rng(seed)
    for _, layer in nnx.iter_graph(model):
        if isinstance(layer, nnx.BatchNorm):  # fresh ones would be the identity
            ranges = ((layer.mean, -0.2, 0.2), (layer.var, 0.5, 1.5), (layer.bias, -0.2, 0.2))
            for leaf, low, high in ranges:
                leaf[...] = jnp.asarray(draw.uniform(low, high, layer.num_features), jnp.float32)
    model.eval()
    return model


def inputs(name: str, batch: int, seed: int) -> jax.Array:
    """Random images of 32x32 pixels, or texts of 64 words."""
    draw = np.random.default_rng(seed)
    if name == "transformer":
        return jnp.asarray(draw.integers(0, 256, (batch, 64)), jnp.int32)
    return jnp.asarray(draw.normal(0, 1, (batch, 32, 32, 3)), jnp.float32)
