"""The four families in Flax NNX, at sizes that trace and run in milliseconds."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from channel_cases import Case, Cases, draw, images, table, tokens
from flax import nnx

CLASSES, WORDS, WIDTH, HEAD = 5, 11, 16, 4
Widths = dict[str, int]


def conv(inputs: int, outputs: int, size: int = 3, **kwargs: Any) -> nnx.Conv:
    """A convolution without bias; batch normalisation stands behind it."""
    kwargs = {"use_bias": False, "rngs": nnx.Rngs(0)} | kwargs
    return nnx.Conv(inputs, outputs, (size, size), **kwargs)


class ResNet(nnx.Module):
    """An identity block, and one of stride 2 with a projection."""

    def __init__(self, widths: Widths, training: bool = False):
        w = widths
        norm = partial(nnx.BatchNorm, use_running_average=not training, rngs=nnx.Rngs(0))
        self.stem, self.stem_bn = conv(3, w["stem"]), norm(w["stem"])
        self.conv1a, self.bn1a = conv(w["stem"], w["conv1a"]), norm(w["conv1a"])
        self.conv1b, self.bn1b = conv(w["conv1a"], w["stem"]), norm(w["stem"])
        self.conv2a, self.bn2a = conv(w["stem"], w["conv2a"], strides=2), norm(w["conv2a"])
        self.conv2b, self.bn2b = conv(w["conv2a"], w["conv2b"]), norm(w["conv2b"])
        self.project = conv(w["stem"], w["conv2b"], 1, strides=2)
        self.project_bn = norm(w["conv2b"])
        self.head = nnx.Linear(w["conv2b"], CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem_bn(self.stem(x)))
        y = nnx.relu(self.bn1a(self.conv1a(x)))
        x = nnx.relu(x + self.bn1b(self.conv1b(y)))
        y = nnx.relu(self.bn2a(self.conv2a(x)))
        x = nnx.relu(self.project_bn(self.project(x)) + self.bn2b(self.conv2b(y)))
        return self.head(x.mean((1, 2)))


class DenseNet(nnx.Module):
    """Three layers that each see all before them, a transition, mean pool."""

    def __init__(self, widths: Widths):
        norm = partial(nnx.BatchNorm, use_running_average=True, rngs=nnx.Rngs(0))
        self.stem = conv(3, widths["stem"], use_bias=True)
        width = widths["stem"]
        for i in range(3):
            setattr(self, f"bn{i}", norm(width))
            setattr(self, f"conv{i}", conv(width, widths[f"conv{i}"]))
            width += widths[f"conv{i}"]
        self.bn3 = norm(width)
        self.transition = conv(width, widths["transition"], 1)
        self.head = nnx.Linear(widths["transition"], CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for i in range(3):
            new = getattr(self, f"conv{i}")(nnx.relu(getattr(self, f"bn{i}")(x)))
            x = jnp.concatenate([x, new], axis=-1)
        x = nnx.avg_pool(self.transition(nnx.relu(self.bn3(x))), (2, 2), strides=(2, 2))
        return self.head(nnx.relu(x).mean((1, 2)))


class MobileNet(nnx.Module):
    """Two inverted residuals: the first with its shortcut, the second of stride 2 without."""

    def __init__(self, widths: Widths):
        w = widths
        norm = partial(nnx.BatchNorm, use_running_average=True, rngs=nnx.Rngs(0))
        self.stem, self.stem_bn = conv(3, w["stem"], strides=2), norm(w["stem"])
        for i, (first, last) in enumerate([("stem", "stem"), ("stem", "project2")], start=1):
            inner = w[f"expand{i}"]
            setattr(self, f"expand{i}", conv(w[first], inner, 1))
            setattr(self, f"bn{i}a", norm(inner))
            depthwise = conv(inner, inner, strides=i, feature_group_count=inner)
            setattr(self, f"depthwise{i}", depthwise)
            setattr(self, f"bn{i}b", norm(inner))
            setattr(self, f"project{i}", conv(inner, w[last], 1))
            setattr(self, f"bn{i}c", norm(w[last]))
        self.head = nnx.Linear(w["project2"], CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu6(self.stem_bn(self.stem(x)))
        for i in (1, 2):
            y = nnx.relu6(getattr(self, f"bn{i}a")(getattr(self, f"expand{i}")(x)))
            y = nnx.relu6(getattr(self, f"bn{i}b")(getattr(self, f"depthwise{i}")(y)))
            y = getattr(self, f"bn{i}c")(getattr(self, f"project{i}")(y))
            x = x + y if i == 1 else y
        return self.head(x.mean((1, 2)))


class Transformer(nnx.Module):
    """Two pre-norm layers with the framework's own attention."""

    def __init__(self, widths: Widths):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((6, WIDTH)))
        for i in range(2):
            heads, units = widths[f"heads{i}"], widths[f"up{i}"]
            setattr(self, f"ln{i}a", nnx.LayerNorm(WIDTH, rngs=rngs))
            attention = nnx.MultiHeadAttention(
                heads, WIDTH, heads * HEAD, decode=False, keep_rngs=False, rngs=rngs
            )
            setattr(self, f"attention{i}", attention)
            setattr(self, f"ln{i}b", nnx.LayerNorm(WIDTH, rngs=rngs))
            setattr(self, f"up{i}", nnx.Linear(WIDTH, units, rngs=rngs))
            setattr(self, f"down{i}", nnx.Linear(units, WIDTH, rngs=rngs))
        self.ln = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids) + self.positions
        mask = nnx.make_causal_mask(ids)
        for i in range(2):
            x = x + getattr(self, f"attention{i}")(getattr(self, f"ln{i}a")(x), mask=mask)
            hidden = nnx.gelu(getattr(self, f"up{i}")(getattr(self, f"ln{i}b")(x)))
            x = x + getattr(self, f"down{i}")(hidden)
        return self.head(self.ln(x))


CONV = {"^stem/kernel": "---x", "^head/kernel": "x-", "^head/bias": "-"}
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


def call(graph: Any, state: Any, *inputs: jax.Array) -> Any:
    """The network's outputs; what it would write into its statistics is dropped."""
    return nnx.merge(graph, state)(*inputs)


def split(model: nnx.Module) -> tuple[Any, Any]:
    """The function and the parameters of a module."""
    graph, state = nnx.split(model)
    return partial(call, graph), state


def build(name: str) -> Case:
    """The case of a family."""
    family, widths, rules, units = FAMILIES[name]
    graph, shapes = nnx.split(nnx.eval_shape(lambda: family(widths)))
    state = draw(shapes)
    inputs = tokens(2, 6, words=WORDS) if name == "transformer" else images(2, 8, 8, 3)
    return Case(
        fn=partial(call, graph),
        params=state,
        inputs=(inputs,),
        expected=table(state, rules),
        units=units,
        model=nnx.merge(graph, state),
        call=lambda model, x: model(x),
        split=split,
    )


CASES = Cases({name: functools.cache(partial(build, name)) for name in FAMILIES})
