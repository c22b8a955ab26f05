"""The tables of the statistics: methods by measures, with intervals over seeds."""

from typing import Any

from benchmarks.harness.selection import interval
from benchmarks.report.markdown import table

LEGEND = (
    "In brackets, the difference to the bar, paired by seed, where its 95 % interval excludes 0."
)


_MEASURES = {"f1": "F1", "error": "error", "tau": "Kendall's τ"}


def statistics(result: dict[str, Any]) -> str:
    """All tables of a result: `tables`, each with `says`, `measures`, `bar` and `rows`."""
    parts = [LEGEND] if any(each["bar"] for each in result["tables"]) else []
    for each in result["tables"]:
        heads = ["", *each["measures"]]
        rows = [
            [row["method"], *(cell(row.get(measure)) for measure in each["measures"])]
            for row in each["rows"]
        ]
        parts += [each["says"], table(heads, rows)]
    return "\n\n".join(parts)


def robust(result: dict[str, Any]) -> str:
    """The tables of outliers and of wrong comparisons: one for each kind, 95 % intervals."""
    parts = []
    for name, kind, says in (
        ("regression", "outliers", "Outliers, {}: F1 of the samples flagged, ‖β̂ − β‖₂; {} seeds."),
        (
            "ranking",
            "flipped",
            "Comparisons, a share of {} flipped: F1 of those pruned, τ of the scores; {} seeds.",
        ),
    ):
        lines = result[name]
        measures = [measure for measure in _MEASURES if any(measure in line for line in lines)]
        for each in dict.fromkeys(line[kind] for line in lines):
            some = [line for line in lines if line[kind] == each]
            seeds = len(some[0][measures[-1]]["values"])
            rows = [
                [
                    line["method"],
                    *(
                        cell(interval(line[measure]["values"])) if line.get(measure) else "–"
                        for measure in measures
                    ),
                ]
                for line in some
            ]
            parts += [
                says.format(each, seeds),
                table(["", *(_MEASURES[m] for m in measures)], rows),
            ]
    return "\n\n".join(parts)


def cell(value: dict[str, Any] | None) -> str:
    """Mean ± half of the 95 % interval; behind it the difference to the bar where it is clear."""
    if value is None:
        return "–"
    half = "" if value["half"] is None else f" ± {value['half']:.3g}"
    text = f"{value['mean']:.3g}{half}"
    gap = value.get("minus bar")
    if gap is not None and gap["half"] is not None and abs(gap["mean"]) > gap["half"]:
        text += f" ({gap['mean']:+.2g})"
    return text
