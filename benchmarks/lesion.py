"""Which voxels does a lesion cover: Split LBI with total variation against ridge and lasso.

    python -m benchmarks lesion

Two classes of images on a mask (a ball) in 16³ voxels. Patients have less signal in three blobs,
the lesion, and a little more around the edge of the mask, everywhere and too weak to select: the
bias of the procedure that made the images. Noise is correlated in space. The sparse estimate is to
find the blobs; the dense one also uses the bias to predict. AUC and F1 are of voxels against the
blobs, F1 at the best threshold of each method; accuracy is on 500 new images.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, sparse
from sklearn.linear_model import LogisticRegression

from benchmarks.harness.results import RESULTS, write
from benchmarks.harness.selection import auc, summary
from dessilbi_jax.stats import SplitLBIClassifier, grid_edges
from dessilbi_jax.stats.differences import difference_matrix

COST = {"cpu": "6 minutes"}
SIZE = 16


def space() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask, and within it the lesion and the edge."""
    at = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1)
    mask = ((at - 7.5) ** 2).sum(-1) <= 7.5**2
    blobs = [((4, 7, 8), 2.0), ((11, 5, 7), 2.0), ((8, 11, 10), 1.7)]
    lesion = np.any([((at - c) ** 2).sum(-1) <= r**2 for c, r in blobs], axis=0)
    edge = mask & ~ndimage.binary_erosion(mask)
    return mask, lesion[mask], edge[mask]


def images(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask, lesion, edge = space()
    y = np.arange(n) % 2
    noise = rng.standard_normal((n, SIZE, SIZE, SIZE))
    noise = ndimage.gaussian_filter(noise, (0, 1.0, 1.0, 1.0))[:, mask]
    X = noise / noise.std() + np.outer(y, -0.45 * lesion + 0.12 * edge)
    return X, y


def best_f1(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    return float((2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())).max())


def split(X: np.ndarray, y: np.ndarray, sparse_too: float) -> SplitLBIClassifier:
    """D: total variation over the mask, and the voxels themselves."""
    mask, *_ = space()
    p = X.shape[1]
    tv = difference_matrix("graph", p, grid_edges(mask))
    D = sparse.vstack([tv, sparse_too * sparse.eye_array(p)], format="csr")
    return SplitLBIClassifier(D=D, nu=NU, kappa=KAPPA, t="end", ratio=RATIO, nt=40).fit(X, y)


NU, KAPPA, RATIO = 1.0, 10.0, 6.0


def baselines(X: np.ndarray, y: np.ndarray) -> dict[str, list[LogisticRegression]]:
    grid = np.geomspace(1e-3, 3, 8)
    return {
        "lasso": [
            LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", random_state=0).fit(X, y)
            for C in np.geomspace(0.03, 10, 8)
        ],
        "ridge": [LogisticRegression(C=C, max_iter=500).fit(X, y) for C in grid],
        "graph net": [graph_net(X, y, C) for C in grid],
    }


def graph_net(X: np.ndarray, y: np.ndarray, C: float) -> LogisticRegression:
    """Ridge on values and on differences in space: a ridge of other columns, X·R⁻¹."""
    mask, *_ = space()
    tv = difference_matrix("graph", X.shape[1], grid_edges(mask))
    root = np.linalg.cholesky((tv.T @ tv).toarray() + 0.1 * np.eye(X.shape[1])).T
    inverse = np.linalg.inv(root)
    model = LogisticRegression(C=C, max_iter=500).fit(X @ inverse, y)
    model.coef_ = model.coef_ @ inverse.T
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    started = time.time()
    _, lesion, _ = space()
    rows: dict[str, dict[str, list[float]]] = {}

    def note(method: str, scores: np.ndarray, accuracy: float) -> None:
        each = {"AUC": auc(scores, lesion), "F1": best_f1(scores, lesion), "accuracy": accuracy}
        for name, value in each.items():
            rows.setdefault(method, {}).setdefault(name, []).append(value)

    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        X, y = images(args.n, rng)
        held_out = images(500, rng)
        model = split(X, y, 1.0)
        path = model.path_

        def right(coefs: Any, intercept: Any, test: Any = held_out) -> float:
            return float((((test[0] @ coefs + intercept) > 0) == test[1]).mean())

        dense = [
            right(b, a) for b, a in zip(path.dense_coefs.T, path.dense_intercepts, strict=True)
        ]
        thin = [right(b, a) for b, a in zip(path.coefs.T, path.intercepts, strict=True)]
        by_f1 = max(path.coefs.T, key=lambda b: best_f1(np.maximum(-b, 0), lesion))
        note("Split LBI, sparse", np.maximum(-by_f1, 0), max(thin))
        k = int(np.argmax(dense))
        note("Split LBI, dense", np.maximum(-path.dense_coefs[:, k], 0), max(dense))
        for name, models in baselines(X, y).items():
            scores = [np.maximum(-m.coef_[0], 0) for m in models]
            best = max(scores, key=lambda s: best_f1(s, lesion))
            note(name, best, max(right(m.coef_[0], m.intercept_[0]) for m in models))
        print({m: {k: round(v[-1], 3) for k, v in each.items()} for m, each in rows.items()})
    lines = summary(rows, "graph net")
    says = (
        f"n = {args.n}, {len(lesion)} voxels, {int(lesion.sum())} in the lesion; {args.seeds} "
        "seeds; each method at its best point of its path or grid; the bar is the graph net."
    )
    table = {"says": says, "measures": ["AUC", "F1", "accuracy"], "bar": "graph net", "rows": lines}
    result = {"name": "lesion", "seeds": args.seeds, "tables": [table]}
    print(write("lesion", result, started, args.results))


if __name__ == "__main__":
    main()
