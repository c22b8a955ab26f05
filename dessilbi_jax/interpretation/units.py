"""The output of the layer that a leaf belongs to, in the network's computation.

A unit is (leaf path, output index). Its map is the output of the product or convolution that reads
the leaf, with the bias that is added to it, before the normalisation and the nonlinearity.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.interpretation.computation import Rule, bound, evaluate, needed_for
from dessilbi_jax.interpretation.relus import guided_rule, has_relu, relus
from dessilbi_jax.interpretation.traced import Place, Traced, places
from dessilbi_jax.tree import find_leaf

Unit = tuple[str, int | Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps of some units as a function of arrays and input.

    Attributes:
        traced: the network.
        place: where they are; None: what the function returns.
        index: [k] the units.
        single: whether a single unit was asked for, so that no axis stands for it.
        eqns: what they depend on.
        said: the unit in words.
    """

    traced: Traced
    place: Place | None
    index: np.ndarray
    single: bool
    eqns: list[Any]
    said: str

    @property
    def has_relu(self) -> bool:
        """Whether a ReLU lies between the input and the maps."""
        traced = self.traced
        return has_relu(traced.jaxpr, traced.closed.consts, self.eqns, traced.data)

    def guided(self) -> Rule:
        """The rule under which ReLUs pass only what is positive both ways."""
        traced = self.traced
        return guided_rule(traced.jaxpr, traced.closed.consts, eqns=self.eqns)

    def leaking(self, slope: float) -> Rule:
        """The rule under which a ReLU that the maps are looked at behind passes some below 0."""
        traced = self.traced
        found = relus(traced.jaxpr, traced.closed.consts)
        last = None if self.place is None else traced.makers.get(id(self.place.var))

        def rule(eqn: Any, ins: list[Any]) -> list[Any] | None:
            if eqn is not last or id(eqn) not in found:
                return None
            x = ins[found[id(eqn)]]
            (out,) = bound(traced.jaxpr, eqn, ins)
            return [out + slope * jnp.minimum(x, 0)]

        return rule

    def of(self, arrays: Sequence[Any], x: jax.Array, rule: Rule | None = None) -> jax.Array:
        """The maps [k, elements] on an input."""
        traced, jaxpr = self.traced, self.traced.jaxpr
        var = jaxpr.outvars[0] if self.place is None else self.place.var
        (out,) = evaluate(
            jaxpr, traced.closed.consts, [*arrays, x], rule or (lambda eqn, ins: None),
            eqns=self.eqns, outputs=[var],
        )  # fmt: skip
        if self.place is None:
            whole: jax.Array = out.reshape(1, -1)
            return whole
        first = jnp.moveaxis(out, self.place.axes, range(len(self.place.axes)))
        chosen: jax.Array = first.reshape(self.place.count, -1)[self.index]
        return chosen


def maps_of(
    fn: Callable[..., Any], params: Any, x: Any, unit: Unit | None, activated: bool
) -> Maps:
    """The maps of a unit, or of several.

    Args:
        fn: as `guided_gradients` takes it.
        params: alike.
        x: an input, or its shape and dtype.
        unit: alike.
        activated: whether they are looked at behind the ReLU that follows.

    Raises:
        TypeError: as `Traced`; a unit that is none; no unit, and a function that returns another
            thing than one array.
        ValueError: as `Traced`; a leaf or a filter that is not there; a leaf that makes no
            channels; no ReLU follows.
    """
    traced = Traced(fn, params, x)
    if unit is None:
        outs = traced.jaxpr.outvars
        if activated or len(outs) != 1:
            raise TypeError(
                f"without a unit the function itself gives the map, as one array, got {len(outs)} "
                "arrays" if not activated else "activated=True needs a unit: without one the "
                "function itself gives the map"
            )  # fmt: skip
        eqns = needed_for(traced.jaxpr, outs)
        return Maps(traced, None, np.zeros(1, int), True, eqns, "the function's result")
    path, chosen = _checked(unit)
    path = find_leaf(traced.leaves, path)
    try:
        place = traced.place(path)
    except ValueError as error:
        there = ", ".join(places(traced)) or "none"
        raise ValueError(
            f"{path} makes no channels to look at: {error}. Leaves that do: {there}. Or give a "
            "function that returns the map, and no unit"
        ) from None
    index = np.atleast_1d(np.asarray(chosen))
    wrong = index[(index < 0) | (index >= place.count)]
    if wrong.size or not index.size:
        which = f"no unit {wrong[0]}" if wrong.size else "no unit among those asked for"
        raise ValueError(
            f"{path} has {which}: it makes {place.count}, numbered from 0 to {place.count - 1}"
        )
    if activated:
        behind = traced.activated(place)
        if behind is None:
            raise ValueError(
                f"no ReLU follows {path}: what it makes meets something else than a normalisation "
                "first. Leave out activated=True to look at it before the nonlinearity"
            )
        place = behind
    said = f"{path}, unit {index[0]}" if index.size == 1 else f"{path}, {index.size} units"
    eqns = needed_for(traced.jaxpr, [place.var])
    return Maps(traced, place, index, np.ndim(chosen) == 0, eqns, said)


def _checked(unit: Any) -> tuple[str, Any]:
    """The path and the index, or indices, of a unit."""
    if isinstance(unit, tuple) and len(unit) == 2 and isinstance(unit[0], str):
        index = np.asarray(unit[1])
        if index.ndim <= 1 and (index.size == 0 or np.issubdtype(index.dtype, np.integer)):
            return unit[0], index.astype(int)
    raise TypeError(
        f"a unit is (leaf path, output index), such as ('conv1/kernel', 3), or with several "
        f"indices, got {unit!r}"
    )


def unit_counts(fn: Callable[..., Any], params: Any, x: Any) -> dict[str, int]:
    """The leaves whose units can be looked at, and how many each makes.

    Args:
        fn: as `guided_gradients` takes it.
        params: alike.
        x: an input of the network, or a `jax.ShapeDtypeStruct` of one.

    Returns:
        By leaf path, in the order in which the network computes them.

    Raises:
        TypeError: an input that is not of floating-point numbers.
        ValueError: an input that the network cannot be traced on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dessilbi_jax.interpretation import unit_counts
        >>> params = {"a": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}, "b": jnp.ones((8, 3))}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]
        >>> unit_counts(net, params, jnp.ones((1, 4)))
        {'a/kernel': 8, 'b': 3}
    """
    return {path: place.count for path, place in places(Traced(fn, params, x)).items()}
