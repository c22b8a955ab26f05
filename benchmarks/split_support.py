"""Does splitting select and estimate better where columns hide each other?

    python -m benchmarks split_support

Support: n = 50, p = 100, β of ten 2s, then five −2s, then zeros, noise 1; D the identity, or fused:
differences and the coefficients themselves. AUC of the order of entry against the order of the
ridge's coefficients by size and that of the (generalised) lasso's path. Estimation: n = 100,
p = 80, columns correlated ρ^|i−j|, 10 strong coefficients of ±2 and 70 weak ones, normal with
deviation 0.2, noise 1; the least of ‖β̂ − β‖/‖β‖ on each path.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path, lasso_path

from benchmarks.harness.results import RESULTS, write
from benchmarks.harness.selection import auc, early, least_relative_error, summary
from dessilbi_jax.stats import split_lbi_path
from dessilbi_jax.stats.differences import difference_matrix

COST = {"cpu": "4 minutes"}
Rows = dict[str, dict[str, list[float]]]
RATIOS = {0.2: 3.0, 0.4: 5.0, 0.6: 7.0, 0.8: 10.0}  # ν for each ρ


def add(rows: Rows, method: str, **values: float) -> None:
    for name, value in values.items():
        rows.setdefault(method, {}).setdefault(name, []).append(value)


def ridge(X: np.ndarray, y: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """(p, T), by the strength of the penalty on the mean loss."""
    u, s, vt = np.linalg.svd(X - X.mean(0), full_matrices=False)
    n = len(y)
    inner = u.T @ (y - y.mean())
    return np.stack([vt.T @ (s * inner / (s**2 + n * lam)) for lam in strengths], axis=1)


def generalised_lasso(X: np.ndarray, y: np.ndarray, D: Any, steps: int = 3000) -> np.ndarray:
    """Scores of the rows of D by the λ at which they leave zero; ADMM at 30 values of λ."""
    X, y, n = X - X.mean(0), y - y.mean(), len(y)
    D = D.toarray()
    rho = np.linalg.norm(X, 2) ** 2 / n / np.linalg.norm(D, 2) ** 2
    inverse = np.linalg.inv(X.T @ X / n + rho * D.T @ D)
    z = u = np.zeros(len(D))
    most = np.abs(X.T @ y / n).max()
    score = np.zeros(len(D))
    for k, lam in enumerate(np.geomspace(most, most / 1000, 30)):
        for _ in range(steps):  # from the last solution on
            beta = inverse @ (X.T @ y / n + rho * D.T @ (z - u))
            out = D @ beta
            z = out + u - np.clip(out + u, -lam / rho, lam / rho)
            u = u + out - z
        score = np.where((score == 0) & (z != 0), 30 - k, score)
    return score + np.abs(z) / (1 + np.abs(z).max())


def followed(X: np.ndarray, y: np.ndarray, **arguments: Any) -> Any:
    """The path in the units of y, of 100,000 steps at most: what has not entered by then is ranked
    by ‖V‖/t."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return split_lbi_path(X, y, standardize_y=False, **arguments)


def true_beta() -> np.ndarray:
    beta = np.zeros(100)
    beta[:10], beta[10:15] = 2.0, -2.0
    return beta


def identity(seeds: int) -> Rows:
    rows: Rows = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((50, 100))
        beta = true_beta()
        y = X @ beta + rng.standard_normal(50)
        path = followed(X, y, nu=10.0, kappa=100.0)
        add(rows, "Split LBI", AUC=auc(early(path.entry_times, path.order), beta != 0))
        size = np.abs(path.dense_coefs[:, 0])
        add(rows, "ridge, by size", AUC=auc(size, beta != 0))
        _, coefs, _ = lasso_path(X - X.mean(0), y - y.mean(), alphas=100, eps=1e-4)
        first = np.where(coefs.any(axis=1), (coefs != 0).argmax(axis=1), 100)
        scores = -first + np.abs(coefs[:, -1]) / (1 + np.abs(coefs).max())
        add(rows, "ℓ1 / generalised lasso", AUC=auc(scores, beta != 0))
    return rows


def fused(seeds: int, with_lasso: int) -> Rows:
    rows: Rows = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((50, 100))
        beta = true_beta()
        y = X @ beta + rng.standard_normal(50)
        D = sparse.vstack([difference_matrix("fused", 100), sparse.eye_array(100)], format="csr")
        truth = np.abs(D @ beta) > 0
        path = followed(X, y, D=D, nu=10.0, kappa=100.0)
        add(rows, "Split LBI", AUC=auc(early(path.entry_times, path.order), truth))
        add(rows, "ridge, by size", AUC=auc(np.abs(D @ path.dense_coefs[:, 0]), truth))
        if seed < with_lasso:
            add(rows, "ℓ1 / generalised lasso", AUC=auc(generalised_lasso(X, y, D), truth))
    return rows


def dense(seeds: int, rho: float, nu: float) -> Rows:
    rows: Rows = {}
    apart = np.abs(np.subtract.outer(np.arange(80), np.arange(80)))
    root = np.linalg.cholesky(rho**apart)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((100, 80)) @ root.T
        beta = 0.2 * rng.standard_normal(80)
        beta[rng.permutation(80)[:10]] = 2 * rng.choice([-1.0, 1.0], 10)
        y = X @ beta + rng.standard_normal(100)
        path = followed(X, y, nu=nu, kappa=5.0)
        add(rows, "Split LBI, dense", error=least_relative_error(path.dense_coefs, beta))
        add(rows, "Split LBI, sparse", error=least_relative_error(path.coefs, beta))
        centred = X - X.mean(0), y - y.mean()
        best = min(
            least_relative_error(enet_path(*centred, l1_ratio=mix, alphas=100, eps=1e-4)[1], beta)
            for mix in (0.1, 0.3, 0.5, 0.7, 0.9)
        )
        add(rows, "elastic net, best of 5 mixes", error=best)
        strengths = np.geomspace(1e-4, 10, 60)
        add(rows, "ridge", error=least_relative_error(ridge(X, y, strengths), beta))
        add(
            rows,
            "lasso",
            error=least_relative_error(lasso_path(*centred, alphas=100, eps=1e-4)[1], beta),
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--lasso-seeds", type=int, default=8, help="of the generalised lasso")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    started = time.time()

    def table(says: str, measure: str, rows: Rows, bar: str | None) -> dict[str, Any]:
        lines = summary(rows, bar)
        for line in lines:
            print(says[:40], line["method"], line[measure]["mean"], line[measure]["half"])
        return {"says": says, "measures": [measure], "bar": bar, "rows": lines}

    both = f"{args.seeds} seeds"
    tables = [
        table(f"Support, D the identity, {both}; the bar is the lasso.", "AUC",
              identity(args.seeds), "ℓ1 / generalised lasso"),
        table(f"Support, fused, {both} ({args.lasso_seeds} of the generalised lasso).", "AUC",
              fused(args.seeds, args.lasso_seeds), None),
    ]  # fmt: skip
    for rho, nu in RATIOS.items():
        tables.append(
            table(f"Strong and weak coefficients, ρ = {rho}, ν = {nu:g}, {both}; the bar is the "
                  "elastic net.", "error", dense(args.seeds, rho, nu),
                  "elastic net, best of 5 mixes")
        )  # fmt: skip
    result = {"name": "split_support", "seeds": args.seeds, "tables": tables}
    print(write("split_support", result, started, args.results))


if __name__ == "__main__":
    main()
