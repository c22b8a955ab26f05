"""Draws the pictures of paths in the pages on statistics.

    python -m benchmarks statistics_pictures

Left, the diabetes data: LBI, and the inverse scale space that it tends to. Right, a fused split
model of made data with three levels: the sparse coefficients, the dense ones and the truth.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

from dessilbi_jax.report import style
from dessilbi_jax.stats import iss_path, lbi_path, split_lbi_path

COST = {"cpu": "10 s"}
OUT = Path(__file__).parents[1] / "docs" / "statistics_paths.svg"


def draw_paths(axes: Axes) -> None:
    """Each coefficient over t, coloured by when it entered."""
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    path = lbi_path(X, y, kappa=20.0, ratio=40, nt=400)
    exact = iss_path(X, y, t_max=float(path.ts[-1]))
    scale = X.std(ddof=0).to_numpy()  # so that sizes can be compared
    colours = style.entry_colours()
    for rank, j in enumerate(path.order[: np.isfinite(path.entry_times).sum()]):
        colour = colours(rank / 9)
        axes.plot(path.ts, path.coefs[j] * scale[j], color=colour, lw=1.4)
        axes.plot(exact.ts, exact.coefs[j] * scale[j], color=colour, lw=0.8, ls=":",
                  drawstyle="steps-post")  # fmt: skip
        axes.annotate(X.columns[j], (path.ts[-1], path.coefs[j, -1] * scale[j]), fontsize=7,
                      xytext=(3, 0), textcoords="offset points", va="center")  # fmt: skip
    axes.axhline(0, color=style.WAITING, lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks((2, 5, 10, 20, 50), ("2", "5", "10", "20", "50"))
    axes.minorticks_off()
    axes.set(
         xlabel="t", ylabel="coefficient of the standardised column",
        title="Diabetes: LBI (κ = 20) and its limit (dotted)",
    )  # fmt: skip


def draw_levels(axes: Axes, seed: int = 0) -> None:
    """A point of a fused path."""
    rng = np.random.default_rng(seed)
    beta = np.repeat([0.0, 2.0, -1.0, 0.0], [15, 10, 20, 15])
    X = rng.standard_normal((120, 60))
    path = split_lbi_path(
        X, X @ beta + rng.standard_normal(120), D="fused", nu=3.0, kappa=20.0, ratio=10
    )
    t = float(np.sort(path.entry_times)[2]) * 1.3
    axes.plot(beta, color=style.WAITING, lw=4, label="truth", drawstyle="steps-mid")
    axes.plot(path.dense_at(t), ".", color=style.LINES[1], ms=4, label="dense: predicts")
    axes.plot(path.at(t), color=style.LINES[0], lw=1.4, label="sparse: selects",
              drawstyle="steps-mid")  # fmt: skip
    axes.set(title="Split LBI, D = differences of neighbours", xlabel="coefficient")
    axes.legend(loc="upper right")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    args = parser.parse_args()
    with style.context():
        figure = Figure(figsize=(9.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_paths(left)
        draw_levels(right)
        svg = style.svg(figure, background="white")
    part = args.out.with_suffix(".part")
    part.write_bytes(svg)
    part.replace(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
