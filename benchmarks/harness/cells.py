"""Long tables in pieces: cells by key, each written as soon as it is there."""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.results import machine

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One result of a table.

    Attributes:
        key: names all that it depends on.
        make: computes it.
        weight: what it costs, in any unit that the cells of a table share.
        group: cells of one group are made by one process, as they use the same runs.
    """

    key: str
    make: Callable[[], Row]
    weight: float = 1.0
    group: str | None = None


class Runs:
    """Rows by key in a file of JSON lines, which may be appended to by several processes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Row] = {}
        self.read()

    def read(self) -> None:
        """Takes in what other processes wrote; a line cut off by a kill counts as not there."""
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                self.rows[row["key"]] = row

    def get(self, key: str, make: Callable[[], Row]) -> Row:
        """The row of a key: what is there, else what `make` returns, with time and machine."""
        if key not in self.rows:
            wall, cpu = time.time(), time.process_time()
            made = make()
            row = {
                "key": key,
                **made,
                "seconds": round(time.time() - wall, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "machine": machine(),
            }
            self._append(json.dumps(row))
            self.rows[key] = row
        return self.rows[key]

    def _append(self, line: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        start = ""
        if self.file.exists() and self.file.stat().st_size:
            with self.file.open("rb") as existing:
                existing.seek(-1, os.SEEK_END)
                start = "" if existing.read(1) == b"\n" else "\n"
        with self.file.open("a") as out:  # one write: lines of two processes never mix
            out.write(f"{start}{line}\n")
            out.flush()
            os.fsync(out.fileno())


def made_on(rows: Iterable[Row]) -> Row:
    """When and where rows were made, for the result: seconds in all, and the machines."""
    rows = list(rows)
    machines: list[Row] = []
    for row in rows:
        if row["machine"] not in machines:
            machines.append(row["machine"])
    return {
        "training_seconds": round(sum(row["seconds"] for row in rows)),
        "training_cpu_seconds": round(sum(row["cpu_seconds"] for row in rows)),
        "machines": machines,
    }


class Bar:
    """A bar on stderr: how much of the cells' weight is done, and how long the rest will take."""

    def __init__(self, total: float, done: float) -> None:
        self.total, self.done, self.first = total, done, done
        self.start = time.time()
        self.live = sys.stderr.isatty()

    def show(self, what: str) -> None:
        share = self.done / self.total if self.total else 1.0
        made = self.done - self.first
        left = "?"
        if made > 0:
            seconds = (self.total - self.done) * (time.time() - self.start) / made
            left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        bar = "#" * round(20 * share) + "." * (20 - round(20 * share))
        text = f"[{bar}] {100 * share:3.0f} %, {left} left  {what}"
        end = "" if self.live else "\n"
        print(f"\r{text:100.100s}" if self.live else text, end=end, file=sys.stderr, flush=True)

    def advance(self, weight: float) -> None:
        self.done += weight

    def end(self) -> None:
        if self.live:
            print(file=sys.stderr)


def run(runs: Runs, cells: Iterable[Cell], share: tuple[int, int] = (1, 1)) -> list[Row] | None:
    """Makes the cells that are missing, and returns all rows; None while some are not there.

    Args:
        runs: where the rows are kept.
        cells: in the order of their making.
        share: (k, n): this process takes every n-th cell or group of cells from the k-th on;
            others make the rest.
    """
    cells = list(cells)
    k, n = share
    groups = list(dict.fromkeys(cell.group or cell.key for cell in cells))
    own = set(groups[k - 1 :: n])
    mine = [cell for cell in cells if (cell.group or cell.key) in own]
    there = [cell for cell in mine if cell.key in runs.rows]
    bar = Bar(sum(c.weight for c in mine), sum(c.weight for c in there))
    for cell in mine:
        runs.read()  # of another process, in the meantime
        if cell.key not in runs.rows:
            bar.show(cell.key)
            runs.get(cell.key, cell.make)
            bar.advance(cell.weight)
    bar.show("done")
    bar.end()
    runs.read()
    missing = [cell.key for cell in cells if cell.key not in runs.rows]
    if missing:
        print(f"{len(missing)} of {len(cells)} cells are not there yet, such as {missing[0]!r}")
        return None
    return [runs.rows[cell.key] for cell in cells]
