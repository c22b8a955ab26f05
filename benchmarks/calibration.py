"""Is the density that was asked for the density that is reached?

    python -m benchmarks.calibration --data-dir DIR

Runs `lam="auto"` on a fixed list of 40 short runs that covers every pair of levels of network,
target, optimizer, ν, learning-rate schedule and placement at least once, and reports reached
over asked. Stops and goes on where it was.
"""

import argparse
import functools
import itertools
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks.harness.results import RESULTS, write
from dessilbi_jax import data, models

COST = {"cpu": "20 minutes on two cores"}

NETWORKS = {
    "lenet300": "mnist",
    "lenet5": "mnist",
    "vgg-small": "cifar10",
    "resnet-small": "cifar10",
}
TARGETS = [("weights", d) for d in (0.02, 0.05, 0.1, 0.3)] + [("filters", d) for d in (0.3, 0.5)]
FACTORS: dict[str, list[Any]] = {
    "network": list(NETWORKS),
    "target": TARGETS,
    "optimizer": ["sgd paper", "sgd toolbox", "adam"],
    "nu": [50.0, 200.0, 500.0, 2000.0],
    "schedule": ["constant", "drop", "cosine"],
}
STEPS = {"lenet300": 500, "lenet5": 300, "vgg-small": 200, "resnet-small": 200}
BATCH = {"lenet300": 128, "lenet5": 64, "vgg-small": 32, "resnet-small": 32}
PEAK = {"sgd paper": 0.02, "sgd toolbox": 0.02, "adam": 1e-3}
RUNS = 40


def possible(run: dict[str, Any]) -> bool:
    """LeNet-300-100 has no filters."""
    return not (run["network"] == "lenet300" and run["target"][0] == "filters")


def runs() -> list[dict[str, Any]]:
    """A list that covers every possible pair of levels, found greedily with a fixed seed."""
    rng = np.random.default_rng(0)
    grid = [
        run
        for levels in itertools.product(*FACTORS.values())
        if possible(run := dict(zip(FACTORS, levels, strict=True)))
    ]

    def pairs(run: dict[str, Any]) -> set[Any]:
        return set(itertools.combinations(sorted((k, str(v)) for k, v in run.items()), 2))

    left = set().union(*map(pairs, grid))
    out: list[dict[str, Any]] = []
    while len(out) < RUNS:
        gain = np.array([len(pairs(run) & left) for run in grid]) + rng.random(len(grid)) / 2
        best = grid.pop(int(np.argmax(gain)))
        left -= pairs(best)
        out.append(best)
    assert not left, f"{len(left)} pairs are not covered by {RUNS} runs"
    return out


@functools.cache
def images(name: str, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    full = data.load(name, data_dir=data_dir)
    return np.asarray(full.normalize(full.train_images), np.float32), full.train_labels


def schedule(name: str, peak: float, steps: int) -> Any:
    if name == "constant":
        return peak
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    return optax.piecewise_constant_schedule(peak, {steps // 2: 0.1})


def execute(run: dict[str, Any], data_dir: str, seed: int) -> dict[str, Any]:
    network, (kind, asked) = run["network"], run["target"]
    steps, batch = STEPS[network], BATCH[network]
    x, y = images(NETWORKS[network], data_dir)
    model = models.build(network, input_shape=x.shape[1:], classes=10, seed=seed)
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    rate = schedule(run["schedule"], PEAK[run["optimizer"]], steps)
    settings: dict[str, Any] = {"nu": run["nu"], "lam": "auto", "steps": steps}
    if kind == "weights":
        settings |= {"structure": dl.weights, "density": asked}
    else:  # convolution kernels by filter, dense kernels dense
        settings |= {"structure": dl.filters.replace(dense=None), "group_density": asked}
    if run["optimizer"] == "adam":
        tx = optax.chain(
            optax.scale_by_adam(),
            dl.add_split_lbi(rate, **settings),
            optax.scale_by_learning_rate(rate),
        )
    else:
        variant = run["optimizer"].split()[1]
        tx = dl.dessilbi(rate, momentum=0.9, variant=variant, **settings)

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(definition, params, rest, copy=True)
        model.train()
        value = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
        return value, nnx.split(model, nnx.Param, ...)[2]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, rest: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), rest, state, value

    state = jax.jit(tx.init)(params)
    path = dl.SolutionPath()
    order = np.concatenate(
        [data.epoch_order(seed=seed, epoch=e, n=len(y), batch=batch) for e in range(2)]
    )
    for i in range(steps):
        rows = order[i]
        params, rest, state, value = step(params, rest, state, x[rows], y[rows])
        if i + 1 in (steps // 2, steps):
            path.record(i + 1, state)
    groups = {p: np.prod(shape) for p, shape in path.groups.items()}

    def reached(record: int) -> float:
        if kind == "weights":
            return float(path.density()[record])
        by_leaf = path.layer_density()
        return float(sum(by_leaf[p][record] * n for p, n in groups.items()) / sum(groups.values()))

    found = dl.get_state(state).auto
    return {
        **run,
        "steps": steps,
        "reached": reached(1),
        "reached_over_asked": reached(1) / asked,
        "half_way_over_asked": reached(0) / asked,
        "final_loss": float(value),
        "estimates": [[int(s), float(v)] for s, v in zip(found.steps, found.lams, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    table = bench.Runs(RESULTS / "calibration.jsonl")
    rows = []
    for run in runs():
        key = " ".join(f"{name}={value}" for name, value in run.items()) + f" seed={args.seed}"
        rows.append(table.get(key, lambda r=run: execute(r, args.data_dir, args.seed)))
        jax.clear_caches()
    ratio = np.array([row["reached_over_asked"] for row in rows])
    half = np.array([row["half_way_over_asked"] for row in rows])
    summary = {
        "runs": len(rows),
        "median": float(np.median(ratio)),
        "lowest": float(ratio.min()),
        "highest": float(ratio.max()),
        "share_within_20_percent": float(np.mean(np.abs(ratio - 1) <= 0.2)),
        "half_way_median": float(np.median(half)),
        "half_way_highest": float(half.max()),
    }
    print(summary)
    print(write("calibration", {"seed": args.seed, "factors": FACTORS, "summary": summary,
                                "table": rows}, started))  # fmt: skip


if __name__ == "__main__":
    main()
