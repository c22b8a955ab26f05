"""How fast is a network whose channels were cut out, beside the dense and the masked one?

    python -m benchmarks.latency [--seconds 40] [--networks …] [--batches 128 1]

Forward passes in evaluation mode, compiled and interleaved in one process: the dense network; the
masked one, which has the same shapes with zeros in it; and the slim one that `dl.slim` cuts. Of
every set of channels (the filters of a layer, the heads or hidden units of a block) the same
share is gone, drawn at random, so that nothing depends on training. The limit of the speed-up is
the ratio of floating-point operations; the rates of single layers at the full and the narrowed
widths say how near it a network can come on this machine.

VGG-16 is measured twice. As Flax's own layers give it, its times on a CPU say little: XLA
compiles the last three convolutions (2x2 images, 3x3 kernels) into loops tens of times slower
than the others, so that what is cut there saves more than its share, and pooling by windows is
slow for few channels. `vgg16-for-cpu` computes the same by routines that XLA has; it is the one
to hold against the bar. Resumable.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dessilbi_jax as dl
from benchmarks import networks
from benchmarks.harness.cells import Runs
from benchmarks.harness.results import RESULTS, write

COST = {"cpu": "8 minutes on two cores"}

# Share of the channels gone, and the multiple that widths are rounded up to. Where 70 % go,
# widths are odd (19, 38, 77, 154 of VGG-16), so that rounding has something to do.
CASES = ((0.5, 1), (0.75, 1), (0.7, 1), (0.7, 8))
SHARES = (0.5, 0.75)  # with the masked network beside them, and the bar
BAR = 0.6


def interleaved(
    calls: dict[str, Callable[[], Any]], seconds: float, least: int = 15, warm_up: int = 2
) -> dict[str, list[float]]:
    """Times of each call, taken in turn until the time is spent."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin, turn = time.perf_counter(), 0
    while turn < least + warm_up or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warm_up:  # the first turns touch fresh memory
                times[name].append(time.perf_counter() - start)
        turn += 1
    return times


def summary(times: list[float]) -> dict[str, Any]:
    """Median, quartiles and minimum in milliseconds."""
    low, middle, high = (1e3 * q for q in np.percentile(times, (25, 50, 75)))
    return {
        "median_ms": round(middle, 3), "quartiles_ms": [round(low, 3), round(high, 3)],
        "fastest_ms": round(1e3 * min(times), 3), "runs": len(times),
    }  # fmt: skip


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """How many times faster: of the medians, with the quartiles of the ratios turn by turn."""
    each = np.array(above) / np.array(below)
    return {
        "speed_up": round(statistics.median(above) / statistics.median(below), 3),
        "quartiles": [round(float(q), 3) for q in np.percentile(each, (25, 75))],
        "of_fastest": round(min(above) / min(below), 3),
    }


def masks(groups: dl.ChannelGroups, share: float, seed: int) -> dict[str, np.ndarray]:
    """Masks of all that makes channels, with the same share of every set gone."""
    draw = np.random.default_rng(seed)
    gone = np.zeros(groups.count + 1, bool)  # one more for positions of no group, −1
    for each in groups.sets:
        out = min(round(share * len(each.groups)), len(each.groups) - 1)
        gone[draw.choice(each.groups, out, replace=False)] = True
    kept = {path: np.ones(shape, bool) for path, shape in groups.shapes.items()}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) not in groups.reads:
            kept[path][(slice(None),) * axis + (gone[numbers],)] = False
    return kept


def compiled(model: Any, x: jax.Array) -> tuple[Any, Any]:
    """A compiled function of the network's arrays and inputs like x, and the arrays."""
    graph, arrays = nnx.split(model)
    run = jax.jit(lambda arrays, x: nnx.merge(graph, arrays)(x))
    return run.lower(arrays, x).compile(), arrays


def measure(name: str, batch: int, seconds: float, seed: int) -> dict[str, Any]:
    """The network at one batch size: dense, and masked and slim at every share."""
    load = os.getloadavg()[0]
    model = networks.build(name, seed)
    one, x = networks.inputs(name, 1, seed), networks.inputs(name, batch, seed)
    groups = dl.channel_groups(model, one)
    run, arrays = compiled(model, x)
    calls: dict[str, Callable[[], Any]] = {"dense": lambda: run(arrays, x)}
    cases: dict[str, Any] = {}
    slow = name == "vgg16" and batch > 1  # the dense network takes many seconds
    for share, multiple in CASES[:2] if slow else CASES:
        key = f"{share:.0%} gone" + (f", multiples of {multiple}" if multiple > 1 else "")
        plan = groups.plan(masks(groups, share, seed), multiple, nnx.to_pure_dict(arrays))
        small = dl.slim(model, plan, one, check=False)  # held against the masked one below
        slim_run, slim_arrays = compiled(small.model, x)
        masked = dl.project(arrays, plan.mask(arrays))
        calls[f"slim {key}"] = functools.partial(slim_run, slim_arrays, x)
        expected, got = np.asarray(run(masked, x)), np.asarray(slim_run(slim_arrays, x))
        if share in SHARES and not (slow and share > 0.5):
            calls[f"masked {key}"] = functools.partial(run, masked, x)
        cases[key] = {
            "share": share, "round_to": multiple, "parameters": list(small.params),
            "flops_of_one_input": list(small.flops),
            "limit": round(small.flops[0] / small.flops[1], 3),
            "slim_minus_masked": float(np.abs(got - expected).max() / np.abs(expected).max()),
        }  # fmt: skip
    times = interleaved(calls, seconds, *((3, 1) if slow else (15, 2)))
    for key, case in cases.items():
        case["slim"] = summary(times[f"slim {key}"])
        case |= ratio(times["dense"], times[f"slim {key}"])
        case["share_of_limit"] = round(case["speed_up"] / case["limit"], 3)
        if f"masked {key}" in times:
            case["masked"] = summary(times[f"masked {key}"])
            case["masked_speed_up"] = ratio(times["dense"], times[f"masked {key}"])["speed_up"]
    rate = groups.flops() * batch / statistics.median(times["dense"]) / 1e9
    return {
        "network": name, "batch": batch, "seed": seed, "load": [round(load, 1), os.cpu_count()],
        "groups": groups.count, "dense": summary(times["dense"]) | {"gflops": round(rate, 1)},
        "cases": cases,
    }  # fmt: skip


def layer(side: int, into: int, out: int, batch: int) -> Callable[[], Any]:
    """A 3x3 convolution with normalisation in evaluation mode and ReLU, as the networks have."""
    draw = np.random.default_rng(0)
    x, kernel, scale, bias = (
        jnp.asarray(draw.normal(size=shape), jnp.float32)
        for shape in ((batch, side, side, into), (3, 3, into, out), (out,), (out,))
    )

    def forward(x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return jax.nn.relu(y * scale + bias)

    run = jax.jit(forward).lower(x, kernel, scale, bias).compile()
    return lambda: run(x, kernel, scale, bias)


def rates(batch: int, seconds: float) -> dict[str, Any]:
    """The rate of ResNet-56's layers at full, half and quarter width, and what follows for it."""
    stages = ((32, 16), (16, 32), (8, 64))
    sizes = [(side, width // part) for side, width in stages for part in (1, 2, 4)]
    times = interleaved(
        {f"{side} {width}": layer(side, width, width, batch) for side, width in sizes}, seconds
    )
    rows = {}
    for side, width in sizes:
        row = summary(times[f"{side} {width}"])
        row["gflops"] = round(18 * (side * width) ** 2 * batch / row["median_ms"] / 1e6, 2)
        rows[f"{side}x{side}, {width} to {width} channels"] = row

    def total(part: int, of: Callable[[list[float]], float]) -> float:
        """Time of as many layers of each kind as of the others, as ResNet-56 has them."""
        return sum(of(times[f"{side} {width // part}"]) for side, width in stages)

    follows = {
        f"{gone:.0%} gone": {
            name: round(total(1, of) / total(part, of), 3)
            for name, of in (("speed_up", statistics.median), ("of_fastest", min))
        }
        for gone, part in ((0.5, 2), (0.75, 4))
    }
    return {"batch": batch, "layers": rows, "speed_up_that_follows": follows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=networks.NAMES,
                        default=list(networks.NAMES))  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1])
    parser.add_argument("--seconds", type=float, default=40.0, help="for each row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    runs = Runs(RESULTS / "latency.jsonl")
    rows, layers = [], {}
    for batch in args.batches:
        key = f"layers batch={batch} seconds={args.seconds}"
        layers[str(batch)] = runs.get(key, functools.partial(rates, batch, args.seconds / 3))
        for name in args.networks:
            key = f"{name} batch={batch} seconds={args.seconds} seed={args.seed}"
            make = functools.partial(measure, name, batch, args.seconds, args.seed)
            rows.append(runs.get(key, make))
            jax.clear_caches()
    for row in rows:
        print(f"{row['network']}, batch {row['batch']}: dense {row['dense']['median_ms']:.2f} ms, "
              f"{row['dense']['gflops']} GFLOP/s")  # fmt: skip
        for key, case in row["cases"].items():
            print(f"  {key:25s} slim {case['slim']['median_ms']:9.2f} ms  {case['speed_up']:6.2f} x"
                  f"  limit {case['limit']:6.2f}  reached {case['share_of_limit']:.2f}  masked "
                  f"{case.get('masked_speed_up', '-'):>5} x  outputs differ by "
                  f"{case['slim_minus_masked']:.0e}")  # fmt: skip
    missed = [
        f"{row['network']}, {key}: {case['share_of_limit']}"
        for row in rows
        for key, case in row["cases"].items()
        if row["batch"] == 128 and row["network"] != "resnet56"
        and case["share"] in SHARES and case["share_of_limit"] < BAR
    ]  # fmt: skip
    print(f"below {BAR} of the limit at batch 128: {missed or 'none'}")
    spent = sum(row["seconds"] for row in [*rows, *layers.values()])  # also in earlier sittings
    result = {
        "seconds": round(spent, 1),
        "bar": BAR,
        "below_the_bar": missed,
        "networks": rows,
        "layers": layers,
    }
    print(f"written to {write('latency', result, started)}")


if __name__ == "__main__":
    main()
