"""What ViT and GPT share: pre-norm blocks whose heads and hidden units can be removed."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import _common


def normal(std: float = 0.02) -> Callable[..., jax.Array]:
    """An initialiser that draws from N(0, std²), not truncated.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> kernel = normal(0.02)(jax.random.key(0), (300, 200), jnp.float32)
        >>> print(kernel.shape, f"{kernel.std():.3f}")
        (300, 200) 0.020
    """

    def draw(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
        return _common.draw_normal(key, tuple(shape), dtype, std)

    return draw


def dense(
    fan_in: int, units: int, *, std: float = 0.02, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer with an (in, out) kernel from N(0, std²), computed in `dtype`."""
    return nnx.Linear(fan_in, units, kernel_init=normal(std), dtype=dtype, rngs=rngs)


def layer_norm(
    features: int, *, epsilon: float, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Layer normalisation with float32 statistics and a result in `dtype`."""
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al., 2017), with one kernel a projection.

    Kernels are (features, heads * head_size), and (heads * head_size, features) for `out`; each
    run of `head_size` columns is a head. The number of heads is read from them.

    Args:
        features: size of the residual stream.
        heads: number of heads.
        head_size: numbers in each head's query, key and value.
        causal: whether a position sees only itself and what stands before it.
        out_std: standard deviation of the initial `out` kernel.
        dtype: of the computation; scores and their softmax are float32 all the same.
        rngs: random keys for the initialisation.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_size: int,
        *,
        causal: bool,
        out_std: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.head_size, self.causal = head_size, causal
        self.query = dense(features, heads * head_size, dtype=dtype, rngs=rngs)
        self.key = dense(features, heads * head_size, dtype=dtype, rngs=rngs)
        self.value = dense(features, heads * head_size, dtype=dtype, rngs=rngs)
        self.out = dense(heads * head_size, features, std=out_std, dtype=dtype, rngs=rngs)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.query.kernel.shape[1] // self.head_size

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, T, features] to the same shape."""
        split = (*x.shape[:2], -1, self.head_size)
        query, key, value = (
            layer(x).reshape(split) for layer in (self.query, self.key, self.value)
        )
        # A single head's value could lose some of its numbers, and would then be no head any more:
        # what is numbered stays whole. XLA drops the choice.
        value = jnp.where(jnp.arange(self.head_size) >= 0, value, 0)
        # Written out, not `jax.nn.dot_product_attention`: its kernels can't be followed through.
        scores = jnp.einsum("nthd,nshd->nhts", query, key, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(self.head_size)
        if self.causal:
            before = jnp.tril(jnp.ones(scores.shape[2:], bool))
            scores = jnp.where(before, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        y = jnp.einsum("nhts,nshd->nthd", weights, value)
        return self.out(y.reshape(*x.shape[:2], -1))


class Block(nnx.Module):
    """Attention and two dense layers with GELU between them, each on a normalised input.

    x + attn(norm1(x)), then x + fc2(gelu(fc1(norm2(x)))): the pre-norm block of Radford et al.
    (2019, section 2.3) and Dosovitskiy et al. (2021, Eqs. 2 and 3).

    Args:
        features: size of the residual stream.
        heads: number of heads.
        head_size: size of each head.
        hidden: hidden units, between `fc1` and `fc2`.
        causal: whether a position sees only itself and what stands before it.
        tanh_gelu: whether GELU is computed by its tanh approximation, as GPT-2 does.
        epsilon: of the normalisations.
        out_std: standard deviation of the initial kernels that write to the residual stream.
        dtype: of the computation.
        rngs: random keys for the initialisation.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_size: int,
        hidden: int,
        *,
        causal: bool,
        tanh_gelu: bool,
        epsilon: float,
        out_std: float = 0.02,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.tanh_gelu = tanh_gelu
        self.norm1 = layer_norm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attn = Attention(
            features, heads, head_size, causal=causal, out_std=out_std, dtype=dtype, rngs=rngs
        )
        self.norm2 = layer_norm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.fc1 = dense(features, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = dense(hidden, features, std=out_std, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, T, features] to the same shape."""
        x = x + self.attn(self.norm1(x))
        hidden = jax.nn.gelu(self.fc1(self.norm2(x)), approximate=self.tanh_gelu)
        return x + self.fc2(hidden)


def run(blocks: Sequence[Block], x: jax.Array, remat: bool) -> jax.Array:
    """The blocks one after the other; with `remat`, each is computed again in the backward pass."""
    for block in blocks:
        x = _common.recomputed(_common.call, remat)(block, x)
    return x


MEANING = (
    "features, blocks, heads and hidden units of each block; or features, then heads and hidden "
    "units of every block"
)


def sizes(widths: Sequence[int]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Features, and (heads, hidden units) of each block, from either form of the widths.

    Raises:
        ValueError: widths of neither form.

    Examples:
        >>> sizes((192, 2, 3, 768)), sizes((192, 3, 768, 2, 500))
        ((192, ((3, 768), (3, 768))), (192, ((3, 768), (2, 500))))
    """
    if len(widths) == 4:
        features, depth, heads, hidden = widths
        return features, ((heads, hidden),) * depth
    if len(widths) < 3 or len(widths) % 2 == 0:
        raise ValueError(
            f"widths of a transformer must be 4 numbers, or 3, 5, 7, … ({MEANING}), "
            f"got {tuple(widths)}"
        )
    return widths[0], tuple(zip(widths[1::2], widths[2::2], strict=True))


def widths_of(blocks: Sequence[Block]) -> tuple[int, ...]:
    """The widths of these blocks in full: features, then heads and hidden units of every block."""
    pairs = [(block.attn.heads, block.fc1.kernel.shape[1]) for block in blocks]
    return (blocks[0].fc2.kernel.shape[1], *(n for pair in pairs for n in pair))
