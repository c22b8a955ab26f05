"""Accuracy against density: the tickets of a run that were retrained, of one size or of several."""

from dessilbi_jax.report import plots
from dessilbi_jax.report.page import Section, figure, table
from dessilbi_jax.report.retrained import points
from dessilbi_jax.report.run import Run
from dessilbi_jax.report.text import percent, signed


def accuracy_by_density(run: Run) -> Section | None:
    """Accuracy of the retrained tickets against their density, drawn from two sizes on."""
    found = [point for point in points(run) if point.dense is not None]
    if len(found) < 2:
        return None
    caption = (
        "Each dot is a ticket of this run: the network with only that share of its structured "
        "weights, trained again. The line is the dense network; the hollow dots are the tickets "
        "before they were retrained."
    )
    picture = plots.accuracy_by_density(found)
    rows = [
        (
            percent(point.density),
            percent(float(point.projected)) if isinstance(point.projected, float) else "–",
            percent(point.retrained),
            signed(100 * (point.retrained - float(point.dense or 0))),
            {"init": "initial weights", "end": "weights at the end"}.get(
                point.start, f"epoch {point.start}"
            ),
        )
        for point in found
    ]
    body = "" if picture is None else figure(picture, caption)
    body += table(
        "Tickets of several sizes, on test data.",
        ["density", "projected", "retrained", "points from dense", "retrained from"],
        rows,
        numbers=(0, 1, 2, 3),
    )
    return Section("sizes", "Accuracy against density", body)
