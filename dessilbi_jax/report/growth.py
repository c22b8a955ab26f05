"""The section on a network that grew in its run: how wide it was when, and what that brought."""

import math
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dessilbi_jax import run_files
from dessilbi_jax.report import style
from dessilbi_jax.report.files import read_json
from dessilbi_jax.report.page import Section, figure, paragraph, table
from dessilbi_jax.report.plots import Picture, both_widths, two_panels
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count, percent

_LINES = 8  # sets drawn in their own colour; further ones share a thin grey


def growth(run: Run) -> Section | None:
    """Widths against epochs, accuracy against parameters, and a row for each growth.

    Returns None for a run that does not grow.

    Raises:
        ValueError: its growth.json is damaged.
    """
    file = run.folder / run_files.GROWTH
    if not file.exists():
        return None
    try:
        told = read_json(file)
        rows = _rows(run, told)
        widths = _widths(told)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} tells of no growth: {error!r}") from None
    over = told["over"]
    words = (
        f"The network began with {count(sum(told['first'].values()))} channels and has "
        f"{count(sum(each[-1][1] for each in widths.values()))}. A set of channels grew where Γ "
        "had selected nearly all of it; "
    )
    if over is None:
        words += "at the last look layers still asked for more."
    else:
        words += f"at step {count(over)} no layer asked for more, and the network stayed as it was."
    body = paragraph(words)
    picture = _picture(run, widths) if run.records else None
    if picture is not None:
        caption = "How wide each set of channels was, and what the network reached at each size."
        body += figure(picture, caption)
    if rows:
        body += table("Growths", ("step", "grew", "parameters", "accuracy then"), rows)
    return Section("growth", "How the network grew", body)


def _widths(told: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """By set: (step, channels) from the start and from each growth on."""
    widths = {name: [(0, int(n))] for name, n in told["first"].items()}
    for each in told["growths"]:
        for name, (_, after) in each["sets"].items():
            widths[name].append((int(each["step"]), int(after)))
    return widths


def _rows(run: Run, told: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each growth."""
    accuracy = dict(zip(run.metrics["step"].tolist(), run.metrics["accuracy"], strict=True))
    return [
        (
            count(each["step"]),
            ", ".join(f"{name} {a} → {b}" for name, (a, b) in each["sets"].items()),
            f"{count(each['params'][0])} → {count(each['params'][1])}",
            percent(float(accuracy.get(each["step"], math.nan))),
        )
        for each in told["growths"]
    ]


@both_widths
def _picture(
    run: Run, widths: dict[str, list[tuple[int, int]]], narrow: bool = False
) -> Picture | None:
    """Widths against epochs; accuracy against parameters."""
    steps, epochs = run.metrics["step"], run.metrics["epoch"]
    a_step = float(epochs[-1] / steps[-1])
    with style.context():
        drawn, (left, right) = two_panels(narrow)
        for i, (name, points) in enumerate(widths.items()):
            x = [a_step * step for step, _ in points] + [float(epochs[-1])]
            y = [n for _, n in points] + [points[-1][1]]
            many = len(widths) > _LINES
            # Sets that are as wide as one another lie on one another: strokes let both be seen.
            options: Any = {"color": f"C{i}", "linestyle": ("-", (i, (4, 4)))[i > 0]}
            if many:
                options = {"color": style.ASKED, "lw": 0.8}
            left.step(x, y, where="post", label=None if many else f"{name}, {y[-1]}", **options)
        left.set(title="Channels of each set", xlabel="epoch")
        left.set_ylim(bottom=0)
        left.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(widths) <= _LINES:
            left.legend(loc="best")
        parameters, accuracy = run.metrics["parameters"], run.metrics["accuracy"]
        known = np.isfinite(parameters) & np.isfinite(accuracy)
        right.plot(parameters[known], accuracy[known], color=style.DENSE, marker="o", markersize=3)
        right.set(title="Accuracy on held-out data", xlabel="parameters")
        right.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    ends = ", ".join(f"{name} {points[-1][1]}" for name, points in widths.items())
    alt = f"Left: channels of each set against epochs; at the end {ends}. Right: "
    if known.any():
        first, last = (count(int(parameters[known][i])) for i in (0, -1))
        alt += f"accuracy on held-out data against parameters, from {first} to {last}."
    else:
        alt += "nothing yet."
    remark = "Straight up, the network learns at a size; to the right, it has grown."
    return Picture(drawn, alt, remark)
