"""How early is the winning ticket there?

    python -m benchmarks.moments --data-dir DIR [--epochs 10] [--seeds 3] [--density 0.05]

LeNet-300-100 on MNIST, one DessiLBI run a seed. At each epoch (and at two moments of the first) the
ticket is taken as it was known then: weights by |V| at that moment, and, beside it, by the order
of entry of the path truncated there, the weights not yet entered by ‖V‖/λ of then. For each:
accuracy after retraining from the same initialisation for the whole run's epochs, overlap with
the ticket of the end (Jaccard), and the accuracy of W projected on it without retraining; then,
what a run would save that stops when the tickets of two epochs in a row overlap that much. Until
λ has its first value, after a tenth of the run, nothing has an order of entry.

`--held-out` measures on held-out training images with other seeds: the rule of an early stop
is chosen there, and judged on the test images without it.
"""

import argparse
import functools
import itertools
import math
import time
from typing import Any

import numpy as np

import dessilbi_jax as dl
from benchmarks.harness import cells, masks
from benchmarks.harness.results import RESULTS, spread, write
from benchmarks.harness.work import Setting, Work
from benchmarks.placement import PEAK, selecting

COST = {"cpu": "10 minutes on two cores"}

NU = 20.0
HELD_OUT = 10_000
OTHER_SEEDS = 100  # of the runs on held-out images: from this one on
QUARTERS = 4  # records an epoch
EARLY = (1, 2)  # records of the first epoch that are looked at beside the whole epochs
RANKS = ("v", "path")
SETTLED = (0.8, 0.85, 0.9, 0.95)  # overlaps of successive epochs' tickets to stop at
GAINS = (math.inf, 3.0)  # points that the projected accuracy may still gain; 3 is TicketMonitor's


def jaccard(a: Any, b: Any) -> float:
    """Kept by both over kept by either, all kernels together."""
    pairs = [
        (np.asarray(x), np.asarray(y))
        for x, y in zip(masks.kernels(a), masks.kernels(b), strict=True)
    ]
    either = sum(int((x | y).sum()) for x, y in pairs)
    return sum(int((x & y).sum()) for x, y in pairs) / either


def tickets(path: dl.SolutionPath, params: Any, state: Any, density: float) -> dict[str, Any]:
    """The masks by each rule: the largest |V|, and, once λ is in force, the order of entry."""
    v = [np.abs(np.asarray(x)) for x in masks.kernels(dl.get_state(state).v)]
    known = {"v": masks.top(params, v, density)}
    return known | ({"path": path.ticket(density=density).mask(params)} if path.ranked else {})


def follow(
    work: Work, density: float, split: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is known at each moment of a run, as numbers, and the masks by each rule."""
    rows: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    each = work.steps(1)
    marks = {each * i // QUARTERS for i in range(1, QUARTERS + 1)}
    path = dl.SolutionPath()

    def watch(step: int, params: Any, stats: Any, state: Any) -> None:
        if (step - 1) % each + 1 not in marks:
            return
        path.record(step, state)
        if len(path) % QUARTERS and len(path) not in EARLY:
            return
        now = tickets(path, params, state, density)
        row: dict[str, Any] = {
            "epoch": round(step / each, 2),
            "opened": float(path.density()[-1]),
            "w": work.accuracy(params, split=split),
        }
        before = known[-1] if known else {}
        for rank, mask in now.items():
            projected = dl.project(params, mask)
            row[f"projected, {rank}"] = work.accuracy(projected, split=split)
            row[f"successive, {rank}"] = jaccard(mask, before[rank]) if rank in before else 0.0
        rows.append(row)
        known.append(now)

    work.train(selecting(work, NU, density), watch=watch, every=1)
    return rows, known


def measure(setting: Setting, seed: int, data_dir: str, density: float, split: Any) -> Any:
    """One run: every moment's ticket retrained, and how it overlaps with the last one."""
    work = Work(setting, seed, data_dir)
    rows, known = follow(work, density, split)
    for row, now in zip(rows, known, strict=True):
        for rank, mask in now.items():
            row[f"overlap, {rank}"] = jaccard(mask, known[-1][rank])
            again = work.retrained(mask).params
            row[f"retrained, {rank}"] = work.accuracy(again, split=split)
    return {"seed": seed, "split": split, "moments": rows}


def stopped(
    moments: list[dict[str, Any]], rank: str, settled: float, gain: float
) -> dict[str, Any]:
    """The first whole epoch with Γ open whose ticket overlaps that much with the last epoch's.

    And the projected accuracy is at most `gain` points above the best before.
    """
    name = f"retrained, {rank}"
    whole = [m for m in moments if m["epoch"] == int(m["epoch"]) and name in m]
    end, best = whole[-1], whole[0][f"projected, {rank}"]
    for there in whole[1:]:
        now = there[f"projected, {rank}"]
        close = there["opened"] and there[f"successive, {rank}"] >= settled
        if close and now - best <= gain:
            break
        best = max(best, now)
    return {
        "saved": 1 - there["epoch"] / end["epoch"],
        "to the end": there[name] - end[name],
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
    split, first, held_out = (
        ("held_out", OTHER_SEEDS, HELD_OUT) if args.held_out else ("test", 0, 0)
    )
    setting = Setting("lenet300", "mnist", args.epochs, PEAK, held_out=held_out)
    seeds = list(range(first, first + args.seeds))
    rows = cells.run(cells.Runs(RESULTS / "moments.jsonl"), [
        cells.Cell(
            f"{split} epochs={args.epochs} density={args.density:g} seed={seed}",
            functools.partial(measure, setting, seed, args.data_dir, args.density, split),
        )
        for seed in seeds
    ]) or []  # fmt: skip
    table = []
    for moments in zip(*(row["moments"] for row in rows), strict=True):
        line: dict[str, Any] = {"epoch": moments[0]["epoch"]}
        for name in moments[0]:
            if name != "epoch" and all(name in m for m in moments):
                line[name] = spread([m[name] for m in moments])
        for rank in RANKS:
            name = f"retrained, {rank}"
            if name in line:
                ends = [row["moments"][-1][name] for row in rows]
                line[f"to the end, {rank}"] = spread(
                    [m[name] - end for m, end in zip(moments, ends, strict=True)]
                )
        table.append(line)
        print({k: v["mean"] if isinstance(v, dict) else v for k, v in line.items()})
    stops = []
    for settled, rank, gain in itertools.product(SETTLED, RANKS, GAINS):
        found = [stopped(row["moments"], rank, settled, gain) for row in rows]
        rule = {"settled": settled, "rank": rank, "gain": None if gain == math.inf else gain}
        stops.append(rule | {name: spread([f[name] for f in found]) for name in found[0]})
        print({k: v["mean"] if isinstance(v, dict) else v for k, v in stops[-1].items()})
    config = {"epochs": args.epochs, "seeds": seeds, "density": args.density, "split": split,
              "nu": NU, "peak": PEAK, "momentum": setting.momentum,
              "batch": setting.batch}  # fmt: skip
    name = "moments_held_out" if args.held_out else "moments"
    print(write(name, {"config": config, "table": table, "stops": stops}, started))


if __name__ == "__main__":
    main()
