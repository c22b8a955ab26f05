"""A plan of what stays: which positions of which axes of which leaves."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax import files
from dessilbi_jax.tree import find_leaf, leaf_paths

_FORMAT = 1
_TORCH = {
    "kernel": "weight", "w": "weight", "scale": "weight", "mean": "running_mean",
    "var": "running_var", "embedding": "weight",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which indices of which axes are kept; applies to every tree with the same leaves.

    Attributes:
        shapes: shape of each leaf by its path, before.
        keep: by path and axis: the indices kept, ascending. Axes that are whole are left out.

    Raises:
        ValueError: a leaf or axis that is not there, an index out of range, twice or not in
            order, or none left.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> plan = dl.Plan({"kernel": (2, 3)}, {"kernel": {1: (0, 2)}})
        >>> plan.apply({"kernel": jnp.arange(6).reshape(2, 3)})["kernel"].tolist()
        [[0, 2], [3, 5]]
    """

    shapes: Mapping[str, tuple[int, ...]]
    keep: Mapping[str, Mapping[int, tuple[int, ...]]]

    def __post_init__(self) -> None:
        for path, axes in self.keep.items():
            if path not in self.shapes:
                raise ValueError(f"the plan keeps parts of {path}, which it gives no shape for")
            shape = self.shapes[path]
            for axis, indices in axes.items():
                if not 0 <= axis < len(shape):
                    raise ValueError(
                        f"the plan names axis {axis} of {path}, whose shape is {shape}"
                    )
                wrong = [i for i in indices if not 0 <= i < shape[axis]]
                if wrong:
                    raise ValueError(
                        f"the plan keeps index {wrong[0]} of {path} along axis {axis}, which has "
                        f"{shape[axis]} positions"
                    )
                twice = [i for i, j in itertools.pairwise(indices) if i >= j]
                if twice:
                    raise ValueError(
                        f"the indices of {path} along axis {axis} must ascend, each once; index "
                        f"{twice[0]} is followed by one that does not exceed it"
                    )
                if not indices:
                    raise ValueError(f"the plan keeps nothing of {path} along axis {axis}")

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of a leaf after the cut."""
        axes = self.keep.get(path, {})
        return tuple(len(axes[i]) if i in axes else n for i, n in enumerate(self.shapes[path]))

    def apply(self, tree: Any) -> Any:
        """Cuts a tree: parameters, batch statistics, gradients, another checkpoint.

        Its leaves are matched by path, or by the one path of the plan that ends so.

        Raises:
            ValueError: a leaf that the plan does not know, or of another shape.
        """
        leaves = [self.cut(find_leaf(self.shapes, path), leaf) for path, leaf in leaf_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def spread(self, tree: Any) -> Any:
        """The inverse of `apply`: in the shapes before, zero in what was cut.

        Raises:
            ValueError: a leaf that the plan does not know, or of another shape than it leaves.

        Example:
            >>> import jax.numpy as jnp
            >>> import dessilbi_jax as dl
            >>> plan = dl.Plan({"kernel": (2, 3)}, {"kernel": {1: (0, 2)}})
            >>> plan.spread({"kernel": jnp.array([[1, 2], [3, 4]])})["kernel"].tolist()
            [[1, 0, 2], [3, 0, 4]]
        """
        leaves = []
        for given, leaf in leaf_paths(tree):
            path = find_leaf(self.shapes, given)
            if tuple(np.shape(leaf)) != self.shape(path):
                raise ValueError(
                    f"the plan does not fit {given}: it leaves shape {self.shape(path)}, got "
                    f"{tuple(np.shape(leaf))}"
                )
            axes = self.keep.get(path, {})
            places = [axes.get(axis, range(n)) for axis, n in enumerate(self.shapes[path])]
            if not axes:
                leaves.append(leaf)
            else:
                leaves.append(placed(leaf, self.shapes[path], places))
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def cells(
        self, path: str, grid: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
        """Where the cells of a grid over what a cut leaves stand in the grid over the whole leaf.

        Args:
            path: of the leaf.
            grid: along each axis how many equal blocks there are: 1, or a divisor of its length.

        Returns:
            The grid over the whole leaf, and along each axis the places of the cells in it.

        Raises:
            ValueError: a grid that does not fit what the cut leaves.

        Example:
            >>> import dessilbi_jax as dl
            >>> plan = dl.Plan({"kernel": (2, 3)}, {"kernel": {1: (0, 2)}})
            >>> shape, places = plan.cells("kernel", (1, 2))
            >>> shape, places[1].tolist()
            ((1, 3), [0, 2])
        """
        small, large = self.shape(path), self.shapes[path]
        if len(grid) != len(large):
            raise ValueError(f"a grid of {tuple(grid)} does not fit {path} of shape {small}")
        shape: list[int] = []
        places: list[np.ndarray] = []
        for axis, n in enumerate(grid):
            if n == 1 or axis not in self.keep.get(path, {}):
                places.append(np.arange(n))
                shape.append(n)
                continue
            if small[axis] % n:
                raise ValueError(
                    f"a grid of {tuple(grid)} does not fit {path} of shape {small}: axis {axis} "
                    f"has {small[axis]} positions"
                )
            alive = np.zeros(large[axis], bool)
            alive[list(self.keep[path][axis])] = True
            blocks = alive.reshape(-1, small[axis] // n)
            places.append(np.flatnonzero(blocks.all(1)))
            shape.append(len(blocks))
        return tuple(shape), tuple(places)

    def cut(self, path: str, leaf: Any) -> Any:
        """Cuts one array that belongs to the leaf at `path`.

        Axes may be of length 1, or hold one entry for each of several equal blocks, as the
        strength of groups in the optimizer's state does.

        Raises:
            ValueError: the shape does not fit.
        """
        shape = tuple(np.shape(leaf))
        there = self.shapes[path]
        fits = len(shape) == len(there) and all(
            n and (m % n == 0 or n == m) for n, m in zip(shape, there, strict=True)
        )
        if not fits:
            raise ValueError(
                f"the plan does not fit {path}: it was made for shape {there}, got {shape}"
            )
        for axis, kept in self.keep.get(path, {}).items():
            n, m = shape[axis], there[axis]
            if n == 1:
                continue
            alive = np.zeros(m, bool)
            alive[list(kept)] = True
            blocks = alive.reshape(n, m // n)
            if (blocks.any(1) != blocks.all(1)).any():
                raise ValueError(
                    f"{path} is kept in parts of the {n} blocks along axis {axis}; cut the "
                    "network by its own groups"
                )
            leaf = jnp.take(jnp.asarray(leaf), np.flatnonzero(blocks.all(1)), axis=axis)
        return leaf

    def mask(self, tree: Any) -> Any:
        """Bool arrays like `tree`: False where the plan removes a channel, made or read.

        Raises:
            ValueError: as `apply`.
        """
        out = []
        for given, leaf in leaf_paths(tree):
            path = find_leaf(self.shapes, given)
            if tuple(np.shape(leaf)) != self.shapes[path]:
                raise ValueError(
                    f"the plan does not fit {given}: it was made for shape {self.shapes[path]}, "
                    f"got {tuple(np.shape(leaf))}"
                )
            mask = np.ones(self.shapes[path], bool)
            for axis, kept in self.keep.get(path, {}).items():
                gone = np.setdiff1d(np.arange(self.shapes[path][axis]), kept)
                mask[(slice(None),) * axis + (gone,)] = False
            out.append(jnp.asarray(mask))
        return jax.tree.unflatten(jax.tree.structure(tree), out)

    def oihw(
        self,
        rename: Callable[[str], str] | None = None,
        flattened: Mapping[str, tuple[int, ...]] | None = None,
    ) -> "Plan":
        """The plan for the same network in PyTorch's layout, as the authors' toolbox has it.

        Kernels (`kernel`, `w`) become `weight` with axes (outputs, inputs, space); normalisation
        `scale`, `mean` and `var` become `weight`, `running_mean` and `running_var`.

        Args:
            rename: from a leaf's path here to its name there; by default the last part as above,
                joined by dots.
            flattened: for dense kernels behind a flattened image: by path, the image's
                (height, width). PyTorch flattens channels first, so their inputs are reordered.

        Raises:
            ValueError: a flattened size that does not divide a kernel's inputs, or two leaves
                with one name.

        Example:
            >>> import dessilbi_jax as dl
            >>> plan = dl.Plan({"conv/kernel": (3, 3, 1, 4)}, {"conv/kernel": {3: (0, 2)}})
            >>> plan.oihw()
            Plan(shapes={'conv.weight': (4, 1, 3, 3)}, keep={'conv.weight': {0: (0, 2)}})
        """
        shapes: dict[str, tuple[int, ...]] = {}
        keep: dict[str, dict[int, tuple[int, ...]]] = {}
        for path, shape in self.shapes.items():
            head, _, last = path.rpartition("/")
            name = ".".join([*head.split("/"), _TORCH.get(last, last)] if head else [last])
            name = rename(path) if rename else name
            if name in shapes:
                raise ValueError(f"two leaves would be called {name}; give rename=")
            n = len(shape)
            kernel = last in ("kernel", "w") and n > 1
            order = [n - 1, n - 2, *range(n - 2)] if kernel else list(range(n))
            axes = dict(self.keep.get(path, {}))
            if path in (flattened or {}) and 0 in axes:
                axes[0] = _channels_first(path, shape[0], (flattened or {})[path], axes[0])
            shapes[name] = tuple(shape[i] for i in order)
            if axes:
                keep[name] = {order.index(a): kept for a, kept in axes.items()}
        return Plan(shapes, keep)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        leaves = {
            path: {
                "shape": list(shape),
                "keep": {str(a): list(kept) for a, kept in self.keep.get(path, {}).items()},
            }
            for path, shape in self.shapes.items()
        }
        return {"format": _FORMAT, "leaves": leaves}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`; checks everything.

        Raises:
            ValueError: it is no plan, or one with wrong indices.
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']}, expected {_FORMAT}")
            leaves = value["leaves"].items()
            shapes = {path: tuple(map(_whole, leaf["shape"])) for path, leaf in leaves}
            keep = {
                path: {int(a): tuple(map(_whole, kept)) for a, kept in leaf["keep"].items()}
                for path, leaf in leaves
                if leaf["keep"]
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this is no plan of a slimmed network: {error!r}") from None
        return cls(shapes, keep)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the plan as a JSON file, at once or not at all.

        Raises:
            FileExistsError: there is a file that holds no plan.
        """
        files.check_text(Path(file), '{"format"', "plan")
        files.write_atomically(Path(file), json.dumps(self.to_json()) + "\n")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Plan":
        """Reads a plan that `save` wrote, or that was edited by hand.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no plan.
        """
        try:
            value = files.parse_json(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON file: {error}") from None
        return cls.from_json(value)


def placed(leaf: Any, shape: Sequence[int], places: Sequence[Any], fill: Any = 0) -> Any:
    """A larger array with a smaller one at some positions of each axis, and `fill` elsewhere.

    On the host, but when tracing: of many leaves each would be compiled for itself.
    """
    index = np.ix_(*(np.asarray(each) for each in places))
    if isinstance(leaf, jax.core.Tracer):
        return jnp.full(shape, fill, leaf.dtype).at[index].set(leaf)
    whole = np.full(shape, fill, leaf.dtype)
    whole[index] = np.asarray(leaf)
    return whole if isinstance(leaf, np.ndarray) else jnp.asarray(whole)


def _channels_first(
    path: str, inputs: int, space: tuple[int, ...], kept: tuple[int, ...]
) -> tuple[int, ...]:
    """Indices into (space…, channels) flattened, as indices into (channels, space…)."""
    places = math.prod(space)
    if inputs % places:
        raise ValueError(f"{path} has {inputs} inputs, which {space} places do not divide")
    return tuple(sorted(i % (inputs // places) * places + i // (inputs // places) for i in kept))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected whole numbers, got {value!r}")
    return value
