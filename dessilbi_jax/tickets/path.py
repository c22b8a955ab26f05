"""The solution path: what entered Γ when, recorded during one run."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dessilbi_jax.files import load, previous, read, write
from dessilbi_jax.optimizer.state import get_state
from dessilbi_jax.provenance import versions
from dessilbi_jax.tickets.budget import RULES, Units, check_arguments, choose, gather, request
from dessilbi_jax.tickets.group_masks import GroupMasks
from dessilbi_jax.tickets.snapshot import observe
from dessilbi_jax.tickets.ticket import Ticket, make_ticket, masks_like, unpacked

_KIND = "solution path"
_FORMATS = (1, 2)  # 2 adds groups that span leaves and the strengths at the end


class SolutionPath:
    """Supports of Γ along a run, at one bit a group and record.

    A *unit* is what can be selected by itself: a group, or a single element where the penalty
    thresholds elements. Beside the bits the path keeps one float32 a unit to rank those that
    entered at the same record: how far ‖V_g‖/λ was beyond 1 then; for units that never entered
    it is ‖V_g‖/λ at the last record. For those that entered, a second one holds ‖V_g‖/λ at the
    last record, for the other order that tickets can be drawn in. Groups that span leaves are
    recorded leaf by leaf, with the number of the group that each unit of a leaf belongs to.

    Attributes:
        steps: the recorded steps, ascending.
        metrics: by name, one float a record (nan where none was given).
        shapes: by leaf path, the leaf's shape (all leaves).
        groups: by leaf path, the shape of its units (structured leaves).

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"fc": {"kernel": jnp.array([[2.0, 0.1]])}}
        >>> tx = dl.dessilbi(0.1, nu=1.0, lam=0.25)
        >>> state, path = tx.init(params), dl.SolutionPath()
        >>> for step in range(1, 4):
        ...     _, state = tx.update(params, state, params)
        ...     path.record(step, state, accuracy=0.5)
        >>> path.entry_steps()["fc/kernel"].tolist()
        [[2, -1]]
        >>> path.density().tolist()
        [0.0, 0.5, 0.5]
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._metrics: dict[str, list[float]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.groups: dict[str, tuple[int, ...]] = {}
        self._bits: dict[str, list[np.ndarray]] = {}
        self._entry: dict[str, np.ndarray] = {}  # record of entry, −1 = never
        self._rank: dict[str, np.ndarray] = {}
        self._last: dict[str, np.ndarray] = {}  # ‖V_g‖/λ at the last record
        self._ties: dict[str, np.ndarray] = {}  # joint group of each unit, where leaves share them

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> np.ndarray:
        """The recorded steps, int64."""
        return np.array(self._steps, np.int64)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """By name, one float64 a record; nan where a record had none."""
        return {name: np.array(values, np.float64) for name, values in self._metrics.items()}

    @property
    def ranked(self) -> bool:
        """Whether the last record tells units apart; before λ's first estimate it cannot."""
        return any(bool(rank.any()) for rank in self._rank.values())

    def record(self, step: int, opt_state: Any, **metrics: float) -> None:
        """Records the support of Γ at a step.

        Args:
            step: the step, larger than all recorded before.
            opt_state: optimizer state that holds a `SplitLBIState`.
            metrics: numbers to keep with it, such as `accuracy` and `projected_accuracy`.

        Raises:
            ValueError: a step not after the last one, or a state of another network.
        """
        if self._steps and step <= self._steps[-1]:
            raise ValueError(
                f"steps must ascend: got {step} after {self._steps[-1]}; after a resume call "
                "path.truncate(step) first"
            )
        shapes, chosen, strength, ties = observe(get_state(opt_state, merge=True))
        groups = {path: bits.shape for path, bits in chosen.items()}
        if not self._steps:
            self.shapes, self.groups, self._ties = shapes, groups, ties
            self._bits = {path: [] for path in groups}
            self._entry = {path: np.full(shape, -1, np.int32) for path, shape in groups.items()}
            self._rank = {path: np.zeros(shape, np.float32) for path, shape in groups.items()}
        elif (shapes, groups) != (self.shapes, self.groups):
            odd = [p for p in shapes if shapes[p] != self.shapes.get(p)] or list(groups)
            raise ValueError(f"{odd[0]} differs from what this path has recorded so far")
        elif {p: t.tolist() for p, t in ties.items()} != {
            p: t.tolist() for p, t in self._ties.items()
        }:
            raise ValueError("the groups that span leaves differ from those recorded so far")
        for path, bits in chosen.items():
            self._bits[path].append(np.packbits(bits))
            entry, rank = self._entry[path], self._rank[path]
            fresh = bits & (entry < 0)
            entry[fresh] = len(self._steps)
            np.copyto(rank, strength[path], where=fresh | (entry < 0))
        self._last = strength
        for name in sorted(set(self._metrics) | set(metrics)):
            column = self._metrics.setdefault(name, [math.nan] * len(self._steps))
            column.append(float(metrics.get(name, math.nan)))
        self._steps.append(int(step))

    def truncate(self, step: int) -> None:
        """Forgets all records after `step`, as a resume from a checkpoint of that step needs."""
        keep = int(np.searchsorted(self.steps, step, side="right"))
        self._steps = self._steps[:keep]
        self._metrics = {name: values[:keep] for name, values in self._metrics.items()}
        for path, entry in self._entry.items():
            self._bits[path] = self._bits[path][:keep]
            entry[entry >= keep] = -1
        if not keep:  # nothing is known any more, as before the first record
            for table in (self._metrics, self.shapes, self.groups, self._bits, self._entry):
                table.clear()
            self._rank, self._last, self._ties = {}, {}, {}

    def entry_steps(self) -> dict[str, np.ndarray]:
        """By leaf path: the step at which each unit was first found selected, −1 = never."""
        steps = np.append(self.steps, -1)
        return {path: steps[entry] for path, entry in self._entry.items()}

    def density(self) -> np.ndarray:
        """Selected elements over all elements of structured leaves, one float a record."""
        sizes = np.array([math.prod(self.shapes[path]) for path in self.groups], float)
        by_layer = list(self.layer_density().values())
        kept: np.ndarray = np.sum(np.array(by_layer) * sizes[:, None], axis=0)
        return kept / max(float(sizes.sum()), 1.0)

    def layer_density(self) -> dict[str, np.ndarray]:
        """By leaf path: selected elements over its elements, one float a record."""
        return {
            path: np.array([int(np.bitwise_count(b).sum()) for b in bits], float)
            / math.prod(self.groups[path])
            for path, bits in self._bits.items()
        }

    def support(self, step: int, params: Any = None) -> Any:
        """The support of Γ at a recorded step; dense leaves are all True.

        Args:
            step: a recorded step.
            params: parameters whose tree the result is to have; without them it is a dict from
                leaf path to bool array.

        Raises:
            ValueError: a step that was not recorded (the nearest one is named), or parameters of
                another network.
        """
        kept = self._kept(self._bits_at(self._record_of(step)))
        masks = {path: np.array(mask) for path, mask in kept.items()}
        return masks if params is None else masks_like(masks, params)

    def ticket(
        self,
        *,
        at: int | None = None,
        groups: int | None = None,
        weights: int | None = None,
        density: float | None = None,
        params: int | None = None,
        flops: float | None = None,
        count: Callable[[Mapping[str, np.ndarray]], float] | None = None,
        per_layer: bool | Mapping[str, float] = False,
        minimum: int = 1,
        rank: Literal["entry", "strength"] = "entry",
    ) -> Ticket:
        """A support to prune to: of a recorded step, or of exactly the asked size.

        By size, units are kept in the order in which they entered; those of one record by how
        far ‖V_g‖/λ was beyond 1, largest first; units that never entered come last, by ‖V_g‖/λ
        at the last record; equal ones as the leaves stand. `groups` is met exactly. The other
        sizes give the longest prefix of that order within the request, and `Ticket.note` says
        what was left. Tickets of growing size are nested. A group that spans leaves is one unit
        and is never split.

        Args:
            at: a recorded step: the support as it was then; nothing else applies to it.
            groups: number of units.
            weights: elements kept in structured leaves.
            density: the same over all elements of structured leaves.
            params: parameters left: kept elements and all of dense leaves, or what `count` says.
            flops: operations left, as `count` says.
            count: for `params` and `flops`: from masks (`GroupMasks`, bool arrays by leaf path) to
                the number left, such as the `flops` of channel groups; it must not fall when
                more is kept.
            per_layer: True fills all leaves up to the same share of their elements, as nearly as
                whole groups allow. A dict gives each its share, by leaf path or by a regular
                expression searched in it (an exact path wins, then the first that is found),
                and is the size by itself; with a size, shares grow alike until it is reached.
            minimum: units kept in every structured leaf, those of the leaf that come first in
                the order; 0 allows empty layers.
            rank: what the order is made by, "entry" or "strength".

        Raises:
            TypeError: unless exactly one size is given; `count` where it is missing or has no
                use.
            ValueError: nothing recorded or ranked yet; a step that was not recorded or had nothing
                selected; `rank="strength"` where λ was 0 at the last record; a size out of range
                or too small for `minimum`, with the nearest that can be kept; a share or pattern
                that does not fit.

        Example:
            >>> import jax.numpy as jnp
            >>> import dessilbi_jax as dl
            >>> params = {"kernel": jnp.array([[3.0, 0.1, 2.0, 1.0]])}
            >>> tx = dl.dessilbi(0.1, nu=1.0, lam=0.15)
            >>> path = dl.SolutionPath()
            >>> path.record(1, tx.update(params, tx.init(params), params)[1])
            >>> path.ticket(density=0.5).masks["kernel"].tolist()
            [[True, False, True, False]]
        """
        sizes = {"at": at, "groups": groups, "weights": weights, "density": density}
        sizes |= {"params": params, "flops": flops}
        check_arguments(sizes, count, per_layer, minimum, rank)
        record, units, note = self._record_of(at), self._gathered(rank), ""
        if at is not None:
            bits = self._bits_at(record)
            if not any(chosen.any() for chosen in bits.values()):
                raise ValueError(f"the ticket of step {at} is empty: {self._first_open()}")
        elif not self.ranked:
            raise ValueError(
                f"nothing is ranked yet at step {self._steps[-1]}: no λ was in force (dl.auto "
                "first sets it a tenth of the way); take the ticket later"
            )
        else:
            total = sum(map(math.prod, self.shapes.values()))
            left = None if count is None else partial(self._left, count, units)
            kept, note = choose(units, request(sizes, units, total, left), per_layer, minimum)
            bits = units.spread(kept)
        masks = self._kept(bits)
        asked: dict[str, Any] = {name: x for name, x in sizes.items() if x is not None}
        if at is None:
            shares = dict(per_layer) if isinstance(per_layer, Mapping) else per_layer
            asked |= {"per_layer": shares, "minimum": minimum}
        card = {
            "records": {"number": len(self), "steps": [self._steps[0], self._steps[-1]]},
            "request": asked,
            "rule": "the support of Γ at the step" if at is not None else RULES[rank],
            "groups": list(masks.held()),
            "metrics": {
                name: values[record]
                for name, values in self._metrics.items()
                if math.isfinite(values[record])
            },
            "versions": versions(),
        }
        return make_ticket(masks, self._steps[record], masks.structured, note, card)

    def _record_of(self, step: int | None) -> int:
        """The record of a step, by default the last one."""
        if not self._steps:
            raise ValueError("nothing has been recorded on this path yet")
        if step is None:
            return len(self._steps) - 1
        if step not in self._steps:
            near = min(self._steps, key=lambda s: abs(s - step))
            raise ValueError(f"step {step} was not recorded; the nearest one is {near}")
        return self._steps.index(step)

    def _first_open(self) -> str:
        """In words, where something is selected."""
        open_ = [
            step
            for k, step in enumerate(self._steps)
            if any(bits[k].any() for bits in self._bits.values())
        ]
        if open_:
            return f"the first recorded step with anything selected is {open_[0]}"
        return "no recorded step has anything selected yet; ask by size, as with density="

    def _bits_at(self, record: int) -> dict[str, np.ndarray]:
        """By leaf path, which units were selected."""
        return {
            path: unpacked(bits[record], self.groups[path]) for path, bits in self._bits.items()
        }

    def _kept(self, bits: Mapping[str, np.ndarray]) -> GroupMasks:
        """The support that these bits are."""
        return GroupMasks(self.shapes, bits, self._ties)

    def _left(
        self, count: Callable[[Mapping[str, np.ndarray]], float], units: Units, kept: np.ndarray
    ) -> float:
        return count(self._kept(units.spread(kept)))

    def _gathered(self, rank: str) -> Units:
        each = {p: math.prod(self.shapes[p]) // math.prod(self.groups[p]) for p in self.groups}
        if rank == "entry":
            return gather(self._entry, self._rank, each, self._ties)
        if set(self._last) != set(self.groups):
            raise ValueError("this path was written by a version that kept no strengths")
        if any(np.isposinf(beyond).any() for beyond in self._last.values()):
            raise ValueError(
                f"rank='strength' orders nothing at step {self._steps[-1]}: λ was 0, so ‖V_g‖/λ is "
                "infinite; take rank='entry', or run with a λ above 0"
            )
        alike = {p: np.zeros_like(entry) for p, entry in self._entry.items()}
        return gather(alike, self._last, each, self._ties)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the path to one .npz file, without pickle, at once or not at all.

        A file that is there is kept beside it with the ending `.previous`.
        """
        header = {
            "kind": _KIND,
            "format": _FORMATS[-1],
            "steps": self._steps,
            "metrics": self._metrics,
            "shapes": self.shapes,
            "groups": self.groups,
        }
        arrays: dict[str, Any] = {}
        for i, path in enumerate(self.groups):
            arrays[f"bits_{i}"] = np.stack(self._bits[path])
            arrays[f"rank_{i}"] = self._rank[path]
            if path in self._last:
                # Of those that never entered it is the rank itself.
                arrays[f"last_{i}"] = self._last[path][self._entry[path] >= 0]
            if path in self._ties:
                arrays[f"ties_{i}"] = self._ties[path]
        write(Path(file), header, arrays, keep=previous(Path(file)))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "SolutionPath":
        """Reads a path that `save` wrote.

        Where the file is damaged or missing and the previous one is whole, that one is read and
        a warning says so.

        Raises:
            FileNotFoundError: no such file, and no previous one.
            ValueError: neither it nor the previous one can be read.
        """
        return load(Path(file), _KIND, cls._read)

    @classmethod
    def _read(cls, file: Path) -> "SolutionPath":
        path = cls()
        header, data = read(file, _KIND, _FORMATS)
        path._steps = header["steps"]
        path._metrics = header["metrics"]
        path.shapes = {p: tuple(shape) for p, shape in header["shapes"].items()}
        path.groups = {p: tuple(shape) for p, shape in header["groups"].items()}
        for i, (name, units) in enumerate(path.groups.items()):
            bits = data[f"bits_{i}"]
            if len(bits) != len(path._steps):
                raise ValueError(f"{len(bits)} records of {name}, expected {len(path._steps)}")
            path._bits[name] = list(bits)
            path._rank[name] = data[f"rank_{i}"]
            if f"ties_{i}" in data:
                path._ties[name] = data[f"ties_{i}"]
            entry = np.full(math.prod(units), -1, np.int32)
            for record, row in enumerate(bits):
                chosen = unpacked(row, entry.shape)
                entry[chosen & (entry < 0)] = record
            path._entry[name] = entry.reshape(units)
            if f"last_{i}" in data:
                path._last[name] = path._rank[name].copy()
                path._last[name][path._entry[name] >= 0] = data[f"last_{i}"]
        return path
