"""Tickets of one DessiLBI run against iterative magnitude pruning, which needs 13 to 21 runs.

    python -m benchmarks.tickets --data-dir DIR [--epochs 10] [--seeds 5]

LeNet-300-100 on the whole MNIST training set at 6 %, 2 % and 1 % of the weights. Every mask is
retrained from the same initialisation, in the same order of batches and with the same schedule as
the dense run; accuracy is on the test images. The recipes were chosen on held-out training images
with other seeds by `benchmarks.tickets_search`. Compared are

    dessilbi            one run (toolbox placement, λ automatic), weights by |V| at its end
    dessilbi, path      the same run, weights by their entry into Γ, as `path.ticket(density=…)`
    dessilbi, twice     a second run, restricted to the ticket of the first by `keep_support`
    one-shot            the largest weights of a dense run
    decay               the largest weights of a dense run with decoupled weight decay 1/ν, which
                        is what the coupling does until Γ opens
    closed              the same run, by |V|: the integral of W where Γ never opens (λ = ∞)
    …, twice            as `dessilbi, twice`, without Γ in either run
    iterative           magnitude pruning of all kernels together with rewinding to the
                        initialisation, 20 % of what is left a round
    random              as many weights in each layer as the ticket of `dessilbi`

Search cost is what was trained before that last retraining, the same for all.
Stops and goes on where it was.
"""

import argparse
import dataclasses
import functools
import time
from typing import Any

from benchmarks import lenet300 as bench
from benchmarks import recipes
from benchmarks.harness.results import RESULTS, write
from benchmarks.placement import PEAK

ONCE = recipes.Recipe(nu=20.0, opened=0.02)
KEEP = 0.06  # the ticket of the first run that the second is restricted to
SECOND = recipes.Recipe(nu=10.0, opened=0.01)
CLOSED = dataclasses.replace(ONCE, opened=0.0)
DENSITIES = tuple(recipes.ROUNDS)
METHODS = (
    "dessilbi", "dessilbi, path", "dessilbi, twice", "one-shot", "decay", "decay, twice", "closed",
    "closed, twice", "iterative", "random",
)  # fmt: skip
RIVALS = (
    "iterative",
    "decay",
    "closed",
    "decay, twice",
    "closed, twice",
)  # paired differences to these
# Multiply-adds of the three kernels, each 2 FLOPs, once forward and twice backward.
FLOPS_AN_IMAGE = 6 * (784 * 300 + 300 * 100 + 100 * 10)


def masks_of(work: recipes.Work, method: str, shared: dict[str, Any]) -> dict[float, Any]:
    """The mask of each density; `shared` holds what several methods of a seed use."""
    if method == "iterative":
        return work.iterative()
    if method == "one-shot":
        dense = work.dense()
        shared["dense"] = work.accuracy(dense, "test")
        return {d: recipes.magnitude(dense, d) for d in DENSITIES}
    name = "closed" if method.startswith(("decay", "closed")) else "once"
    if name not in shared:
        shared[name] = work.select(CLOSED if name == "closed" else ONCE)
    rank = "path" if method == "dessilbi, path" else "w" if "decay" in method else "v"
    if method.endswith("twice"):
        second = SECOND if name == "once" else dataclasses.replace(SECOND, opened=0.0)
        run = work.select(second, recipes.ranked(shared[name], KEEP, rank))
        return {d: recipes.ranked(run, d, rank) for d in DENSITIES if d < KEEP}
    masks = {d: recipes.ranked(shared[name], d, rank) for d in DENSITIES}
    if method == "random":
        return {d: bench.random_like(mask, work.seed) for d, mask in masks.items()}
    return masks


def measure(work: recipes.Work, method: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of one method and seed, and the share of each layer that its masks keep."""
    row: dict[str, Any] = {"method": method, "seed": work.seed}
    for density, mask in masks_of(work, method, shared).items():
        row[f"{density:g}"] = work.retrained(mask, "test")
        row[f"{density:g} layers"] = [round(float(m.mean()), 5) for m in recipes.kernels(mask)]
    if method == "one-shot":
        row["dense"] = shared["dense"]
    if method == "dessilbi":
        path, params, _ = shared["once"]
        row["dense"] = work.accuracy(params, "test")
        row["reached"] = float(path.density()[-1])
    return row


def runs_before(method: str, density: float) -> float:
    """Search cost in dense runs."""
    if method == "iterative":
        return recipes.ROUNDS[density]
    if method.endswith("twice"):
        return ONCE.share + SECOND.share
    return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    started = time.time()
    runs = bench.Runs(RESULTS / "tickets.jsonl")
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(args.seeds):
        work = recipes.Work.of(args.data_dir, 0, args.epochs, seed)
        shared: dict[str, Any] = {}
        for method in METHODS:
            key = f"{method} epochs={args.epochs} seed={seed}"
            make = functools.partial(measure, work, method, shared)
            rows[method].append(runs.get(key, make))

    flops = FLOPS_AN_IMAGE * work.steps(args.epochs) * bench.BATCH
    table = []
    for method in METHODS:
        for density in DENSITIES:
            name = f"{density:g}"
            if name not in rows[method][0]:
                continue
            cost = runs_before(method, density)
            values = [row[name] for row in rows[method]]
            line: dict[str, Any] = {
                "method": method,
                "density": density,
                "accuracy": bench.spread(values),
                "search_runs": cost,
                "search_epochs": cost * args.epochs,
                "search_training_flops": cost * flops,
            }
            for rival in RIVALS:
                if name not in rows[rival][0]:
                    continue
                paired = zip(values, (row[name] for row in rows[rival]), strict=True)
                line[f"minus_{rival}"] = bench.spread([a - b for a, b in paired])
                line[f"minus_{rival}"]["n"] = len(values)
            table.append(line)
            shown, gap = table[-1]["accuracy"], table[-1]["minus_iterative"]
            print(
                f"{method:18s}{density:6.2f} {shown['mean']:7.2f} ± {shown['std']}"
                f"   to iterative {gap['mean']:+.2f} ± {gap['std']}   {cost:g} runs"
            )
    result = {
        "config": {
            "epochs": args.epochs, "seeds": list(range(args.seeds)), "peak": PEAK,
            "momentum": bench.MOMENTUM, "batch": bench.BATCH, "rounds": recipes.ROUNDS,
            "once": dataclasses.asdict(ONCE), "keep": KEEP, "second": dataclasses.asdict(SECOND),
            "closed": dataclasses.asdict(CLOSED),
        },
        "dense": bench.spread([row["dense"] for row in rows["one-shot"]]),
        "dessilbi_dense": bench.spread([row["dense"] for row in rows["dessilbi"]]),
        "training_seconds": sum(row["seconds"] for part in rows.values() for row in part),
        "table": table,
    }  # fmt: skip
    print(write("tickets", result, started))


if __name__ == "__main__":
    main()
