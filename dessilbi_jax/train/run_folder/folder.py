"""The run folder: whose it is, and what may be written or deleted in it.

A run folder holds a config.json that says what is run, and beside it only files that a run
writes. Nothing else is ever deleted.
"""

import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dessilbi_jax.files import new_folder, read_json, write_json
from dessilbi_jax.provenance import machine, versions
from dessilbi_jax.run_files import CONFIG, LOCK, RESULT, UNFINISHED, WEIGHTS, WRITTEN
from dessilbi_jax.train.config import TrainConfig, differences
from dessilbi_jax.train.run_folder.owned import foreign, remove_own

_CLEARED = re.compile(rf"(?!{re.escape(LOCK)}$)({WRITTEN.pattern})")


def read_config(run: Path) -> TrainConfig:
    """Returns the configuration that a run folder was made with.

    Raises:
        ValueError: the folder's config.json is damaged or of another version.
    """
    fields = read_json(run / CONFIG).get("config")
    try:
        if not isinstance(fields, dict):
            raise ValueError("it holds no 'config'")
        return TrainConfig.from_json(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run / CONFIG} describes no run of this version: {error}") from None


def check(
    run: Path, config: TrainConfig, *, resume: bool | Literal["auto"], overwrite: bool
) -> Literal["new", "resume", "finished"]:
    """Says what is to be done with the folder of a run; changes nothing.

    Returns:
        "new" where the folder is to be made (or cleared, with `overwrite`), "resume" where the
        run in it goes on, "finished" where it has ended.

    Raises:
        FileExistsError: the folder holds another run, or files that are not of a run.
        FileNotFoundError: `resume` is True, and there is no run.
        ValueError: `resume` with another configuration, or with `overwrite`.
        NotADirectoryError: it is no folder.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run and --overwrite deletes it: give one of the two")
    if run.exists() and not run.is_dir():
        raise NotADirectoryError(f"{run} is a file: give another folder with --out")
    there = (run / CONFIG).exists()
    if resume is True or (resume and there):
        if not there:
            raise FileNotFoundError(f"nothing to resume: there is no run in {run}")
        changed = differences(read_config(run), config)
        if changed:
            raise ValueError(
                f"the run in {run} has another configuration: {'; '.join(changed)}. Resume it with"
                " its own, or start another with --out"
            )
        return "finished" if (run / RESULT).exists() else "resume"
    found = sorted(file.name for file in run.iterdir()) if run.exists() else []
    unfinished = [name for name in found if UNFINISHED.fullmatch(name)]
    found = [name for name in found if name != LOCK and name not in unfinished]
    if not found:
        return "new"
    others = foreign(run, WRITTEN)
    if CONFIG not in found or others:
        named = ", ".join((others or found)[:3])
        raise FileExistsError(
            f"{run} holds files that are not of a run ({named}); none is deleted: give another "
            "folder with --out"
        )
    if not overwrite:
        raise FileExistsError(
            f"{run} holds another run: continue it with --resume, replace it with --overwrite, or "
            "give another folder with --out"
        )
    read_config(run)
    return "new"


def start(
    run: Path,
    config: TrainConfig,
    *,
    preset: str,
    command: str,
    data: dict[str, Any],
    mesh: str = "data=1",
    options: Mapping[str, Any] | None = None,
    order: Sequence[str] = (),
) -> None:
    """Makes the folder of a new run, cleared of the run that `check` found there.

    Args:
        run: the folder.
        config: what is run.
        preset: its name.
        command: how it was called.
        data: what `DataFacts.to_json` says of its data.
        mesh: the devices it runs on.
        options: what else it was called with, so that it can be resumed with nothing but its
            folder.
        order: the parameters' paths in the order in which the network uses them.
    """
    run.mkdir(parents=True, exist_ok=True)
    # config.json goes last, so that a folder half cleared is still known for what it is, and
    # result.json first, so that it is not taken for a finished run. The lock stays.
    (run / RESULT).unlink(missing_ok=True)
    remove_own(run, _CLEARED, last=[CONFIG])
    write_json(
        run / CONFIG,
        {
            "preset": preset,
            "config": config.to_json(),
            "command": command,
            "data": data,
            "mesh": mesh,
            "options": dict(options or {}),
            "order": list(order),
            "versions": versions(),
            "machine": machine(),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )


def check_data(run: Path, data: dict[str, Any]) -> None:
    """Raises unless a run began with the data that is there now, wherever it lies.

    Args:
        run: the folder.
        data: what `DataFacts.to_json` says of the data.

    Raises:
        ValueError: it is other data, or files of it are missing or new.
    """
    then = read_json(run / CONFIG).get("data", {})
    changed = [
        f"{name}: {then[name]}, now {value}"
        for name, value in data.items()
        if name not in ("data_dir", "text", "tokenizer") and then.get(name, value) != value
    ]
    if changed:
        raise ValueError(
            f"the data is not what the run in {run} began with ({'; '.join(changed)}): put it back "
            "as it was, or start another run with --out"
        )


def tidy(run: Path) -> None:
    """Deletes the files that a run which was killed left half written; no other process runs."""
    for file in [*run.glob("*"), *(run / WEIGHTS).glob("*")]:
        if UNFINISHED.fullmatch(file.name) and not file.is_dir():
            file.unlink()


@contextlib.contextmanager
def written_at_once(target: Path, *, overwrite: bool, kind: str, own: str) -> Iterator[Path]:
    """Context that gives a new folder to write to, which becomes `target` at its end.

    On any error nothing of it is left, and what was at `target` stays.

    Args:
        target: the folder to make.
        overwrite: whether a folder that is there may be replaced.
        kind: what result.json of a folder that may be replaced says it is.
        own: what the paths of its files match, as a regular expression; a folder that holds
            anything else is not replaced.

    Raises:
        FileExistsError: `target` is there, and may not be replaced or is something else.
        OSError: as `files.new_folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     target = Path(there, "a")
        ...     with written_at_once(target, overwrite=False, kind="note", own="text") as part:
        ...         _ = (part / "text").write_text("whole")
        ...     print([file.name for file in Path(there).rglob("*")])
        ['a', 'text']
    """
    check_target(target, overwrite=overwrite, kind=kind, own=own)
    with new_folder(target) as part:
        yield part
        check_target(target, overwrite=overwrite, kind=kind, own=own)  # once more, before the move


def check_target(target: Path, *, overwrite: bool, kind: str, own: str) -> None:
    """Raises unless `written_at_once` may write there; changes nothing.

    Raises:
        FileExistsError: as `written_at_once`.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    ours = (target / RESULT).is_file() and read_json(target / RESULT).get("kind") == kind
    if not ours:
        raise FileExistsError(f"{target} is there and was not written by this command: give --out")
    if not overwrite:
        raise FileExistsError(
            f"{target} is there already: replace it with --overwrite or give --out"
        )
    if others := foreign(target, re.compile(own)):
        raise FileExistsError(
            f"{target} holds files that this command did not write ({', '.join(others[:3])}); none "
            "is deleted: move them, or give --out"
        )
