"""Vision transformers (Dosovitskiy et al., 2021) in the sizes of DeiT (Touvron et al., 2021)."""

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common, _transformer
from dessilbi_jax.models._entry import Entry


class ViT(nnx.Module):
    """Patches of an image and a class token through pre-norm blocks; logits of the class token.

    Patches are 16x16 pixels for images of 128x128 or more, else 4x4, unless `patch` says
    otherwise. Layers are named `patch_embed`, `class_embed`, `pos_embed`, `block1/norm1`,
    `block1/attn/query` (`key`, `value`, `out`), `block1/norm2`, `block1/fc1`, `block1/fc2`, …,
    `norm`, `head`. Kernels and embeddings start from N(0, 0.02²), biases at zero; there is no
    dropout. The sizes published, at 224x224x3 and 1,000 classes, with multiply-adds an image:

    - tiny: 192 features, 12 blocks of 3 heads and 768 hidden units; 5,717,416 parameters, 1.3 G;
    - small: 384 features, 6 heads, 1,536 hidden units; 22,050,664 parameters, 4.6 G;
    - base (ViT-B/16): 768, 12 and 3,072; 86,567,656 parameters, 17.6 G.

    Args:
        input_shape: (height, width, channels) of an image; patches divide its sides.
        classes: number of logits.
        widths: (features, blocks, heads, hidden units of each block), or in full (features, heads
            and hidden units of the first block, of the second, …).
        head_size: numbers in each head's query, key and value; heads need not make up the
            features.
        patch: pixels along each side of a patch.
        dtype: of the computation; parameters, softmax, statistics and logits are float32.
        remat: whether blocks are computed again in the backward pass, to save memory.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: widths of neither form, or patches that do not divide the image.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = ViT((32, 32, 3), 10, (16, 2, 3, 24), head_size=4, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape, model.widths
        ((2, 10), (16, 3, 24, 3, 24))
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (224, 224, 3),
        classes: int = 1000,
        widths: tuple[int, ...] = (192, 12, 3, 768),
        *,
        head_size: int = 64,
        patch: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        features, blocks = _transformer.sizes(widths)
        height, width, channels = input_shape
        if patch is None:
            patch = 16 if min(height, width) >= 128 else 4
        if height % patch or width % patch:
            raise ValueError(
                f"a ViT with patches of {patch}x{patch} pixels needs images whose sides are "
                f"multiples of {patch}, got {height}x{width}: resize or crop them"
            )
        self.input_shape, self.remat = input_shape, remat
        self.patch_embed = nnx.Conv(
            channels,
            features,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            kernel_init=_transformer.normal(),
            dtype=dtype,
            rngs=rngs,
        )
        draw = _transformer.normal()
        patches = height // patch * (width // patch)
        self.class_embed = nnx.Param(draw(rngs.params(), (1, 1, features), jnp.float32))
        self.pos_embed = nnx.Param(draw(rngs.params(), (1, 1 + patches, features), jnp.float32))
        self.block_names = tuple(f"block{i}" for i in range(1, len(blocks) + 1))
        for name, (heads, hidden) in zip(self.block_names, blocks, strict=True):
            block = _transformer.Block(
                features, heads, head_size, hidden, causal=False, tanh_gelu=False, epsilon=1e-6,
                dtype=dtype, rngs=rngs,
            )  # fmt: skip
            setattr(self, name, block)
        self.norm = _transformer.layer_norm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.head = _transformer.dense(features, classes, dtype=jnp.float32, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features, then heads and hidden units of every block, read from the arrays."""
        return _transformer.widths_of([getattr(self, name) for name in self.block_names])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels].

        Raises:
            ValueError: images of another shape than the network was built for.
            TypeError: pixels that are not floating-point numbers.
        """
        _common.check_input(x, self.input_shape)
        patches = self.patch_embed(x)
        batch, rows, columns, features = patches.shape
        patches = patches.reshape(batch, rows * columns, features)
        first = jnp.broadcast_to(self.class_embed[...], (batch, 1, features))
        x = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        x = x + self.pos_embed[...].astype(patches.dtype)
        x = _transformer.run([getattr(self, name) for name in self.block_names], x, self.remat)
        return self.head(self.norm(x[:, 0]))


def _entry(features: int, heads: int) -> Entry:
    return Entry(
        make=ViT,
        input_shape=(224, 224, 3),
        classes=1000,
        widths=(features, 12, heads, 4 * features),
        counts=None,
        meaning=f"{_transformer.MEANING}; a head has 64 numbers",
        source="Dosovitskiy et al. (2021); Touvron et al. (2021), Table 1",
    )


NETWORKS = {
    "vit-tiny": _entry(192, 3),
    "vit-small": _entry(384, 6),
    "vit-base": _entry(768, 12),
}
