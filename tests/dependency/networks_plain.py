"""Plain functions on dicts: the four families, and one network for each single feature.

Every function reads its widths from the parameters' shapes, so it serves cut ones as it is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from channel_cases import Case, Cases, draw, images, table, tokens

CASES = Cases()
CLASSES, WORDS, WIDTH, HEAD = 5, 11, 16, 4
Params = Any


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, **kwargs: Any) -> jax.Array:
    """An NHWC convolution that keeps the image's size up to the stride."""
    numbers = ("NHWC", "HWIO", "NHWC")
    kwargs = {"padding": "SAME", "dimension_numbers": numbers} | kwargs
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), **kwargs)


def layer(p: Params, x: jax.Array, stride: int = 1, **kwargs: Any) -> jax.Array:
    """Convolution with bias."""
    return conv(x, p["kernel"], stride, **kwargs) + p["bias"]


def dense(p: Params, x: jax.Array) -> jax.Array:
    """A dense layer."""
    return x @ p["kernel"] + p["bias"]


def norm(p: Params, x: jax.Array) -> jax.Array:
    """Batch normalisation as it is evaluated, with given statistics."""
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def layer_norm(p: Params, x: jax.Array) -> jax.Array:
    """Layer normalisation over the features."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def kernel(inputs: int, outputs: int, size: int = 3) -> dict[str, Any]:
    """Shapes of a convolution with bias."""
    return {"kernel": (size, size, inputs, outputs), "bias": (outputs,)}


def matrix(inputs: int, outputs: int) -> dict[str, Any]:
    """Shapes of a dense layer."""
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def normal(inputs: int, outputs: int, size: int = 3) -> dict[str, Any]:
    """Shapes of a convolution with batch normalisation behind it."""
    statistics = dict.fromkeys(("scale", "bias", "mean", "var"), (outputs,))
    return {"kernel": (size, size, inputs, outputs), "norm": statistics}


def normal_layer(p: Params, x: jax.Array, stride: int = 1, **kwargs: Any) -> jax.Array:
    """Convolution, batch normalisation."""
    return norm(p["norm"], conv(x, p["kernel"], stride, **kwargs))


def pool_head(p: Params, x: jax.Array) -> jax.Array:
    """Mean over the image, then a dense layer."""
    return dense(p["head"], x.mean((1, 2)))


FIRST = {"^stem/kernel": "---x"}
HEAD_RULES = {"^head/kernel": "x-", "^head/bias": "-"}
CONV = FIRST | HEAD_RULES


def image_case(
    fn: Any, shapes: Any, rules: dict[str, str], units: int | None, batch: int = 2, **kwargs: Any
) -> Case:
    """A case whose input is a batch of images."""
    params = draw(shapes)
    return Case(fn, params, (images(batch, 8, 8, 3),), table(params, rules), units, **kwargs)


# --- the four families ------------------------------------------------------------------


def _residual_shapes() -> dict[str, Any]:
    return {
        "stem": normal(3, 8),
        "conv1a": normal(8, 6),
        "conv1b": normal(6, 8),
        "conv2a": normal(8, 10),
        "conv2b": normal(10, 12),
        "head": matrix(12, CLASSES),
    }


@CASES.add
def resnet() -> Case:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(normal_layer(p["stem"], x))
        y = jax.nn.relu(normal_layer(p["conv1a"], x))
        x = jax.nn.relu(x + normal_layer(p["conv1b"], y))
        y = jax.nn.relu(normal_layer(p["conv2a"], x, 2))
        y = normal_layer(p["conv2b"], y) + normal_layer(p["project"], x, 2)
        return pool_head(p, jax.nn.relu(y))

    return image_case(fn, _residual_shapes() | {"project": normal(8, 12, 1)}, CONV, 36)


@CASES.add
def resnet_zero_padded() -> Case:
    """Shortcut of option A: every second pixel, zeros for the channels that are new."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(normal_layer(p["stem"], x))
        y = jax.nn.relu(normal_layer(p["conv1a"], x))
        x = jax.nn.relu(x + normal_layer(p["conv1b"], y))
        y = jax.nn.relu(normal_layer(p["conv2a"], x, 2))
        y = normal_layer(p["conv2b"], y)
        new = y.shape[-1] - x.shape[-1]
        y = y + jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, new)))
        return pool_head(p, jax.nn.relu(y))

    # the 8 channels of the first stage are the first 8 of the second's 12
    return image_case(fn, _residual_shapes(), CONV, 6 + 10 + 12)


@CASES.add
def densenet() -> Case:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = layer(p["stem"], x)
        for i in range(3):
            new = conv(jax.nn.relu(norm(p[f"norm{i}"], x)), p[f"conv{i}"])
            x = jnp.concatenate([x, new], axis=-1)
        x = conv(jax.nn.relu(norm(p["norm3"], x)), p["transition"])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return pool_head(p, jax.nn.relu(x))

    shapes: dict[str, Any] = {"stem": kernel(3, 6), "head": matrix(8, CLASSES)}
    for i in range(3):
        shapes[f"conv{i}"] = (3, 3, 6 + 4 * i, 4)
    for i in range(4):
        shapes[f"norm{i}"] = dict.fromkeys(("scale", "bias", "mean", "var"), (6 + 4 * i,))
    return image_case(fn, shapes | {"transition": (1, 1, 18, 8)}, CONV, 26)


@CASES.add
def mobilenet() -> Case:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(normal_layer(p["stem"], x, 2))
        for i in (1, 2):
            y = jax.nn.relu6(normal_layer(p[f"expand{i}"], x))
            c = y.shape[-1]
            y = normal_layer(p[f"depthwise{i}"], y, i, feature_group_count=c)
            y = normal_layer(p[f"project{i}"], jax.nn.relu6(y))
            x = x + y if i == 1 else y
        return pool_head(p, x)

    shapes = {
        "stem": normal(3, 6),
        "expand1": normal(6, 12, 1),
        "depthwise1": normal(1, 12),
        "project1": normal(12, 6, 1),
        "expand2": normal(6, 10, 1),
        "depthwise2": normal(1, 10),
        "project2": normal(10, 8, 1),
        "head": matrix(8, CLASSES),
    }
    return image_case(fn, shapes, {"depthwise./kernel": "---x"} | CONV, 36)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of [batch, time, heads, HEAD]."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


ENDS = {"^(embed|positions|head/kernel)": "--", "^head/bias|ln": "-"}
MLP = {"up/kernel": "-x", "up/bias": "x", "down/kernel": "x-", "down/bias": "-"}
LN = {"scale": (WIDTH,), "bias": (WIDTH,)}


def sequence(
    block: Any, layers: dict[str, Any], rules: dict[str, str], units: int | None, head: bool = True
) -> Case:
    """A network of embedding, positions, `block(params, x)` on the residual stream and logits."""

    def fn(p: Params, ids: jax.Array) -> jax.Array:
        x = block(p, p["embed"][ids] + p["positions"])
        if not head:
            return layer_norm(p["ln"], x) @ p["embed"].T
        return dense(p["head"], layer_norm(p["ln"], x))

    shapes = {"embed": (WORDS, WIDTH), "positions": (6, WIDTH), "ln": LN} | layers
    ends = {"^(embed|positions)": "--", "ln": "-"}
    if head:
        shapes["head"], ends = matrix(WIDTH, WORDS), ENDS
    params = draw(shapes)
    return Case(fn, params, (tokens(2, 6, words=WORDS),), table(params, ends | rules), units)


@CASES.add
def transformer() -> Case:
    """Two layers with one kernel for queries, keys and values, heads flattened."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        for i in range(2):
            q = p[f"layer{i}"]
            qkv = (layer_norm(q["ln_a"], x) @ q["qkv"]).reshape(*x.shape[:2], 3, -1, HEAD)
            y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
            x = x + y.reshape(*x.shape[:2], -1) @ q["out"]
            x = x + dense(q["down"], jax.nn.gelu(dense(q["up"], layer_norm(q["ln_b"], x))))
        return x

    layers = {
        f"layer{i}": {
            "ln_a": LN,
            "qkv": (WIDTH, 3 * 4 * HEAD),
            "out": (4 * HEAD, WIDTH),
            "ln_b": LN,
            "up": matrix(WIDTH, 12 - i),
            "down": matrix(12 - i, WIDTH),
        }
        for i in range(2)
    }
    return sequence(block, layers, {"qkv": "-x", "out": "x-"} | MLP, 4 + 12 + 4 + 11)


# --- single features: convolutions and pooling ------------------------------------------


def stacked(
    middle: Any, shapes: Any, rules: dict[str, str], units: int | None, width: int = 8
) -> Case:
    """A stem of 8 channels, the feature under test, mean pool and a dense head."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        return pool_head(p, middle(p, jax.nn.relu(layer(p["stem"], x))))

    ends = {"stem": kernel(3, 8), "head": matrix(width, CLASSES)}
    return image_case(fn, ends | shapes, CONV | rules, units)


@CASES.add
def grouped_conv() -> Case:
    """Both groups share a kernel's input slices and keep one size: i and i + half go together."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        return jax.nn.relu(layer(p["conv"], x, feature_group_count=2))

    return stacked(middle, {"conv": kernel(4, 12)}, {}, 4 + 6, width=12)


@CASES.add
def channel_shuffle() -> Case:
    """Grouped convolution, shuffle, grouped convolution (ShuffleNet)."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(layer(p["conv1"], x, feature_group_count=2))
        x = x.reshape(*x.shape[:3], 2, -1).swapaxes(3, 4).reshape(x.shape)
        return jax.nn.relu(layer(p["conv2"], x, feature_group_count=2))

    # i and i + 6 before the shuffle are 2i and 2i + 1 after it, which go with 2i + 6 and 2i + 7
    shapes = {"conv1": kernel(4, 12), "conv2": kernel(6, 4)}
    return stacked(middle, shapes, {}, 4 + 3 + 2, width=4)


@CASES.add
def conv_transpose() -> Case:
    def middle(p: Params, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_transpose(x, p["up"], (2, 2), "SAME")
        return jax.lax.conv_transpose(
            jax.nn.relu(x), p["again"], (2, 2), "SAME", transpose_kernel=True
        )

    shapes = {"up": (3, 3, 8, 6), "again": (3, 3, 4, 6)}
    return stacked(middle, shapes, {}, 8 + 6 + 4, width=4)


@CASES.add
def dilated_channels_first() -> Case:
    """NCHW with OIHW kernels, dilated."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        numbers = ("NCHW", "OIHW", "NCHW")
        x = jnp.transpose(x, (0, 3, 1, 2))
        x = jax.nn.relu(conv(x, p["stem"], dimension_numbers=numbers))
        x = conv(x, p["conv"], rhs_dilation=(2, 2), dimension_numbers=numbers)
        x = x + p["bias"][:, None, None]
        return dense(p["head"], jax.nn.relu(x).sum((2, 3)))

    shapes = {"stem": (8, 3, 3, 3), "conv": (6, 8, 3, 3), "bias": (6,), "head": matrix(6, CLASSES)}
    return image_case(fn, shapes, {"^stem": "x---", "^conv": "xx--"} | HEAD_RULES, 14)


@CASES.add
def flatten() -> Case:
    """Two poolings, each written in two ways, then every pixel of a channel to a dense layer."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(layer(p["stem"], x))
        x = jnp.maximum(x[:, ::2, ::2], x[:, 1::2, 1::2])
        x = jax.nn.relu(layer(p["conv"], x))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return dense(p["head"], jax.nn.relu(dense(p["fc"], x.reshape(x.shape[0], -1))))

    shapes = {"stem": kernel(3, 4), "conv": kernel(4, 6), "fc": matrix(24, 7)}
    return image_case(fn, shapes | {"head": matrix(7, CLASSES)}, CONV, 4 + 6 + 7)


@CASES.add
def flatten_channels_first() -> Case:
    """The flattened axis counts pixels fastest: a channel is a run of 16 rows."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(layer(p["stem"], x, 2)).transpose(0, 3, 1, 2)
        return dense(p["head"], x.reshape(x.shape[0], -1))

    return image_case(fn, {"stem": kernel(3, 4), "head": matrix(64, CLASSES)}, CONV, 4)


@CASES.add
def pool_by_reshape() -> Case:
    """Average pooling as a reshape and a mean, then as a windowed sum."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        n, h, w, _ = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, -1).mean((2, 4))
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9

    return stacked(middle, {}, {}, 8)


@CASES.add
def group_norm() -> Case:
    """Groups of two neighbours that are normalised together: they go together."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        g = x.reshape(*x.shape[:3], -1, 2)
        g = g - g.mean((1, 2, 4), keepdims=True)
        g = g * jax.lax.rsqrt((g * g).mean((1, 2, 4), keepdims=True) + 1e-5)
        return jax.nn.relu(g.reshape(x.shape) * p["scale"] + p["bias"])

    return stacked(middle, {"scale": (8,), "bias": (8,)}, {}, 4)


@CASES.add
def squeeze_excite() -> Case:
    def middle(p: Params, x: jax.Array) -> jax.Array:
        gate = jax.nn.relu(dense(p["squeeze"], x.mean((1, 2))))
        gate = jax.nn.sigmoid(dense(p["excite"], gate))
        return x * gate[:, None, None, :]

    return stacked(middle, {"squeeze": matrix(8, 4), "excite": matrix(4, 8)}, {}, 12)


@CASES.add
def pixel_softmax() -> Case:
    """Classes of a pixel share one softmax; the channels before and after it are free."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        classes = jax.nn.softmax(layer(p["classes"], x), axis=-1)
        return jax.nn.relu(layer(p["after"], classes))

    shapes = {"classes": kernel(8, 4, 1), "after": kernel(4, 6)}
    rules = {"classes/kernel": "--x-", "classes/bias": "-", "after/kernel": "---x"}
    return stacked(middle, shapes, rules, 8 + 6, width=6)


@CASES.add
def padded() -> Case:
    """Zeros around the image, and zero channels behind the computed ones."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        more = p["conv"]["kernel"].shape[2] - x.shape[-1]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, more)))
        return layer(p["conv"], x, padding="VALID")

    return stacked(middle, {"conv": kernel(10, 6)}, {"^conv/kernel": "--.x"}, None, width=6)


@CASES.add
def padded_by_edge() -> Case:
    """Padding that repeats the border, which NumPy's pad also writes, empty, along channels."""

    def middle(p: Params, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return layer(p["conv"], x, padding="VALID")

    return stacked(middle, {"conv": kernel(8, 6)}, {}, 8 + 6, width=6)


# --- single features: sequences ---------------------------------------------------------


@CASES.add
def unstacked_heads() -> Case:
    """Queries, keys and values from one kernel with an axis of three, taken apart by unstack."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        y = attend(*jnp.unstack(jnp.einsum("btd,dchk->bthck", x, p["qkv"]), axis=3))
        return x + jnp.einsum("bthk,hkd->btd", y, p["out"])

    layers = {"qkv": (WIDTH, 3, 4, HEAD), "out": (4, HEAD, WIDTH)}
    return sequence(block, layers, {"qkv": "--x-", "out": "x--"}, 4)


@CASES.add
def grouped_query() -> Case:
    """Four query heads read two pairs of keys and values, repeated; each pair has two."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
        times = q.shape[2] // k.shape[2]
        y = attend(q, jnp.repeat(k, times, axis=2), jnp.repeat(v, times, axis=2))
        return x + jnp.einsum("bthk,hkd->btd", y, p["out"])

    d = WIDTH
    layers = {"q": (d, 4, 4), "k": (d, 2, 4), "v": (d, 2, 4), "out": (4, 4, d)}
    return sequence(block, layers, {"^[qk]$": "-x-", "^v$": "-x.", "out": "x.-"}, 2)


@CASES.add
def grouped_query_reshaped() -> Case:
    """The same without copies: query heads cut into (pairs, heads of the pair), flat kernels."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        b, t, _ = x.shape
        k = (x @ p["k"]).reshape(b, t, -1, HEAD)
        v = (x @ p["v"]).reshape(b, t, -1, HEAD)
        q = (x @ p["q"]).reshape(b, t, -1, 2, HEAD)
        weights = jax.nn.softmax(jnp.einsum("btgrd,bsgd->bgrts", q, k) / 2.0)
        y = jnp.einsum("bgrts,bsgd->btgrd", weights, v)
        return x + y.reshape(b, t, -1) @ p["out"]

    d = WIDTH
    layers = {"q": (d, d), "k": (d, 8), "v": (d, 8), "out": (d, d)}
    return sequence(block, layers, {"^[qkv]$": "-x", "out": "x-"}, 2)


@CASES.add
def rotary_qk_norm() -> Case:
    """RMSNorm on the stream and on queries and keys, rotary positions, SwiGLU of two kernels."""

    def rms(scale: jax.Array, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def turn(x: jax.Array) -> jax.Array:
        angle = jnp.arange(x.shape[1])[:, None, None] * jnp.array([1.0, 0.1])
        a, b = jnp.split(x, 2, axis=-1)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def block(p: Params, x: jax.Array) -> jax.Array:
        y = rms(p["norm_a"], x)
        q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[name]) for name in "qkv")
        y = attend(turn(rms(p["norm_q"], q)), turn(rms(p["norm_k"], k)), v)
        x = x + jnp.einsum("bthk,hkd->btd", y, p["out"])
        y = rms(p["norm_b"], x)
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]

    d = WIDTH
    layers = dict.fromkeys("qkv", (d, 4, 4)) | {"out": (4, 4, d)}
    layers |= {"norm_a": (d,), "norm_b": (d,), "norm_q": (4,), "norm_k": (4,)}
    layers |= {"gate": (d, 12), "up": (d, 12), "down": (12, d)}
    rules = {"norm": "-", "^[qk]$": "-x-", "^v$": "-x.", "out": "x.-"}
    return sequence(block, layers, rules | {"gate|up": "-x", "down": "x-"}, 4 + 12)


@CASES.add
def gated_halves() -> Case:
    """Gate and value from one kernel, cut in halves: j goes with j + m."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(dense(p["up"], x), 2, axis=-1)
        return x + dense(p["down"], jax.nn.silu(gate) * value)

    layers = {"up": matrix(WIDTH, 20), "down": matrix(10, WIDTH)}
    return sequence(block, layers, MLP, 10)


@CASES.add
def gated_stacked() -> Case:
    """Gate and value from a kernel with an axis of two."""

    def block(p: Params, x: jax.Array) -> jax.Array:
        both = jnp.einsum("btd,dcm->btcm", x, p["up"])
        return x + (jax.nn.gelu(both[:, :, 0]) * both[:, :, 1]) @ p["down"]

    layers = {"up": (WIDTH, 2, 10), "down": (10, WIDTH)}
    return sequence(block, layers, {"up": "--x", "down": "x-"}, 10)


@CASES.add
def tied_embedding() -> Case:
    def block(p: Params, x: jax.Array) -> jax.Array:
        return x + dense(p["down"], jax.nn.gelu(dense(p["up"], x)))

    layers = {"up": matrix(WIDTH, 10), "down": matrix(10, WIDTH)}
    return sequence(block, layers, MLP, 10, head=False)


@CASES.add
def embedding_bag() -> Case:
    """Without normalisation the embedding's own width may shrink."""

    def fn(p: Params, ids: jax.Array) -> jax.Array:
        x = jnp.take(p["embed"], ids, axis=0).sum(1)
        return dense(p["head"], jax.nn.relu(dense(p["fc"], x)))

    shapes = {"embed": (WORDS, 8), "fc": matrix(8, 6), "head": matrix(6, CLASSES)}
    params = draw(shapes)
    rules = {"embed": "-x"} | HEAD_RULES
    return Case(fn, params, (tokens(2, 6, words=WORDS),), table(params, rules), 8 + 6)


# --- single features: control flow ------------------------------------------------------


def vectors(fn: Any, shapes: Any, rules: dict[str, str], units: int | None) -> Case:
    """A case whose input is a batch of eight-dimensional vectors."""
    params = draw(shapes)
    inputs = images(4, 8)
    rules = {"^first/kernel": "-x"} | HEAD_RULES | rules
    return Case(fn, params, (inputs,), table(params, rules), units)


@CASES.add
def scan_over_layers() -> Case:
    """Residual layers with stacked parameters: a hidden unit goes from all of them at once."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, q: Params) -> tuple[jax.Array, None]:
            return x + jax.nn.relu(x @ q["up"] + q["bias"]) @ q["down"], None

        x, _ = jax.lax.scan(step, dense(p["first"], x), p["layers"])
        return dense(p["head"], x)

    layers = {"up": (3, 6, 10), "bias": (3, 10), "down": (3, 10, 6)}
    shapes = {"first": matrix(8, 6), "layers": layers, "head": matrix(6, CLASSES)}
    rules = {"up|down": "-xx", "layers/bias": "-x"}
    return vectors(fn, shapes, rules, 6 + 10)


@CASES.add
def recurrent() -> Case:
    """A scan over time: the state's units are read by the state's own next units."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        def step(state: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh(row[:, None] * p["input"] + state @ p["state"])
            return state, state * 2

        start = jnp.zeros((x.shape[0], p["input"].shape[0]))
        last, all_states = jax.lax.scan(step, start, x.T)
        return dense(p["head"], last + all_states.mean(0))

    shapes = {"input": (6,), "state": (6, 6), "head": matrix(6, CLASSES)}
    params = draw(shapes)
    return Case(fn, params, (images(4, 8),), table(params, HEAD_RULES), 6)


@CASES.add
def checkpoint() -> Case:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def block(q: Params, x: jax.Array) -> jax.Array:
            return jax.nn.gelu(dense(q, x))

        return dense(p["head"], block(p["second"], block(p["first"], x)))

    shapes = {"first": matrix(8, 6), "second": matrix(6, 7), "head": matrix(7, CLASSES)}
    return vectors(fn, shapes, {}, 13)


@CASES.add
def conditional() -> Case:
    """Both branches make the same units."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["first"], x))
        branches = (lambda h: dense(p["a"], h), lambda h: jnp.tanh(dense(p["b"], h)))
        return dense(p["head"], jax.lax.cond(x.sum() > 0, *branches, h))

    shapes = {"first": matrix(8, 6), "a": matrix(6, 7), "b": matrix(6, 7)}
    return vectors(fn, shapes | {"head": matrix(7, CLASSES)}, {}, 13)


@jax.custom_jvp
def swish(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(x)


@swish.defjvp
def _swish_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    s = jax.nn.sigmoid(x)
    return x * s, (s + x * s * (1 - s)) * t


@jax.custom_vjp
def straight_through(x: jax.Array) -> jax.Array:
    return jnp.sign(x)


straight_through.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (g,))


@CASES.add
def custom_derivatives() -> Case:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        h = swish(dense(p["first"], x))
        return dense(p["head"], straight_through(dense(p["second"], h)))

    shapes = {"first": matrix(8, 6), "second": matrix(6, 7), "head": matrix(7, CLASSES)}
    return vectors(fn, shapes, {}, 13)


@CASES.add
def jit_inside() -> Case:
    """One compiled function called with two layers' parameters, and vmap over examples."""

    @jax.jit
    def block(q: Params, x: jax.Array) -> jax.Array:
        return jax.nn.elu(dense(q, x))

    def fn(p: Params, x: jax.Array) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            return dense(p["head"], block(p["second"], block(p["first"], x)))

        return jax.vmap(one)(x)

    shapes = {"first": matrix(8, 6), "second": matrix(6, 7), "head": matrix(7, CLASSES)}
    return vectors(fn, shapes, {}, 13)


def between(middle: Any, rules: dict[str, str], units: int | None, width: int = 6) -> Case:
    """`middle` stands between the 6 units of `first` and the 7 of `second`."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        h = middle(jax.nn.relu(dense(p["first"], x)))
        return dense(p["head"], jax.nn.relu(dense(p["second"], h)))

    shapes = {"first": matrix(8, 6), "second": matrix(width, 7), "head": matrix(7, CLASSES)}
    return vectors(fn, shapes, rules, units)


@CASES.add
def interleaved() -> Case:
    """Each unit and a function of it side by side: i becomes 2i and 2i + 1."""

    def middle(h: jax.Array) -> jax.Array:
        return jnp.stack([h, jnp.tanh(h)], axis=-1).reshape(h.shape[0], -1)

    return between(middle, {}, 13, width=12)


@CASES.add
def tiled() -> Case:
    def middle(h: jax.Array) -> jax.Array:
        return jnp.tile(h, (1, 2))

    return between(middle, {}, 13, width=12)


@CASES.add
def outer_product() -> Case:
    """One axis of channels laid twice over an array; whether it may shrink is not asserted."""

    def middle(h: jax.Array) -> jax.Array:
        return (h[:, :, None] * h[:, None, :]).reshape(h.shape[0], -1)

    rules = {"^first/kernel": "-.", "^first/bias": ".", "^second/kernel": ".x"}
    return between(middle, rules, None, width=36)


@CASES.add
def own_constant() -> Case:
    """An array that the function has of its own is not cut, so what it meets has to stay."""
    own = np.linspace(1, 2, 6, dtype=np.float32)
    rules = {"^first/kernel": "--", "^first/bias": "-", "^second/kernel": "-x"}
    return between(lambda h: h * own, rules, 7)


# --- what cannot be followed ------------------------------------------------------------


def stopped(middle: Any) -> Case:
    """The units before `middle` stay, those behind it are free."""
    rules = {"^first/kernel": "--", "^first/bias": "-", "^second/kernel": "-x"}
    return between(middle, rules, 7)


def over_fft(h: jax.Array) -> jax.Array:
    return jnp.fft.fft(h).real


def over_sort(h: jax.Array) -> jax.Array:
    return jnp.sort(h, axis=-1)


def over_cumsum(h: jax.Array) -> jax.Array:
    return jnp.cumsum(h, axis=-1)


def over_callback(h: jax.Array) -> jax.Array:
    return jax.pure_callback(lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h)


# by the primitive's name
STOPPED = {
    "fft": functools.cache(lambda: stopped(over_fft)),
    "sort": functools.cache(lambda: stopped(over_sort)),
    "cumsum": functools.cache(lambda: stopped(over_cumsum)),
    "pure_callback": functools.cache(lambda: stopped(over_callback)),
}
