"""A run whose filters are looked at: what its folder says of them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dessilbi_jax as dl
from dessilbi_jax import run_files
from dessilbi_jax.train.finished.trained import Trained, load_run
from dessilbi_jax.tree import leaf_paths


@dataclasses.dataclass(frozen=True)
class FilterRun:
    """A run whose filters are looked at.

    Attributes:
        trained: its network at the last step kept.
        path: its solution path.
        leaves: by path, its parameters.
    """

    trained: Trained
    path: dl.SolutionPath
    leaves: dict[str, np.ndarray]

    @classmethod
    def read(cls, run: Path) -> "FilterRun":
        """Reads a folder.

        Raises:
            FileNotFoundError: it holds no run, or one that has kept nothing yet.
            ValueError: a file is damaged.
        """
        trained = load_run(run)
        path = dl.SolutionPath.load(run / run_files.PATH)
        return cls(trained, path, dict(leaf_paths(trained.params)))

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, height, width, channels), of one image."""
        return (1, *self.trained.facts.input_shape)

    def forward(self, tree: Any, x: jax.Array) -> jax.Array:
        """The logits, of parameters and batch statistics."""
        return self.trained.network().evaluate(tree["params"], tree["stats"], x)

    def entry(self, leaf: str) -> np.ndarray:
        """When each unit's first group entered Γ; -1 where none has."""
        count = self.leaves[leaf].shape[-1]
        if leaf not in self.path.groups:
            return np.full(count, -1)
        steps = self.path.entry_steps()[leaf]
        steps = np.broadcast_to(steps, (*steps.shape[:-1], count)).reshape(-1, count)
        never = np.iinfo(np.int64).max
        first = np.where(steps < 0, never, steps).min(axis=0)
        return np.where(first == never, -1, first)

    def selected(self, leaf: str, step: int) -> np.ndarray:
        """Which units have something in Γ at the last record up to a step."""
        count = self.leaves[leaf].shape[-1]
        records = self.path.steps[self.path.steps <= step]
        if not records.size or leaf not in self.path.groups:
            return np.zeros(count, bool)
        found: np.ndarray = self.path.support(int(records[-1]))[leaf].reshape(-1, count).any(axis=0)
        return found


def beside_of(run: FilterRun, folder: Path) -> FilterRun:
    """The run beside.

    Raises:
        ValueError: it is of another network, or on other data.
    """
    other = FilterRun.read(folder)
    mine, theirs = (
        (
            r.trained.config.network,
            r.trained.facts.dataset,
            {p: x.shape for p, x in r.leaves.items()},
        )
        for r in (run, other)
    )
    for what, a, b in zip(("network", "data set", "widths"), mine, theirs, strict=True):
        if a != b:
            told = "" if what == "widths" else f" ({b}, not {a})"
            raise ValueError(
                f"the run in {folder} has another {what} than the one in {run.trained.folder}"
                f"{told}: their filters cannot stand side by side"
            )
    return other


def as_images(run: FilterRun, leaf: np.ndarray, name: str) -> np.ndarray:
    """The filters of the first layer [filters, height, width, channels].

    Raises:
        ValueError: they are no images.
    """
    if leaf.ndim == 4:
        return np.moveaxis(np.asarray(leaf, np.float64), -1, 0)
    if leaf.ndim == 2 and leaf.shape[0] == math.prod(run.shape):
        return np.asarray(leaf.T, np.float64).reshape(-1, *run.shape[1:])
    raise ValueError(
        f"the first layer, {name} of shape {leaf.shape}, does not see pixels: its filters cannot "
        "be drawn"
    )
