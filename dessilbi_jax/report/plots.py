"""The pictures of a report. Each function returns a Picture: a figure and what it shows in words.

The alternative text of a picture says what a reader who cannot see it would miss: what is drawn and
the values at its end. None is returned where the run has nothing to draw yet.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dessilbi_jax.report import style
from dessilbi_jax.report.files import LeafNorms
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count, percent

WIDTH = 9.4  # inches, the width of the page's column
PANELS = 16  # leaves drawn one by one; the caption says which are left out
TILES = 512  # leaves of up to so many groups are drawn group by group
_BARS = 60  # bars of a histogram, at most about
_BAR = 0.12  # inches, height of a colour bar
_LINES = 8  # leaves drawn as curves; more of them become rows of a heat map


@dataclass(frozen=True)
class Picture:
    """A figure, its alternative text, and what its caption must add for this run (or nothing)."""

    figure: Figure
    alt: str
    remark: str = ""


def _time_axis(run: Run) -> tuple[np.ndarray, str]:
    """Returns the x values of the path's records and their name: epochs where they were kept."""
    assert run.path is not None
    epochs = np.asarray(run.path.metrics.get("epoch", []), dtype=np.float64)
    if epochs.size and np.isfinite(epochs).all():
        return epochs, "epoch"
    return np.asarray(run.path.steps, dtype=np.float64), "step"


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **options: Any) -> None:
    """Draws a curve through the known values; a single one, which has no line, gets a marker."""
    known = np.isfinite(x) & np.isfinite(y)
    marker = "o" if known.sum() == 1 else ""
    axes.plot(x[known], y[known], marker=marker, markersize=5, **options)


def _end(x: np.ndarray) -> float:
    """Returns where an axis that starts at 0 and shows all of `x` ends."""
    margin = 1.02 if x.size > 1 else 1.25
    return margin * float(x[-1]) if x[-1] > 0 else 1.0


def _percent_axis(axes: Axes) -> None:
    """Labels y in percent, with as many digits as its range asks for."""
    low, high = axes.get_ylim()
    digits = max(0, math.ceil(-math.log10(max(high - low, 1e-9) * 25)))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=digits, symbol=" %"))


def curves(run: Run) -> Picture | None:
    """Draws accuracy and density against epochs, of dense and projected network.

    Returns None where there are no records.
    """
    if not run.records:
        return None
    epoch, metrics = run.metrics["epoch"], run.metrics
    dense, projected, density = (
        run.last(name) for name in ("accuracy", "projected_accuracy", "density")
    )
    with style.context():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        name = "W, which became sparse" if run.settled else "dense"
        label = f"{name}, {percent(dense)} at the last record"
        _line(left, epoch, metrics["accuracy"], color=style.DENSE, label=label)
        label = f"projected, {percent(projected)}"
        options = {"color": style.PROJECTED, "linestyle": "--"}
        _line(left, epoch, metrics["projected_accuracy"], label=label, **options)
        left.set(title="Accuracy on held-out data", xlabel="epoch")
        label = f"selected, {percent(density)} at the last record"
        _line(right, epoch, metrics["density"], color=style.PROJECTED, linestyle="--", label=label)
        if math.isfinite(run.asked_density):
            label = f"asked, {percent(run.asked_density)}"
            right.axhline(run.asked_density, color=style.ASKED, lw=1.2, ls=":", label=label)
        if run.settling is not None and isinstance(run.settings.get("epochs"), int):
            for axes in (left, right):
                begin, end = (x * run.settings["epochs"] for x in run.settling)
                axes.axvspan(begin, end, color=style.ASKED, alpha=0.12, lw=0)
        right.set(title="Density: share of the structured weights", xlabel="epoch")
        left.set_xlim(0, _end(epoch))
        left.set_ylim(top=min(left.get_ylim()[1], 1.02))
        right.set_ylim(bottom=0, top=max(right.get_ylim()[1], 1e-3))
        for axes in (left, right):
            _percent_axis(axes)
            axes.legend(loc="best")
    alt = (
        f"Two line charts against epochs, up to epoch {run.last('epoch'):g}. Left: accuracy on "
        f"held-out data, at the last record {percent(dense)} for the dense and "
        f"{percent(projected)} for the projected network. Right: density, at the last record "
        f"{percent(density)}"
    )
    asked = run.asked_density
    alt += f", with {percent(asked)} asked." if math.isfinite(asked) else "."
    return Picture(figure, alt)


def layer_density(run: Run) -> Picture | None:
    """Draws the density of each structured leaf against time, as curves or (many) a heat map.

    Returns None where no path was recorded.
    """
    if run.path is None:
        return None
    x, unit = _time_axis(run)
    layers = run.path.layer_density()
    with style.context():
        if len(layers) <= _LINES:
            figure = _layer_curves(x, unit, layers)
        else:
            figure = _layer_heat_map(x, unit, layers)
    kind = "Line chart" if len(layers) <= _LINES else "Heat map, one row for each leaf"
    ends = ", ".join(f"{name} {percent(float(values[-1]))}" for name, values in layers.items())
    remark = "Each row is a layer; darker cells are denser."
    if len(layers) <= _LINES:
        remark = "A curve that rises early belongs to a layer that was selected before the others."
    return Picture(
        figure, f"{kind}: density by layer against {unit}s. At the last record: {ends}.", remark
    )


def _layer_curves(x: np.ndarray, unit: str, layers: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(layers.items()):
        dash = style.DASHES[i % len(style.DASHES)]
        label = f" {name}  {percent(float(values[-1]))}"  # a leading _ would hide it
        _line(axes, x, np.asarray(values), color=style.LINES[i], linestyle=dash, label=label)
    axes.set(xlabel=unit, title="Density of each layer, and its last value")
    axes.set_xlim(0, _end(x))
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-3))
    _percent_axis(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
    return figure


def _layer_heat_map(x: np.ndarray, unit: str, layers: dict[str, np.ndarray]) -> Figure:
    values = np.array([np.asarray(v) for v in layers.values()])
    figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(layers)), layout="constrained")
    axes = figure.subplots()
    # One cell a record, from its own time to the next one's; the last is as wide as the mean.
    width = (x[-1] - x[0]) / (x.size - 1) if x.size > 1 else 1.0
    edges = np.append(x, x[-1] + (width or 1.0))
    top = max(float(np.nanmax(values)), 1e-3)
    mesh = axes.pcolormesh(
        edges, np.arange(len(layers) + 1), values, cmap="Blues", vmin=0, vmax=top, rasterized=True
    )
    axes.set_yticks(np.arange(len(layers)) + 0.5, list(layers))
    axes.invert_yaxis()
    axes.grid(False)
    axes.set(xlabel=unit, title="Density of each layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    return figure


def entry_scale(first: float, last: float) -> ScalarMappable:
    """Returns the colours of entry times between two steps."""
    return ScalarMappable(Normalize(first, max(last, first + 1)), style.entry_colours())


def entry_bar(figure: Figure, axes: Axes, scale: ScalarMappable) -> None:
    """Draws the bar that says which step each colour of entry stands for."""
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
    axes.set_title("step at which a group entered", fontsize=9)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(8, integer=True)
    bar.update_ticks()


def _panel_title(name: str, symbol: str, across: int) -> str:
    """Returns the title of a norm panel; long paths lose their middle where panels are narrow."""
    if across > 1 and len(name) > 24:
        name = f"{name[:8]}…{name[-14:]}"
    return f"{name}  ‖{symbol}‖"


def _left_out(names: Sequence[str], what: str) -> str:
    rest = names[PANELS:]
    return f"The first {PANELS} {what} are drawn; left out: {', '.join(rest)}. " if rest else ""


def solution_path(run: Run) -> Picture | None:
    """Draws ‖W_g‖ and ‖Γ_g‖ of the sampled groups against steps, coloured from their entry on.

    Returns None where norms.npz is missing or holds no record or no leaf.
    """
    norms = run.norms
    if norms is None or not norms.steps.size or not norms.leaves:
        return None
    leaves = norms.leaves[:PANELS]
    across = 1 if len(leaves) <= 4 else 2  # leaves in a row, two panels each
    down = math.ceil(len(leaves) / across)
    scale = entry_scale(float(norms.steps[0]), float(norms.steps[-1]))
    entered = [leaf.entry() >= 0 for leaf in leaves]
    with style.context():
        height = (1.75 if across == 1 else 1.55) * down + 0.75
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ratios = [_BAR, *[(height - _BAR) / down] * down]
        grid = figure.add_gridspec(down + 1, 2 * across, height_ratios=ratios)
        for i, leaf in enumerate(leaves):
            row, first = 1 + i // across, 2 * (i % across)
            for side, (values, symbol) in enumerate(((leaf.w, "W"), (leaf.gamma, "Γ"))):
                axes = figure.add_subplot(grid[row, first + side])
                norm_panel(axes, norms.steps, leaf, values, scale)
                axes.set_title(_panel_title(leaf.name, symbol, across))
                if i >= len(leaves) - across:  # nothing below it
                    axes.set_xlabel("step")
                else:
                    axes.tick_params(labelbottom=False)
        if any(e.any() for e in entered):
            entry_bar(figure, figure.add_subplot(grid[0, :]), scale)
    ends = ", ".join(
        f"{leaf.name} {e.sum()} of {e.size}" for leaf, e in zip(leaves, entered, strict=True)
    )
    alt = (
        f"Line charts of group norms against steps, from step {count(norms.steps[0])} to "
        f"{count(norms.steps[-1])}, one curve for each sampled group: left ‖W‖, right ‖Γ‖. "
        f"Sampled groups that entered: {ends}."
    )
    remark = _left_out([leaf.name for leaf in norms.leaves], "layers")
    if not any(e.any() for e in entered):
        remark += "None of the sampled groups has entered so far. "
    return Picture(figure, alt, remark)


def norm_panel(
    axes: Axes, steps: np.ndarray, leaf: LeafNorms, values: np.ndarray, scale: ScalarMappable
) -> None:
    """Draws one leaf's curves: grey before the record of entry, coloured from it on."""
    entry = leaf.entry()
    first = np.where(entry < 0, steps.size, entry)
    grey = [np.column_stack([steps[: f + 1], values[: f + 1, g]]) for g, f in enumerate(first)]
    axes.add_collection(LineCollection(grey, colors=style.WAITING, linewidths=0.7, zorder=2))
    for g in np.argsort(-first, kind="stable"):  # the earliest on top
        if entry[g] >= 0:
            colour, line = scale.to_rgba(steps[entry[g]]), slice(entry[g], None)
            axes.plot(steps[line], values[line, g], color=colour, linewidth=1.1, zorder=3)
    if steps.size == 1:
        colours = np.where(entry[:, None] < 0, to_rgba(style.WAITING), scale.to_rgba(steps[0]))
        axes.scatter(np.full(entry.size, steps[0]), values[0], c=colours, s=8, zorder=3)
    top = float(np.nanmax(values, initial=0.0))
    axes.set_ylim(0, 1.05 * top if np.isfinite(top) and top > 0 else 1.0)
    axes.set_xlim(0, _end(steps))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def entry_times(run: Run) -> Picture | None:
    """Draws when the groups of each leaf entered: tile by tile, or (many groups) as a histogram.

    Returns None where no path was recorded.
    """
    if run.path is None:
        return None
    entries = {name: np.asarray(e).ravel() for name, e in run.path.entry_steps().items()}
    steps = np.asarray(run.path.steps)
    shown = list(entries.items())[:PANELS]
    scale = entry_scale(float(steps[0]), float(steps[-1]))
    columns = _columns(e for _, e in shown)
    rows = [math.ceil(e.size / columns) if e.size <= TILES else 0 for _, e in shown]
    heights = [0.3 + 0.95 * WIDTH / columns * r if r else 1.35 for r in rows]
    with style.context():
        figure = Figure(figsize=(WIDTH, 0.75 + sum(heights)), layout="constrained")
        bar, *grid = figure.subplots(len(shown) + 1, 1, height_ratios=[_BAR, *heights])
        for axes, (name, entry), tiled in zip(grid, shown, rows, strict=True):
            waiting = int((entry < 0).sum())
            axes.set_title(f"{name}: {count(entry.size - waiting)} of {count(entry.size)} entered")
            if tiled:
                _tiles(axes, entry, scale, columns)
            else:
                _histogram(axes, entry, steps, scale)
        if any((e >= 0).any() for _, e in shown):
            entry_bar(figure, bar, scale)
        else:
            bar.set_visible(False)
    ends = "; ".join(_entry_words(name, entry) for name, entry in shown)
    remark = _left_out(list(entries), "layers")
    return Picture(figure, f"Entry times of the groups, layer by layer. {ends}.", remark)


def _entry_words(name: str, entry: np.ndarray) -> str:
    entered = entry[entry >= 0]
    words = f"{name}: {count(entered.size)} of {count(entry.size)} groups entered"
    if not entered.size:
        return words
    first, middle = int(entered.min()), int(np.median(entered))
    return f"{words}, the first at step {count(first)}, half of them by step {count(middle)}"


def _columns(entries: Iterable[np.ndarray]) -> int:
    """Returns the tiles in a full row: few large ones where all leaves are small."""
    return 32 if max((e.size for e in entries if e.size <= TILES), default=0) <= 64 else 64


def _tiles(axes: Axes, entry: np.ndarray, scale: ScalarMappable, columns: int) -> None:
    """Draws one tile a group in the order of the leaf, coloured by its time of entry."""
    down = math.ceil(entry.size / columns)
    colours = np.zeros((down * columns, 4))
    colours[: entry.size] = scale.to_rgba(entry)
    colours[: entry.size][entry < 0] = to_rgba(style.WAITING, 0.45)
    mesh = axes.pcolormesh(colours.reshape(down, columns, 4), linewidth=1.2)
    blank = down * columns - entry.size
    mesh.set_edgecolor([style.PAPER] * entry.size + ["none"] * blank)
    axes.set_xlim(0, columns)
    axes.set_aspect("equal", anchor="NW")
    axes.invert_yaxis()
    axes.set_axis_off()


def _histogram(axes: Axes, entry: np.ndarray, steps: np.ndarray, scale: ScalarMappable) -> None:
    """Draws how many groups entered between one record and the next, up to about 60 bars."""
    stride = math.ceil(steps.size / _BARS)
    ends = steps[::-1][::stride][::-1].astype(np.float64)
    starts = np.concatenate([[0.0], ends[:-1]])
    edges = np.concatenate([starts[:1], ends]) + 0.5  # a group entered at a step counts before it
    heights, _ = np.histogram(entry[entry >= 0], edges)
    axes.bar(
        starts, heights, ends - starts, align="edge", color=scale.to_rgba(ends), ec=style.PAPER
    )
    axes.set_xlim(0, ends[-1])
    axes.set_ylim(0, max(1.0, 1.08 * heights.max()))
    axes.set_ylabel("groups")
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="x", visible=False)
