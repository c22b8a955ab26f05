"""Does a sparse mean shift find outliers and wrong comparisons better than its rivals?

    python -m benchmarks robust_statistics [--budget cpu]

Regression: n = 500, p = 10, coefficients, columns and noise standard normal, intercept 1. Outliers
are shifted by U(5, 15): 20 % up or down; 30 or 40 % up; or (leverage) 10 % lie near x = (10, 0, …)
with y 20 below the plane. F1 is of the samples flagged, the error ‖β̂ − β‖₂ with the intercept.
Huber is scikit-learn's `HuberRegressor` and its `outliers_`; Huber + MAD flags |r| > 2.5·MAD of its
residuals and refits; RANSAC is scikit-learn's with its defaults and its refit.

Ranking: 30 items of standard normal scores, 600 comparisons y = ±1, a share p of them flipped.
Kendall's τ of the scores, and F1 of the pruned among the flipped, where as many are pruned as are
flipped: by the path of the mean shift, and by the residuals of least squares (LS-prune). LAD is
least absolute deviations by a linear program, whose corner solutions give items equal scores, which
τ counts against it; BT is Bradley-Terry by logistic regression (C = 10).

Every method sees the same data of a seed; differences are paired by seed. The estimators' rules
were settled on other seeds (100 and on). One thread.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, stats
from sklearn.linear_model import HuberRegressor, LogisticRegression, RANSACRegressor

from benchmarks.harness import options, results
from dessilbi_jax.stats import OutlierRegressor, RobustRanker
from dessilbi_jax.stats.ranking import incidence

COST = {"smoke": "seconds", "cpu": "3 minutes of one core"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Numbers of seeds, and the sizes of the data."""

    regression_seeds: int
    ranking_seeds: int
    samples: int = 500
    comparisons: int = 600


BUDGETS = {"smoke": Budget(2, 2, 60, 80), "cpu": Budget(50, 100)}
KINDS = ("vertical 20 %", "one-sided 30 %", "one-sided 40 %", "leverage 10 %")
FLIPS = (0.1, 0.2, 0.3)
Found = tuple[np.ndarray, np.ndarray]


def regression_data(kind: str, seed: int, n: int) -> tuple[np.ndarray, ...]:
    """X, y, (β, a), and which samples are outliers."""
    rng = np.random.default_rng(seed)
    X, beta = rng.standard_normal((n, 10)), rng.standard_normal(10)
    y = 1 + X @ beta + rng.standard_normal(n)
    share = float(kind.split()[1]) / 100
    outliers = np.zeros(n, bool)
    outliers[rng.choice(n, round(share * n), replace=False)] = True
    k = int(outliers.sum())
    if kind.startswith("leverage"):
        X[outliers] = 0.5 * rng.standard_normal((k, 10)) + 10 * np.eye(10)[0]
        y[outliers] = 1 + X[outliers] @ beta - 20 + rng.standard_normal(k)
    else:
        sign = rng.choice([-1, 1], k) if kind.startswith("vertical") else 1
        y[outliers] += sign * rng.uniform(5, 15, k)
    return X, y, np.append(beta, 1), outliers


def _whole(model: Any) -> np.ndarray:
    return np.append(model.coef_, model.intercept_)


def _huber(X: np.ndarray, y: np.ndarray) -> Found:
    model = HuberRegressor(alpha=0, max_iter=5000).fit(X, y)
    return _whole(model), model.outliers_


def _huber_mad(X: np.ndarray, y: np.ndarray) -> Found:
    r = np.abs(y - HuberRegressor(alpha=0, max_iter=5000).fit(X, y).predict(X))
    flags = r > 2.5 * 1.4826 * np.median(r)
    A = np.column_stack([X, np.ones(len(y))])
    return np.linalg.lstsq(A[~flags], y[~flags], rcond=None)[0], flags


def _ransac(X: np.ndarray, y: np.ndarray) -> Found:
    model = RANSACRegressor(random_state=0).fit(X, y)
    return _whole(model.estimator_), ~model.inlier_mask_


def _ours(**given: Any) -> Callable[[np.ndarray, np.ndarray], Found]:
    def fit(X: np.ndarray, y: np.ndarray) -> Found:
        model = OutlierRegressor(**given).fit(X, y)
        return _whole(model), model.outliers_

    return fit


REGRESSION = {
    "Huber": _huber, "Huber + MAD": _huber_mad, "RANSAC": _ransac,
    "mean shift": _ours(), "mean shift, BIC": _ours(t="bic"),
    "mean shift, LTS start": _ours(start="lts"),
}  # fmt: skip


def f1(found: np.ndarray, true: np.ndarray) -> float:
    """F1 of flags."""
    return float(2 * (found & true).sum() / max(found.sum() + true.sum(), 1))


def regression(budget: Budget) -> list[dict[str, Any]]:
    """One line a kind of outliers and method."""
    lines = []
    for kind in KINDS:
        score: dict[str, list[float]] = {name: [] for name in REGRESSION}
        error: dict[str, list[float]] = {name: [] for name in REGRESSION}
        for seed in range(budget.regression_seeds):
            X, y, beta, outliers = regression_data(kind, seed, budget.samples)
            for name, fit in REGRESSION.items():
                coefs, flags = fit(X, y)
                score[name].append(f1(flags, outliers))
                error[name].append(float(np.linalg.norm(coefs - beta)))
        ours = "mean shift, LTS start" if kind.startswith("leverage") else "mean shift"
        lines += [
            {
                "outliers": kind, "method": name, "f1": interval(score[name]),
                "error": interval(error[name]), "ours": ours,
                "ours_minus_this_f1": results.paired(score[ours], score[name]),
                "ours_minus_this_error": results.paired(error[ours], error[name]),
            }
            for name in REGRESSION
        ]  # fmt: skip
    return lines


def ranking_data(flipped: float, seed: int, m: int) -> tuple[np.ndarray, ...]:
    """Pairs, y, scores, and which comparisons are flipped."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(30)
    first = rng.integers(30, size=m)
    second = (first + 1 + rng.integers(29, size=m)) % 30
    y = np.sign(scores[first] - scores[second])
    wrong = np.zeros(m, bool)
    wrong[rng.choice(m, round(flipped * m), replace=False)] = True
    return np.column_stack([first, second]), np.where(wrong, -y, y), scores, wrong


def ranked(pairs: np.ndarray, y: np.ndarray, count: int) -> dict[str, tuple[Any, Any]]:
    """Scores by each method, and what it pruned."""
    C = incidence(pairs, 30)
    plain = np.linalg.lstsq(C, y, rcond=None)[0]
    out = np.zeros(len(y), bool)
    out[np.argsort(-np.abs(y - C @ plain))[:count]] = True
    again = np.linalg.lstsq(C[~out], y[~out], rcond=None)[0]
    m, n = C.shape
    lad = optimize.linprog(
        np.append(np.zeros(n), np.ones(m)),
        A_ub=np.block([[C, -np.eye(m)], [-C, -np.eye(m)]]), b_ub=np.append(y, -y),
        bounds=[(None, None)] * n + [(0, None)] * m,
    ).x[:n]  # fmt: skip
    bt = LogisticRegression(fit_intercept=False, C=10.0).fit(C, y > 0).coef_[0]
    ours = RobustRanker(prune=count).fit(pairs, y)
    scores = np.zeros(30)
    scores[ours.items_] = ours.scores_
    return {
        "LS": (plain, None), "LS-prune": (again, out), "LAD": (lad, None), "BT": (bt, None),
        "mean shift": (scores, ours.outliers_),
    }  # fmt: skip


def ranking(budget: Budget) -> list[dict[str, Any]]:
    """One line a share of flipped comparisons and method."""
    lines = []
    for flipped in FLIPS:
        tau: dict[str, list[float]] = {}
        score: dict[str, list[float]] = {}
        for seed in range(budget.ranking_seeds):
            pairs, y, scores, wrong = ranking_data(flipped, seed, budget.comparisons)
            for name, (found, pruned) in ranked(pairs, y, int(wrong.sum())).items():
                tau.setdefault(name, []).append(float(stats.kendalltau(found, scores)[0]))
                if pruned is not None:
                    score.setdefault(name, []).append(f1(pruned, wrong))
        for name, values in tau.items():
            line = {"flipped": flipped, "method": name, "tau": interval(values),
                    "ours_minus_this_tau": results.paired(tau["mean shift"], values)}  # fmt: skip
            if name in score:
                line["f1"] = interval(score[name])
            lines.append(line)
    return lines


def interval(values: list[float]) -> dict[str, Any]:
    """`spread` with half the width of the 95 % interval of the mean by Student's t."""
    out = results.spread(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return {**out, "half_95": round(float(half), 4)}


def show(result: dict[str, Any]) -> None:
    """Both tables in short."""
    for line in result["regression"]:
        print(
            f"{line['outliers']:15} {line['method']:22} F1 {line['f1']['mean']:.3f} "
            f"± {line['f1']['half_95']:.3f}  error {line['error']['mean']:.3f} "
            f"± {line['error']['half_95']:.3f}"
        )
    for line in result["ranking"]:
        gap = line["ours_minus_this_tau"]
        print(
            f"flipped {line['flipped']:.1f} {line['method']:12} τ {line['tau']['mean']:.3f} "
            f"± {line['tau']['half_95']:.3f}  ours − this {gap['mean']:+.3f} (p {gap['p']})"
        )


def main() -> None:
    args = options.parsed(options.parser(__doc__, tuple(BUDGETS), needs_data=False))
    started = time.time()
    budget = BUDGETS[args.budget]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # items that a small table never compares
        result = {
            "config": {"budget": args.budget, **dataclasses.asdict(budget)},
            "regression": regression(budget),
            "ranking": ranking(budget),
        }
    show(result)
    name = options.name(args, "robust_statistics")
    print(f"written to {results.write(name, result, started, options.folder(args))}")


if __name__ == "__main__":
    main()
