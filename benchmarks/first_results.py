"""A ticket of 5 % of the weights from one run: is it as good as the dense network?

    python -m benchmarks.first_results --data-dir DIR [--epochs 10] [--seeds 5] [--density 0.05]

LeNet-300-100 on the whole MNIST training set, `dl.dessilbi` with λ automatic. For each seed, on
the test images: dense SGD with momentum; DessiLBI's dense weights W; W projected on the support
of Γ without any retraining; the ticket retrained from the same initialisation for the dense
run's epochs; and a random ticket with the same density in each layer, retrained likewise. The
setting (ν, placement, the moment `at`) was chosen on held-out images by `benchmarks.placement`.
About 10 minutes on two cores; stops and goes on where it was.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks.harness.results import RESULTS, write
from benchmarks.placement import PEAK


def run(args: Any, seed: int) -> dict[str, Any]:
    arrays = bench.mnist(args.data_dir, 0)
    steps = args.epochs * (len(arrays["train_y"]) // bench.BATCH)
    rate = bench.learning_rate(PEAK, steps)
    definition, start = bench.initial(seed)

    def test(params: Any) -> float:
        return bench.accuracy(arrays, definition, params, "test")

    dense, _ = bench.train(
        arrays, definition, start, optax.sgd(rate, bench.MOMENTUM), args.epochs, seed
    )
    tx = dl.dessilbi(
        rate, nu=args.nu, lam="auto", density=args.density, steps=steps, at=args.at,
        momentum=bench.MOMENTUM, variant=args.variant, structure=dl.weights,
    )  # fmt: skip
    path = dl.SolutionPath()
    params, state = bench.train(
        arrays, definition, start, tx, args.epochs, seed,
        watch=lambda step, params, state: path.record(step, state),
    )  # fmt: skip
    ticket = path.ticket(density=args.density)
    mask = ticket.mask(params)
    other = bench.random_like(mask, seed)
    again = bench.retrained(arrays, definition, start, mask, rate, args.epochs, seed)
    control = bench.retrained(arrays, definition, start, other, rate, args.epochs, seed)
    return {
        "seed": seed,
        "density_of_gamma": float(path.density()[-1]),
        "density_of_ticket": ticket.density,
        "density_by_layer": {p: float(np.mean(ticket.masks[p])) for p in ticket.structured},
        "lam": float(dl.get_state(state).lam),
        "dense": test(dense),
        "dessilbi_dense": test(params),
        "projected": test(dl.project(params, dl.support(state))),
        "retrained": test(again),
        "random": test(control),
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
    config = {
        name: value for name, value in vars(args).items() if name not in ("data_dir", "seeds")
    }
    runs = bench.Runs(RESULTS / "first_results.jsonl")
    rows = []
    for seed in range(args.seeds):
        key = " ".join(f"{name}={value}" for name, value in config.items()) + f" seed={seed}"
        rows.append(runs.get(key, lambda s=seed: run(args, s)))
        jax.clear_caches()
    names = ("dense", "dessilbi_dense", "projected", "retrained", "random", "density_of_gamma")
    table = {name: bench.spread([row[name] for row in rows]) for name in names}
    table["retrained_minus_dense"] = bench.spread([r["retrained"] - r["dense"] for r in rows])
    table["retrained_minus_random"] = bench.spread([r["retrained"] - r["random"] for r in rows])
    for name, value in table.items():
        print(f"{name:24s} {value['mean']:8.3f} ± {value['std']}")
    config |= {"seeds": list(range(args.seeds)), "peak": PEAK, "momentum": bench.MOMENTUM,
               "batch": bench.BATCH}  # fmt: skip
    print(write("first_results", {"config": config, "table": table}, started))


if __name__ == "__main__":
    main()
