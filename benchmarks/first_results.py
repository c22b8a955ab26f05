"""A ticket of 5 % of the weights from one run: is it as good as the dense network?

    python -m benchmarks.first_results --data-dir DIR [--epochs 10] [--seeds 5] [--density 0.05]

LeNet-300-100 on the whole MNIST training set, `dl.dessilbi` with λ automatic. For each seed, on
the test images: dense SGD with momentum; DessiLBI's dense weights W; W projected on the support
of Γ without any retraining; the ticket retrained from the same initialisation for the dense
run's epochs; and a random ticket with the same density in each layer, retrained likewise. The
setting (ν, placement, the moment `at`) was chosen on held-out images by `benchmarks.placement`.
Stops and goes on where it was.
"""

import argparse
import functools
import time
from typing import Any

import jax
import numpy as np

import dessilbi_jax as dl
from benchmarks.harness import cells
from benchmarks.harness.results import RESULTS, spread, write
from benchmarks.harness.work import Setting, Work
from benchmarks.placement import PEAK, selecting

COST = {"cpu": "10 minutes on two cores"}


def run(args: Any, setting: Setting, seed: int) -> dict[str, Any]:
    work = Work(setting, seed, args.data_dir)
    dense = work.train(work.sgd())
    path = dl.SolutionPath()
    params, _, state = work.train(
        selecting(work, args.nu, args.density, args.variant, args.at), every=work.steps(1),
        watch=lambda step, params, stats, state: path.record(step, state),
    )  # fmt: skip
    ticket = path.ticket(density=args.density)
    mask = ticket.mask(params)
    # Not `masks.random_like`: the biases, all kept, are drawn over too, and a seed's mask is then
    # the one of the results that are there already.
    draw = np.random.default_rng(seed)
    other = jax.tree.map(lambda m: draw.permuted(np.ravel(m)).reshape(m.shape), mask)
    return {
        "seed": seed,
        "density_of_gamma": float(path.density()[-1]),
        "density_of_ticket": ticket.density,
        "density_by_layer": {p: float(np.mean(ticket.masks[p])) for p in ticket.structured},
        "lam": float(dl.get_state(state).lam),
        "dense": work.accuracy(dense.params),
        "dessilbi_dense": work.accuracy(params),
        "projected": work.accuracy(dl.project(params, dl.support(state))),
        "retrained": work.accuracy(work.retrained(mask).params),
        "random": work.accuracy(work.retrained(other).params),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--nu", type=float, default=20.0)
    parser.add_argument("--variant", choices=["paper", "toolbox"], default="toolbox")
    parser.add_argument("--at", type=float, default=1.0)
    args = parser.parse_args()
    started = time.time()
    setting = Setting("lenet300", "mnist", args.epochs, PEAK)
    config = {
        name: value for name, value in vars(args).items() if name not in ("data_dir", "seeds")
    }
    words = " ".join(f"{name}={value}" for name, value in config.items())
    rows = cells.run(cells.Runs(RESULTS / "first_results.jsonl"), [
        cells.Cell(f"{words} seed={seed}", functools.partial(run, args, setting, seed))
        for seed in range(args.seeds)
    ]) or []  # fmt: skip
    names = ("dense", "dessilbi_dense", "projected", "retrained", "random", "density_of_gamma")
    table = {name: spread([row[name] for row in rows]) for name in names}
    table["retrained_minus_dense"] = spread([r["retrained"] - r["dense"] for r in rows])
    table["retrained_minus_random"] = spread([r["retrained"] - r["random"] for r in rows])
    for name, value in table.items():
        print(f"{name:24s} {value['mean']:8.3f} ± {value['std']}")
    config |= {"seeds": list(range(args.seeds)), "peak": PEAK, "momentum": setting.momentum,
               "batch": setting.batch}  # fmt: skip
    print(write("first_results", {"config": config, "table": table}, started))


if __name__ == "__main__":
    main()
