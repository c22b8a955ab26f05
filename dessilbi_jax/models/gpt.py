"""Decoders in the manner of GPT-2 (Radford et al., 2019)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _transformer
from dessilbi_jax.models._entry import Entry


class GPT(nnx.Module):
    """A causal transformer: logits of every next token, from token and position embeddings.

    The last layer is the token embedding itself, transposed (tied weights). Layers are named
    `token_embed`, `pos_embed`, `block1/norm1`, `block1/attn/query` (`key`, `value`, `out`),
    `block1/norm2`, `block1/fc1`, `block1/fc2`, …, `norm`. Kernels and embeddings start from
    N(0, 0.02²), those that write to the residual stream, `out` and `fc2`, with a deviation divided
    by √(2 · blocks), one for each of its additions; biases start at zero. There is no dropout.

    GPT-2 small has 768 features, 12 blocks of 12 heads and 3,072 hidden units, a context of 1,024
    and 50,257 tokens: 124,439,808 parameters. A forward pass takes, for each of T tokens,
    2 · (12 · blocks · features² + vocabulary · features) + 4 · blocks · T · features operations,
    the second term for attention over all T positions.

    Args:
        input_shape: (context,), the most tokens of a text.
        classes: size of the vocabulary.
        widths: (features, blocks, heads, hidden units of each block), or in full (features, heads
            and hidden units of the first block, of the second, …).
        head_size: numbers in each head's query, key and value; heads need not make up the
            features.
        dtype: of the computation; parameters, softmax, statistics and logits are float32.
        remat: whether blocks are computed again in the backward pass, to save memory.
        rngs: random keys for the initialisation.

    Raises:
        ValueError: widths of neither form, or an input shape of more than one number.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = GPT((16,), 50, (12, 2, 3, 24), head_size=4, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 10), jnp.int32)).shape, model.widths
        ((2, 10, 50), (12, 3, 24, 3, 24))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...] = (1024,),
        classes: int = 50257,
        widths: tuple[int, ...] = (768, 12, 12, 3072),
        *,
        head_size: int = 64,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        features, blocks = _transformer.sizes(widths)
        if len(input_shape) != 1:
            raise ValueError(
                f"input_shape of a GPT must be (context,), the most tokens of a text, "
                f"got {tuple(input_shape)}"
            )
        self.input_shape, self.remat, self.dtype = tuple(input_shape), remat, dtype
        draw = _transformer.normal()
        self.token_embed = nnx.Embed(classes, features, embedding_init=draw, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(draw(rngs.params(), (*input_shape, features), jnp.float32))
        self.block_names = tuple(f"block{i}" for i in range(1, len(blocks) + 1))
        out_std = 0.02 / math.sqrt(2 * len(blocks))
        for name, (heads, hidden) in zip(self.block_names, blocks, strict=True):
            block = _transformer.Block(
                features, heads, head_size, hidden, causal=True, tanh_gelu=True, epsilon=1e-5,
                out_std=out_std, dtype=dtype, rngs=rngs,
            )  # fmt: skip
            setattr(self, name, block)
        self.norm = _transformer.layer_norm(features, epsilon=1e-5, dtype=dtype, rngs=rngs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features, then heads and hidden units of every block, read from the arrays."""
        return _transformer.widths_of([getattr(self, name) for name in self.block_names])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [batch, tokens, vocabulary] of the next token after each of [batch, tokens].

        Texts may be shorter than the context. Ids outside the vocabulary give NaN.

        Raises:
            ValueError: not [batch, tokens], or more tokens than the context.
            TypeError: ids that are not whole numbers.
        """
        (context,) = self.input_shape
        if x.ndim != 2 or not 0 < x.shape[1] <= context:
            raise ValueError(
                f"this network takes token ids of shape [batch, tokens], at most {context} tokens, "
                f"got {list(x.shape)}: cut the text, or build it with a longer input_shape"
            )
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"this network takes whole numbers, the ids of tokens, got {x.dtype}")
        position = self.pos_embed[: x.shape[1]].astype(self.dtype)
        y = self.token_embed(x) + position
        y = _transformer.run([getattr(self, name) for name in self.block_names], y, self.remat)
        table = self.token_embed.embedding[...].astype(self.dtype)
        return jnp.einsum("ntd,vd->ntv", self.norm(y), table, preferred_element_type=jnp.float32)


NETWORKS = {
    "gpt2-small": Entry(
        make=GPT,
        input_shape=(1024,),
        classes=50257,
        widths=(768, 12, 12, 3072),
        counts=None,
        meaning=f"{_transformer.MEANING}; a head has 64 numbers",
        source="Radford et al. (2019), Table 2",
    ),
    "gpt-mini": Entry(
        make=functools.partial(GPT, head_size=32),
        input_shape=(128,),
        classes=256,
        widths=(128, 4, 4, 512),
        counts=None,
        meaning=f"{_transformer.MEANING}; a head has 32 numbers",
        source="a small GPT-2 over bytes, for a CPU",
    ),
}
