"""The tables of the statistics: methods by measures, with intervals over seeds."""

from typing import Any

from benchmarks.report.markdown import made_by, table

LEGEND = (
    "In brackets, the difference to the bar, paired by seed, where its 95 % interval excludes 0."
)


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
    return "\n\n".join([*parts, made_by(result, result["name"])])


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
