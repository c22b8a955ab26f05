"""Encoded images and their labels by row number: from a folder, or as tfds prepared them."""

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp")
_TEST_FOLDERS = ("test", "validation", "val")


class Records(Protocol):
    """Encoded images and labels; read by many threads, and sent to worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        """The encoded image of a row and its label.

        Raises:
            ValueError: it cannot be read; the message says where it should be.
        """

    def where(self, row: int) -> str:
        """What to call the image of a row in a message."""


@dataclasses.dataclass(frozen=True, eq=False)
class FolderRecords:
    """Files `folder/class/file`, sorted by class and name."""

    folder: pathlib.Path
    files: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        try:
            return (self.folder / self.files[row]).read_bytes(), int(self.labels[row])
        except OSError as error:
            raise ValueError(f"{self.where(row)} cannot be read: {error.strerror}") from error

    def where(self, row: int) -> str:
        """The path of the file."""
        return f"image {self.folder / self.files[row]}"


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Rows of a `tfds.data_source` whose images were left encoded."""

    source: Any
    name: str
    split: str
    folder: str
    classes: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        try:
            with quiet_array_record():
                stored = self.source[row]
            encoded, label = stored["image"], int(stored["label"])
        except Exception as error:  # the readers raise of many kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the {self.split} records of {self.name} are damaged, cut short or gone "
                f"({first}); copy or prepare again: {self.folder}"
            ) from error
        if not 0 <= label < self.classes:
            raise ValueError(
                f"{self.where(row)} has label {label}, expected 0…{self.classes - 1}: "
                f"the split {self.split} cannot be used"
            )
        return encoded, label

    def where(self, row: int) -> str:
        """The number of the row and the folder."""
        return f"image {row} of the {self.split} records of {self.name} in {self.folder}"


@contextlib.contextmanager
def quiet_array_record() -> Iterator[None]:
    """Hides array_record's advice about group sizes, which concerns speed alone."""

    def other_messages(record: logging.LogRecord) -> bool:
        return "group size" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(other_messages)
    try:
        yield
    finally:
        logger.removeFilter(other_messages)


def from_folder(
    root: pathlib.Path,
) -> tuple[tuple[str, ...], FolderRecords, FolderRecords]:
    """The classes, the train images root/train/CLASS/FILE and those to test with.

    The latter are in the first of the folders test, validation and val that has classes.

    Raises:
        FileNotFoundError: a folder is missing or holds no images.
        ValueError: the parts have different classes.
    """
    layout = "expected DIR/train/CLASS/FILE and DIR/val/CLASS/FILE"
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {root} {what}; {layout}")
    train = root / "train"
    classes = _classes(train)
    if not classes:
        raise FileNotFoundError(f"{train} has no classes: {layout}")
    tests = [root / name for name in _TEST_FOLDERS if _classes(root / name)]
    if not tests:
        raise FileNotFoundError(
            f"{root} has no classes in test/, validation/ or val/ to test with: {layout}"
        )
    other = _classes(tests[0])
    if odd := sorted(set(classes) ^ set(other)):
        here, there = (train, tests[0]) if odd[0] in classes else (tests[0], train)
        raise ValueError(
            f"class {odd[0]!r} is in {here} and not in {there}"
            + (f", as are {len(odd) - 1} more classes in one part only" if odd[1:] else "")
            + "; both parts need the same classes"
        )
    return classes, _files(train, classes), _files(tests[0], classes)


def _classes(part: pathlib.Path) -> tuple[str, ...]:
    """Names of the folders in a part, sorted."""
    if not part.is_dir():
        return ()
    with os.scandir(part) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and e.name[0] != "."))


def _files(part: pathlib.Path, classes: tuple[str, ...]) -> FolderRecords:
    """The images of all classes of a part."""
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(part / name) as entries:
            own = sorted(
                entry.name
                for entry in entries
                if entry.name[0] != "." and entry.name.lower().endswith(SUFFIXES)
            )
        if not own:
            raise FileNotFoundError(
                f"{part / name} has no images; files that end with {', '.join(SUFFIXES)} are read"
            )
        files += [f"{name}/{file}" for file in own]
        labels += [label] * len(own)
    return FolderRecords(part, files, np.array(labels, np.int32))
