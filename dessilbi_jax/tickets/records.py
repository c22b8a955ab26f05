"""What a solution path holds: an immutable value, so that records are made whole or not at all."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax.dependency.plan import Plan, placed
from dessilbi_jax.files import previous, read, write
from dessilbi_jax.tickets.group_masks import GroupMasks, check_parameters
from dessilbi_jax.tickets.snapshot import Observed
from dessilbi_jax.tickets.ticket import unpacked

KIND = "solution path"
_FORMATS = (1, 2)  # 2 adds groups that span leaves and the strengths at the end

Shapes = Mapping[str, tuple[int, ...]]
Tables = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of a path; all tables are by leaf path.

    Attributes:
        steps: the recorded steps, ascending.
        counts: the updates that the state had made at each, −1 where the file does not say.
        skipped: entries of V that W, not being finite, had left unchanged by then, likewise.
        metrics: by name, one float a record.
        shapes: of every leaf that was seen, its shape.
        groups: of structured leaves, the shape of their units.
        hidden: leaves or branches whose shape nobody told (`optax.partition`).
        bits: of structured leaves, one row of packed bits a record.
        entry: record at which each unit entered, −1 = never.
        rank: ‖V_g‖/λ of each unit at its entry, or at the last record.
        last: ‖V_g‖/λ at the last record.
        zero: units whose weights were all zero at the last record, where W was given.
        ties: joint group of each unit, where leaves share them.
    """

    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    metrics: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    shapes: Shapes = dataclasses.field(default_factory=dict)
    groups: Shapes = dataclasses.field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    bits: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)
    entry: Tables = dataclasses.field(default_factory=dict)
    rank: Tables = dataclasses.field(default_factory=dict)
    last: Tables = dataclasses.field(default_factory=dict)
    zero: Tables = dataclasses.field(default_factory=dict)
    ties: Tables = dataclasses.field(default_factory=dict)

    def appended(self, step: int, seen: Observed, metrics: Mapping[str, float]) -> "Records":
        """These records and one more.

        Raises:
            ValueError: a step not after the last one, a state that has made fewer updates than the
                last one, or one of another network.
        """
        if self.steps:
            self._check(step, seen)
        groups = {path: bits.shape for path, bits in seen.chosen.items()}
        entry, rank = {}, {}
        for path, bits in seen.chosen.items():
            entry[path] = self.entry[path].copy() if self.steps else np.full(bits.shape, -1, "i4")
            rank[path] = self.rank[path].copy() if self.steps else np.zeros(bits.shape, "f4")
            fresh = bits & (entry[path] < 0)
            entry[path][fresh] = len(self.steps)
            np.copyto(rank[path], seen.strength[path], where=fresh | (entry[path] < 0))
        none = (math.nan,) * len(self.steps)
        return Records(
            steps=(*self.steps, step),
            counts=(*self.counts, seen.count),
            skipped=(*self.skipped, seen.skipped),
            metrics={
                name: (*self.metrics.get(name, none), metrics.get(name, math.nan))
                for name in sorted({*self.metrics, *metrics})
            },
            shapes=seen.shapes,
            groups=groups,
            hidden=seen.hidden,
            bits={
                path: (*self.bits.get(path, ()), np.packbits(bits))
                for path, bits in seen.chosen.items()
            },
            entry=entry,
            rank=rank,
            last=seen.strength,
            zero=seen.zero,
            ties=seen.ties,
        )

    def _check(self, step: int, seen: Observed) -> None:
        if step <= self.steps[-1]:
            raise ValueError(
                f"steps must ascend: got {step} after {self.steps[-1]}; after a resume call "
                "path.truncate(step) first"
            )
        groups = {path: bits.shape for path, bits in seen.chosen.items()}
        if (seen.shapes, groups) != (self.shapes, self.groups):
            odd = [p for p in seen.shapes if seen.shapes[p] != self.shapes.get(p)] or list(groups)
            raise ValueError(f"{odd[0]} differs from what this path has recorded so far")
        alike = seen.ties.keys() == self.ties.keys()
        if not (alike and all(np.array_equal(seen.ties[p], self.ties[p]) for p in self.ties)):
            raise ValueError("the groups that span leaves differ from those recorded so far")
        if seen.count < self.counts[-1]:
            raise ValueError(
                f"the optimizer state of step {step} has made {seen.count} updates, at step "
                f"{self.steps[-1]} it had made {self.counts[-1]}: it was lost or begun anew; "
                "restore it, or begin a new path"
            )

    def grown(self, seen: Observed, plan: Plan) -> "Records":
        """The same records in the shapes of a larger network; what is new was not selected.

        Args:
            seen: a state of the larger network.
            plan: what is kept of that network to have the one that was recorded.

        Raises:
            ValueError: a plan that does not lead from that network to the one recorded.
        """
        if not self.steps:
            return self
        places = {}
        for path, grid in self.groups.items():
            larger = plan.shapes.get(path) == seen.shapes.get(path)
            if not larger or plan.shape(path) != self.shapes[path] or path not in seen.chosen:
                raise ValueError(f"{path} was recorded in another shape than the plan leaves of it")
            shape, places[path] = plan.cells(path, grid)
            if shape != seen.chosen[path].shape:
                raise ValueError(f"the groups of {path} are others in the larger network")

        def placed_all(tables: Tables, fill: Any) -> Tables:
            grids = {path: seen.chosen[path].shape for path in tables}
            return {p: placed(t, grids[p], places[p], fill) for p, t in tables.items()}

        return dataclasses.replace(
            self,
            shapes=seen.shapes,
            groups={path: bits.shape for path, bits in seen.chosen.items()},
            bits={
                path: tuple(
                    np.packbits(placed(unpacked(row, self.groups[path]), grid, places[path], False))
                    for row in rows
                )
                for path, rows in self.bits.items()
                for grid in [seen.chosen[path].shape]
            },
            entry=placed_all(self.entry, -1),
            rank=placed_all(self.rank, 0),
            last=placed_all(self.last, 0),
            zero=placed_all(self.zero, False),
            ties=seen.ties,
        )

    def until(self, step: int) -> "Records":
        """The records up to a step; without any, nothing is known, as before the first."""
        keep = int(np.searchsorted(np.array(self.steps, np.int64), step, side="right"))
        if keep == len(self.steps):
            return self
        if not keep:
            return Records()
        return dataclasses.replace(
            self,
            steps=self.steps[:keep],
            counts=self.counts[:keep],
            skipped=self.skipped[:keep],
            metrics={name: values[:keep] for name, values in self.metrics.items()},
            bits={path: rows[:keep] for path, rows in self.bits.items()},
            entry={p: np.where(record >= keep, -1, record) for p, record in self.entry.items()},
        )

    def write(self, file: Path) -> None:
        """Writes one .npz file, at once or not at all; what was there is kept beside it."""
        header = {
            "kind": KIND,
            "format": _FORMATS[-1],
            "steps": self.steps,
            "counts": self.counts,
            "skipped": self.skipped,
            "metrics": self.metrics,
            "shapes": self.shapes,
            "groups": self.groups,
            "hidden": self.hidden,
        }
        arrays: dict[str, Any] = {}
        for i, path in enumerate(self.groups):
            arrays[f"bits_{i}"] = np.stack(self.bits[path])
            arrays[f"rank_{i}"] = self.rank[path]
            if path in self.last:
                # Of those that never entered it is the rank itself.
                arrays[f"last_{i}"] = self.last[path][self.entry[path] >= 0]
            if path in self.zero:
                arrays[f"zero_{i}"] = np.packbits(self.zero[path])
            if path in self.ties:
                arrays[f"ties_{i}"] = self.ties[path]
        write(file, header, arrays, keep=previous(file))

    @classmethod
    def read(cls, file: Path) -> "Records":
        """What `write` wrote.

        Raises:
            ValueError: a file of another kind; damaged bytes raise whatever they are read as.
        """
        header, data = read(file, KIND, _FORMATS, _sizes)
        steps = tuple(header["steps"])
        unknown = [-1] * len(steps)  # in files of older versions
        groups = {p: tuple(shape) for p, shape in header["groups"].items()}
        bits, entry, rank, last, zero, ties = {}, {}, {}, {}, {}, {}
        for i, (name, units) in enumerate(groups.items()):
            rows = data[f"bits_{i}"]
            expected = (len(steps), -(-math.prod(units) // 8))
            if rows.shape != expected:
                raise ValueError(f"the records of {name} are {rows.shape}, expected {expected}")
            bits[name], rank[name] = tuple(rows), data[f"rank_{i}"]
            found = np.full(units, -1, np.int32)
            for record, row in enumerate(rows):
                found[unpacked(row, units) & (found < 0)] = record
            entry[name] = found
            if f"last_{i}" in data:
                last[name] = rank[name].copy()
                last[name][found >= 0] = data[f"last_{i}"]
            if f"zero_{i}" in data:
                zero[name] = unpacked(data[f"zero_{i}"], units)
            if f"ties_{i}" in data:
                ties[name] = data[f"ties_{i}"]
        return cls(
            steps=steps,
            counts=tuple(header.get("counts", unknown)),
            skipped=tuple(header.get("skipped", unknown)),
            metrics={name: tuple(values) for name, values in header["metrics"].items()},
            shapes={p: tuple(shape) for p, shape in header["shapes"].items()},
            groups=groups,
            hidden=tuple(header.get("hidden", ())),
            bits=bits,
            entry=entry,
            rank=rank,
            last=last,
            zero=zero,
            ties=ties,
        )

    def dead(self) -> Tables:
        """Units that cannot carry anything at the last record: their weights are zero.

        Where W was not given this is seen by their V, which has never moved.
        """
        out = {}
        for path, rank in self.rank.items():
            still = self.last.get(path, np.where(self.entry[path] < 0, rank, 1)) == 0
            out[path] = still | self.zero.get(path, np.zeros(rank.shape, bool))
        return out

    def record_of(self, step: int | None) -> int:
        """The record of a step, by default the last one.

        Raises:
            ValueError: no record, or none of that step (the nearest is named).
        """
        if not self.steps:
            raise ValueError("nothing has been recorded on this path yet")
        if step is None:
            return len(self.steps) - 1
        if step not in self.steps:
            near = min(self.steps, key=lambda s: abs(s - step))
            raise ValueError(f"step {step} was not recorded; the nearest one is {near}")
        return self.steps.index(step)

    def masks(self, bits: Mapping[str, np.ndarray]) -> GroupMasks:
        """The support that some bits are."""
        return GroupMasks(self.shapes, bits, self.ties)

    def masks_at(self, record: int) -> GroupMasks:
        """The support of a record."""
        return self.masks(
            {path: unpacked(rows[record], self.groups[path]) for path, rows in self.bits.items()}
        )

    def first_open(self) -> int | None:
        """The first step at which something was selected, None if there is none."""
        for k, step in enumerate(self.steps):
            if any(rows[k].any() for rows in self.bits.values()):
                return step
        return None

    @property
    def ranked(self) -> bool:
        """Whether the last record tells units apart; before λ's first estimate it cannot."""
        return any(bool(rank.any()) for rank in self.rank.values())

    def lost(self, record: int) -> int:
        """Entries of W that were not finite between the record before and this one.

        None behind a record of an older version, which does not say how many there were by then.
        """
        before = self.skipped[record - 1] if record else 0
        return 0 if before < 0 else max(self.skipped[record] - before, 0)


def _sizes(header: Mapping[str, Any]) -> dict[str, int]:
    """The most bytes of each array in the file of a path, from its header."""
    records, sizes = len(header["steps"]), {}
    check_parameters(header["shapes"])
    for i, units in enumerate(header["groups"].values()):
        count = math.prod(units)
        sizes[f"bits_{i}"] = records * -(-count // 8)
        sizes[f"zero_{i}"] = -(-count // 8)
        sizes |= {f"{name}_{i}": 8 * count for name in ("rank", "last", "ties")}
    return sizes
