"""One .npz file with a JSON header and arrays: written at once or not at all, without pickle."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np


def write_atomically(file: Path, content: bytes) -> None:
    """Writes a file at once or not at all: a kill leaves the old content or the new, whole."""
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, indented, atomically. NaN and infinity are errors."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(file, (text + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return value


_T = TypeVar("_T")


def write(
    file: Path,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    keep: Path | None = None,
) -> None:
    """Writes header and arrays to `file`; nothing half-written stays behind.

    Args:
        file: where to; what is there is replaced.
        header: what JSON can hold.
        arrays: arrays of numbers or bits.
        keep: where to move the file that is there, if it is to be kept.

    Raises:
        ValueError: a header that JSON cannot hold.
    """
    try:
        text = json.dumps(header, allow_nan=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} was not written: {error}; it must be what JSON can hold"
        ) from None
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            members: dict[str, Any] = {"header": np.array(text), **arrays}
            np.savez_compressed(out, **members)
            out.flush()
            os.fsync(out.fileno())
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(file: Path, kind: str, formats: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """Header and arrays of a file that `write` wrote.

    Args:
        file: the file.
        kind: what its header must say it is.
        formats: the formats that are understood.

    Raises:
        ValueError: a file of another kind or format. Damaged bytes raise whatever zip, JSON and
            NumPy make of them.
    """
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        header = json.loads(str(data["header"]))
        found = header.get("kind", "solution path")  # the first files did not say
        if found != kind:
            raise ValueError(f"it holds a {found}, expected a {kind}")
        if header["format"] not in formats:
            raise ValueError(f"format {header['format']}, expected {formats[-1]}")
        return header, {name: data[name] for name in data.files if name != "header"}


def previous(file: Path) -> Path:
    """Where the file that was there before is kept."""
    return file.with_name(file.name + ".previous")


def load(file: Path, kind: str, parse: Callable[[Path], _T]) -> _T:
    """What `parse` makes of a file or, with a warning, of the previous one where it is damaged.

    Raises:
        FileNotFoundError: no such file, and no previous one.
        ValueError: neither it nor the previous one can be read.
    """
    if not file.exists() and not previous(file).exists():
        raise FileNotFoundError(f"no {kind} at {file}")
    try:
        return parse(file)
    except Exception as error:  # whatever zip, JSON or NumPy make of damaged bytes
        try:
            found = parse(previous(file))
        except Exception:
            raise ValueError(
                f"{file} is no readable {kind} ({error}), and there is no previous one"
            ) from None
    warnings.warn(f"{file} is damaged; the previous one was read instead", stacklevel=3)
    return found
