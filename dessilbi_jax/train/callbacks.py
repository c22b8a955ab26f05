"""What else may be told of each record of a run: CSV files, TensorBoard, or what a user writes."""

import contextlib
import csv
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dessilbi_jax.run_files import METRIC_NAMES


class Callback(Protocol):
    """What `fit(callbacks=[…])` takes: it is told of each record, and closed at the end.

    Of several processes only the first tells its callbacks. A run that is resumed tells those that
    come after the checkpoint.
    """

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Gets the metrics of a recorded step by name; None is what is not known."""

    def close(self) -> None:
        """Called at the end of the run, however it ends."""


class Csv:
    """Writes the metrics into a CSV file, a line a record; a file that is there is continued.

    Args:
        file: where to; its first line names the columns.

    Raises:
        FileExistsError: the file is there and is no such table.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     table = Csv(Path(there, "run.csv"))
        ...     table.record(1, {"epoch": 0.1, "loss": 2.3, "lam": None})
        ...     table.close()
        ...     print(Path(there, "run.csv").read_text().splitlines()[1])
        1,0.1,2.3,,,,,,,,,
    """

    def __init__(self, file: str | Path) -> None:
        file, new = Path(file), True
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as stream:
                first = stream.readline()
            new = not first
            if first and first.strip().split(",") != list(METRIC_NAMES):
                raise FileExistsError(f"{file} is there and is no table of a run: give another")
        self._stream = file.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, METRIC_NAMES, extrasaction="ignore")
        if new:
            self._writer.writeheader()

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Writes a line; what is not known is left empty."""
        self._writer.writerow({"step": step, **{k: v for k, v in metrics.items() if k != "step"}})
        self._stream.flush()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


class TensorBoard:
    """Writes the metrics as TensorBoard shows them. Needs tensorboardX, and no TensorFlow.

    Args:
        folder: where to.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            module = importlib.import_module("tensorboardX")
        except ImportError as error:
            raise ImportError(
                "--tensorboard needs tensorboardX: pip install 'dessilbi_jax[tensorboard]'"
            ) from error
        self._writer: Any = module.SummaryWriter(str(folder))

    def record(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Adds a point to each curve."""
        for name, value in metrics.items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


@contextlib.contextmanager
def told(callbacks: Sequence[Callback], *, first: bool) -> Iterator[Sequence[Callback]]:
    """Context that gives the callbacks to tell, and closes them all at its end.

    Raises:
        TypeError: one of them has no `record` or no `close`.
    """
    for each in callbacks:
        if not callable(getattr(each, "record", None)) or not callable(
            getattr(each, "close", None)
        ):
            raise TypeError(f"callbacks must have record(step, metrics) and close(), got {each!r}")
    with contextlib.ExitStack() as stack:
        for each in callbacks:
            stack.callback(each.close)
        yield callbacks if first else ()
