"""The four families in Flax Linen; widths are fields, so a smaller network is built anew."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from channel_cases import Case, Cases, draw, images, table, tokens
from flax import linen as nn

from dessilbi_jax.tree import leaf_paths

CLASSES, WORDS, WIDTH, HEAD = 5, 11, 16, 4
Widths = dict[str, int]


def conv(outputs: int, name: str, size: int = 3, **kwargs: Any) -> nn.Conv:
    """A convolution without bias; batch normalisation stands behind it."""
    return nn.Conv(outputs, (size, size), use_bias=False, name=name, **kwargs)


class ResNet(nn.Module):
    """An identity block, and one of stride 2 with a projection."""

    widths: Widths
    training: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.widths
        norm = partial(nn.BatchNorm, use_running_average=not self.training)
        x = nn.relu(norm(name="stem_bn")(conv(w["stem"], "stem")(x)))
        y = nn.relu(norm(name="bn1a")(conv(w["conv1a"], "conv1a")(x)))
        x = nn.relu(x + norm(name="bn1b")(conv(w["stem"], "conv1b")(y)))
        y = nn.relu(norm(name="bn2a")(conv(w["conv2a"], "conv2a", strides=2)(x)))
        y = norm(name="bn2b")(conv(w["conv2b"], "conv2b")(y))
        x = norm(name="project_bn")(conv(w["conv2b"], "project", 1, strides=2)(x))
        return nn.Dense(CLASSES, name="head")(nn.relu(x + y).mean((1, 2)))


class DenseNet(nn.Module):
    """Three layers that each see all before them, a transition, mean pool."""

    widths: Widths

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = conv(self.widths["stem"], "stem")(x)
        for i in range(3):
            new = conv(self.widths[f"conv{i}"], f"conv{i}")(nn.relu(norm(name=f"bn{i}")(x)))
            x = jnp.concatenate([x, new], axis=-1)
        x = conv(self.widths["transition"], "transition", 1)(nn.relu(norm(name="bn3")(x)))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(CLASSES, name="head")(nn.relu(x).mean((1, 2)))


class MobileNet(nn.Module):
    """Two inverted residuals: the first with its shortcut, the second of stride 2 without."""

    widths: Widths

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu6(norm(name="stem_bn")(conv(self.widths["stem"], "stem", strides=2)(x)))
        for i, last in ((1, "stem"), (2, "project2")):
            c = self.widths[f"expand{i}"]
            y = nn.relu6(norm(name=f"bn{i}a")(conv(c, f"expand{i}", 1)(x)))
            y = conv(c, f"depthwise{i}", strides=i, feature_group_count=c)(y)
            y = nn.relu6(norm(name=f"bn{i}b")(y))
            y = norm(name=f"bn{i}c")(conv(self.widths[last], f"project{i}", 1)(y))
            x = x + y if i == 1 else y
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


class Transformer(nn.Module):
    """Two pre-norm layers with the framework's own attention."""

    widths: Widths

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(WORDS, WIDTH, name="embed")(ids)
        x = x + self.param("positions", nn.initializers.zeros, (ids.shape[1], WIDTH))
        mask = nn.make_causal_mask(ids)
        for i in range(2):
            heads = self.widths[f"heads{i}"]
            attention = nn.MultiHeadDotProductAttention(
                heads, qkv_features=heads * HEAD, out_features=WIDTH, name=f"attention{i}"
            )
            x = x + attention(nn.LayerNorm(name=f"ln{i}a")(x), mask=mask)
            y = nn.Dense(self.widths[f"up{i}"], name=f"up{i}")(nn.LayerNorm(name=f"ln{i}b")(x))
            x = x + nn.Dense(WIDTH, name=f"down{i}")(nn.gelu(y))
        return nn.Dense(WORDS, name="head")(nn.LayerNorm(name="ln")(x))


CONV = {"/stem/kernel": "---x", "/head/kernel": "x-", "/head/bias": "-"}
# family, its widths, the expected table, and how many channels there are to remove
FAMILIES: dict[str, tuple[Any, Widths, dict[str, str], int]] = {
    "resnet": (ResNet, {"stem": 8, "conv1a": 6, "conv2a": 10, "conv2b": 12}, CONV, 36),
    "resnet_training": (
        partial(ResNet, training=True),
        {"stem": 8, "conv1a": 6, "conv2a": 10, "conv2b": 12},
        CONV,
        36,
    ),
    "densenet": (
        DenseNet,
        {"stem": 6, "conv0": 4, "conv1": 4, "conv2": 4, "transition": 8},
        CONV,
        26,
    ),
    "mobilenet": (
        MobileNet,
        {"stem": 6, "expand1": 12, "expand2": 10, "project2": 8},
        {"depthwise./kernel": "---x"} | CONV,
        36,
    ),
    "transformer": (
        Transformer,
        {"heads0": 4, "heads1": 4, "up0": 12, "up1": 10},
        {
            "(query|key)/kernel": "-x-",
            "value/kernel": "-x.",
            "(query|key)/bias": "x-",
            "value/bias": "x.",
            "out/kernel": "x.-",
            "up./kernel": "-x",
            "up./bias": "x",
            "down./kernel": "x-",
            "embed|positions|head/kernel": "--",
            "bias|scale": "-",
        },
        30,
    ),
}


def width_of(name: str, params: Any) -> int:
    """One of the widths, read from a kernel."""
    shapes = {path: leaf.shape for path, leaf in leaf_paths(params)}
    if name.startswith("heads"):
        return int(shapes[f"params/attention{name[-1]}/query/kernel"][1])
    return int(shapes[f"params/{name}/kernel"][-1])


def call(module: nn.Module, params: Any, *inputs: jax.Array) -> Any:
    """The network's outputs; what it would write into its statistics is dropped."""
    return module.apply(params, *inputs, mutable="batch_stats")[0]


def build(name: str) -> Case:
    """The case of a family."""
    family, widths, rules, units = FAMILIES[name]
    inputs = tokens(2, 6, words=WORDS) if name == "transformer" else images(2, 8, 8, 3)
    params = draw(jax.eval_shape(family(widths).init, jax.random.key(0), inputs))
    return Case(
        fn=partial(call, family(widths)),
        params=params,
        inputs=(inputs,),
        expected=table(params, rules),
        units=units,
        rebuild=lambda small: partial(call, family({n: width_of(n, small) for n in widths})),
    )


CASES = Cases({name: functools.cache(partial(build, name)) for name in FAMILIES})
