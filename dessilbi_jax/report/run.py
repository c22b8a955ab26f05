"""A run folder as a report needs it: what its files hold, and the few figures derived from them."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax import run_files
from dessilbi_jax.files import read_json
from dessilbi_jax.report.files import (
    Norms,
    read_metrics,
    read_norms,
    read_path,
    read_result,
)
from dessilbi_jax.tickets.group_sets import GroupSet
from dessilbi_jax.tickets.path import SolutionPath


@dataclass(frozen=True)
class Layer:
    """One structured leaf: its groups and weights, and how many of them are selected."""

    name: str
    shape: tuple[int, ...]
    groups: int
    selected_groups: int
    selected_weights: int

    @property
    def weights(self) -> int:
        """Number of elements of the leaf."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Selected weights over weights."""
        return self.selected_weights / self.weights


@dataclass(frozen=True)
class Set:
    """Groups that lie in the same leaves, with a title and the leaves in the network's order."""

    title: str
    names: tuple[str, ...]
    groups: GroupSet

    @property
    def short(self) -> str:
        """The title where there is little room: the first layer of several."""
        return self.title if len(self.names) == 1 else _title(self.names[:1]).rpartition("/")[0]


def _title(names: Sequence[str]) -> str:
    """Returns what a set is called: its leaf, or the layers that its groups lie in.

    >>> _title(["fc1/kernel"]), _title(["conv1/kernel", "bn1/scale", "bn1/bias"])
    ('fc1/kernel', 'conv1, bn1')
    """
    if len(names) == 1:
        return names[0]
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
    rest = f" and {len(layers) - 2} more" if len(layers) > 2 else ""
    return ", ".join(layers[:2]) + rest


@dataclass(frozen=True)
class Run:
    """The files of one run folder, read and checked.

    `config` is the whole of config.json; `metrics` maps names to float64 [records]; `path`, `norms`
    and `result` are None where the run has not written them; `notes` are warnings met in reading.
    """

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    path: SolutionPath | None
    norms: Norms | None
    result: dict[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def preset(self) -> str:
        """Name of the preset, or of the folder where the run had none."""
        return str(self.config.get("preset") or self.folder.resolve().name)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the run's TrainConfig."""
        return self.config["config"]

    @property
    def finished(self) -> bool:
        """Whether the run has written its result."""
        return self.result is not None

    @property
    def settled(self) -> bool:
        """Whether the run has ended with W itself sparse."""
        return bool(self.result and self.result.get("settled"))

    @property
    def settling(self) -> tuple[float, float] | None:
        """Fractions of the run between which W became sparse; None where it stays dense."""
        moments = self.settings.get("settle")
        if not isinstance(moments, list) or len(moments) != 2:
            return None
        begin, end = moments
        return float(begin), float(end)

    @property
    def records(self) -> int:
        """Number of records in metrics.jsonl."""
        return self.metrics["step"].size

    def last(self, name: str) -> float:
        """Returns a metric at the last record that has it, NaN where none has."""
        known = self.metrics[name][np.isfinite(self.metrics[name])]
        return float(known[-1]) if known.size else math.nan

    @property
    def density(self) -> float:
        """Selected over structured weights, of the result or of the last record (NaN if none)."""
        return float(self.result["density"]) if self.result else self.last("density")

    @property
    def budget(self) -> str | None:
        """What the run was to end with besides a density, in words."""
        given = self.settings.get("budget")
        if not isinstance(given, list) or len(given) != 2 or not isinstance(given[1], int | float):
            return None
        return run_files.budget_in_words(*given)

    @property
    def asked_density(self) -> float:
        """The density asked for, NaN where λ was given or another budget, and so none was."""
        if self.budget is not None:
            return math.nan
        asked = self.result.get("asked_density") if self.result else None
        asked = self.settings.get("density") if asked is None else asked
        if isinstance(asked, int | float) and not isinstance(asked, bool):
            return float(asked)
        return math.nan

    @property
    def parameters(self) -> int:
        """Number of parameters of the network, 0 while no path is there to tell."""
        if self.result:
            return int(self.result["parameters"])
        shapes = self.path.shapes.values() if self.path else ()
        return sum(math.prod(shape) for shape in shapes)

    @property
    def lam_is_auto(self) -> bool:
        """Whether λ was estimated inside the run."""
        return self.settings.get("lam") == "auto"

    def estimates(self) -> list[tuple[int, float]]:
        """Returns every (step, λ): of the result, or each change of λ seen in the records."""
        if self.result and self.result.get("lam"):
            return [(int(step), float(lam)) for step, lam in self.result["lam"]]
        changes: list[tuple[int, float]] = []
        for step, lam in zip(self.metrics["step"], self.metrics["lam"], strict=True):
            if np.isfinite(lam) and (not changes or changes[-1][1] != lam):
                changes.append((int(step), float(lam)))
        return changes

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Returns leaf paths in the order in which the network uses them.

        Runs of older versions do not tell it; there 2 comes before 10.
        """
        told = self.config.get("order")
        place = {name: i for i, name in enumerate(told)} if isinstance(told, list) else {}

        def key(name: str) -> tuple[Any, ...]:
            words = re.split(r"(\d+)", name)
            return (place.get(name, len(place)), [int(w) if w.isdecimal() else w for w in words])

        return sorted(names, key=key)

    def sets(self) -> list[Set]:
        """Returns the sets of groups in the network's order, () before the path's first record."""
        if self.path is None:
            return []
        found = {}
        for each in self.path.sets():
            names = self.in_order(each.names)
            found[names[0]] = Set(_title(names), tuple(names), each)
        return [found[name] for name in self.in_order(found)]

    def layers(self) -> tuple[Layer, ...]:
        """Returns the structured leaves at the end, or at the path's last record, () before it.

        They are in the network's order.
        """
        if self.result:
            layers = [_layer_of_result(layer) for layer in self.result["layers"]]
        elif self.path is None:
            return ()
        else:
            masks = self.path.support(int(self.path.steps[-1]))
            layers = [_layer_of_path(self.path, n, masks[n]) for n in self.path.groups]
        named = {layer.name: layer for layer in layers}
        return tuple(named[name] for name in self.in_order(named))


def _layer_of_result(layer: dict[str, Any]) -> Layer:
    shape = tuple(layer["shape"])
    selected = round(layer["density"] * math.prod(shape))
    return Layer(layer["name"], shape, layer["groups"], layer["selected_groups"], selected)


def _layer_of_path(path: SolutionPath, name: str, mask: Any) -> Layer:
    shape, groups = tuple(path.shapes[name]), math.prod(path.groups[name])
    selected = int(np.count_nonzero(mask))
    # All groups of a leaf are equally large, so the weights give the groups exactly.
    return Layer(name, shape, groups, selected * groups // math.prod(shape), selected)


def read_run(folder: str | Path) -> Run:
    """Reads a run folder, finished or still in progress.

    Only config.json must be there. Raises FileNotFoundError where the folder or config.json is not,
    ValueError naming the file where one is malformed.

    >>> read_run("no such folder")
    Traceback (most recent call last):
    FileNotFoundError: no such folder is not a folder: expected one that `dessilbi train` wrote
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: expected one that `dessilbi train` wrote"
        )
    file = folder / run_files.CONFIG
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no {file.name}: expected a folder that `dessilbi train` wrote"
        )
    config = read_json(file)
    for name in ("config", "versions", "machine"):
        if not isinstance(config.get(name), dict):
            raise ValueError(f"{file}: {name!r} should be a JSON object, got {config.get(name)!r}")
    path, notes = read_path(folder / run_files.PATH)
    norms = None
    try:
        norms = read_norms(folder / run_files.NORMS)
    except ValueError as error:  # a picture's sample: all else can be told without it
        notes = (*notes, f"The norms of groups cannot be drawn: {error}.")
    return Run(
        folder=folder,
        config=config,
        metrics=read_metrics(folder / run_files.METRICS),
        path=path,
        norms=norms,
        result=read_result(folder / run_files.RESULT),
        notes=notes,
    )
