"""Is the density that was asked for the density that is reached?

    python -m benchmarks.calibration --data-dir DIR

Runs `dl.auto` on a fixed list of 40 short runs that covers every pair of levels of network,
target, optimizer, ν, learning-rate schedule and placement at least once, and reports reached
over asked. Stops and goes on where it was.
"""

import argparse
import functools
import itertools
import time
from typing import Any

import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness import cells
from benchmarks.harness.results import RESULTS, write
from benchmarks.harness.work import Setting, Work

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


def schedule(name: str, peak: float, steps: int) -> Any:
    if name == "constant":
        return peak
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    return optax.piecewise_constant_schedule(peak, {steps // 2: 0.1})


def execute(run: dict[str, Any], data_dir: str, seed: int) -> dict[str, Any]:
    network, (kind, asked) = run["network"], run["target"]
    steps, peak = STEPS[network], PEAK[run["optimizer"]]
    setting = Setting(network, NETWORKS[network], epochs=1, rate=peak, batch=BATCH[network])
    work = Work(setting, seed, data_dir)
    rate = schedule(run["schedule"], peak, steps)
    settings: dict[str, Any] = {"nu": run["nu"]}
    if kind == "weights":
        settings |= {"structure": dl.weights, "lam": dl.auto(density=asked, steps=steps)}
    else:  # convolution kernels by filter, dense kernels dense
        settings |= {
            "structure": dl.filters.replace(dense=None),
            "lam": dl.auto(group_density=asked, steps=steps),
        }
    if run["optimizer"] == "adam":
        tx = optax.chain(
            optax.scale_by_adam(),
            dl.add_split_lbi(rate, **settings),
            optax.scale_by_learning_rate(rate),
        )
    else:
        variant = run["optimizer"].split()[1]
        tx = dl.dessilbi(rate, momentum=0.9, variant=variant, **settings)

    path = dl.SolutionPath()

    def watch(step: int, params: Any, stats: Any, state: Any) -> None:
        path.record(step, state)

    state = work.train(tx, steps=steps, watch=watch, every=steps // 2).state
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
        "estimates": [[int(s), float(v)] for s, v in zip(found.steps, found.lams, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    rows = cells.run(cells.Runs(RESULTS / "calibration.jsonl"), [
        cells.Cell(
            " ".join(f"{name}={value}" for name, value in run.items()) + f" seed={args.seed}",
            functools.partial(execute, run, args.data_dir, args.seed),
        )
        for run in runs()
    ]) or []  # fmt: skip
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
