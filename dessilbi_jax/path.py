"""The solution path: what entered Γ when, recorded during one run."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.prox import Shrink, fraction_of_threshold, select
from dessilbi_jax.state import SplitLBIState, get_state
from dessilbi_jax.structure import leaf_paths
from dessilbi_jax.ticket import Ticket

_FORMAT = 1


class SolutionPath:
    """Supports of Γ along a run, at one bit a group and record.

    A *unit* is what can be selected by itself: a group, or a single element where the penalty
    thresholds elements. Beside the bits the path keeps one float32 a unit to rank those that
    entered at the same record: how far ‖V_g‖/λ was beyond 1 then; for units that never entered
    it is ‖V_g‖/λ at the last record.

    Attributes:
        steps: the recorded steps, ascending.
        metrics: by name, one float a record (nan where none was given).
        shapes: by leaf path, the leaf's shape (all leaves).
        groups: by leaf path, the shape of its units (structured leaves).

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
        state = get_state(opt_state, merge=True)
        v = dict(leaf_paths(state.v))
        shapes = {path: tuple(leaf.shape) for path, leaf in v.items()}
        chosen, strength = jax.device_get(_units(state))
        groups = {path: bits.shape for path, bits in chosen.items()}
        if not self._steps:
            self.shapes, self.groups = shapes, groups
            self._bits = {path: [] for path in groups}
            self._entry = {path: np.full(shape, -1, np.int32) for path, shape in groups.items()}
            self._rank = {path: np.zeros(shape, np.float32) for path, shape in groups.items()}
        elif (shapes, groups) != (self.shapes, self.groups):
            odd = [p for p in shapes if shapes[p] != self.shapes.get(p)] or list(groups)
            raise ValueError(f"{odd[0]} differs from what this path has recorded so far")
        for path, bits in chosen.items():
            self._bits[path].append(np.packbits(bits))
            entry, rank = self._entry[path], self._rank[path]
            fresh = bits & (entry < 0)
            entry[fresh] = len(self._steps)
            np.copyto(rank, strength[path], where=fresh | (entry < 0))
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
            self._rank.clear()

    def entry_steps(self) -> dict[str, np.ndarray]:
        """By leaf path: the step at which each unit was first found selected, −1 = never."""
        steps = np.append(self.steps, -1)
        return {path: steps[entry] for path, entry in self._entry.items()}

    def density(self) -> np.ndarray:
        """Selected elements over all elements of structured leaves, one float a record."""
        sizes = np.array([math.prod(self.shapes[path]) for path in self.groups], float)
        by_layer = list(self.layer_density().values())
        return np.sum(np.array(by_layer) * sizes[:, None], axis=0) / max(sizes.sum(), 1)

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
            ValueError: a step that was not recorded (the nearest one is named).
        """
        ticket = self.ticket(at=step)
        return dict(ticket.masks) if params is None else ticket.mask(params)

    def ticket(
        self, *, density: float | None = None, groups: int | None = None, at: int | None = None
    ) -> Ticket:
        """A support to prune to: of a recorded step, or of exactly the asked size.

        By size, units are taken in the order in which they entered; those of one record by how
        far ‖V_g‖/λ was beyond 1; units that never entered come last, by ‖V_g‖/λ at the end.

        Args:
            density: elements kept over elements of structured leaves: the longest prefix of the
                order that does not exceed it.
            groups: number of units, met exactly.
            at: a recorded step: the support as it was then.

        Raises:
            TypeError: unless exactly one of the three is given.
            ValueError: nothing recorded yet, a value out of range, or a step not recorded.

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
        if sum(x is not None for x in (density, groups, at)) != 1:
            raise TypeError("give exactly one of density=, groups= and at=")
        if not self._steps:
            raise ValueError("nothing has been recorded on this path yet")
        note = ""
        if at is not None:
            if at not in self._steps:
                near = min(self._steps, key=lambda s: abs(s - at))
                raise ValueError(f"step {at} was not recorded; the nearest one is {near}")
            record = self._steps.index(at)
            kept = {
                path: np.unpackbits(bits[record], count=math.prod(self.groups[path])).astype(bool)
                for path, bits in self._bits.items()
            }
        else:
            kept, note = self._prefix(density, groups)
            record = len(self._steps) - 1
        masks = {path: np.ones(shape, bool) for path, shape in self.shapes.items()}
        elements = total = 0
        for path, chosen in kept.items():
            shape, units = self.shapes[path], self.groups[path]
            mask = chosen.reshape(units)
            for axis, (n, c) in enumerate(zip(shape, units, strict=True)):
                mask = np.repeat(mask, n // c, axis=axis)
            masks[path] = mask
            elements, total = elements + int(mask.sum()), total + mask.size
        return Ticket(masks, self._steps[record], tuple(kept), elements / total, note)

    def _prefix(
        self, density: float | None, groups: int | None
    ) -> tuple[dict[str, np.ndarray], str]:
        """The first units of the order, as a flat bool array a leaf, and what was not met."""
        paths = list(self.groups)
        sizes = {p: math.prod(self.shapes[p]) // math.prod(self.groups[p]) for p in paths}
        size = np.concatenate([np.full(self._entry[p].size, sizes[p]) for p in paths])
        entry = np.concatenate([self._entry[p].ravel() for p in paths])
        rank = np.concatenate([self._rank[p].ravel() for p in paths])
        order = np.lexsort((-rank, np.where(entry < 0, len(self._steps), entry)))
        note = ""
        if density is not None:
            if not 0 < density <= 1:
                raise ValueError(f"density must lie in (0, 1], got {density}")
            total = np.cumsum(size[order])
            take = int(np.searchsorted(total, density * total[-1] * (1 + 1e-12), side="right"))
            if take == 0:
                raise ValueError(
                    f"density {density} is less than the first unit, {total[0] / total[-1]:.3g}"
                )
            gap = density * total[-1] - total[take - 1]
            if gap >= 1:
                note = f"{int(gap)} elements fewer than asked: the next group would exceed it"
        else:
            assert groups is not None
            if not 0 < groups <= order.size:
                raise ValueError(f"groups must lie between 1 and {order.size}, got {groups}")
            take = groups
        chosen = np.zeros(order.size, bool)
        chosen[order[:take]] = True
        ends = np.cumsum([self._entry[p].size for p in paths])[:-1]
        return dict(zip(paths, np.split(chosen, ends), strict=True)), note

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the path to one .npz file, without pickle, at once or not at all.

        A file that is there is kept beside it with the ending `.previous`.
        """
        file = Path(file)
        header = {
            "format": _FORMAT,
            "steps": self._steps,
            "metrics": self._metrics,
            "shapes": self.shapes,
            "groups": self.groups,
        }
        arrays: dict[str, Any] = {"header": np.array(json.dumps(header))}
        for i, path in enumerate(self.groups):
            arrays[f"bits_{i}"] = np.stack(self._bits[path])
            arrays[f"rank_{i}"] = self._rank[path]
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                np.savez_compressed(out, **arrays)
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if file.exists():
            os.replace(file, _previous(file))
        os.replace(part, file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "SolutionPath":
        """Reads a path that `save` wrote.

        Where the file is damaged or missing and the previous one is whole, that one is read and
        a warning says so.

        Raises:
            FileNotFoundError: no such file, and no previous one.
            ValueError: neither it nor the previous one can be read.
        """
        file = Path(file)
        if not file.exists() and not _previous(file).exists():
            raise FileNotFoundError(f"no solution path at {file}")
        try:
            return cls._read(file)
        except Exception as error:  # whatever zip, JSON or NumPy make of damaged bytes
            try:
                path = cls._read(_previous(file))
            except Exception:
                raise ValueError(
                    f"{file} is no readable solution path ({error}), and there is no previous one"
                ) from None
        warnings.warn(
            f"{file} is damaged; the previous one, up to step {path._steps[-1:]}, was read instead",
            stacklevel=2,
        )
        return path

    @classmethod
    def _read(cls, file: Path) -> "SolutionPath":
        path = cls()
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            if header["format"] != _FORMAT:
                raise ValueError(f"format {header['format']}, expected {_FORMAT}")
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
                entry = np.full(math.prod(units), -1, np.int32)
                for record, row in enumerate(bits):
                    chosen = np.unpackbits(row, count=entry.size).astype(bool)
                    entry[chosen & (entry < 0)] = record
                path._entry[name] = entry.reshape(units)
        return path


def _previous(file: Path) -> Path:
    return file.with_name(file.name + ".previous")


@jax.jit
def _units(state: SplitLBIState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """By leaf path: which units are selected, and ‖V_g‖ over λ."""
    chosen, strength = {}, {}
    flat = [jax.tree.leaves(tree) for tree in state.shrink]
    for (path, v), *shrink in zip(leaf_paths(state.v), *flat, strict=True):
        if v.dtype == bool:
            continue
        leaf = Shrink(*shrink)
        chosen[path] = select(v, leaf)
        beyond = leaf.strength
        if leaf.threshold.dtype != bool:
            beyond = fraction_of_threshold(v, v, leaf)
        strength[path] = beyond.astype(jnp.float32)
    return chosen, strength
