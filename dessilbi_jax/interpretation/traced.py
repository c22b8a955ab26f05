"""A network traced once: which operation makes the channels of a leaf, and what comes behind it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from dessilbi_jax.frameworks import as_network, is_module
from dessilbi_jax.interpretation.computation import (
    OWN_GRADIENT,
    bodies,
    closed_again,
    flat,
    reached_from,
    users_of,
)
from dessilbi_jax.interpretation.relus import VIEWS, relus, without_calls
from dessilbi_jax.tree import leaf_paths

_POINTWISE = frozenset({"add", "div", "mul", "reduce_window_max", "sub"})


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the map of a leaf's units is.

    Attributes:
        var: the variable of the jaxpr.
        axes: those of its axes that index the units.
    """

    var: Any
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many units there are."""
        return math.prod(self.var.aval.shape[axis] for axis in self.axes)


class Traced:
    """A network's computation on one input.

    Attributes:
        closed: its jaxpr without calls: of the arrays, then the input.
        leaves: by path, the variable of an array.
        data: the variables that depend on the input.

    Raises:
        TypeError: an input that is no array of floating-point numbers, or a network that cannot be
            called with the parameters.
        ValueError: an input that the network cannot be traced on.
    """

    def __init__(self, fn: Callable[..., Any], params: Any, x: Any) -> None:
        if is_module(fn):
            network = as_network(fn)
            fn, params = network.fn, network.tree if params is None else params
        elif params is None:
            raise TypeError(
                f"params are None, and a {type(fn).__name__} holds none of its own: give the "
                "arrays that the function is called with"
            )
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"the input must be of floating-point numbers to have gradients, got "
                f"{jnp.result_type(x)}: normalise images as the network is given them"
            )
        like = jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
        named = leaf_paths(params)
        self.arrays = jax.tree.leaves(params)
        try:
            traced = jax.make_jaxpr(lambda tree, x: fn(tree, x))(params, like)
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise ValueError(
                f"the network cannot be traced on an input of shape {like.shape}: {first} "
                f"({type(error).__name__}); give it in the shape that the network is called with, "
                "an axis for the batch included where it has one"
            ) from error
        self.closed = without_calls(traced)
        self.jaxpr = self.closed.jaxpr
        self.leaves = dict(zip([p for p, _ in named], self.jaxpr.invars, strict=False))
        self.data = reached_from(self.jaxpr, [self.jaxpr.invars[-1]])
        self.users = users_of(self.jaxpr)
        self.readers = self._readers()
        self.makers = {id(var): eqn for eqn in self.jaxpr.eqns for var in eqn.outvars}

    def is_data(self, var: Any) -> bool:
        """Whether a variable depends on the input."""
        return not isinstance(var, Literal) and var in self.data

    def _readers(self) -> dict[str, list[Any]]:
        """By path, the equations in which a leaf, or what is made of it alone, meets the input."""
        none: frozenset[str] = frozenset()
        origins = {var: frozenset({path}) for path, var in self.leaves.items()}
        readers: dict[str, list[Any]] = {path: [] for path in self.leaves}
        for eqn in self.jaxpr.eqns:
            of = none.union(
                *(origins.get(var, none) for var in eqn.invars if not isinstance(var, Literal))
            )
            if any(map(self.is_data, eqn.outvars)):
                for path in of:
                    readers[path].append(eqn)
            elif of:
                origins.update(dict.fromkeys(eqn.outvars, of))
        return readers

    def place(self, path: str) -> Place:
        """Where the map of a leaf's units is.

        Raises:
            ValueError: the leaf makes no units, or they cannot be told, with the reason.
        """
        readers = self.readers[path]
        if len(readers) != 1:
            raise ValueError(f"{len(readers)} operations read it together with the input")
        (eqn,) = readers
        axes = _outputs(eqn, [not self.is_data(var) for var in eqn.invars])
        if axes is None:
            name = eqn.primitive.name
            loop = " (a loop or a branch)" if name in ("scan", "while", "cond") else ""
            raise ValueError(
                f"it is read by {name}{loop}, and channels are made by products and convolutions"
            )
        found = Place(eqn.outvars[0], axes)
        return self._biased(found) or found

    def _biased(self, place: Place) -> Place | None:
        """The place behind the addition of a bias; None where none is added."""
        for eqn in self.users.get(place.var, []):
            if eqn is None:
                continue
            if eqn.primitive.name == "add":
                (other,) = (v for v in eqn.invars if v is not place.var) if (
                    eqn.invars[0] is not eqn.invars[1]
                ) else (place.var,)  # fmt: skip
                if not self.is_data(other) and self._size_of(other) in (1, place.count):
                    return Place(eqn.outvars[0], place.axes)
            elif (axes := _moved(eqn, place.axes)) is not None and (
                behind := self._biased(Place(eqn.outvars[0], axes))
            ):
                return behind
        return None

    def _size_of(self, var: Any) -> int:
        """The number of different elements of what has been broadcast."""
        if isinstance(var, Literal):
            return int(np.size(var.val))
        least = var.aval.size
        while (eqn := self.makers.get(id(var))) and eqn.primitive.name in VIEWS | {"transpose"}:
            var = eqn.invars[0]
            if isinstance(var, Literal):
                return int(np.size(var.val))
            least = min(least, var.aval.size)
        return int(least)

    def activated(self, place: Place) -> Place | None:
        """The place behind the ReLU that follows, through a normalisation; None without one."""
        found = relus(self.jaxpr, self.closed.consts)

        def behind(place: Place) -> Place | None:
            for eqn in self.users.get(place.var, []):
                if eqn is None:
                    continue
                if id(eqn) in found:
                    return Place(eqn.outvars[0], place.axes)
                axes = _moved(eqn, place.axes)
                if axes is None and eqn.primitive.name in _POINTWISE:
                    alone = sum(map(self.is_data, eqn.invars)) == 1
                    axes = place.axes if alone else None
                if axes is not None and (last := behind(Place(eqn.outvars[0], axes))):
                    return last
            return None

        return behind(place)


def _outputs(eqn: Any, is_leaf: Sequence[bool]) -> tuple[int, ...] | None:
    """The axes of a product's result that index its outputs; None for another operation."""
    if sum(is_leaf) != 1:
        return None
    at = list(is_leaf).index(True)
    if eqn.primitive.name in OWN_GRADIENT:  # as a convolution with a faster one of its kernel
        body = flat(closed_again(bodies(eqn)[0])).jaxpr
        if len(body.eqns) != 1 or body.outvars[0] is not body.eqns[0].outvars[0]:
            return None
        of_leaf = [var is body.invars[at] for var in body.eqns[0].invars]
        return _outputs(body.eqns[0], of_leaf)
    if eqn.primitive.name == "conv_general_dilated" and at == 1:
        return (eqn.params["dimension_numbers"].out_spec[1],)
    if eqn.primitive.name != "dot_general":
        return None
    contracted, batched = eqn.params["dimension_numbers"]
    batch = len(batched[0])
    free = [v.aval.ndim - len(c) - batch for v, c in zip(eqn.invars, contracted, strict=True)]
    first = batch + (free[0] if at else 0)
    return tuple(range(first, first + free[at])) or None


def _moved(eqn: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Where axes are after an operation that only moves them; None after another one."""
    name, p, shape = eqn.primitive.name, eqn.params, eqn.invars[0].aval.shape
    if name in ("convert_element_type", "copy"):
        return axes
    if name == "transpose":
        return tuple(p["permutation"].index(axis) for axis in axes)
    if name == "broadcast_in_dim":
        return tuple(p["broadcast_dimensions"][axis] for axis in axes)
    if name == "squeeze":
        gone = {axis % len(shape) for axis in p["dimensions"]}
        return None if gone & set(axes) else tuple(a - sum(g < a for g in gone) for a in axes)
    if name == "reshape":
        new = eqn.outvars[0].aval.shape
        found = []
        for axis in axes:
            before = math.prod(shape[:axis])
            same = [
                k for k, n in enumerate(new)
                if n == shape[axis] and math.prod(new[:k]) == before
            ]  # fmt: skip
            if not same:
                return None
            found.append(same[-1] if shape[axis] == 1 else same[0])
        return tuple(found)
    return None


def places(traced: Traced) -> dict[str, Place]:
    """The leaves that make channels, as the computation reads them."""
    order = {id(eqn): i for i, eqn in enumerate(traced.jaxpr.eqns)}
    found: list[tuple[int, str, Place]] = []
    for path in traced.leaves:
        try:
            place = traced.place(path)
        except ValueError:
            continue
        found.append((order[id(traced.readers[path][0])], path, place))
    return {path: place for _, path, place in sorted(found, key=lambda each: each[0])}
