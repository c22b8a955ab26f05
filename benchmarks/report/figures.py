"""Pictures of the page, as SVG files: the same bytes from the same data."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dessilbi_jax.report import style

Result = dict[str, Any]


def _picture(draw: Callable[[Result], Figure]) -> Callable[[Result, Path], Path]:
    """Writes what `draw` makes of a result to a file, in the style of the reports, on white."""

    @functools.wraps(draw)
    def write(result: Result, file: Path) -> Path:
        with style.context():
            svg = style.svg(draw(result), background="white")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(svg)
        return file

    return write


SHOWN = (
    "DessiLBI", "lottery (IMP)", "one-shot", "matched decay", "gradual (Zhu-Gupta)", "RigL",
    "SNIP", "random",
)  # fmt: skip


@_picture
def tickets(result: Result) -> Figure:
    """Accuracy after retraining against density; DessiLBI's whole curve is one run."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    dense = result["dense"]["mean"]
    axes.axhline(dense, color="0.6", lw=1, ls="--")
    left = min(line["density"] for line in result["table"])
    axes.annotate("dense", (left, dense), va="bottom", ha="center", color="0.4")
    present = dict.fromkeys(line["method"] for line in result["table"])
    for method in (name for name in SHOWN if name in present):
        points = sorted(
            (line["density"], line["retrained"]["mean"], line["retrained"]["std"] or 0.0)
            for line in result["table"]
            if line["method"] == method
        )
        ours = method == "DessiLBI"
        curve = len(points) > len(result["config"]["densities"])
        axes.errorbar(
            *zip(*((x, y) for x, y, _ in points), strict=True),
            yerr=[s for *_, s in points], marker="o", ms=4, capsize=2,
            lw=2.2 if ours else float(curve), color="black" if ours else None,
            elinewidth=1, label="DessiLBI, one run" if ours else method,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = sorted({line["density"] for line in result["table"]})
    axes.set_xticks(ticks, [f"{100 * t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights kept, %")
    axes.set_ylabel("test accuracy after retraining, %")
    axes.legend(fontsize=8)
    return figure


@_picture
def ticket_cost(result: Result) -> Figure:
    """The cost of the search for a 5 % ticket by method, and whether it is within the bound."""
    lines = sorted(result["table"], key=lambda line: line["search_runs"], reverse=True)
    figure = Figure(figsize=(6.4, 0.9 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    least = 0.1  # where a search of a batch or two stands
    looks = {
        "yes": ("o", style.DENSE), "in the mean": ("D", style.LINES[4]),
        "not in the mean": ("d", style.LINES[5]), "no": ("x", style.PROJECTED),
    }  # fmt: skip
    for reached, (marker, colour) in looks.items():
        points = [(line, i) for i, line in enumerate(lines) if line["reached"] == reached]
        if points:
            costs = [max(line["search_runs"], least) for line, _ in points]
            axes.plot(
                costs, [i for _, i in points], marker, color=colour, ms=5,
                label=f"within {result['config']['bound']:g} points: {reached}",
            )  # fmt: skip
    axes.set_xscale("log")
    ticks = (least, 0.25, 0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{'≤ ' * (tick == least)}{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(lines)), [line["method"] for line in lines])
    axes.set_xlabel("training before the final retraining, dense runs")
    axes.set_title("tickets of 5 %")
    axes.legend(loc="lower left")
    return figure


@_picture
def classification(result: Result) -> Figure:
    """Measured against published accuracy."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = result["table"]
    places = range(len(lines))
    axes.errorbar(
        [line["accuracy"]["mean"] for line in lines], places,
        xerr=[line["accuracy"]["std"] or 0.0 for line in lines],
        fmt="o", ms=4, color="black", capsize=2, label="measured here",
    )  # fmt: skip
    axes.plot(
        [line["published"] for line in lines], places, "x", color="tab:red", label="published"
    )
    axes.set_yticks(places, [line["method"] for line in lines])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.legend()
    return figure


@_picture
def kappa_nu(result: Result) -> Figure:
    """Density of Γ and accuracy of W and of W on Γ along training, by κ and by ν."""
    cases = result["config"]["cases"]
    figure = Figure(figsize=(8.6, 5.2 * len(cases)), layout="constrained")
    all_axes = figure.subplots(2 * len(cases), 2, sharey="row", squeeze=False)
    for case, dense, right in zip(cases, all_axes[::2], all_axes[1::2], strict=True):
        network = case["setting"]["network"]
        lines = [line for line in result["table"] if line["network"] == network]
        middle = min({line["nu"] for line in lines}, key=lambda nu: abs(nu - 100))
        arms = (
            ("kappa", "κ", f"ν = {middle:g}", [x for x in lines if x["nu"] == middle]),
            ("nu", "ν", "κ = 1", [line for line in lines if line["kappa"] == 1]),
        )
        for above, below, (name, letter, fixed, shown) in zip(dense, right, arms, strict=True):
            for i, line in enumerate(sorted(shown, key=lambda line: line[name])):
                steps = [point["step"] for point in line["points"]]
                colour = matplotlib.colormaps["viridis"](0.9 * i / max(1, len(shown) - 1))
                for axes, key, dash in (
                    (above, "density_percent", "-"),
                    (below, "projected", "-"),
                    (below, "dense", ":"),
                ):
                    means = [point[key]["mean"] for point in line["points"]]
                    label = f"{letter} = {line[name]:g}" if axes is above else None
                    axes.plot(steps, means, dash, color=colour, label=label)
            above.set_title(f"{network}, {fixed}")
            above.set_ylabel("weights in Γ, %")
            above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            below.set_xlabel("updates")
            below.set_ylabel("W on Γ (dotted: W), % right")
    return figure


@_picture
def structured(result: Result) -> Figure:
    """Accuracy against FLOPs and against measured latency after the cut, by share."""
    networks = list(dict.fromkeys(line["network"] for line in result["table"]))
    methods = list(dict.fromkeys(line["method"] for line in result["table"]))[1:]
    kinds = {"flops_share": "FLOPs", "latency": "latency"}
    figure = Figure(figsize=(8.2, 2.9 * len(networks)), layout="constrained")
    all_axes = figure.subplots(len(networks), 2, sharey="row", squeeze=False)
    for (network, (key, name)), axes in zip(
        itertools.product(networks, kinds.items()), all_axes.ravel(), strict=True
    ):
        dense, *lines = (line for line in result["table"] if line["network"] == network)
        level = dense["accuracy"]["mean"]
        axes.axhline(level, color="0.6", lw=1, ls="--")
        axes.plot(1, level, "s", ms=4, color="0.4", label="dense")
        for method, sign in zip(methods, itertools.cycle("ovD^")):
            own = sorted(
                (line for line in lines if line["method"] == method),
                key=lambda line: line[key]["mean"],
            )
            axes.errorbar(
                [line[key]["mean"] for line in own], [line["accuracy"]["mean"] for line in own],
                xerr=[line[key]["std"] or 0.0 for line in own],
                yerr=[line["accuracy"]["std"] or 0.0 for line in own],
                marker=sign, ms=5, lw=1, elinewidth=1, capsize=2, label=method,
                color="black" if method == "DessiLBI" else None, alpha=0.8,
            )  # fmt: skip
        axes.set_xlim(0)
        axes.set_title(network)
        axes.set_xlabel(f"{name} over the dense network's")
        axes.set_ylabel("test accuracy, %")
    all_axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
