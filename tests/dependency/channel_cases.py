"""What a test network is: a function, its parameters, and which axes of which leaves may shrink."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dessilbi_jax.tree import leaf_paths

# What may be removed from a leaf, one letter for each axis: x every index, - none, . not asserted.
DENSE = {1: "x", 2: "xx", 4: "--xx"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to trace and cut.

    Attributes:
        fn: fn(params, *inputs), the network's outputs.
        params: everything that lives with channels, a pytree of float32 arrays.
        inputs: example inputs.
        expected: (leaf path, axis) -> whether every index (True) or none (False) is removable.
        units: how many channel groups there are to remove, or None where it is not asserted.
        rebuild: the function for smaller params, where `fn` has widths built in.
        model: a module with these params that `dl.slim` cuts as it is, or None.
        call: call(model, *inputs), the module's outputs.
        split: the module as `fn` and `params` again.
    """

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    expected: Mapping[tuple[str, int], bool]
    units: int | None = None
    rebuild: Callable[[Any], Callable[..., Any]] | None = None
    model: Any = None
    call: Callable[..., Any] | None = None
    split: Callable[[Any], tuple[Callable[..., Any], Any]] | None = None


def table(
    params: Any, rules: Mapping[str, str], default: Mapping[int, str] = DENSE
) -> dict[tuple[str, int], bool]:
    """The expected table from letters by pattern; leaves that no pattern matches by their rank.

    Raises:
        ValueError: where a pattern matches no leaf or has letters for another rank.
    """
    unused, out = set(rules), {}
    for path, leaf in leaf_paths(params):
        found = [pattern for pattern in rules if re.search(pattern, path)]
        unused -= set(found[:1])
        letters = rules[found[0]] if found else default[leaf.ndim]
        if len(letters) != leaf.ndim:
            raise ValueError(f"{letters!r} does not fit {path} of shape {leaf.shape}")
        out |= {(path, i): letter == "x" for i, letter in enumerate(letters) if letter != "."}
    if unused:
        raise ValueError(f"no leaf is matched first by {sorted(unused)}")
    return out


def draw(shapes: Any, seed: int = 0) -> Any:
    """Random float32 arrays in the place of shapes (tuples or structs); variances positive.

    They are NumPy's, so that nothing is compiled to make them.
    """

    def is_leaf(x: Any) -> bool:
        return isinstance(x, tuple) and all(isinstance(n, int) for n in x)

    rng = np.random.default_rng(seed)
    named = jax.tree.map(lambda _: np.zeros(()), shapes, is_leaf=is_leaf)
    names = [path for path, _ in leaf_paths(named)]
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=is_leaf)
    out = []
    for name, leaf in zip(names, leaves, strict=True):
        shape = leaf if isinstance(leaf, tuple) else leaf.shape
        fan_in = max(int(np.prod(shape[:-1])), 1) if len(shape) > 1 else 4
        values = rng.normal(size=shape) / np.sqrt(fan_in)
        if name.rpartition("/")[2] in ("var", "scale"):
            values = rng.uniform(0.5, 1.5, size=shape)
        out.append(values.astype(np.float32))
    return jax.tree.unflatten(treedef, out)


def images(*shape: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def tokens(*shape: int, words: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(7).integers(0, words, shape, np.int32)


class Cases(dict[str, Callable[[], Case]]):
    """Cases by name, each built when it is first asked for."""

    def add(self, build: Callable[..., Case]) -> Callable[..., Case]:
        """Registers a builder under its function's name, as a decorator."""
        self[build.__name__] = functools.cache(build)
        return build
