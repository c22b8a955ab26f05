"""Several runs side by side: as rows of text, and as a page of their own."""

import math
from collections.abc import Sequence
from pathlib import Path

from dessilbi_jax import files
from dessilbi_jax.report import plots
from dessilbi_jax.report.page import GENERATOR, Section, figure, page, paragraph, table
from dessilbi_jax.report.retrained import points
from dessilbi_jax.report.run import Run, read_run
from dessilbi_jax.report.slimming import Made, read_made
from dessilbi_jax.report.text import count, duration, percent, setting

Rows = list[tuple[str, ...]]
_HEAD = ("run", "state", "accuracy", "projected", "density", "retrained", "parameters", "FLOPs",
         "took")  # fmt: skip


def compare(run_dirs: Sequence[str | Path]) -> tuple[Rows, Rows]:
    """Returns the outcome of runs, and the settings in which they differ, as rows of text.

    Args:
        run_dirs: two run folders or more.

    Returns:
        Twice the head and the rows: a row a run, with its accuracy on test data (of the dense
        network, or of the sparse one that it ended with), the projected one, the density, the best
        retrained ticket with its density, parameters and FLOPs left after a cut, and time; and a
        row a setting, with a column a run.

    Raises:
        ValueError: fewer than two folders, or one twice, or a damaged file.
        FileNotFoundError: one of them holds no run.
    """
    runs = _read(run_dirs)
    names = _names(runs)
    rows = [_HEAD, *(_row(name, run) for name, run in zip(names, runs, strict=True))]
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    differ: Rows = [("setting", *names)]
    for key in keys:
        values = [setting(run.settings.get(key)) for run in runs]
        if len(set(values)) > 1:
            differ.append((key, *values))
    return rows, differ


def write_comparison(
    run_dirs: Sequence[str | Path], file: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes a page that shows runs side by side, and returns its path.

    Args:
        run_dirs: two run folders or more.
        file: where to.
        overwrite: replace a page of this library that is there.

    Raises:
        FileExistsError: the file is there, or is no page of this library.
        ValueError, FileNotFoundError: as `compare`.
        OSError: it cannot be written.
    """
    file = Path(file)
    files.check_text(file, GENERATOR, "page of this library")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} is there already: replace it with --overwrite")
    rows, differ = compare(run_dirs)
    runs = _read(run_dirs)
    numbers = range(2, len(_HEAD))
    parts = [
        Section(
            "outcome", "Side by side",
            table("The outcome of each run, on test data.", rows[0], rows[1:], numbers=numbers)
            + paragraph(
                "Projected: all but the selected weights at zero, not retrained. Retrained: the "
                "best of the tickets that were retrained, and its density. Parameters and FLOPs: "
                "of the network that was cut out."
            ),
        )
    ]  # fmt: skip
    picture = plots.runs(dict(zip(_names(runs), runs, strict=True)))
    if picture is not None:
        caption = "Held-out accuracy of each run against epochs, and of its retrained tickets."
        parts.append(Section("curves", "Accuracy", figure(picture, caption)))
    body = paragraph("All settings are the same.")
    if len(differ) > 1:
        body = table("Settings that are not the same in all runs.", differ[0], differ[1:])
    parts.append(Section("settings", "What was different", body))
    text = page(
        title=", ".join(_names(runs)),
        kicker=f"{len(runs)} DessiLBI runs side by side",
        lead="",
        sections=parts,
        footer="Written by dessilbi_jax from the runs' folders.",
    )
    files.write_atomically(file, text)
    return file


def _read(run_dirs: Sequence[str | Path]) -> list[Run]:
    places = [Path(each) for each in run_dirs]
    if len({place.resolve() for place in places}) < max(len(places), 2):
        raise ValueError(
            f"give two different runs or more to compare, got {', '.join(map(str, places))}"
        )
    return [read_run(place) for place in places]


def _names(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _row(name: str, run: Run) -> tuple[str, ...]:
    made: Made = read_made(run.folder)
    result = run.result or {}
    dense = result.get("test_accuracy", math.nan)
    projected = result.get("test_projected_accuracy", math.nan)
    best = max(points(run), key=lambda point: point.retrained, default=None)
    retrained = "–"
    if best is not None:
        retrained = f"{percent(best.retrained)} at {percent(best.density)}"
    left = ("–", "–")
    if made.slim is not None:
        small = made.slim["networks"]["slim"]
        left = count(small["parameters"]), count(small["flops"])
    return (
        name,
        "finished" if run.finished else f"epoch {run.last('epoch'):g}",
        percent(float(dense)),
        percent(float(projected)),
        percent(run.density),
        retrained,
        *left,
        duration(run.last("seconds")),
    )
