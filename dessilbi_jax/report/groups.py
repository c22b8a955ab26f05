"""The pictures of single groups: the path of their norms, and when they entered.

One panel a set of groups, in the order in which the network uses them: the channels of a layer are
one set, whether they lie in its kernel alone or in bias, normalisation and branches too.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dessilbi_jax.report import style
from dessilbi_jax.report.files import LeafNorms
from dessilbi_jax.report.plots import Picture, both_widths, end_of
from dessilbi_jax.report.run import Run, Set
from dessilbi_jax.report.text import count

PANELS = 16  # sets drawn one by one; the caption says which are left out
TILES = 512  # sets of up to so many groups are drawn group by group
DRAWN = 48  # curves in a panel
_BARS = 60  # bars of a histogram, at most about
_BAR = 0.12  # inches, height of a colour bar


def entry_scale(first: float, last: float) -> ScalarMappable:
    """Returns the colours of entry times between two steps."""
    return ScalarMappable(Normalize(first, max(last, first + 1)), style.entry_colours())


def entry_bar(figure: Figure, axes: Axes, scale: ScalarMappable, narrow: bool = False) -> None:
    """Draws the bar that says which step each colour of entry stands for."""
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
    axes.set_title("step at which a group entered", fontsize=9)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4 if narrow else 8, integer=True)
    bar.update_ticks()


def _shortened(title: str, most: int) -> str:
    """Returns a title that fits a narrow panel: a long one loses its middle.

    >>> _shortened("stage3_block1/conv1, stage3_block1/bn1", 24)
    'stage3_b…tage3_block1/bn1'
    """
    return title if len(title) <= most else f"{title[: most // 3]}…{title[-(most * 2 // 3) :]}"


def _chosen(sets: Sequence[Set]) -> tuple[list[Set], str]:
    """Returns the sets that are drawn, the first and the last too, and which are left out."""
    if len(sets) <= PANELS:
        return list(sets), ""
    places = np.linspace(0, len(sets) - 1, PANELS).round().astype(int).tolist()
    rest = ", ".join(each.title for i, each in enumerate(sets) if i not in places)
    words = f"{PANELS} of {len(sets)} sets of groups are drawn, from the first layer to the last; "
    return [sets[i] for i in places], f"{words}left out: {rest}. "


def followed(run: Run) -> list[tuple[Set, LeafNorms]]:
    """Returns the sets whose norms were followed, in the network's order."""
    if run.norms is None or not run.norms.steps.size:
        return []
    known = {leaf.name: leaf for leaf in run.norms.leaves}
    pairs = []
    for each in run.sets():
        # Older files hold each leaf of a set; one of them is shown.
        names = [name for name in each.names if name in known]
        if names:
            pairs.append((each, known[names[0]].sample(DRAWN)))
    return pairs


@both_widths
def solution_path(run: Run, narrow: bool = False) -> Picture | None:
    """Draws ‖W_g‖ and ‖Γ_g‖ of the sampled groups against steps, coloured from their entry on.

    Returns None where norms.npz is missing or holds no record or no leaf.
    """
    every = followed(run)
    if not every or run.norms is None:
        return None
    sets, remark = _chosen([each for each, _ in every])
    kept = {each.title for each in sets}
    pairs = [(each, leaf) for each, leaf in every if each.title in kept]
    steps = run.norms.steps
    across = 1 if narrow or len(pairs) <= 4 else 2  # sets in a row, two panels each
    down = math.ceil(len(pairs) / across)
    scale = entry_scale(float(steps[0]), float(steps[-1]))
    entered = [leaf.entry() >= 0 for _, leaf in pairs]
    width = style.WIDTHS[narrow]
    with style.context():
        height = (1.75 if across == 1 else 1.55) * down + 0.75
        figure = Figure(figsize=(width, height), layout="constrained")
        ratios = [_BAR, *[(height - _BAR) / down] * down]
        grid = figure.add_gridspec(down + 1, 2 * across, height_ratios=ratios)
        room = 50 if across == 1 and not narrow else 22
        for i, (each, leaf) in enumerate(pairs):
            row, first = 1 + i // across, 2 * (i % across)
            for side, (values, symbol) in enumerate(((leaf.w, "W"), (leaf.gamma, "Γ"))):
                axes = figure.add_subplot(grid[row, first + side])
                norm_panel(axes, steps, leaf, values, scale)
                name = each.title if len(each.title) <= room else _shortened(each.short, room)
                name = name if side == 0 else ""
                axes.set_title(f"{name}  ‖{symbol}‖".strip())
                if side == 1:
                    axes.set_title(_sizes(each, leaf), loc="right", fontsize=8, color=style.MUTED)
                if i >= len(pairs) - across:  # nothing below it
                    axes.set_xlabel("step")
                else:
                    axes.tick_params(labelbottom=False)
        if any(e.any() for e in entered):
            entry_bar(figure, figure.add_subplot(grid[0, :]), scale, narrow)
    ends = ", ".join(
        f"{each.title} {e.sum()} of {e.size}" for (each, _), e in zip(pairs, entered, strict=True)
    )
    alt = (
        f"Line charts of group norms against steps, from step {count(steps[0])} to "
        f"{count(steps[-1])}, one curve for each sampled group: left ‖W‖, right ‖Γ‖. "
        f"Sampled groups that entered: {ends}."
    )
    if not any(e.any() for e in entered):
        remark += "None of the sampled groups has entered so far. "
    return Picture(figure, alt, remark)


def _sizes(each: Set, leaf: LeafNorms) -> str:
    """Returns how many of how many groups a panel shows."""
    if leaf.index.size == each.groups.size:
        return f"all {count(each.groups.size)} groups"
    return f"{count(leaf.index.size)} of {count(each.groups.size)} groups"


def norm_panel(
    axes: Axes, steps: np.ndarray, leaf: LeafNorms, values: np.ndarray, scale: ScalarMappable
) -> None:
    """Draws one set's curves: grey before the record of entry, coloured from it on."""
    entry = leaf.entry()
    first = np.where(entry < 0, steps.size, entry)
    grey = [np.column_stack([steps[: f + 1], values[: f + 1, g]]) for g, f in enumerate(first)]
    axes.add_collection(LineCollection(grey, colors=style.WAITING, linewidths=0.7, zorder=2))
    for g in np.argsort(-first, kind="stable"):  # the earliest on top
        if entry[g] >= 0:
            colour, line = scale.to_rgba(steps[entry[g]]), slice(entry[g], None)
            dot = "o" if entry[g] == steps.size - 1 else ""  # a single point has no line
            axes.plot(
                steps[line], values[line, g], dot + "-", color=colour, lw=1.1, ms=2.5, zorder=3
            )
    if steps.size == 1:
        colours = np.where(entry[:, None] < 0, to_rgba(style.WAITING), scale.to_rgba(steps[0]))
        axes.scatter(np.full(entry.size, steps[0]), values[0], c=colours, s=8, zorder=3)
    known = values[np.isfinite(values)]
    top = float(known.max()) if known.size else 0.0
    axes.set_ylim(0, 1.05 * top if top > 0 else 1.0)
    axes.set_xlim(0, end_of(steps))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


@both_widths
def entry_times(run: Run, narrow: bool = False) -> Picture | None:
    """Draws when the groups of each set entered: tile by tile, or (many groups) as a histogram.

    Returns None where no path was recorded.
    """
    if run.path is None:
        return None
    sets, remark = _chosen(run.sets())
    entry_of = run.path.entry_steps()
    shown = [
        (each.short if narrow else each.title, each.groups.of_groups(entry_of)) for each in sets
    ]
    steps = np.asarray(run.path.steps)
    scale = entry_scale(float(steps[0]), float(steps[-1]))
    columns = _columns((e for _, e in shown), narrow)
    width = style.WIDTHS[narrow]
    rows = [math.ceil(e.size / columns) if e.size <= TILES else 0 for _, e in shown]
    heights = [0.3 + 0.95 * width / columns * r if r else 1.35 for r in rows]
    with style.context():
        figure = Figure(figsize=(width, 0.75 + sum(heights)), layout="constrained")
        bar, *grid = figure.subplots(len(shown) + 1, 1, height_ratios=[_BAR, *heights])
        for axes, (name, entry), tiled in zip(grid, shown, rows, strict=True):
            waiting = int((entry < 0).sum())
            title = _shortened(name, 24 if narrow else 80)
            axes.set_title(f"{title}: {count(entry.size - waiting)} of {count(entry.size)} entered")
            if tiled:
                _tiles(axes, entry, scale, columns)
            else:
                _histogram(axes, entry, steps, scale)
        if any((e >= 0).any() for _, e in shown):
            entry_bar(figure, bar, scale, narrow)
        else:
            bar.set_visible(False)
    ends = "; ".join(_entry_words(name, entry) for name, entry in shown)
    return Picture(figure, f"Entry times of the groups, layer by layer. {ends}.", remark)


def _entry_words(name: str, entry: np.ndarray) -> str:
    entered = entry[entry >= 0]
    words = f"{name}: {count(entered.size)} of {count(entry.size)} groups entered"
    if not entered.size:
        return words
    first, middle = int(entered.min()), int(np.median(entered))
    return f"{words}, the first at step {count(first)}, half of them by step {count(middle)}"


def _columns(entries: Iterable[np.ndarray], narrow: bool) -> int:
    """Returns the tiles in a full row: few large ones where all sets are small."""
    few = max((e.size for e in entries if e.size <= TILES), default=0) <= 64
    return (16 if few else 32) if narrow else (32 if few else 64)


def _tiles(axes: Axes, entry: np.ndarray, scale: ScalarMappable, columns: int) -> None:
    """Draws one tile a group in the order of the set, coloured by its time of entry."""
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
