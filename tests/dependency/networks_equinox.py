"""The four families in Equinox: images without a batch axis under vmap, OIHW weights."""

import functools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from channel_cases import Case, Cases, draw, images, table, tokens

CLASSES, WORDS, WIDTH, HEAD = 5, 11, 16, 4
Widths = dict[str, int]
KEY = jax.random.key(0)


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, **kwargs: Any) -> Any:
    """A convolution that keeps the image's size up to the stride."""
    return eqx.nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, key=KEY, **kwargs)


class Norm(eqx.Module):
    """Batch normalisation as it is evaluated, with given statistics."""

    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array

    def __init__(self, channels: int):
        self.scale = self.var = jnp.ones(channels)
        self.bias = self.mean = jnp.zeros(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.scale * jax.lax.rsqrt(self.var + 1e-5)
        return x * factor[:, None, None] + (self.bias - self.mean * factor)[:, None, None]


class ResNet(eqx.Module):
    """An identity block, and one of stride 2 with a projection."""

    convs: dict[str, eqx.nn.Conv2d]
    norms: dict[str, Norm]
    head: eqx.nn.Linear

    def __init__(self, widths: Widths):
        w = widths
        self.convs = {
            "stem": conv(3, w["stem"], use_bias=False),
            "conv1a": conv(w["stem"], w["conv1a"], use_bias=False),
            "conv1b": conv(w["conv1a"], w["stem"], use_bias=False),
            "conv2a": conv(w["stem"], w["conv2a"], stride=2, use_bias=False),
            "conv2b": conv(w["conv2a"], w["conv2b"], use_bias=False),
            "project": conv(w["stem"], w["conv2b"], 1, 2, use_bias=False),
        }
        self.norms = {name: Norm(layer.out_channels) for name, layer in self.convs.items()}
        self.head = eqx.nn.Linear(w["conv2b"], CLASSES, key=KEY)

    def normal(self, name: str, x: jax.Array) -> jax.Array:
        return self.norms[name](self.convs[name](x))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.normal("stem", x))
        x = jax.nn.relu(x + self.normal("conv1b", jax.nn.relu(self.normal("conv1a", x))))
        y = self.normal("conv2b", jax.nn.relu(self.normal("conv2a", x)))
        return self.head(jax.nn.relu(self.normal("project", x) + y).mean((1, 2)))


class DenseNet(eqx.Module):
    """Three layers that each see all before them, a transition, mean pool."""

    convs: dict[str, eqx.nn.Conv2d]
    norms: list[Norm]
    pool: eqx.nn.AvgPool2d
    head: eqx.nn.Linear

    def __init__(self, widths: Widths):
        self.convs, self.norms = {"stem": conv(3, widths["stem"])}, []
        width = widths["stem"]
        for i in range(3):
            self.norms.append(Norm(width))
            self.convs[f"conv{i}"] = conv(width, widths[f"conv{i}"])
            width += widths[f"conv{i}"]
        self.norms.append(Norm(width))
        self.convs["transition"] = conv(width, widths["transition"], 1)
        self.pool = eqx.nn.AvgPool2d(2, 2)
        self.head = eqx.nn.Linear(widths["transition"], CLASSES, key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convs["stem"](x)
        for i in range(3):
            new = self.convs[f"conv{i}"](jax.nn.relu(self.norms[i](x)))
            x = jnp.concatenate([x, new])
        x = self.pool(self.convs["transition"](jax.nn.relu(self.norms[3](x))))
        return self.head(jax.nn.relu(x).mean((1, 2)))


class MobileNet(eqx.Module):
    """Two inverted residuals: the first with its shortcut, the second of stride 2 without."""

    convs: dict[str, eqx.nn.Conv2d]
    norms: dict[str, Norm]
    head: eqx.nn.Linear

    def __init__(self, widths: Widths):
        w = widths
        self.convs = {"stem": conv(3, w["stem"], stride=2)}
        for i, last in ((1, "stem"), (2, "project2")):
            c = w[f"expand{i}"]
            self.convs[f"expand{i}"] = conv(w["stem"], c, 1)
            self.convs[f"depthwise{i}"] = conv(c, c, stride=i, groups=c)
            self.convs[f"project{i}"] = conv(c, w[last], 1)
        self.norms = {name: Norm(layer.out_channels) for name, layer in self.convs.items()}
        self.head = eqx.nn.Linear(w["project2"], CLASSES, key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        def normal(name: str, x: jax.Array) -> jax.Array:
            return self.norms[name](self.convs[name](x))

        x = jax.nn.relu6(normal("stem", x))
        for i in (1, 2):
            y = jax.nn.relu6(normal(f"expand{i}", x))
            y = normal(f"project{i}", jax.nn.relu6(normal(f"depthwise{i}", y)))
            x = x + y if i == 1 else y
        return self.head(x.mean((1, 2)))


class Layer(eqx.Module):
    """A pre-norm layer: attention, then an MLP."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, heads: int, units: int):
        self.norms = [eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)]
        self.attention = eqx.nn.MultiheadAttention(
            heads, WIDTH, qk_size=HEAD, vo_size=HEAD, use_query_bias=True, key=KEY
        )
        self.up = eqx.nn.Linear(WIDTH, units, key=KEY)
        self.down = eqx.nn.Linear(units, WIDTH, key=KEY)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        hidden = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return x + jax.vmap(self.down)(hidden)


class Transformer(eqx.Module):
    """Two pre-norm layers with the framework's own attention."""

    embed: eqx.nn.Embedding
    positions: jax.Array
    layers: list[Layer]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, widths: Widths):
        self.embed = eqx.nn.Embedding(WORDS, WIDTH, key=KEY)
        self.positions = jnp.zeros((6, WIDTH))
        self.layers = [Layer(widths[f"heads{i}"], widths[f"up{i}"]) for i in range(2)]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, WORDS, key=KEY)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(ids) + self.positions
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(lambda y: self.head(self.norm(y)))(x)


LAYOUT = {1: "x", 2: "xx", 3: "x--", 4: "xx--"}
CONV = {"stem/weight": "x---", "head/weight": "-x", "head/bias": "-"}
# family, its widths, the expected table, and how many channels there are to remove
FAMILIES: dict[str, tuple[Any, Widths, dict[str, str], int]] = {
    "resnet": (ResNet, {"stem": 8, "conv1a": 6, "conv2a": 10, "conv2b": 12}, CONV, 36),
    "densenet": (
        DenseNet,
        {"stem": 6, "conv0": 4, "conv1": 4, "conv2": 4, "transition": 8},
        CONV,
        26,
    ),
    "mobilenet": (
        MobileNet,
        {"stem": 6, "expand1": 12, "expand2": 10, "project2": 8},
        {"depthwise./weight": "x---"} | CONV,
        36,
    ),
    "transformer": (
        Transformer,
        {"heads0": 4, "heads1": 4, "up0": 12, "up1": 10},
        {
            "(query|key|value)_proj/weight": "x-",
            "query_proj/bias": "x",
            "output_proj/weight": "-x",
            "up/weight": "x-",
            "up/bias": "x",
            "down/weight": "-x",
            "embed|positions|head/weight": "--",
            "bias|norm": "-",
        },
        30,
    ),
}


def batched(model: Any, inputs: jax.Array) -> jax.Array:
    """The outputs for a batch."""
    return jax.vmap(model)(inputs)


def call(static: Any, params: Any, inputs: jax.Array) -> jax.Array:
    """The outputs of a module taken apart."""
    return batched(eqx.combine(params, static), inputs)


def split(model: Any) -> tuple[Any, Any]:
    """The function and the parameters of a module."""
    params, static = eqx.partition(model, lambda x: hasattr(x, "shape"))
    return partial(call, static), params


def build(name: str) -> Case:
    """The case of a family."""
    family, widths, rules, units = FAMILIES[name]
    fn, shapes = split(eqx.filter_eval_shape(family, widths))
    params = draw(shapes)
    inputs = tokens(2, 6, words=WORDS) if name == "transformer" else images(2, 3, 8, 8)
    return Case(
        fn=fn,
        params=params,
        inputs=(inputs,),
        expected=table(params, rules, LAYOUT),
        units=units,
        model=eqx.combine(params, fn.args[0]),
        call=batched,
        split=split,
    )


CASES = Cases({name: functools.cache(partial(build, name)) for name in FAMILIES})
