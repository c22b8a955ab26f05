"""What share of a run goes into recording its solution path?

    python -m benchmarks.path_cost --data-dir DIR [--epochs 3]

LeNet-300-100 on MNIST with λ automatic, a record at the end of every epoch. Reports the time
spent in `path.record` and in one `path.save`, over the time of the whole run, and the size of the
file. Half a minute.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks.harness.results import write
from benchmarks.placement import PEAK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    arrays = bench.mnist(args.data_dir, 0)
    steps = args.epochs * (len(arrays["train_y"]) // bench.BATCH)
    definition, params = bench.initial(args.seed)
    tx = dl.dessilbi(
        bench.learning_rate(PEAK, steps), nu=20.0, lam="auto", density=0.05, steps=steps,
        momentum=bench.MOMENTUM, structure=dl.weights,
    )  # fmt: skip
    path, spent = dl.SolutionPath(), []

    def record(step: int, params: Any, state: Any) -> None:
        jax.block_until_ready(state)  # what is still computing is not the record's
        start = time.perf_counter()
        path.record(step, state)
        spent.append(time.perf_counter() - start)

    begin = time.perf_counter()
    bench.train(arrays, definition, params, tx, args.epochs, args.seed, watch=record)
    whole = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        path.save(Path(folder) / "path.npz")
        save = time.perf_counter() - begin
        size = (Path(folder) / "path.npz").stat().st_size
    result = {
        "seed": args.seed,
        "epochs": args.epochs,
        "run_seconds": round(whole, 3),
        "records": len(spent),
        "first_record_seconds": round(spent[0], 4),
        "later_record_seconds": round(sum(spent[1:]) / len(spent[1:]), 4),
        "share_of_run": round(sum(spent) / whole, 5),
        "share_of_run_after_compiling": round(sum(spent[1:]) / whole, 5),
        "save_seconds": round(save, 3),
        "file_bytes": size,
        "units": sum(entry.size for entry in path.entry_steps().values()),
    }
    print(result)
    print(write("path_cost", result, started))


if __name__ == "__main__":
    main()
