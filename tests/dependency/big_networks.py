"""Networks of the usual size, as shapes only, to see how long tracing takes.

Run from the repository's root, with `tests/dependency` on PYTHONPATH.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from networks_plain import attend, dense, layer_norm, matrix, normal, normal_layer

import dessilbi_jax as dl

Network = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def structs(shapes: Any) -> Any:
    """Shapes as arrays that hold nothing."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def resnet50() -> Network:
    """ResNet-50 (He et al., 2016) on images of 224x224 pixels: 25.6 M parameters."""
    stages = [(64, 3), (128, 4), (256, 6), (512, 3)]
    shapes: dict[str, Any] = {"stem": normal(3, 64, 7)}
    width = 64
    for s, (inner, count) in enumerate(stages):
        for b in range(count):
            block = {"a": normal(width, inner, 1), "b": normal(inner, inner)}
            block["c"] = normal(inner, 4 * inner, 1)
            if b == 0:
                block["project"] = normal(width, 4 * inner, 1)
            shapes[f"stage{s}_{b}"] = block
            width = 4 * inner
    shapes["head"] = matrix(width, 1000)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(normal_layer(p["stem"], x, 2))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for s, (_, count) in enumerate(stages):
            for b in range(count):
                q, stride = p[f"stage{s}_{b}"], 2 if s and not b else 1
                y = jax.nn.relu(normal_layer(q["a"], x))
                y = jax.nn.relu(normal_layer(q["b"], y, stride))
                y = normal_layer(q["c"], y)
                x = jax.nn.relu(y + (normal_layer(q["project"], x, stride) if not b else x))
        return dense(p["head"], x.mean((1, 2)))

    return fn, structs(shapes), (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),)


def transformer(layers: int = 12, width: int = 768, heads: int = 12, words: int = 50257) -> Network:
    """A decoder of GPT-2's size: 163 M parameters, with the embedding not tied."""
    ln = {"scale": (width,), "bias": (width,)}
    each = {"ln_a": ln, "qkv": matrix(width, 3 * width), "out": matrix(width, width), "ln_b": ln}
    each |= {"up": matrix(width, 4 * width), "down": matrix(4 * width, width)}
    shapes = {f"layer{i}": each for i in range(layers)} | {"ln": ln, "head": matrix(width, words)}
    shapes |= {"embed": (words, width), "positions": (128, width)}
    size = width // heads

    def fn(p: Any, ids: jax.Array) -> jax.Array:
        x = p["embed"][ids] + p["positions"]
        for i in range(layers):
            q = p[f"layer{i}"]
            qkv = dense(q["qkv"], layer_norm(q["ln_a"], x)).reshape(*x.shape[:2], 3, -1, size)
            y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
            x = x + dense(q["out"], y.reshape(*x.shape[:2], -1))
            x = x + dense(q["down"], jax.nn.gelu(dense(q["up"], layer_norm(q["ln_b"], x))))
        return dense(p["head"], layer_norm(p["ln"], x))

    return fn, structs(shapes), (jax.ShapeDtypeStruct((1, 128), jnp.int32),)


class Decoder(nn.Module):
    """The same in Flax Linen, with its own attention."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(50257, 768)(ids)
        for _ in range(12):
            attention = nn.MultiHeadDotProductAttention(12)
            x = x + attention(nn.LayerNorm()(x), mask=nn.make_causal_mask(ids))
            x = x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))
        return nn.Dense(50257)(nn.LayerNorm()(x))


def decoder() -> Network:
    """The shapes of `Decoder`."""
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    return Decoder().apply, jax.eval_shape(Decoder().init, jax.random.key(0), ids), (ids,)


def measure(build: Callable[[], Network]) -> tuple[dl.ChannelGroups, float, float]:
    """The groups of a network, and the seconds for JAX's own tracing and for all of it."""
    fn, params, inputs = build()
    start = time.perf_counter()
    jax.make_jaxpr(fn)(params, *inputs)
    alone = time.perf_counter() - start
    fn, params, inputs = build()  # a new function, so that nothing is remembered
    start = time.perf_counter()
    groups = dl.channel_groups(fn, params, *inputs)
    return groups, alone, time.perf_counter() - start


if __name__ == "__main__":
    for build in (resnet50, transformer, decoder):
        groups, alone, whole = measure(build)
        print(
            f"{build.__name__}: {groups.count:,} groups, {groups.params():,} numbers, "
            f"{groups.flops():,} FLOPs; traced in {alone:.2f} s, in all {whole:.2f} s"
        )
