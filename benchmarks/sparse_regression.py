"""Do paths of LBI select and estimate as well as the relaxed lasso's?

    python -m benchmarks sparse_regression

Least squares: p = 100 columns with correlation 1/300, k = 30 coefficients of size 1 + |N(0, 1)| of
either sign, noise 1. Logistic: n = 300, p = 500, k = 15. AUC is that of the order of entry;
the error is the least of ‖β̂ − β‖/‖β‖ on the path.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression, lasso_path

from benchmarks.harness.results import RESULTS, write
from benchmarks.harness.selection import auc, early, least_relative_error, summary
from dessilbi_jax.stats import iss_path, lbi_path

COST = {"cpu": "3 minutes"}
Rows = dict[str, dict[str, list[float]]]


def sample(n: int, p: int, k: int, seed: int, sizes: str) -> tuple[Any, Any, np.random.Generator]:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 1)) / np.sqrt(3 * p)
    X = common + np.sqrt(1 - 1 / (3 * p)) * rng.standard_normal((n, p))
    beta = np.zeros(p)
    z = rng.standard_normal(k)
    beta[:k] = z + np.sign(z) if sizes == "normal" else np.sign(z)
    return X, beta, rng


def lasso(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and scores of the lasso's path, of centred data."""
    _, coefs, _ = lasso_path(X - X.mean(0), y - y.mean(), alphas=100, eps=1e-3)
    first = np.where(coefs.any(axis=1), (coefs != 0).argmax(axis=1), coefs.shape[1])
    return coefs, -first + np.abs(coefs[:, -1]) / (1 + np.abs(coefs).max())


def relaxed(X: np.ndarray, y: np.ndarray, coefs: np.ndarray) -> np.ndarray:
    """Least squares on each support of the lasso's path of fewer than n columns."""
    supports = np.unique((coefs != 0).T, axis=0)
    out = [np.zeros(X.shape[1])]
    for support in supports[(supports.sum(1) > 0) & (supports.sum(1) < len(y) - 1)]:
        beta = np.zeros(X.shape[1])
        beta[support] = LinearRegression().fit(X[:, support], y).coef_
        out.append(beta)
    return np.stack(out, axis=1)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    out = call()
    return out, time.perf_counter() - start


def least_squares(n: int, seeds: int, kappas: tuple[float, ...]) -> Rows:
    rows: Rows = {}

    def note(method: str, **values: float) -> None:
        for name, value in values.items():
            rows.setdefault(method, {}).setdefault(name, []).append(value)

    for seed in range(seeds):
        X, beta, rng = sample(n, 100, 30, seed, "normal")
        y = X @ beta + rng.standard_normal(n)
        truth = beta != 0
        (coefs, scores), seconds = timed(lambda X=X, y=y: lasso(X, y))
        note("lasso_path", AUC=auc(scores, truth), error=least_relative_error(coefs, beta),
             seconds=seconds)  # fmt: skip
        note("relaxed lasso", error=least_relative_error(relaxed(X, y, coefs), beta))
        path, seconds = timed(lambda X=X, y=y: iss_path(X, y))
        scores = early(path.entry_times, path.order)
        note("ISS", AUC=auc(scores, truth), error=least_relative_error(path.coefs, beta),
             seconds=seconds)  # fmt: skip
        for kappa in kappas:

            def follow(X: Any = X, y: Any = y, kappa: float = kappa) -> Any:
                # In the units of y; over a wide range, since the error is the least on the path.
                return lbi_path(X, y, kappa=kappa, standardize_y=False, ratio=100, nt=200)

            follow() if seed == 0 else None  # compiled apart
            path, seconds = timed(follow)
            scores = early(path.entry_times, path.order)
            note(f"LBI κ = {kappa:g}", AUC=auc(scores, truth),
                 error=least_relative_error(path.coefs, beta), seconds=seconds)  # fmt: skip
    return rows


def logistic(seeds: int) -> Rows:
    rows: Rows = {"LBI κ = 20": {}, "liblinear ℓ1, 30 values of C": {}}

    def note(method: str, **values: float) -> None:
        for name, value in values.items():
            rows[method].setdefault(name, []).append(value)

    for seed in range(seeds):
        X, beta, rng = sample(300, 500, 15, seed, "one")
        y = rng.random(300) < 1 / (1 + np.exp(-X @ beta))
        truth = beta != 0

        def follow(X: Any = X, y: Any = y) -> Any:
            return lbi_path(X, y, kappa=20.0, family="binomial", t_max=400.0)

        follow() if seed == 0 else None
        path, seconds = timed(follow)
        scores = early(path.entry_times, path.order)
        note("LBI κ = 20", AUC=auc(scores, truth), seconds=seconds,
             error=least_relative_error(path.coefs, beta))  # fmt: skip

        def grid(X: Any = X, y: Any = y) -> np.ndarray:
            each = [
                LogisticRegression(
                    C=C, l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=0
                ).fit(X, y).coef_[0]
                for C in np.geomspace(0.02, 20, 30)
            ]  # fmt: skip
            return np.stack(each, axis=1)

        coefs, seconds = timed(grid)
        first = np.where(coefs.any(axis=1), (coefs != 0).argmax(axis=1), 30)
        scores = -first + np.abs(coefs[:, -1]) / (1 + np.abs(coefs).max())
        note("liblinear ℓ1, 30 values of C", AUC=auc(scores, truth), seconds=seconds,
             error=least_relative_error(coefs, beta))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    started = time.time()
    measures = ["AUC", "error", "seconds"]
    tables = []
    for n in (80, 200):
        rows = least_squares(n, args.seeds, (4.0, 16.0, 64.0, 256.0))
        tables.append({
            "says": f"Least squares, n = {n}, {args.seeds} seeds; the bar is the relaxed lasso.",
            "measures": measures, "bar": "relaxed lasso", "rows": summary(rows, "relaxed lasso"),
        })  # fmt: skip
    rows = logistic(args.seeds)
    bar = "liblinear ℓ1, 30 values of C"
    tables.append({
        "says": f"Logistic, n = 300, p = 500, k = 15, {args.seeds} seeds; the bar is {bar}.",
        "measures": measures, "bar": bar, "rows": summary(rows, bar),
    })  # fmt: skip
    for each in tables:
        print(each["says"])
        for row in each["rows"]:
            print({k: v if k == "method" else (v["mean"], v["half"]) for k, v in row.items()})
    result = {"name": "sparse_regression", "seeds": args.seeds, "tables": tables}
    print(write("sparse_regression", result, started, args.results))


if __name__ == "__main__":
    main()
