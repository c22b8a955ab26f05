"""How fast is a path: Gram form against the direct one, folds together against one?

    python -m benchmarks path_speed

n = 500, p = 1000, float32, κ = 16, to 20 times the first entry. Each measured call after one that
compiles; the ways take turns; medians and all values are kept. BLAS of the lasso has one thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import lasso_path
from threadpoolctl import threadpool_limits

from benchmarks.harness.results import RESULTS, write
from benchmarks.sparse_regression import sample
from dessilbi_jax.stats import lbi_path
from dessilbi_jax.stats.folds import follow_folds
from dessilbi_jax.stats.problem import read

COST = {"cpu": "2 minutes"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--p", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    started = time.time()
    X, beta, rng = sample(args.n, args.p, 30, 0, "normal")
    y = X @ beta + rng.standard_normal(args.n)
    X = X.astype(np.float32)
    problem = read(X, y)
    arguments: dict[str, Any] = {"kappa": 16.0, "ratio": 20}
    steps = lbi_path(X, y, **arguments).n_iter
    ts = lbi_path(X, y, kappa=16.0, ratio=5).ts

    def folds(k: int) -> Callable[[], Any]:
        weights = np.where(np.arange(args.n) % k == np.arange(k)[:, None], 0.0, 1.0)
        weights = weights if k > 1 else np.ones((1, args.n))
        weights /= weights.sum(1, keepdims=True)
        return lambda: follow_folds(problem, weights, 16.0, None, None, ts, 100_000)

    ways = {
        "Gram": lambda: lbi_path(X, y, gram=True, **arguments),
        "direct": lambda: lbi_path(X, y, gram=False, **arguments),
        "lasso_path": lambda: lasso_path(X - X.mean(0), y - y.mean(), alphas=100, eps=0.05),
        "one fold, to 5 t₀": folds(1),
        "20 folds, to 5 t₀": folds(20),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with threadpool_limits(1):
        for call in ways.values():
            call()
        for _ in range(args.rounds):
            for name, call in ways.items():
                begin = time.perf_counter()
                call()
                seconds[name].append(round(time.perf_counter() - begin, 4))
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    direct = median["direct"] / median["Gram"]
    together = median["20 folds, to 5 t₀"] / median["one fold, to 5 t₀"]
    result = {
        "name": "path_speed", "n": args.n, "p": args.p, "steps": steps, "seconds": seconds,
        "direct_over_gram": round(direct, 2),
        "twenty_folds_over_one": round(together, 2),
        "tables": [{
            "says": f"n = {args.n}, p = {args.p}, float32, {steps} steps: seconds, median of "
            f"{args.rounds}. The direct form takes {direct:.2f} times as long as the Gram form, 20 "
            f"folds {together:.2f} times as long as one.",
            "measures": ["seconds"], "bar": None,
            "rows": [
                {"method": name, "seconds": {"mean": value, "half": None}}
                for name, value in median.items()
            ],
        }],
    }  # fmt: skip
    print(median, result["direct_over_gram"], result["twenty_folds_over_one"])
    print(write("path_speed", result, started, args.results))


if __name__ == "__main__":
    main()
