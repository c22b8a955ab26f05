"""The ReLUs of a jaxpr, however they are written, and the rule that guides gradients through them.

A ReLU is max(x, 0), `jax.nn.relu`, `relu6`, a clamp or clip from 0, where(x > 0, x, 0) or
x·(x > 0). A maximum that only keeps a variance under a root from falling below 0, as
normalisations have it, is none. A function with a gradient of its own keeps it, unless the function
is nothing but a ReLU.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from dessilbi_jax.dependency.rules_control import scan_counts
from dessilbi_jax.interpretation.computation import (
    CALLS,
    OWN_GRADIENT,
    Rule,
    bodies,
    closed_again,
    evaluate,
    flat,
    users_of,
)

VIEWS = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"})
_ROOTS = frozenset({"rsqrt", "sqrt", "pow"})
_UNDER_ROOTS = VIEWS | {"add", "div", "mul"}
_CLIPPING = VIEWS | {"clamp", "ge", "gt", "le", "lt", "max", "min", "mul", "select_n"}
_SIGNS = {"gt": True, "ge": True, "lt": False, "le": False}
# Has a gradient of its own, or none that could be guided.
_LEFT = OWN_GRADIENT | {"while"}


def without_calls(closed: Any) -> Any:
    """The closed jaxpr with calls, and functions that are nothing but a ReLU, in their place."""
    return flat(closed, _inlines)


def _inlines(eqn: Any) -> bool:
    name = eqn.primitive.name
    return name in CALLS or (name in OWN_GRADIENT and _only_a_relu(eqn))


def _only_a_relu(eqn: Any) -> bool:
    body = flat(closed_again(bodies(eqn)[0]))
    names = {each.primitive.name for each in body.jaxpr.eqns}
    return names <= _CLIPPING and bool(relus(body.jaxpr, body.consts))


def relus(jaxpr: Any, consts: Any = (), eqns: Any = None) -> Mapping[int, int]:
    """By the id of each equation that is a ReLU, which of its operands x is.

    Args:
        jaxpr: an open jaxpr without calls.
        consts: of its constants.
        eqns: the equations to look among; all by default.
    """
    zero = {v for v, c in zip(jaxpr.constvars, consts, strict=False) if _is_zero(c)}
    users = users_of(jaxpr)
    signs: dict[Any, tuple[Any, bool]] = {}  # of a bool, or of 0 and 1: x, and whether x > 0
    found: dict[int, int] = {}

    def none(var: Any) -> bool:
        return _is_zero(var.val) if isinstance(var, Literal) else var in zero

    def sign(var: Any) -> tuple[Any, bool] | None:
        return None if isinstance(var, Literal) else signs.get(var)

    for eqn in jaxpr.eqns if eqns is None else eqns:
        name, ins = eqn.primitive.name, eqn.invars
        at: int | None = None
        if name in VIEWS:
            if none(ins[0]):
                zero.update(eqn.outvars)
            if (known := sign(ins[0])) and eqn.outvars[0].aval.shape == ins[0].aval.shape:
                signs[eqn.outvars[0]] = known
        elif name in _SIGNS:
            for x, other, is_above in ((*ins, _SIGNS[name]), (*ins[::-1], not _SIGNS[name])):
                if none(other) and not isinstance(x, Literal):
                    signs[eqn.outvars[0]] = (x, is_above)
        elif name == "max":
            at = 0 if none(ins[1]) else 1 if none(ins[0]) else None
        elif name == "clamp":
            at = 1 if none(ins[0]) else None
        elif name == "select_n" and len(ins) == 3 and (known := sign(ins[0])):
            x, is_above = known
            passed, stopped = (2, 1) if is_above else (1, 2)
            at = passed if ins[passed] is x and none(ins[stopped]) else None
        elif name == "mul":
            for i, other in enumerate(ins[::-1]):
                if (known := sign(other)) and known[1] and known[0] is ins[i]:
                    at = i
        if at is None or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
            continue
        if none(ins[at]) or isinstance(ins[at], Literal) or _under_root(eqn.outvars[0], users):
            continue
        found[id(eqn)] = at
    return found


def _is_zero(value: Any) -> bool:
    try:
        return bool(np.all(np.asarray(value) == 0))
    except Exception:  # traced, or a key: not known to be
        return False


def _under_root(var: Any, users: Mapping[Any, list[Any]]) -> bool:
    """Whether all that becomes of a variable is a root of it."""
    uses = users.get(var, [])
    return bool(uses) and all(
        eqn is not None
        and (
            eqn.primitive.name in _ROOTS
            or (eqn.primitive.name in _UNDER_ROOTS and _under_root(eqn.outvars[0], users))
        )
        for eqn in uses
    )


def has_relu(jaxpr: Any, consts: Any = (), eqns: Any = None, data: Any = None) -> bool:
    """Whether there is a ReLU in a jaxpr without calls, or in its loops and branches.

    Args:
        jaxpr: an open jaxpr without calls.
        consts: of its constants.
        eqns: the equations to look among; all by default.
        data: the variables whose ReLUs count; all by default.
    """
    eqns = jaxpr.eqns if eqns is None else eqns
    found = relus(jaxpr, consts, eqns=eqns)
    return any(
        id(eqn) in found or (eqn.primitive.name not in _LEFT and _inside(eqn))
        for eqn in eqns
        if data is None or any(var in data for var in eqn.outvars)
    )


def _inside(eqn: Any) -> bool:
    """Whether there is a ReLU in the bodies of a loop, or in branches."""
    found = [without_calls(closed_again(body)) for body in bodies(eqn)]
    return any(has_relu(each.jaxpr, each.consts) for each in found)


@jax.custom_vjp
def guided_relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose gradient is passed where both x and itself are above 0."""
    return jnp.maximum(x, 0)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.maximum(x, 0), x


def _backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((x > 0) & (g > 0), g, jnp.zeros_like(g)),)


guided_relu.defvjp(_forward, _backward)


def guided_rule(jaxpr: Any, consts: Any = (), eqns: Any = None) -> Rule:
    """The rule under which a jaxpr without calls passes only what is positive both ways.

    Args:
        jaxpr: the jaxpr that is to be evaluated with it.
        consts: of its constants.
        eqns: the equations that are evaluated; all by default.

    Raises:
        ValueError: by the rule, a ReLU that cannot be reached.
    """
    places = relus(jaxpr, consts, eqns)

    def rule(eqn: Any, ins: list[Any]) -> list[Any] | None:
        name = eqn.primitive.name
        if id(eqn) in places:
            at = places[id(eqn)]
            x = jnp.broadcast_to(ins[at], eqn.outvars[0].aval.shape)
            # Above the upper bound of a clamp nothing passes, as ever.
            return [guided_relu(jnp.minimum(x, ins[2]) if name == "clamp" else x)]
        if name in _LEFT or not _inside(eqn):
            return None
        if name == "scan":
            return _scanned(eqn, ins)
        if name == "cond":
            branches = [_as_function(body) for body in bodies(eqn)]
            return list(jax.lax.switch(ins[0], branches, *ins[1:]))
        raise ValueError(
            f"there is a ReLU inside {name}, where gradients cannot be guided: give the network "
            "without it"
        )

    return rule


def _as_function(body: Any) -> Any:
    """A body of a loop or a branch, guided."""
    closed = without_calls(closed_again(body))
    rule = guided_rule(closed.jaxpr, closed.consts)
    return lambda *args: evaluate(closed.jaxpr, closed.consts, args, rule)


def _scanned(eqn: Any, ins: list[Any]) -> list[Any]:
    consts, carried = scan_counts(eqn)
    body = _as_function(eqn.params["jaxpr"])

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        out = body(*ins[:consts], *carry, *xs)
        return out[:carried], out[carried:]

    start, xs = ins[consts : consts + carried], ins[consts + carried :]
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    carry, stacked = jax.lax.scan(step, start, xs, length=length, reverse=reverse)
    return [*carry, *stacked]
