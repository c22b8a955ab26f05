"""A network's jaxpr as one list of equations, and its evaluation with other rules."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

CALLS = frozenset({"checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"})
OWN_GRADIENT = frozenset(
    {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"}
)
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")

Rule = Callable[[Any, list[Any]], "list[Any] | None"]


def is_call(eqn: Any) -> bool:
    """Whether an equation computes what the jaxpr in it says, gradient included."""
    return eqn.primitive.name in CALLS


def bound(jaxpr: Any, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    """The results of an equation as JAX computes them, with its own gradient where it has one."""
    given = {v: x for v, x in zip(eqn.invars, ins, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(given), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects
    )
    return list(jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values()))


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    rule: Rule,
    *,
    eqns: Iterable[Any] | None = None,
    outputs: Sequence[Any] | None = None,
) -> list[Any]:
    """Evaluates a jaxpr, equation by equation.

    Args:
        jaxpr: an open jaxpr.
        consts: of its constants.
        args: of its arguments.
        rule: `rule(eqn, ins)` gives the results of an equation; None: those that JAX computes.
        eqns: those of its equations that are needed; all by default.
        outputs: the variables whose values are returned; its results by default.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else values[var]

    for eqn in jaxpr.eqns if eqns is None else eqns:
        ins = [read(var) for var in eqn.invars]
        outs = rule(eqn, ins)
        values.update(
            zip(eqn.outvars, bound(jaxpr, eqn, ins) if outs is None else outs, strict=True)
        )
    return [read(var) for var in (jaxpr.outvars if outputs is None else outputs)]


def flat(closed: Any, inlines: Callable[[Any], bool] = is_call) -> Any:
    """The same closed jaxpr with what its calls compute in their place.

    Loops, branches and functions with a gradient of their own stay what they are.

    Args:
        closed: a closed jaxpr.
        inlines: whether an equation is such a call.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> closed = jax.make_jaxpr(jax.checkpoint(lambda x: jnp.maximum(x, 0.0) + 1.0))(1.0)
        >>> [len(each.jaxpr.eqns) for each in (closed, flat(closed))]
        [1, 2]
    """

    def rule(eqn: Any, ins: list[Any]) -> list[Any] | None:
        if not inlines(eqn):
            return None
        (body,) = bodies(eqn)
        return evaluate(getattr(body, "jaxpr", body), getattr(body, "consts", ()), ins, rule)

    if not any(inlines(eqn) for eqn in closed.jaxpr.eqns):
        return closed
    again = functools.partial(_all, closed, rule)
    return jax.make_jaxpr(again)(*closed.in_avals)


def _all(closed: Any, rule: Rule, *args: Any) -> list[Any]:
    return evaluate(closed.jaxpr, closed.consts, args, rule)


def bodies(eqn: Any) -> list[Any]:
    """The jaxprs in an equation: of a call, of a loop, of branches."""
    if "branches" in eqn.params:
        return list(eqn.params["branches"])
    return [eqn.params[name] for name in _INNER if name in eqn.params]


def closed_again(body: Any) -> Any:
    """A jaxpr of a loop or branch as a closed one."""
    return body if hasattr(body, "consts") else ClosedJaxpr(body, ())


def users_of(jaxpr: Any) -> Mapping[Any, list[Any]]:
    """By variable, the equations that read it; None stands for the results of the jaxpr."""
    users: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if not isinstance(var, Literal):
                users.setdefault(var, []).append(eqn)
    for var in jaxpr.outvars:
        if not isinstance(var, Literal):
            users.setdefault(var, []).append(None)
    return users


def reached_from(jaxpr: Any, start: Iterable[Any]) -> set[Any]:
    """The variables that depend on some others, with these."""
    reached = set(start)
    for eqn in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in reached for var in eqn.invars):
            reached.update(eqn.outvars)
    return reached


def needed_for(jaxpr: Any, outputs: Iterable[Any]) -> list[Any]:
    """The equations that some variables depend on, in order."""
    needed = {var for var in outputs if not isinstance(var, Literal)}
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            needed.update(var for var in eqn.invars if not isinstance(var, Literal))
            eqns.append(eqn)
    return eqns[::-1]
