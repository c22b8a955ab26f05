"""Tickets of several sizes from one run, each retrained: accuracy against size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dessilbi_jax import files, report, run_files
from dessilbi_jax.train.finished.retrain import retrain
from dessilbi_jax.train.finished.take_ticket import take_ticket
from dessilbi_jax.train.finished.trained import is_retrained, read_run, target_of
from dessilbi_jax.train.finished.unfinished import Unfinished
from dessilbi_jax.train.progress import Progress


def sweep(
    run: str | Path,
    densities: Sequence[float],
    *,
    start: str = "init",
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Takes tickets of several densities from a run and retrains each; renews the run's report.

    Tickets and networks go to `sweep/` in the run's folder. What is there already is not done
    again, and a retraining that was stopped goes on, so that a sweep is resumed, and made finer, by
    the same call.

    Args:
        run: the folder of a run.
        densities: shares of the structured weights, each above 0 and at most 1.
        start, epochs, learning_rate, seed, data_dir: as `retrain` has them.
        overwrite: do those anew that are there.
        command: the command line, kept in each result.
        progress: what to print of each retraining.
        told: gets a line before each retraining.

    Returns:
        What result.json of each retraining holds, in the order of rising density.

    Raises:
        ValueError: no density, one that is out of range or given twice, or the errors of
            `take_ticket` and `retrain`.
        FileExistsError: one that is there was retrained in another way, and `overwrite` is not
            given.
        FileNotFoundError: no run, or no images.
        Interrupted: a signal came; the same call goes on.

    Example:
        >>> import tempfile
        >>> from dessilbi_jax import train
        >>> config = train.TrainConfig(network="lenet300", dataset="digits", epochs=2, widths=(8,))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = train.fit(config, out)
        ...     found = train.sweep(out, [0.2, 0.1], epochs=1)
        >>> [round(each["ticket"]["density"], 1) for each in found]
        [0.1, 0.2]
    """
    run, wanted = Path(run), sorted(float(density) for density in densities)
    if not wanted or len(set(wanted)) < len(wanted) or not all(0 < d <= 1 for d in wanted):
        raise ValueError(
            "density must be one or more different shares of the structured weights, above 0 and "
            f"at most 1, got {list(densities)}"
        )
    config = read_run(run).config
    place, found = run / run_files.SWEEP, []
    given = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    expected = {name: getattr(config, name) if v is None else v for name, v in given.items()}
    options: dict[str, Any] = {**given, "start": start, "run": run, "data_dir": data_dir}
    todo = []
    for density in wanted:
        file = place / f"{density:g}.npz"
        target = target_of(file, None)
        done = not overwrite and file.exists() and is_retrained(target)
        if done:
            result = files.read_json(target / run_files.RESULT)
            then = {name: result["config"][name] for name in expected}
            if (then, result["from"]) != (expected, start):
                raise FileExistsError(
                    f"{target} was retrained with {then} from {result['from']!r}, now {expected} "
                    f"from {start!r}: do it anew with --overwrite"
                )
        todo.append((density, file, target, done))
    for k, (density, file, target, done) in enumerate(todo):
        if not done:
            told(f"density {density:g}, {k + 1} of {len(todo)}")
            goes_on = Unfinished(target).place.exists() and not overwrite
            if not goes_on:
                take_ticket(
                    run, size={"density": density}, out=file, data_dir=data_dir, overwrite=True,
                    command=command,
                )  # fmt: skip
            retrain(
                file, resume=goes_on, overwrite=overwrite, command=command, progress=progress,
                **options,
            )  # fmt: skip
        found.append(files.read_json(target / run_files.RESULT))
    report.write(run)
    return found
