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
from benchmarks.harness.results import write
from benchmarks.harness.work import Setting, Work
from benchmarks.placement import PEAK, selecting

COST = {"cpu": "10 s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    work = Work(Setting("lenet300", "mnist", args.epochs, PEAK), args.seed, args.data_dir)
    path, spent = dl.SolutionPath(), []

    def record(step: int, params: Any, stats: Any, state: Any) -> None:
        jax.block_until_ready(state)  # what is still computing is not the record's
        start = time.perf_counter()
        path.record(step, state)
        spent.append(time.perf_counter() - start)

    begin = time.perf_counter()
    work.train(selecting(work, nu=20.0, density=0.05), watch=record, every=work.steps(1))
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
