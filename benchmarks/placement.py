"""Where should the coupling stand: before the momentum (the paper) or behind it (the toolbox)?

    python -m benchmarks.placement --data-dir DIR [--epochs 6] [--seeds 5] [--density 0.05]

LeNet-300-100 on MNIST, ν in 20, 100, 500, λ automatic. For each run: held-out accuracy of the
dense weights W, of W projected on the support of Γ, and of the 5 % ticket of its path retrained
from the same initialisation for as many epochs. Chosen on held-out training images; the test
images are not touched. About 25 minutes on two cores; stops and goes on where it was.
"""

import argparse
import time
from typing import Any

import jax

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks.harness.results import RESULTS, write

PEAK = 0.05
NUS = (20.0, 100.0, 500.0)


def run(data_dir: str, variant: str, nu: float, seed: int, args: Any) -> dict[str, Any]:
    arrays = bench.mnist(data_dir, bench.HELD_OUT)
    steps = args.epochs * (len(arrays["train_y"]) // bench.BATCH)
    rate = bench.learning_rate(PEAK, steps)
    definition, start = bench.initial(seed)
    tx = dl.dessilbi(
        rate, nu=nu, lam="auto", density=args.density, steps=steps, momentum=bench.MOMENTUM,
        variant=variant, structure=dl.weights,
    )  # fmt: skip
    path = dl.SolutionPath()
    params, state = bench.train(
        arrays, definition, start, tx, args.epochs, seed,
        watch=lambda step, params, state: path.record(step, state),
    )  # fmt: skip
    mask = path.ticket(density=args.density).mask(params)
    ticket = bench.retrained(arrays, definition, start, mask, rate, args.epochs, seed)

    def held_out(params: Any) -> float:
        return bench.accuracy(arrays, definition, params, "held_out")

    return {
        "variant": variant,
        "nu": nu,
        "seed": seed,
        "density_reached": float(path.density()[-1]),
        "lam": float(dl.get_state(state).lam),
        "dense": held_out(params),
        "projected": held_out(dl.project(params, dl.support(state))),
        "retrained": held_out(ticket),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.05)
    args = parser.parse_args()
    started = time.time()
    runs = bench.Runs(RESULTS / "placement.jsonl")
    for seed in range(args.seeds):
        for nu in NUS:
            for variant in ("paper", "toolbox"):
                key = f"{variant} {nu:g} {seed} {args.epochs} {args.density}"
                runs.get(key, lambda v=variant, n=nu, s=seed: run(args.data_dir, v, n, s, args))
                jax.clear_caches()
    table = []
    for variant in ("paper", "toolbox"):
        for nu in NUS:
            rows = [r for r in runs.rows.values() if (r["variant"], r["nu"]) == (variant, nu)]
            row: dict[str, Any] = {"variant": variant, "nu": nu}
            for name in ("dense", "projected", "retrained", "density_reached"):
                row[name] = bench.spread([r[name] for r in rows])
            table.append(row)
            print(variant, nu, {k: v["mean"] for k, v in row.items() if isinstance(v, dict)})
    config = {"epochs": args.epochs, "seeds": args.seeds, "density": args.density, "peak": PEAK,
              "momentum": bench.MOMENTUM, "batch": bench.BATCH}  # fmt: skip
    print(write("placement", {"config": config, "table": table}, started))


if __name__ == "__main__":
    main()
