"""Files that are written at once or not at all, and those that hold JSON or arrays.

Every file and folder that outlives a process is written here: beside its place first, under a name
that no other process has, then synced to the disk and moved. A kill, an error or a full disk at any
moment leaves what was there before, whole, or what is new, whole.
"""

import contextlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

_LONGEST_HEADER, _NPY_HEADER = 2**28, 2**12  # bytes
# Of an archive of ours: how it begins, also where it was cut off, and what the first ones were,
# which do not say.
_BEGIN, _HEADER, _FIRST_KIND = 64, b"header.npy", "solution path"
# What a kill in the middle of a write leaves beside a file: its name, a token, this ending.
PART = ".part"


@contextlib.contextmanager
def new_file(file: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Context that gives a stream; at its end what was written becomes `file`.

    On any error nothing of it is left, and the file that was there stays.

    Args:
        file: the file to make or to replace.
        keep: where to move the file that is there, if it is to be kept.

    Raises:
        IsADirectoryError: `file` or `keep` is a folder.
        OSError: it cannot be written: the disk is full or read-only, say, or there is no folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     with new_file(Path(there, "a.txt")) as stream:
        ...         _ = stream.write(b"whole")
        ...     print(Path(there, "a.txt").read_text())
        whole
    """
    for each in (file, keep):
        if each is not None and each.is_dir():
            raise IsADirectoryError(f"{each} is a folder, which no file replaces: give a file")
    with _in_place_of(file) as part:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(part, file)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Context that gives an empty folder to write to; at its end it becomes `folder`.

    On any error nothing of it is left, and the folder that was there stays.

    Args:
        folder: the folder to make, with those above it, or to replace with all that is in it.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     with new_folder(Path(there, "a")) as part:
        ...         _ = (part / "text").write_text("whole")
        ...     print([file.name for file in Path(there).rglob("*")])
        ['a', 'text']
    """
    with _in_place_of(folder) as part:
        part.mkdir(parents=True)
        yield part
        for path in [*part.rglob("*"), part]:
            _sync(path)
        if not folder.exists():
            os.replace(part, folder)
            return
        # A folder cannot be moved onto one that holds files.
        before = _beside(folder)
        os.replace(folder, before)
        try:
            os.replace(part, folder)
        except BaseException:
            os.replace(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """Context that gives a free name beside `target`, and leaves nothing under it."""
    part = _beside(target)
    try:
        yield part
        _sync(target.parent)
    except OSError as error:
        if error.errno is None or not _is_of(error.filename, part):
            raise  # of something else that the caller does meanwhile
        left = "what was there is whole" if target.exists() else "nothing of it is left"
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}: it was not written and {left}; make room, give write "
            "permission or choose another place",
            str(target),
        ) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()


def _beside(target: Path) -> Path:
    """A name beside `target` that no other write has, of this process or of another's."""
    return target.with_name(f"{target.name}.{secrets.token_hex(6)}{PART}")


def _is_of(name: Any, part: Path) -> bool:
    """Whether an error's file is `part`, in it, or not told (as by a write to a full disk)."""
    return name is None or Path(os.fsdecode(name)).is_relative_to(part)


def _sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk.

    Raises:
        OSError: a file cannot be synced. A folder is tried only: not every system can.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not folder:
            raise
    finally:
        os.close(handle)


def write_atomically(file: Path, content: bytes | str) -> None:
    """Writes a file at once or not at all; text in UTF-8.

    Raises:
        OSError: as `new_file`.
    """
    with new_file(file) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, indented, atomically. NaN and infinity are errors."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(file, text + "\n")


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text holds.

    Raises:
        ValueError: it is no JSON, or nested so deeply that it cannot be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def why(error: Exception) -> str:
    """Returns what is wrong with an archive, from whatever zip, JSON and NumPy raised.

    Example:
        >>> why(ValueError("Cannot load file containing pickled data when allow_pickle=False"))
        'it is no archive of numbers'
    """
    if "pickle" in str(error) or "Object arrays" in str(error):
        return "it is no archive of numbers"
    return str(error) or type(error).__name__


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is not there") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged: expected a JSON object, got {type(value).__name__}")
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
        file: where to; a file of the same kind that is there is replaced, and nothing else.
        header: what JSON can hold; its "kind" says what the file is.
        arrays: arrays of numbers or bits.
        keep: where to move the file that is there, if it is to be kept.

    Raises:
        FileExistsError: what is there, or at `keep`, is no such file.
        ValueError: a header that JSON cannot hold.
    """
    for each in (file, keep):
        if each is not None:
            check_own(each, str(header.get("kind", _FIRST_KIND)))
    try:
        text = json.dumps(header, allow_nan=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} was not written: {error}; it must be what JSON can hold"
        ) from None
    members: dict[str, Any] = {"header": np.array(text), **arrays}
    with new_file(file, keep) as stream:
        np.savez_compressed(stream, **members)


def read(
    file: Path,
    kind: str,
    formats: tuple[int, ...],
    sizes: Callable[[Any], Mapping[str, int]],
) -> tuple[Any, dict[str, np.ndarray]]:
    """Header and arrays of a file that `write` wrote.

    Nothing is unpacked before it is known how large it should be: a file of some megabytes can say
    that it holds as many gigabytes.

    Args:
        file: the file.
        kind: what its header must say it is.
        formats: the formats that are understood.
        sizes: from the header to the most bytes that each array may have; no others are read.

    Raises:
        ValueError: a file of another kind or format, or a larger array than it should hold.
            Damaged bytes raise whatever zip, JSON and NumPy make of them.
    """
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        _check_size(data, "header", _LONGEST_HEADER)
        header = parse_json(str(data["header"]))
        found = header.get("kind", _FIRST_KIND)
        if found != kind:
            raise ValueError(f"it holds a {found}, expected a {kind}")
        if header["format"] not in formats:
            raise ValueError(f"format {header['format']}, expected {formats[-1]}")
        most = sizes(header)
        names = [name for name in data.files if name in most]
        for name in names:
            _check_size(data, name, most[name])
        return header, {name: data[name] for name in names}


def _check_size(data: Any, name: str, most: int) -> None:
    """Raises unless a member of an archive unpacks to at most so many bytes, and its own header."""
    size = data.zip.getinfo(f"{name}.npy").file_size
    if size > most + _NPY_HEADER:
        raise ValueError(f"{name} would take {size:,} bytes, it should be {most:,} at most")


def check_own(file: Path, kind: str) -> None:
    """Raises unless `write` may put a file of a kind there; changes nothing.

    Only a file of that kind is ever replaced, also where it is damaged; an empty one has nothing
    to lose.

    Raises:
        IsADirectoryError: there is a folder.
        FileExistsError: there is something else.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder, which no file replaces: give a file")
    if not file.exists():
        return
    with file.open("rb") as stream:
        start = stream.read(_BEGIN)
        if not start:
            return
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as data:
                _check_size(data, "header", _LONGEST_HEADER)
                found = parse_json(str(data["header"])).get("kind", _FIRST_KIND)
        except Exception:  # whatever zip, JSON or NumPy make of it: damaged, or never ours
            found = kind if _HEADER in start else "a file of another kind"
    if found != kind:
        raise FileExistsError(
            f"{file} is there and is no {kind}, so that it is not replaced: give another file"
        )


def check_text(file: Path, sign: str, kind: str) -> None:
    """Raises unless a text may be put there: nothing, or a text of ours, which holds `sign`.

    Raises:
        IsADirectoryError: there is a folder.
        FileExistsError: there is something else.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder, which no file replaces: give a file")
    if file.exists() and file.stat().st_size and sign.encode() not in file.read_bytes():
        raise FileExistsError(
            f"{file} is there and is no {kind}, so that it is not replaced: give another file"
        )


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
                f"{file} is no readable {kind} ({why(error)}), and there is no previous one"
            ) from None
    warnings.warn(f"{file} is damaged; the previous one was read instead", stacklevel=3)
    return found
