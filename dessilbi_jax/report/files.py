"""Reading of single files of a run folder, each error naming the file and what it should hold."""

import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax.files import parse_json, read_json, why
from dessilbi_jax.run_files import METRIC_NAMES, Record
from dessilbi_jax.tickets.path import SolutionPath

_LAYER: Mapping[str, type] = {
    "name": str,
    "shape": list,
    "groups": int,
    "selected_groups": int,
    "density": float,
}
_RESULT: Mapping[str, type] = {
    "test_accuracy": float,
    "test_projected_accuracy": float,
    "density": float,
    "parameters": int,
    "layers": list,
}
_KINDS = {
    str: "a string",
    list: "a list",
    dict: "a JSON object",
    int: "a whole number",
    float: "a number",
}


@dataclass(frozen=True)
class LeafNorms:
    """Norms of a sample of one leaf's groups through the run.

    `index` [k] is the flat index of each group; `w` and `gamma` [records, k] are ‖W_g‖ and ‖Γ_g‖;
    `size` is the number of groups that they were drawn from, None in older files.
    """

    name: str
    index: np.ndarray
    w: np.ndarray
    gamma: np.ndarray
    size: int | None = None

    def entry(self) -> np.ndarray:
        """Returns [k] the first record at which Γ_g is not zero, -1 for groups still waiting.

        >>> gamma = np.array([[0.0, 0.0], [0.0, 0.5], [0.0, 0.7]])
        >>> LeafNorms("fc1/kernel", np.arange(2), gamma, gamma).entry()
        array([-1,  1])
        """
        entered = self.gamma > 0
        return np.where(entered.any(axis=0), entered.argmax(axis=0), -1)

    def sample(self, most: int) -> "LeafNorms":
        """Returns at most so many of the groups: two thirds of them such as have entered.

        Those are spread evenly over the times of entry.

        >>> gamma = np.array([[0.0] * 6, [0.0, 0.0, 1.0, 0.0, 2.0, 0.0]])
        >>> LeafNorms("fc", np.arange(6), gamma, gamma).sample(3).index
        array([0, 2, 4])
        """
        if self.index.size <= most:
            return self
        entry = self.entry()
        entered = np.flatnonzero(entry >= 0)[np.argsort(entry[entry >= 0], kind="stable")]
        waiting = np.flatnonzero(entry < 0)
        room = max(most * 2 // 3, most - waiting.size)
        if entered.size > room:
            entered = entered[np.linspace(0, entered.size - 1, room).astype(int)]
        kept = np.sort(np.append(entered, waiting[: most - entered.size]))
        return LeafNorms(
            self.name, self.index[kept], self.w[:, kept], self.gamma[:, kept], self.size
        )


@dataclass(frozen=True)
class Norms:
    """What `norms.npz` holds: `steps` [records] and the sampled norms of each structured leaf."""

    steps: np.ndarray
    leaves: tuple[LeafNorms, ...]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_fields(entry: object, fields: Mapping[str, type], where: str) -> dict[str, Any]:
    """Checks that `entry` is an object whose `fields` are there and of their kinds."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    for name, kind in fields.items():
        if name not in entry:
            raise ValueError(f"{where}: the field {name!r} is missing")
        value = entry[name]
        right = _is_number(value) if kind is float else isinstance(value, kind)
        if not right or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {name!r} should be {_KINDS[kind]}, got {value!r}")
    return entry


def read_result(file: Path) -> dict[str, Any] | None:
    """Returns what `result.json` holds, None while the run has not written it.

    Raises ValueError naming the file and the field where one is missing or of another kind.
    """
    if not file.exists():
        return None
    result = check_fields(read_json(file), _RESULT, str(file))
    for i, layer in enumerate(result["layers"]):
        where = f"{file}: layers[{i}]"
        check_fields(layer, _LAYER, where)
        if not all(isinstance(n, int) and n > 0 for n in layer["shape"]):
            raise ValueError(f"{where}: 'shape' should hold positive sizes, got {layer['shape']!r}")
    asked = result.get("asked_density")
    if asked is not None and not _is_number(asked):
        raise ValueError(f"{file}: 'asked_density' should be a number or null, got {asked!r}")
    counted = result.get("groups")
    if counted is not None and not (
        isinstance(counted, list) and len(counted) == 2 and all(map(_is_number, counted))
    ):
        raise ValueError(f"{file}: 'groups' should be [selected, in all], got {counted!r}")
    estimates = result.get("lam") or []
    if not isinstance(estimates, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        for pair in estimates
    ):
        raise ValueError(f"{file}: 'lam' should be a list of [step, λ], got {estimates!r}")
    return result


def _read_record(line: str, where: str) -> Record:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None
    try:
        return Record.from_json(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_metrics(file: Path) -> dict[str, np.ndarray]:
    """Returns the records of `metrics.jsonl` as float64 [records] by name, NaN where not given.

    A last line without its line end is one still being written and is left out. Where steps go back
    (a run resumed from an earlier checkpoint), the later records replace those they repeat. A file
    that is not there counts as one without records. Raises ValueError naming file and line.
    """
    records: list[Record] = []
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error})") from None
    complete = text[: text.rfind("\n") + 1]
    for number, line in enumerate(complete.splitlines(), start=1):
        if not line.strip():
            continue
        record = _read_record(line, f"{file}, line {number},")
        while records and records[-1].step >= record.step:
            records.pop()
        records.append(record)
    return {
        name: np.array([record.number(name) for record in records], dtype=np.float64)
        for name in METRIC_NAMES
    }


def read_norms(file: Path) -> Norms | None:
    """Returns what `norms.npz` holds, None where the run has none.

    Raises ValueError naming the file where it is truncated or its arrays do not fit each other.
    """
    if not file.exists():
        return None
    try:
        # Opened here, because np.load leaves a file it cannot read open.
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is truncated or not a NumPy archive ({why(error)})") from None
    if "steps" not in arrays:
        raise ValueError(f"{file}: the array 'steps' is missing, it holds {sorted(arrays)}")
    steps = arrays["steps"]
    leaves: list[LeafNorms] = []
    while f"leaf_{len(leaves)}_name" in arrays:
        prefix = f"leaf_{len(leaves)}_"
        try:
            index, w, gamma = (arrays[prefix + part] for part in ("index", "w", "gamma"))
        except KeyError as error:
            raise ValueError(f"{file}: the array {error} is missing") from None
        expected = (steps.size, index.size)
        for part, array in (("w", w), ("gamma", gamma)):
            if array.shape != expected:
                raise ValueError(
                    f"{file}: {prefix}{part} should have the shape {expected} "
                    f"(records, sampled groups), got {array.shape}"
                )
        size = int(arrays[f"{prefix}size"]) if f"{prefix}size" in arrays else None
        leaves.append(LeafNorms(str(arrays[prefix + "name"]), index, w, gamma, size))
    return Norms(steps, tuple(leaves))


def read_path(file: Path) -> tuple[SolutionPath | None, tuple[str, ...]]:
    """Returns the solution path (None where there is none, or nothing in it) and the warnings.

    A warning of `SolutionPath.load`, as when the previous good file had to serve, is given again
    and returned, so that the page can say it too. Raises ValueError naming a file beyond repair.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            path = SolutionPath.load(file)
        except FileNotFoundError:
            return None, ()
    caught = [warning for warning in caught if issubclass(warning.category, UserWarning)]
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    notes = tuple(str(warning.message) for warning in caught)
    return (path if path.steps.size else None), notes
