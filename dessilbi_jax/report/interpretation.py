"""The section on what the filters of a run respond to."""

import math
from typing import Any

import numpy as np

from dessilbi_jax.report import filters
from dessilbi_jax.report.interpretation_file import Looked, read_looked
from dessilbi_jax.report.page import Section, figure, paragraph, table
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import count, number

_ROWS = 64  # filters in the table
_AGAINST = {"norm": "its norm", "entry": "its time of entry"}


def interpretation(run: Run) -> Section | None:
    """What `dessilbi interpret` found, None where it has not been called."""
    looked = read_looked(run.folder)
    if looked is None:
        return None
    step = looked.header["step"]
    if run.finished and run.result and run.result.get("steps", step) != step:
        note = f"This was looked at when the run was at step {count(step)}; since then it went on."
        body = paragraph(note, "note")
    else:
        body = ""
    body += figure(
        filters.maximal_images(run, looked),
        f"Left: the norms of the filters of {looked.layer}, grey until they enter Γ and then "
        "coloured by the step. Right: the images that maximise the mean activation of the filters "
        "that entered first, framed in the same colours, with their numbers; above for W, below "
        "for W projected on the support of Γ. Silent filters are those that no image was found "
        "for which passes their ReLU.",
    )
    body += figure(
        filters.first_layer(looked),
        f"The filters of {looked.first} from the largest l2 norm (top left) to the smallest, and "
        "for the images above them the gradient of the sum of each filter's map"
        + (" behind its ReLU" if looked.header["activated"] else "")
        + ", passed back through ReLUs only where both sides are positive. Each is scaled from its "
        "own minimum to its maximum. Framed filters were in Γ then.",
    )
    body += _reading(looked)
    return Section("filters", "What the filters respond to", body)


def _reading(looked: Looked) -> str:
    """The test of the paper's reading: the picture, the correlations, the filters one by one."""
    rows = looked.header["correlations"]
    body = paragraph(
        "The paper reads such pictures so: filters of large norm answer to texture and shape, "
        "those of small norm to colour. " + verdict(rows)
    )
    body += figure(
        filters.measures(looked),
        "Each filter of the first layer at the end. Colour saturation: the share of its energy "
        "that is colour and not brightness. Spatial frequency: the mean over its power spectrum, "
        "in cycles a pixel. Orientation: from 0, no direction, to 1, one direction, as of an edge.",
    )
    runs = list(dict.fromkeys((row["run"], row["own"]) for row in rows))
    body += table(
        "Spearman's rank correlation of each measure with the norm of a filter and with its time "
        "of entry into Γ (filters that never entered come last), with 95 % intervals; what holds 0 "
        "may be chance.",
        ["measure", "run", *(f"with {words}" for words in _AGAINST.values()), "filters"],
        [
            (
                filters.MEASURES[measure],
                "this one" if own else name,
                *_pair(rows, measure, name, own),
            )
            for measure in filters.MEASURES
            if any(row["pairs"] for row in rows if row["measure"] == measure)
            for name, own in runs
        ],
        numbers=(2, 3, 4),
    )
    return body + _each(looked)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Says what the correlation of saturation with the norm says of that reading.

    >>> row = {"measure": "saturation", "against": "norm", "own": True, "rho": -0.6, "low": -0.8,
    ...        "high": -0.3, "pairs": 30}
    >>> verdict([row])
    'Here it holds: colour saturation falls with the norm (ρ = −0.60).'
    >>> verdict([row | {"high": 0.1}])[:37]
    'Here 30 filters are too few to tell: '
    """
    (row,) = (
        r for r in rows if r["own"] and (r["measure"], r["against"]) == ("saturation", "norm")
    )
    if row["rho"] is None or row["low"] is None:
        return "These images have no colour, or the filters are too few, so that it is not tested."
    told = f"(ρ = {_signed(row['rho'])})"
    if row["low"] <= 0 <= row["high"]:
        return (
            f"Here {row['pairs']} filters are too few to tell: the interval of the correlation of "
            f"colour saturation with the norm holds 0 {told}."
        )
    if row["high"] < 0:
        return f"Here it holds: colour saturation falls with the norm {told}."
    return f"Here it is the other way round: colour saturation grows with the norm {told}."


def _pair(rows: list[dict[str, Any]], measure: str, run: str, own: bool) -> list[str]:
    cells, pairs = [], 0
    for against in _AGAINST:
        (row,) = (
            r
            for r in rows
            if (r["measure"], r["against"], r["run"], r["own"]) == (measure, against, run, own)
        )
        pairs = row["pairs"]
        cells.append("–" if row["rho"] is None else _signed(row["rho"]))
        if row["rho"] is not None and row["low"] is not None:
            cells[-1] += f" ({_signed(row['low'])} to {_signed(row['high'])})"
    return [*cells, count(pairs)]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _each(looked: Looked) -> str:
    last = looked.own[-1]
    shown = last.order[:_ROWS]
    names = [name for name in filters.MEASURES if np.isfinite(looked.measures[name]).any()]
    left = last.order.size - shown.size
    return table(
        f"The filters of {looked.first} by their norm, {last.name}"
        + (f"; the {left} smallest are left out." if left else "."),
        ["filter", "l2 norm", "entered at step", *(filters.MEASURES[name] for name in names)],
        [
            (
                int(i),
                number(float(last.norms[i])),
                "never" if looked.first_entry[i] < 0 else count(looked.first_entry[i]),
                *(_value(looked.measures[name][i]) for name in names),
            )
            for i in shown
        ],
        numbers=range(1, 3 + len(names)),
    )


def _value(value: np.floating[Any]) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
