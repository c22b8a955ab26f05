"""How early is the winning ticket there?

    python -m benchmarks.moments --data-dir DIR [--epochs 10] [--seeds 3] [--density 0.05]

LeNet-300-100 on MNIST, one DessiLBI run a seed. At each epoch (and at two moments of the first) the
ticket is taken as it was known then: weights by |V| at that moment, and, beside it, by the order
of entry of the path truncated there, the weights not yet entered by ‖V‖/λ of then. For each:
accuracy after retraining from the same initialisation for the whole run's epochs, overlap with
the ticket of the end (Jaccard), and the accuracy of W projected on it without retraining; then,
what a run would save that stops when the tickets of two epochs in a row overlap that much.

`--held-out` measures on held-out training images with other seeds: the rule of an early stop
is chosen there, and judged on the test images without it.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import time
from typing import Any

import numpy as np

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks import recipes
from benchmarks.harness.results import RESULTS, write
from benchmarks.placement import PEAK

QUARTERS = 4  # records an epoch
EARLY = (1, 2)  # records of the first epoch that are looked at beside the whole epochs
RANKS = ("v", "path")
SETTLED = (0.8, 0.85, 0.9, 0.95)  # overlaps of successive epochs' tickets to stop at
GAINS = (math.inf, 3.0)  # points that the projected accuracy may still gain; 3 is TicketMonitor's


def jaccard(a: Any, b: Any) -> float:
    """Kept by both over kept by either, all kernels together."""
    pairs = [
        (np.asarray(x), np.asarray(y))
        for x, y in zip(recipes.kernels(a), recipes.kernels(b), strict=True)
    ]
    either = sum(int((x | y).sum()) for x, y in pairs)
    return sum(int((x & y).sum()) for x, y in pairs) / either


def follow(
    work: recipes.Work, recipe: recipes.Recipe, density: float, split: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is known at each moment of a run, as numbers, and the masks by each rule."""
    rows: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    every = work.steps(1)

    def watch(step: int, params: Any, state: Any, path: dl.SolutionPath) -> None:
        if len(path) % QUARTERS and len(path) not in EARLY:
            return
        now = {rank: recipes.ranked((path, params, state), density, rank) for rank in RANKS}
        row: dict[str, Any] = {
            "epoch": round(step / every, 2),
            "opened": float(path.density()[-1]),
            "w": work.accuracy(params, split),
        }
        for rank, mask in now.items():
            projected = dl.project(params, mask)
            row[f"projected, {rank}"] = work.accuracy(projected, split)
            row[f"successive, {rank}"] = jaccard(mask, masks[-1][rank]) if masks else 0.0
        rows.append(row)
        masks.append(now)

    work.select(recipe, watch=watch)
    return rows, masks


def measure(work: recipes.Work, recipe: recipes.Recipe, density: float, split: str) -> Any:
    """One run: every moment's ticket retrained, and how it overlaps with the last one."""
    rows, masks = follow(work, recipe, density, split)
    for row, now in zip(rows, masks, strict=True):
        for rank in RANKS:
            row[f"overlap, {rank}"] = jaccard(now[rank], masks[-1][rank])
            row[f"retrained, {rank}"] = work.retrained(now[rank], split)
    return {"seed": work.seed, "split": split, "moments": rows}


def stopped(
    moments: list[dict[str, Any]], rank: str, settled: float, gain: float
) -> dict[str, Any]:
    """The first whole epoch with Γ open whose ticket overlaps that much with the last epoch's.

    And the projected accuracy is at most `gain` points above the best before.
    """
    whole = [m for m in moments if m["epoch"] == int(m["epoch"])]
    end, best = whole[-1], whole[0][f"projected, {rank}"]
    for there in whole[1:]:
        now = there[f"projected, {rank}"]
        close = there["opened"] and there[f"successive, {rank}"] >= settled
        if close and now - best <= gain:
            break
        best = max(best, now)
    return {
        "saved": 1 - there["epoch"] / end["epoch"],
        "to the end": there[f"retrained, {rank}"] - end[f"retrained, {rank}"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--held-out", action="store_true")
    args = parser.parse_args()
    started = time.time()
    recipe = recipes.Recipe(nu=20.0, opened=args.density)
    split, first, held_out = (
        ("held_out", recipes.OTHER_SEEDS, recipes.HELD_OUT) if args.held_out else ("test", 0, 0)
    )
    runs = bench.Runs(RESULTS / "moments.jsonl")
    seeds = list(range(first, first + args.seeds))
    rows = []
    for seed in seeds:
        work = recipes.Work.of(args.data_dir, held_out, args.epochs, seed)
        key = f"{split} epochs={args.epochs} density={args.density:g} seed={seed}"
        make = functools.partial(measure, work, recipe, args.density, split)
        rows.append(runs.get(key, make))
    table = []
    for moments in zip(*(row["moments"] for row in rows), strict=True):
        line = {"epoch": moments[0]["epoch"]}
        for name in moments[0]:
            if name != "epoch":
                line[name] = bench.spread([m[name] for m in moments])
        for rank in RANKS:
            line[f"to the end, {rank}"] = bench.spread([
                m[f"retrained, {rank}"] - row["moments"][-1][f"retrained, {rank}"]
                for m, row in zip(moments, rows, strict=True)
            ])  # fmt: skip
        table.append(line)
        print({k: v["mean"] if isinstance(v, dict) else v for k, v in line.items()})
    stops = []
    for settled, rank, gain in itertools.product(SETTLED, RANKS, GAINS):
        found = [stopped(row["moments"], rank, settled, gain) for row in rows]
        rule = {"settled": settled, "rank": rank, "gain": None if gain == math.inf else gain}
        stops.append(rule | {name: bench.spread([f[name] for f in found]) for name in found[0]})
        print({k: v["mean"] if isinstance(v, dict) else v for k, v in stops[-1].items()})
    config = {"epochs": args.epochs, "seeds": seeds, "density": args.density, "split": split,
              "recipe": dataclasses.asdict(recipe), "peak": PEAK, "momentum": bench.MOMENTUM,
              "batch": bench.BATCH}  # fmt: skip
    name = "moments_held_out" if args.held_out else "moments"
    print(write(name, {"config": config, "table": table, "stops": stops}, started))


if __name__ == "__main__":
    main()
