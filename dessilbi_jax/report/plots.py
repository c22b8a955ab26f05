"""The pictures of a report. Each function returns a Picture: a figure and what it shows in words.

The alternative text of a picture says what a reader who cannot see it would miss: what is drawn and
the values at its end. None is returned where the run has nothing to draw yet. Each is drawn for a
wide page and, anew, for a phone's.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from dessilbi_jax.report import style
from dessilbi_jax.report.retrained import Point
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count, number, percent

_LINES = 8  # layers drawn as curves; more of them become rows of a heat map
_P = ParamSpec("_P")


@dataclass(frozen=True)
class Picture:
    """A figure, its alternative text, what its caption must add (or nothing), and it narrow."""

    figure: Figure
    alt: str
    remark: str = ""
    narrow: Callable[[], Figure] | None = None


def both_widths(draw: Callable[_P, Picture | None]) -> Callable[_P, Picture | None]:
    """Has the picture of a function, which takes `narrow`, drawn for a phone too when asked."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **options: _P.kwargs) -> Picture | None:
        picture = draw(*args, **options)
        if picture is None:
            return None

        def again() -> Figure:
            other = draw(*args, **{**options, "narrow": True})  # type: ignore[arg-type]
            assert other is not None
            return other.figure

        return replace(picture, narrow=again)

    return drawn


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


def end_of(x: np.ndarray) -> float:
    """Returns where an axis that starts at 0 and shows all of `x` ends."""
    margin = 1.02 if x.size > 1 else 1.25
    return margin * float(x[-1]) if x[-1] > 0 else 1.0


def _percent_axis(axes: Axes) -> None:
    """Labels y in percent, with as many digits as its ticks have."""
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ticks = 100 * axes.get_yticks()
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = next((d for d in range(6) if abs(round(step, d) - step) < 1e-9), 6)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=digits, symbol=" %"))


def _accuracy_axis(axes: Axes, values: np.ndarray) -> None:
    """Has the axis show the upper end, where runs differ: 97 against 98 percent.

    Errors are what is compared, so that from the best value down it reaches to eight times the
    best one's error, at least half a point and at most down to 0; what lies below is left out.
    """
    known = values[np.isfinite(values)]
    best = float(known.max()) if known.size else 1.0
    worst = float(known.min()) if known.size else 0.0
    low = max(0.0, min(worst, best), best - max(8 * (1 - best), 0.02))
    margin = 0.08 * max(best - low, 0.005)
    axes.set_ylim(max(low - margin, 0.0), min(best + margin, 1.0 + margin / 4))
    _percent_axis(axes)


def _below(axes: Axes, values: np.ndarray) -> str:
    """Returns what a caption must say of values that an accuracy axis leaves out."""
    low = axes.get_ylim()[0]
    lost = int((values[np.isfinite(values)] < low).sum())
    return (
        f"The axis begins at {percent(low, 1)}; {count(lost)} values below are left out."
        if lost
        else ""
    )


@both_widths
def curves(run: Run, narrow: bool = False) -> Picture | None:
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
        figure, (left, right) = two_panels(narrow)
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
        right.set(title="Density: share of the structured weights", xlabel="epoch")
        _accuracy_axis(left, metrics["accuracy"])
        remark = _below(left, np.append(metrics["accuracy"], metrics["projected_accuracy"]))
        right.set_ylim(bottom=0, top=max(right.get_ylim()[1], 1e-3))
        _percent_axis(right)
        for axes in (left, right):
            _moments(axes, run)
            axes.set_xlim(0, end_of(epoch))
            axes.legend(loc="best")
    alt = (
        f"Two line charts against epochs, up to epoch {run.last('epoch'):g}. Left: accuracy on "
        f"held-out data, at the last record {percent(dense)} for the dense and "
        f"{percent(projected)} for the projected network. Right: density, at the last record "
        f"{percent(density)}"
    )
    asked = run.asked_density
    alt += f", with {percent(asked)} asked." if math.isfinite(asked) else "."
    return Picture(figure, alt, remark)


@both_widths
def losses(run: Run, narrow: bool = False) -> Picture | None:
    """Draws the losses, and the learning rate with λ, against epochs.

    Returns None where no loss was recorded.
    """
    epoch, metrics = run.metrics["epoch"], run.metrics
    if not np.isfinite(metrics["loss"]).any():
        return None
    with style.context():
        figure, (left, right) = two_panels(narrow)
        _line(left, epoch, metrics["loss"], color=style.DENSE,
              label=f"training, {number(run.last('loss'))} at the last record")  # fmt: skip
        held = run.last("held_out_loss")
        if math.isfinite(held):
            _line(left, epoch, metrics["held_out_loss"], color=style.LINES[2], linestyle="-.",
                  label=f"held-out, {number(held)}")  # fmt: skip
        left.set(title="Loss", xlabel="epoch")
        left.set_ylim(bottom=0)
        rate = run.last("learning_rate")
        _line(right, epoch, metrics["learning_rate"], color=style.DENSE,
              label=f"learning rate, {number(rate)} at the last record")  # fmt: skip
        right.set(title="Learning rate, and λ (right axis)", xlabel="epoch")
        right.set_ylim(0, 1.45 * right.get_ylim()[1])  # room for the legend
        handles, labels = right.get_legend_handles_labels()
        lam = run.last("lam")
        if math.isfinite(lam):
            other = right.twinx()
            _line(other, epoch, metrics["lam"], color=style.PROJECTED, linestyle="--",
                  drawstyle="steps-post", label=f"λ, {number(lam)}")  # fmt: skip
            other.spines["right"].set_visible(True)
            other.grid(False)
            moments = _epochs_of([step for step, _ in run.estimates() if step], run)
            values = [value for step, value in run.estimates() if step]
            if run.lam_is_auto and len(moments):
                other.plot(moments, values, "o", ms=4, color=style.PROJECTED,
                           label=f"{len(moments)} estimates of λ")  # fmt: skip
            other.set_ylim(0, 1.45 * other.get_ylim()[1])
            more = other.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
        for axes in (left, right):
            _moments(axes, run)
            axes.set_xlim(0, end_of(epoch))
        left.legend(loc="best")
        right.legend(handles, labels, loc="upper right")
    alt = (
        f"Two line charts against epochs. Left: the loss, at the last record "
        f"{number(run.last('loss'))} in training"
        + (f" and {number(held)} on held-out data" if math.isfinite(held) else "")
        + f". Right: the learning rate, {number(rate)} at the end"
        + (f", and λ, {number(lam)} at the end." if math.isfinite(lam) else ".")
    )
    return Picture(figure, alt)


@both_widths
def retraining(points: Sequence[Point], narrow: bool = False) -> Picture | None:
    """Draws held-out accuracy and training loss of retrained tickets against their epochs.

    Returns None where no ticket was retrained.
    """
    known = [point for point in points if point.epochs]
    if not known:
        return None
    with style.context():
        figure, (left, right) = two_panels(narrow)
        for i, point in enumerate(known):
            epoch = np.array([0.0 if e["epoch"] is None else e["epoch"] for e in point.epochs])
            options = {
                "color": style.LINES[i % len(style.LINES)],
                "linestyle": style.DASHES[i // len(style.LINES) % len(style.DASHES)],
            }
            for axes, name in ((left, "accuracy"), (right, "loss")):
                values = np.array([math.nan if e[name] is None else e[name] for e in point.epochs])
                label = f"{percent(point.density)} of the weights, {percent(point.retrained)}"
                _line(axes, epoch, values, label=label, **options)
        left.set(title="Accuracy on held-out data", xlabel="epoch of the retraining")
        right.set(title="Training loss", xlabel="epoch of the retraining")
        values = np.array([e["accuracy"] for p in known for e in p.epochs], float)
        _accuracy_axis(left, values)
        right.set_ylim(bottom=0)
        left.legend(loc="lower right", title="density, accuracy on test data")
    ends = ", ".join(f"{percent(p.retrained)} at {percent(p.density)}" for p in known)
    alt = f"Two line charts of retraining against its epochs. Test accuracy at the end: {ends}."
    return Picture(figure, alt, _below(left, values))


def two_panels(narrow: bool) -> tuple[Figure, Any]:
    """Returns a figure with two panels: side by side, or one below the other on a phone."""
    size = (style.WIDTHS[True], 5.6) if narrow else (style.WIDTHS[False], 3.3)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(*((2, 1) if narrow else (1, 2)))


def _moments(axes: Axes, run: Run) -> None:
    """Marks in grey where the support of W shrinks, and with ticks where λ was estimated."""
    if run.settling is not None and isinstance(run.settings.get("epochs"), int):
        begin, end = (x * run.settings["epochs"] for x in run.settling)
        axes.axvspan(begin, end, color=style.ASKED, alpha=0.12, lw=0)
    if run.lam_is_auto:
        for x in _epochs_of([step for step, _ in run.estimates() if step], run):
            axes.axvline(x, ymax=0.03, color=style.ASKED, lw=1)


def _epochs_of(steps: Sequence[int], run: Run) -> np.ndarray:
    """Returns where steps lie on an axis of epochs."""
    if not run.records or not run.last("step"):
        return np.zeros(0)
    return np.asarray(steps, float) * run.last("epoch") / run.last("step")


@both_widths
def accuracy_by_density(points: Sequence[Point], narrow: bool = False) -> Picture | None:
    """Draws accuracy on test data against density, of retrained and of projected tickets."""
    density = np.array([point.density for point in points])
    retrained = np.array([point.retrained for point in points])
    projected = np.array([np.nan if p.projected is None else p.projected for p in points])
    dense = float(points[0].dense or math.nan)
    with style.context():
        figure = Figure(figsize=(style.WIDTHS[narrow], 3.3), layout="constrained")
        axes = figure.subplots()
        axes.axhline(dense, color=style.DENSE, lw=1.4, label=f"dense, {percent(dense)}")
        options: dict[str, Any] = {"color": style.PROJECTED, "marker": "o", "markersize": 5}
        axes.plot(density, projected, ls=":", lw=1, mfc=style.PAPER, label="projected", **options)
        axes.plot(density, retrained, label="retrained", **options)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(density.tolist()))
        axes.xaxis.set_major_formatter(lambda d, _: f"{100 * d:.2g} %")
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.set(xlabel="density: share of the structured weights", title="Accuracy on test data")
        _accuracy_axis(axes, np.append(retrained, dense))
        axes.legend(loc="lower right")
    ends = ", ".join(f"{percent(p.retrained)} at {percent(p.density)}" for p in points)
    return Picture(
        figure,
        f"Line chart of test accuracy against density, the dense network at {percent(dense)}. "
        f"Retrained tickets: {ends}.",
        _below(axes, projected),
    )


@both_widths
def runs(runs: Mapping[str, Run], narrow: bool = False) -> Picture | None:
    """Draws the held-out accuracies of several runs against epochs; None without any record."""
    known = {name: run for name, run in runs.items() if run.records}
    if not known:
        return None
    with style.context():
        figure = Figure(figsize=(style.WIDTHS[narrow], 3.5), layout="constrained")
        axes = figure.subplots()
        for i, (name, run) in enumerate(known.items()):
            options = {"color": style.LINES[i % len(style.LINES)]}
            last = percent(run.last("accuracy"))
            _line(axes, run.metrics["epoch"], run.metrics["accuracy"],
                  label=f" {name}, {last}", **options)  # fmt: skip
            _line(axes, run.metrics["epoch"], run.metrics["projected_accuracy"],
                  linestyle="--", linewidth=1, **options)  # fmt: skip
        axes.set(xlabel="epoch", title="Accuracy on held-out data: dense, and projected (dashed)")
        values = np.concatenate([run.metrics["accuracy"] for run in known.values()])
        _accuracy_axis(axes, values)
        axes.legend(loc="lower right")
        projected = np.concatenate([run.metrics["projected_accuracy"] for run in known.values()])
        remark = _below(axes, np.append(values, projected))
    ends = ", ".join(f"{name} {percent(run.last('accuracy'))}" for name, run in known.items())
    alt = f"Line chart of held-out accuracy against epochs. At the last record: {ends}."
    return Picture(figure, alt, remark)


@both_widths
def layer_density(run: Run, narrow: bool = False) -> Picture | None:
    """Draws the density of each set of groups against time, as curves or (many) a heat map.

    Returns None where no path was recorded.
    """
    if run.path is None:
        return None
    x, unit = _time_axis(run)
    by_leaf = run.path.layer_density()
    layers = {each.short if narrow else each.title: by_leaf[each.names[0]] for each in run.sets()}
    draw = _layer_curves if len(layers) <= _LINES else _layer_heat_map
    with style.context():
        figure = draw(x, unit, layers, narrow)
    kind = "Line chart" if len(layers) <= _LINES else "Heat map, one row for each layer"
    ends = ", ".join(f"{name} {percent(float(values[-1]))}" for name, values in layers.items())
    remark = "Each row is a layer, from the input down to the output; darker cells are denser."
    if len(layers) <= _LINES:
        remark = "A curve that rises early belongs to a layer that was selected before the others."
    return Picture(
        figure, f"{kind}: density by layer against {unit}s. At the last record: {ends}.", remark
    )


def _layer_curves(
    x: np.ndarray, unit: str, layers: Mapping[str, np.ndarray], narrow: bool
) -> Figure:
    figure = Figure(figsize=(style.WIDTHS[narrow], 4.4 if narrow else 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(layers.items()):
        dash = style.DASHES[i % len(style.DASHES)]
        label = f" {name}  {percent(float(values[-1]))}"  # a leading _ would hide it
        _line(axes, x, np.asarray(values), color=style.LINES[i], linestyle=dash, label=label)
    axes.set(xlabel=unit, title="Density of each layer, and its last value")
    axes.set_xlim(0, end_of(x))
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-3))
    _percent_axis(axes)
    if narrow:
        figure.legend(loc="outside lower center", handlelength=2.6)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
    return figure


def _layer_heat_map(
    x: np.ndarray, unit: str, layers: Mapping[str, np.ndarray], narrow: bool
) -> Figure:
    values = np.array([np.asarray(v) for v in layers.values()])
    figure = Figure(figsize=(style.WIDTHS[narrow], 1.1 + 0.24 * len(layers)), layout="constrained")
    axes = figure.subplots()
    # One cell a record, from its own time to the next one's; the last is as wide as the mean.
    width = (x[-1] - x[0]) / (x.size - 1) if x.size > 1 else 1.0
    edges = np.append(x, x[-1] + (width or 1.0))
    top = max(float(np.nanmax(values)), 1e-3)
    mesh = axes.pcolormesh(
        edges, np.arange(len(layers) + 1), values, cmap="Blues", vmin=0, vmax=top, rasterized=True
    )
    names = [n if len(n) <= 22 or not narrow else f"{n[:7]}…{n[-13:]}" for n in layers]
    axes.set_yticks(np.arange(len(layers)) + 0.5, names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set(xlabel=unit, title="Density of each layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    return figure
