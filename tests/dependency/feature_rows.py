"""Features of networks and how many of their channels can go: the table of docs/channels.md."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import networks_equinox
import networks_linen
import networks_nnx
import test_framework_features as features
import test_means as means
import test_operations as operations
from flax import nnx

EXACT, APPROXIMATE, REFUSED = "exact", "approximate, opt-in", "refused"
Made = tuple[Any, ...]  # a function with its parameters, or a module; and the inputs


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        feature: what the network has.
        framework: what it is written in.
        make: (function or module, parameters or None, inputs).
        removable: channel groups that are found.
        of: those that one would hope for.
        kind: exact, approximate or refused.
        why: part of a reason, where some are refused.
    """

    feature: str
    framework: str
    make: Callable[[], Made]
    removable: int
    of: int
    kind: str = EXACT
    why: str = ""

    def __str__(self) -> str:
        kind = self.kind + (f": {self.why}" if self.why else "")
        return f"| {self.feature} | {self.framework} | {self.removable} of {self.of} | {kind} |"


def _case(cases: dict[str, Any], name: str) -> Callable[[], Made]:
    return lambda: cases[name][:3]


def _family(module: Any, name: str) -> Callable[[], Made]:
    def make() -> Made:
        case = module.CASES[name]()
        return case.fn, case.params, case.inputs

    return make


def _plain(net: Callable[..., Any]) -> Callable[[], Made]:
    r = means.r
    params = {"a": r(0, 5, 8), "b": r(1, 5, 8), "o": r(2, 8, 3)}
    return lambda: (net, params, (r(3, 4, 5),))


def _weight_norm(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return h @ (p["o"] / jnp.sqrt((p["o"] ** 2).sum(0)))


def _cell(kind: Any) -> Callable[[], Made]:
    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.rnn = nnx.RNN(kind(5, 8, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(self.rnn(x)[:, -1])

    return lambda: (Net(), None, (means.r(0, 2, 4, 5),))


_NORM = means.NORMS["scale behind"]
ROWS = [
    *(
        Row(feature, framework, _family(module, name), n, n)
        for framework, module in (
            ("Flax NNX", networks_nnx), ("Flax Linen", networks_linen),
            ("Equinox", networks_equinox),
        )
        for feature, name, n in (
            ("residual sums, batch normalisation", "resnet", 36),
            ("concatenated features", "densenet", 26),
            ("depthwise convolutions", "mobilenet", 36),
            ("heads and hidden units of a transformer", "transformer", 30),
        )
    ),
    Row("grouped-query attention of the framework", "Flax NNX",
        lambda: (features.Attending(2), None, (means.r(0, 2, 5, 6),)), 34, 34),
    Row("recurrent cells (LSTM)", "Flax NNX", _cell(nnx.OptimizedLSTMCell), 8, 8),
    Row("recurrent cells (GRU)", "Flax NNX", _cell(nnx.GRUCell), 8, 8),
    Row("layer normalisation over the residual stream", "Flax NNX",
        lambda: (means.Normalised(), None, (means.IDS,)), 12, 28, REFUSED,
        "reduced over, all positions together, by reduce_sum"),
    Row("the same with `approximate=True`", "Flax NNX",
        lambda: (means.Normalised(), None, (means.IDS,)), 28, 28, APPROXIMATE),
    Row("root-mean-square normalisation over the residual stream", "functions",
        lambda: means.language_model(_NORM), 20, 20),
    Row("the same with a tied embedding", "functions",
        lambda: means.language_model(_NORM, tied=True), 20, 20),
    Row("the same, layers stacked in a scan", "functions", _case(means.CASES, "rms, stacked"),
        20, 20),
    Row("fused grouped-query projection, unequal cuts", "functions",
        _case(means.CASES, "grouped queries"), 2, 2),
    Row("Mamba-2: one projection cut into five", "functions",
        _case(means.CASES, "state space"), 4, 4),
    Row("gate and values joined in the code", "functions",
        _case(operations.CASES, "joined kernels"), 8, 8),
    Row("kernel with a merged low-rank adapter", "functions",
        _case(operations.CASES, "low rank"), 12, 12),
    Row("dot products of two towers", "functions", _case(means.CASES, "siamese, products"),
        14, 14),
    Row("cosine similarity", "functions", _case(means.CASES, "siamese, cosines"), 14, 14),
    Row("quantised activations (largest magnitude)", "functions", _case(means.CASES, "quantised"),
        8, 8),
    Row("global response normalisation", "functions", _case(means.CASES, "responses"), 8, 8),
    Row("blur pooling with a constant kernel", "functions", _case(operations.CASES, "blur, numpy"),
        11, 11),
    Row("channel shuffle", "functions", _case(operations.CASES, "shuffle"), 4, 4),
    Row("interleaved halves `h[..., ::2]`", "functions", _case(operations.CASES, "interleaved"),
        10, 10),
    Row("dense layer to image, then by channel", "functions",
        _case(operations.CASES, "decoder, norm"), 8, 8),
    Row("ensemble by `vmap`", "functions", _case(operations.CASES, "ensemble"), 10, 10),
    Row("messages by `segment_sum`", "functions", _case(operations.CASES, "segment_sum"), 14, 14),
    Row("experts by `ragged_dot`", "functions", _case(operations.CASES, "experts"), 14, 14),
    Row("experts by kernels chosen by index", "functions",
        lambda: (features.chosen, {
            "router": means.r(0, 5, 3), "up": means.r(1, 3, 5, 8), "bias": means.r(2, 3, 8),
            "down": means.r(3, 3, 8, 4)}, (means.r(4, 7, 5),)), 8, 8),
    Row("Fourier transform over time", "functions", _case(operations.CASES, "spectral"), 8, 8),
    Row("batches parted among devices (`shard_map`)", "functions",
        lambda: features.on_devices(False), 14, 14),
    Row("hidden units parted among devices", "functions", lambda: features.on_devices(True),
        6, 14, REFUSED, "parted among devices"),
    Row("Fourier transform over channels", "functions",
        _plain(lambda p, x: jnp.abs(jnp.fft.rfft(x @ p["a"]))), 0, 8, REFUSED,
        "transformed as a whole by a Fourier transform"),
    Row("softmax over channels", "functions",
        _plain(lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["o"]), 0, 8, REFUSED,
        "reduced over, all positions together, by reduce_max"),
    Row("sorting or the largest k over channels", "functions",
        _plain(lambda p, x: jnp.sort(x @ p["a"]) @ p["o"]), 0, 8, REFUSED, "sorted"),
    Row("weights normalised over the inputs of a layer", "functions", _plain(_weight_norm), 0, 8,
        REFUSED, "reduced over, all positions together, by reduce_sum"),
    Row("scores divided by the root of a width", "functions",
        _plain(lambda p, x: jax.nn.softmax((x @ p["a"]) @ (x @ p["b"]).T
                                           / p["a"].shape[1] ** 0.5) @ x),
        0, 8, REFUSED, "summed over between two activations"),
]  # fmt: skip
