"""From a run folder to its report: read, build the sections, write the page in one move."""

from pathlib import Path

from dessilbi_jax import files, run_files
from dessilbi_jax.report import groups, plots, sections, style
from dessilbi_jax.report.page import GENERATOR, page
from dessilbi_jax.report.retrained import points
from dessilbi_jax.report.run import read_run


def render(run_dir: str | Path) -> str:
    """Returns the report of a run as one HTML page, without writing anything.

    Takes the same folders and raises the same errors as `write`.
    """
    run = read_run(run_dir)
    state = "finished" if run.finished else "in progress"
    built = (builder(run) for builder in sections.SECTIONS)
    return page(
        title=run.preset,
        kicker=f"DessiLBI run, {state}",
        lead=sections.lead(run),
        sections=[section for section in built if section is not None],
        footer=f"Written by dessilbi_jax from the files in {run.folder.resolve().name}.",
    )


def write_figures(
    run_dir: str | Path, folder: str | Path, *, overwrite: bool = False
) -> list[Path]:
    """Writes the pictures of a run's report as SVG files, and returns their paths.

    The folder is made if it is not there. Raises FileExistsError where one of the files is there,
    or with `overwrite` where one of them is not of this library; what `write` raises of the run.
    """
    run, folder = read_run(run_dir), Path(folder)
    tickets = points(run)
    pictures = {
        "path": groups.solution_path(run),
        "curves": plots.curves(run),
        "losses": plots.losses(run),
        "layers": plots.layer_density(run),
        "entry": groups.entry_times(run),
        "retraining": plots.retraining(tickets),
        "sizes": plots.accuracy_by_density(tickets) if len(tickets) > 1 else None,
    }
    drawn = {folder / f"{name}.svg": each for name, each in pictures.items() if each is not None}
    for file in drawn:
        files.check_text(file, GENERATOR, "picture of this library")
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} is there already: replace it with --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for file, picture in drawn.items():
        title = f"{GENERATOR}: {run.preset}, {file.stem}"
        files.write_atomically(file, style.svg(picture.figure, "white", title))
    return list(drawn)


def write(run_dir: str | Path) -> Path:
    """Writes report.html into a run folder and returns its path.

    The page holds its pictures and needs neither a network nor JavaScript. It is made from the
    files `dessilbi train` keeps (config.json, metrics.jsonl, path.npz, norms.npz, result.json); of
    a run still in progress it shows what there is, so only config.json must be there. An earlier
    report is replaced in one move: on any error it stays as it was.

    Raises FileExistsError where report.html is not of this library, FileNotFoundError where the
    folder or its config.json is not there, ValueError naming the file that is malformed, OSError
    where the report cannot be written.

    >>> import json, tempfile
    >>> config = {"preset": "demo", "config": {"nu": 100.0}, "command": "dessilbi train demo",
    ...           "versions": {}, "machine": {}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
    ...     print(write(folder).name)
    report.html
    """
    target = Path(run_dir) / run_files.REPORT
    files.check_text(target, GENERATOR, "report of a run")
    files.write_atomically(target, render(run_dir))
    return target
