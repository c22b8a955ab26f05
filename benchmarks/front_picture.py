"""Draws the picture on the front page: a path that opens, and what its tickets are worth.

    python -m benchmarks front_picture

Left, a run that this makes itself in seconds: a layer of 64 units on the embedded digits. Right,
the committed result of `python -m benchmarks tickets`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dessilbi_jax as dl
from benchmarks.harness import results
from dessilbi_jax import data
from dessilbi_jax.report import style

COST = {"cpu": "5 s"}
OUT = Path(__file__).parents[1] / "docs" / "front.svg"
# What is shown of the result, and how it is named for those who do not know the methods.
SHOWN = {
    "DessiLBI": ("this library, one run for all sizes", "black", "-"),
    "lottery (IMP)": ("lottery tickets, up to 21 runs", style.LINES[1], "--"),
    "RigL": ("RigL, one run for each size", style.LINES[4], "--"),
    "random": ("random choice", style.WAITING, "--"),
}
SMALLEST = 0.01


def opening(epochs: int = 16, units: int = 64, records: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Trains on the digits; returns the moments in epochs, and every unit's ‖Γ‖ at each."""
    digits = data.load("digits")
    x = np.asarray(digits.normalize(digits.train_images)).reshape(-1, 64)
    y = digits.train_labels
    first, second = jax.random.split(jax.random.key(0))
    init = jax.nn.initializers.he_normal()
    params = {
        "hidden": {"kernel": init(first, (64, units)), "bias": jnp.zeros(units)},
        "out": {"kernel": init(second, (units, 10)), "bias": jnp.zeros(10)},
    }
    batch = 64
    steps = epochs * (len(y) // batch)
    tx = dl.dessilbi(
        0.05, nu=20.0, lam=dl.auto(group_density=0.3, steps=steps, at=0.8), momentum=0.9,
        structure=[("hidden/kernel", (-1,))],
    )  # fmt: skip

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state, moments, norms = tx.init(params), [0.0], [np.zeros(units)]
    for epoch in range(epochs):
        order = data.epoch_order(seed=0, epoch=epoch, n=len(y), batch=batch)
        last_of_each = {int(part[-1]) for part in np.array_split(range(len(order)), records)}
        for i, rows in enumerate(order):
            params, state = step(params, state, x[rows], y[rows])
            if i in last_of_each:
                moments.append(epoch + (i + 1) / len(order))
                gamma = dl.gamma(state)["hidden"]["kernel"]
                norms.append(np.linalg.norm(np.asarray(gamma), axis=0))
    return np.array(moments), np.array(norms)


def draw_opening(axes: Axes, moments: np.ndarray, norms: np.ndarray) -> None:
    """One line a unit, coloured by when it entered; those that stay out lie on the axis."""
    colours = style.entry_colours()
    for norm in norms.T:
        inside = np.flatnonzero(norm)
        if len(inside):
            shown = slice(inside[0] - 1, None)  # from the last zero on
            share = moments[inside[0]] / moments[-1]
            axes.plot(moments[shown], norm[shown], color=colours(share), lw=1.1)
    entered = int(norms[-1].astype(bool).sum())
    axes.plot(moments[[0, -1]], [0, 0], color=style.WAITING, lw=2.5, solid_capstyle="butt")
    axes.set_xlim(0, moments[-1])
    axes.set_ylim(bottom=-0.03 * norms.max())
    axes.set(
        title=f"During training, {entered} of {norms.shape[1]} units are selected, one by one",
        xlabel="epoch", ylabel="strength in the sparse network",
    )  # fmt: skip


def draw_sizes(axes: Axes, result: dict[str, Any]) -> None:
    """Accuracy of the retrained networks against the share of the weights that they keep."""
    dense = result["dense"]["mean"]
    axes.axhline(dense, color=style.DENSE, lw=1, ls=":")
    axes.annotate(
        "all weights", (0.015, dense), va="bottom", ha="center", color=style.DENSE, fontsize=8
    )
    for method, (label, colour, dash) in SHOWN.items():
        points = sorted(
            (line["density"], line["retrained"]["mean"])
            for line in result["table"]
            if line["method"] == method and line["density"] >= SMALLEST
        )
        axes.plot(
            *zip(*points, strict=True), dash, color=colour, marker="o", ms=3.5, label=label,
            lw=2.2 if method == "DessiLBI" else 1.4,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set(
        title="Afterwards, one run gives networks of every size",
        xlabel="weights kept", ylabel="test accuracy, %",
    )  # fmt: skip
    axes.legend(loc="lower right")


def picture(moments: np.ndarray, norms: np.ndarray, result: dict[str, Any]) -> Figure:
    """Both sides."""
    figure = Figure(figsize=(9.4, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_opening(left, moments, norms)
    draw_sizes(right, result)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=16, help="of the run (default: 16)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    args = parser.parse_args()
    result = json.loads((results.RESULTS / "tickets.json").read_text())
    with style.context():
        svg = style.svg(picture(*opening(args.epochs), result), background="white")
    part = args.out.with_suffix(".part")
    part.write_bytes(svg)
    part.replace(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
