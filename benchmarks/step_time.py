"""One training step of LeNet-5 and ResNet-20 on a CPU, against the same networks in PyTorch.

    python -m benchmarks.step_time [--batch-size 128] [--rounds 31] [--threads 2]

A step is forward pass, backward pass and update at one batch, by SGD with momentum 0.9 or by
DessiLBI, in a process of its own for each rival; they take turns step by step, so that the ratios
hold when the machine's speed drifts. Medians and minima are reported, over PyTorch's with the
channels last, its faster layout. "kept" are processes that keep their memory
(`train/devices/allocator.py`), which `dessilbi train` does and PyTorch by itself does not; both
stand here in both ways. PyTorch's OpenMP threads wait for each other busily: on a machine that does
other work its times grow far more than JAX's, so run this on a quiet one.

`loop_overhead` is what the host does for a step of ResNet-20 in `train.fit`, whatever the batch:
the time from one step of its loop to the next where the compiled step takes and returns the same
state and computes nothing; records are left out, the loop's looks at the loss are not. In a run
most of it passes while the device works. The mean is larger than the median because checkpoints
are being written beside the first steps of an epoch.

Needs PyTorch.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from benchmarks.harness.results import write
from dessilbi_jax import models, train
from dessilbi_jax.models import _common
from dessilbi_jax.train import loop
from dessilbi_jax.train.devices.allocator import keep_memory
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.step import first_state, make_step, split_network

COST = {"cpu": "6 minutes on two cores, PyTorch in a process of its own"}

_INPUTS = {"lenet5": (28, 28, 1), "resnet20": (32, 32, 3)}
_ENV = {"JAX_PLATFORMS": "cpu"}
_PAUSE = 0.05  # seconds
AGAINST = "torch, channels last"
Step = Callable[[], None]


def torch_or_exit() -> Any:
    """The torch module, or the end of the program with what to do."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise SystemExit(
            "this benchmark compares with PyTorch, which is not installed: pip install torch"
        ) from error
    return torch


def torch_network(torch: Any, name: str) -> Any:
    """The network as `dessilbi_jax.models` has it, in PyTorch."""
    nn = torch.nn
    if name == "lenet5":
        return nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip

    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> Any:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    base: Any = nn.Module

    class Block(base):  # type: ignore[misc, unused-ignore]
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
            self.shortcut = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Any) -> Any:
            y = self.second(torch.relu(self.first(x)))
            return torch.relu(y + self.shortcut(x))

    layers, inputs = [conv(3, 16, 3), nn.ReLU()], 16
    for outputs in (16, 32, 64):
        for block in range(3):
            layers.append(Block(inputs, outputs, 2 if block == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def torch_step(torch: Any, name: str, x: np.ndarray, y: np.ndarray, last: bool) -> Step:
    """A step in PyTorch; `last` keeps images with the channels last."""
    network = torch_network(torch, name).train()
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(y.astype(np.int64))
    if last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def jax_step(
    name: str, x: np.ndarray, y: np.ndarray, tx: optax.GradientTransformation, xla: bool
) -> Step:
    """A step as `dessilbi train` takes it; `xla` has XLA's convolutions and plain pooling."""
    model = models.build(name)
    pool: Any = _common.max_pool
    if xla:
        pool = pool.fun  # differentiated by JAX
        for _, layer in nnx.iter_graph(model):
            if isinstance(layer, nnx.Conv):
                layer.conv_general_dilated = jax.lax.conv_general_dilated
    network, params, stats = split_network(model, [0.0], [1.0])
    given = (jnp.asarray(x), jnp.asarray(y))
    state = first_state(params, stats, tx)
    take = make_step(network, tx, lambda given, _: given)

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(take(state, given))

    with unittest.mock.patch.object(_common, "max_pool", pool):
        step()  # traced here
    return step


# Name: what takes the step, and whether its process keeps its memory.
RIVALS = {
    "dessilbi train": ("dessilbi", True),
    "dessilbi train, SGD": ("sgd", True),
    "the same, XLA's forms": ("xla", True),
    "plain JAX, SGD": ("xla", False),
    "torch": ("torch", False),
    "torch, channels last": ("torch last", False),
    "torch, kept": ("torch", True),
    "torch, channels last, kept": ("torch last", True),
}


def make(kind: str, name: str, batch: int, threads: int) -> Step:
    """The step of a rival."""
    rng = np.random.default_rng(0)
    # Bytes, which every step scales.
    x = rng.integers(0, 256, (batch, *_INPUTS[name])).astype(np.float32)
    y = rng.integers(0, 10, batch).astype(np.int32)
    if kind.startswith("torch"):
        torch = torch_or_exit()
        torch.set_num_threads(threads)
        return torch_step(torch, name, x / 255, y, last=kind.endswith("last"))
    tx: optax.GradientTransformation = optax.sgd(0.01, momentum=0.9)
    if kind == "dessilbi":
        tx = dl.dessilbi(0.01, lam=0.05, nu=100.0, momentum=0.9)
    return jax_step(name, x, y, tx, xla=kind == "xla")


def serve(words: Sequence[str]) -> None:
    """A rival's process: takes a step for each line it reads, and answers with the seconds."""
    kind, name, batch, threads, kept = words
    if kept == "kept":
        keep_memory()
    step = make(kind, name, int(batch), int(threads))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


class Rival:
    """A process that takes steps when it is told to."""

    def __init__(self, kind: str, name: str, batch: int, threads: int, kept: bool) -> None:
        words = [kind, name, str(batch), str(threads), "kept" if kept else "default"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_time", "--serve", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | _ENV,
        )  # fmt: skip
        if self._line() != "ready":
            raise RuntimeError(f"the process of {kind!r} ended with {self._process.wait()}")

    def step(self) -> float:
        """The seconds of a step."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def measure(name: str, batch: int, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Times of all rivals at one network."""
    rivals = {key: Rival(kind, name, batch, threads, kept) for key, (kind, kept) in RIVALS.items()}
    times: dict[str, list[float]] = {key: [] for key in rivals}
    for turn in range(rounds + 2):
        for key, rival in rivals.items():
            seconds = rival.step()
            if turn >= 2:  # the first turns touch fresh memory
                times[key].append(seconds)
            time.sleep(_PAUSE)  # until PyTorch's threads have stopped waiting
    for rival in rivals.values():
        rival.end()
    medians = {key: statistics.median(values) for key, values in times.items()}
    least = {key: min(values) for key, values in times.items()}
    return {
        key: {
            "median_ms": round(1e3 * medians[key], 2),
            "least_ms": round(1e3 * least[key], 2),
            "over_torch": round(medians[key] / medians[AGAINST], 3),
            "least_over_torch": round(least[key] / least[AGAINST], 3),
        }
        for key in rivals
    }


def loop_overhead(step_ms: float, epochs: int = 4) -> dict[str, float]:
    """Host time a step of a run's loop, with nothing computed, and its part of the step."""
    times: list[float] = []

    class Clock(Progress):
        """Looks at the time once a step, leaving out the first epoch and what each ends with."""

        begun, last = False, 0.0

        def due(self) -> bool:
            if self.last:
                times.append(time.perf_counter() - self.last)
            self.last = time.perf_counter() if self.begun else 0.0
            return False

        def epoch(self, line: dict[str, Any], epochs: int) -> None:
            self.begun, self.last = True, 0.0

    def idle(*args: Any, **kw: Any) -> Any:
        return jax.jit(lambda state, given: state._replace(step=state.step + 1), donate_argnums=0)

    config = train.TrainConfig(
        network="resnet20", dataset="digits", batch_size=8, epochs=epochs, learning_rate=0.1,
        density=0.3,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out, unittest.mock.patch.object(loop, "make_step", idle):
        train.fit(config, out, progress=Clock(io.StringIO(), lines=False))
    host_ms = 1e3 * statistics.mean(times)
    return {
        "steps": len(times),
        "mean_ms": round(host_ms, 3),
        "median_ms": round(1e3 * statistics.median(times), 3),
        "part_of_step": round(host_ms / step_ms, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; XLA takes all cores")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)  # what the processes run
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    torch = torch_or_exit()
    started = time.time()
    result: dict[str, Any] = {
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "threads": args.threads,
        "torch": torch.__version__,
        "load_at_start": round(os.getloadavg()[0], 2),
        "networks": {},
    }
    for name in _INPUTS:
        table = measure(name, args.batch_size, args.rounds, args.threads)
        result["networks"][name] = table
        print(name)
        for key, row in table.items():
            print(
                f"  {key:26s} {row['median_ms']:8.1f} ms  {row['over_torch']:.2f} x torch  "
                f"least {row['least_ms']:8.1f} ms  {row['least_over_torch']:.2f} x torch",
                flush=True,
            )
    overhead = loop_overhead(result["networks"]["resnet20"]["dessilbi train"]["median_ms"])
    result["loop_overhead"] = overhead
    print(
        f"loop: {overhead['mean_ms']:.1f} ms a step, {100 * overhead['part_of_step']:.1f} % of it"
    )
    print(f"written to {write('step_time', result, started)}")


if __name__ == "__main__":
    main()
