"""What is kept of a run as it goes: metrics.jsonl, path.npz and norms.npz."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import dessilbi_jax as dl
from dessilbi_jax import files, run_files
from dessilbi_jax.run_files import Record
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.run_folder.norm_sample import NormSample

FILES = (run_files.METRICS, run_files.PATH, run_files.NORMS)


def record_steps(steps_per_epoch: int, epochs: int, records_per_epoch: int) -> frozenset[int]:
    """Returns the steps of a run that are recorded: 1, 3, 9, … in the first epoch, then evenly.

    Example:
        >>> sorted(record_steps(30, 2, 2))
        [1, 3, 9, 15, 27, 30, 45, 60]
    """
    records_per_epoch = min(records_per_epoch, steps_per_epoch)  # more would be the same steps
    early = {3**k for k in range(math.ceil(math.log(steps_per_epoch + 1, 3)))}
    even = {
        round(steps_per_epoch * k / records_per_epoch)
        for k in range(1, epochs * records_per_epoch + 1)
    }
    return frozenset(step for step in early if step < steps_per_epoch) | frozenset(even - {0})


class Records:
    """The records of one run, in memory and in its folder.

    Of several processes each has them in memory, and the first writes them.

    Attributes:
        path: the solution path.
        lines: the records as metrics.jsonl has them.

    Args:
        run: the run's folder.
        seed: of the choice of the groups whose norms are followed.
    """

    def __init__(self, run: Path, seed: int) -> None:
        self.run = run
        self.path = dl.SolutionPath()
        self.lines: list[Record] = []
        self._norms = NormSample(seed)
        self._text = b""

    def add(self, record: Record, seen: tuple[Any, Any] | None) -> Record:
        """Adds a record and writes its line; returns it with its density.

        Args:
            record: the record, without `density`.
            seen: parameters and the optimizer's state at that step; None for a network that has
                been cut, whose support stays what it was: the path has ended.
        """
        if seen is not None:
            names = ("epoch", "loss", "accuracy", "projected_accuracy")
            metrics = {name: record.number(name) for name in names}
            self.path.record(record.step, seen[1], **metrics)
        record = dataclasses.replace(record, density=float(self.path.density()[-1]))
        if seen is not None:
            self._norms.add(self.path, *seen)
        text = (json.dumps(record.to_json(), allow_nan=False) + "\n").encode()
        if processes.is_first():
            with (self.run / run_files.METRICS).open("ab") as stream:
                stream.write(text)
        self._text += text
        self.lines.append(record)
        return record

    def grow(self, opt_state: Any, plan: dl.Plan) -> None:
        """Goes on with a network that has grown; followed are the groups that were before."""
        before = self.path.groups
        self.path.grow(opt_state, plan)
        self._norms.grow(before, plan, self.path)

    def skipped(self, step: int) -> int:
        """Returns how many steps had been skipped by a step that was recorded, 0 before any."""
        return next((line.skipped or 0 for line in self.lines if line.step == step), 0)

    def save(self) -> None:
        """Writes path.npz and norms.npz, each at once or not at all."""
        if not processes.is_first():
            return
        self.path.save(self.run / run_files.PATH)
        files.write_atomically(self.run / run_files.NORMS, self._norms.to_bytes(self.path.steps))

    def content(self) -> dict[str, bytes]:
        """Returns the three files as they are after `save`, by name: what a checkpoint keeps."""
        if not processes.is_first():
            return {}
        return {
            run_files.METRICS: self._text,
            run_files.PATH: (self.run / run_files.PATH).read_bytes(),
            run_files.NORMS: (self.run / run_files.NORMS).read_bytes(),
        }

    def restore(self, content: dict[str, bytes]) -> None:
        """Puts the three files back as `content` has them, and reads them.

        With no content the records are empty, and the files are removed.
        """
        if processes.is_first():
            self._put_back(content)
        processes.meet("records put back")
        if not content:
            return
        self._text = content[run_files.METRICS]
        self.lines = [Record.from_json(json.loads(line)) for line in self._text.splitlines()]
        self.path = dl.SolutionPath.load(self.run / run_files.PATH)
        self._norms.restore(content[run_files.NORMS], self.path)

    def _put_back(self, content: dict[str, bytes]) -> None:
        """Writes the files as `content` has them, or removes them."""
        (self.run / (run_files.PATH + ".previous")).unlink(missing_ok=True)
        for name in FILES:
            if name in content:
                files.write_atomically(self.run / name, content[name])
            else:
                (self.run / name).unlink(missing_ok=True)

    def damage(self) -> str | None:
        """Returns what is wrong with the path.npz that a stopped run left, None if nothing is."""
        file = self.run / run_files.PATH
        if not file.exists():
            return None
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                for name in arrays.files:
                    arrays[name]
        except Exception as error:  # whatever zip and NumPy make of damaged bytes
            return f"{file} is damaged ({type(error).__name__})"
        return None
