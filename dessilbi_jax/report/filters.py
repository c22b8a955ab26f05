"""The pictures of what filters respond to."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dessilbi_jax.report import style
from dessilbi_jax.report.groups import entry_bar, entry_scale, followed, norm_panel
from dessilbi_jax.report.interpretation_file import Looked, Panel
from dessilbi_jax.report.plots import Picture
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count

MEASURES = {
    "saturation": "colour saturation",
    "frequency": "spatial frequency",
    "orientation": "orientation",
}
SELECTED = "#D55E00"
_ACROSS = 6  # images beside a path, in a row
_TILE = 30  # pixels of a tile at least: what is smaller is drawn with larger pixels


def maximal_images(run: Run, looked: Looked) -> Picture:
    """Draws the paths of a layer's norms beside the images that maximise its first filters."""
    entry, units = looked.layer_entry, looked.units
    steps = run.norms.steps if run.norms is not None else np.zeros(0)
    leaf = None
    if run.norms is not None and steps.size:
        found = (leaf for each, leaf in followed(run) if looked.layer in each.names)
        leaf = next(found, None)
    entered = entry[entry >= 0]
    scale = entry_scale(float(steps[0] if leaf else entered.min(initial=0)),
                        float(steps[-1] if leaf else entered.max(initial=1)))  # fmt: skip
    across = min(_ACROSS, len(units))
    down = math.ceil(len(units) / across)
    with style.context():
        height = 0.8 + 2 * max(1.8, 1.05 * down + 0.15)
        figure = Figure(figsize=(style.WIDTHS[False], height), layout="constrained")
        grid = figure.add_gridspec(
            1 + 2 * down,
            1 + across,
            width_ratios=[0.6 * across, *[1] * across],
            height_ratios=[0.12, *[(height - 0.8) / 2 / down] * 2 * down],
        )
        halves = zip(("W", "Γ"), looked.maximal, looked.activations, strict=True)
        for half, (symbol, images, activations) in enumerate(halves):
            top = 1 + half * down
            axes = figure.add_subplot(grid[top : top + down, 0])
            axes.set_title(f"{looked.layer}  ‖{symbol}‖")
            if leaf is None:
                axes.set_axis_off()
            else:
                norm_panel(axes, steps, leaf, leaf.w if symbol == "W" else leaf.gamma, scale)
                axes.set_xlabel("step" if half else "")
            for at, unit in enumerate(units.tolist()):
                place = figure.add_subplot(grid[top + at // across, 1 + at % across])
                when = int(entry[unit])
                colours = scale.to_rgba(np.array([when]))
                _image(place, images[at], style.WAITING if when < 0 else to_hex(tuple(colours[0])))
                told = "never" if when < 0 else f"step {count(when)}"
                if half and when < 0:  # nothing of it is left to look at
                    _said(place, "not in Γ")
                elif activations[at] <= 0:
                    _said(place, "silent")
                place.set_title(f"{unit}: {told}", fontsize=7.5, pad=3)
        if entered.size:
            entry_bar(figure, figure.add_subplot(grid[0, :]), scale)
    alt = (
        f"Line charts of the norms of the filters of {looked.layer} against steps, above ‖W‖, "
        f"below ‖Γ‖, each beside the images that maximise the mean activation of {len(units)} "
        f"filters: {', '.join(map(str, units.tolist()))}. {entered.size} of {entry.size} filters "
        f"entered; {(looked.activations[0] <= 0).sum()} of those shown are silent under W, "
        f"{(looked.activations[1] <= 0).sum()} under its projection."
    )
    return Picture(figure, alt)


def _image(axes: Axes, pixels: np.ndarray, frame: str) -> None:
    axes.imshow(_enlarged(pixels, 3 * _TILE), interpolation="none", cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=2.2)


def _said(axes: Axes, words: str) -> None:
    """Writes a word or two in the place of what cannot be seen in an image."""
    box = axes.transAxes
    axes.text(0.5, 0.5, words, transform=box, ha="center", va="center", fontsize=8.5, color="white")


def _enlarged(pixels: np.ndarray, least: int) -> np.ndarray:
    """Images [..., height, width, channels] with each pixel several times; grey ones in 2-D."""
    times = math.ceil(least / max(pixels.shape[-3:-1]))
    large = pixels.repeat(times, axis=-3).repeat(times, axis=-2)
    return large[..., 0] if large.shape[-1] == 1 else large


def first_layer(looked: Looked) -> Picture:
    """Draws the first layer's filters and their guided gradients, along the run and beside it."""
    panels, images = looked.panels, looked.images
    columns = 1 + len(images)
    tiles = math.ceil(math.sqrt(looked.panels[0].order.size))
    side = (style.WIDTHS[False] - 0.4) / columns
    with style.context():
        height = 0.95 + len(panels) * (side * math.ceil(panels[0].order.size / tiles) / tiles + 0.2)
        figure = Figure(figsize=(style.WIDTHS[False], height), layout="constrained")
        ratios = [0.75, *[(height - 0.75) / len(panels)] * len(panels)]
        grid = figure.subplots(len(panels) + 1, columns, height_ratios=ratios, squeeze=False)
        for axes, pixels in zip(grid[0, 1:], images, strict=True):
            _image(axes, pixels, style.RULE)
        for axes in grid[0]:
            axes.set_axis_off()
        for row, panel in zip(grid[1:], panels, strict=True):
            chosen = panel.selected[panel.order]
            for axes, pixels in zip(row, (panel.filters, *panel.guided), strict=True):
                _mosaic(axes, pixels, chosen, tiles)
            row[0].set_title(f"{panel.name}: filters")
            row[1].set_title("guided gradients")
    words = "; ".join(f"{p.name}: {p.selected.sum()} of {p.selected.size} selected" for p in panels)
    alt = (
        f"Mosaics of the {panels[0].order.size} filters of {looked.first}, from the largest norm "
        f"to the smallest, and of their guided gradients on {len(images)} images. {words}."
    )
    return Picture(figure, alt)


def _mosaic(axes: Axes, pixels: np.ndarray, framed: np.ndarray, across: int) -> None:
    """Draws images [n, height, width, channels] side by side, with frames around some."""
    large = _enlarged(pixels, _TILE)
    n, height, width = large.shape[:3]
    gap = max(2, width // 8)
    down = math.ceil(n / across)
    shape = (down * (height + gap) + gap, across * (width + gap) + gap, *large.shape[3:])
    sheet = np.full(shape, 255, np.uint8)
    for i in range(n):
        top, left = gap + i // across * (height + gap), gap + i % across * (width + gap)
        sheet[top : top + height, left : left + width] = large[i]
        if framed[i]:
            corner = (left - 0.5 - gap / 4, top - 0.5 - gap / 4)
            sides = (width + gap / 2, height + gap / 2)
            axes.add_patch(Rectangle(corner, *sides, fill=False, ec=SELECTED, lw=1.6))
    axes.imshow(sheet, interpolation="none", cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def measures(looked: Looked) -> Picture:
    """Draws each measure of the first layer's filters against their norm, coloured by entry."""
    shown = [name for name in MEASURES if np.isfinite(looked.measures[name]).any()]
    entry, last = looked.first_entry, looked.own[-1]
    norms = last.norms
    scale = entry_scale(float(entry[entry >= 0].min(initial=0)), float(entry.max(initial=1)))
    with style.context():
        figure = Figure(figsize=(style.WIDTHS[False], 3.1), layout="constrained")
        grid = figure.subplots(2, max(len(shown), 1), height_ratios=[0.12, 2.6], squeeze=False)
        for axes, name in zip(grid[1], shown, strict=True):
            values = looked.measures[name]
            for some, marker, colours in (
                (entry < 0, "x", style.MUTED),
                (entry >= 0, "o", scale.to_rgba(entry[entry >= 0])),
            ):
                axes.scatter(norms[some], values[some], c=colours, marker=marker, s=26, lw=1.1)
            axes.set(title=MEASURES[name], xlabel="l2 norm of the filter")
        for axes in grid[0, 1:]:
            axes.set_axis_off()
        if (entry >= 0).any():
            entry_bar(figure, grid[0, 0], scale)
        else:
            grid[0, 0].set_axis_off()
    return Picture(figure, _words(shown, looked, last))


def _words(shown: Sequence[str], looked: Looked, last: Panel) -> str:
    names = ", ".join(MEASURES[name] for name in shown)
    return (
        f"Scatter plots of {names} against the l2 norm of the {last.norms.size} filters of "
        f"{looked.first}, coloured by the step of entry; crosses never entered."
    )
