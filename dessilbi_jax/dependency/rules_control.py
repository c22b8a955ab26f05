"""Following channels through calls, loops and branches."""

from typing import Any

from dessilbi_jax.dependency.axes import WILD, Axis
from dessilbi_jax.dependency.follower import Follower, Rule, primitive
from dessilbi_jax.dependency.reasons import DATA, Reason
from dessilbi_jax.dependency.values import Value, as_now, shapes

RULES: dict[str, Rule] = {}

_CALLS = """checkpoint closed_call core_call custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr custom_vmap_call jit pjit remat remat2"""
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


@primitive(RULES, _CALLS)
def _call(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    inner = next(eqn.params[k] for k in _INNER if k in eqn.params)
    return self.run(inner, ins, eqn)


@primitive(RULES, "shard_map")
def _shard_map(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    """A function on each device's part: an axis that lies over several devices stays."""
    inner = eqn.params["jaxpr"]
    inner = getattr(inner, "jaxpr", inner)
    parts = []
    for v, var in zip(ins, inner.invars, strict=True):
        parts.append(_parted(self, eqn, v, var.aval.shape))
    outs = self.run(inner, parts, eqn)
    return [
        _parted(self, eqn, v, shape) for v, shape in zip(outs, shapes(eqn), strict=True)
    ]  # fmt: skip


def _parted(self: Follower, eqn: Any, value: Value, shape: tuple[int, ...]) -> Value:
    """A value with axes of other lengths where it is parted among devices, or put together."""
    why, axes = Reason.SHARDED.at(self.where(eqn)), []
    for axis, n in zip(value.axes, shape, strict=True):
        if axis.size != n and axis is not WILD:
            self.fix(axis, why)
            axis = Axis(n, axis.now().fixed or why, origins=axis.origins)
        axes.append(axis)
    parted = any(a is not b for a, b in zip(axes, value.axes, strict=True))
    return value._replace(axes=tuple(axes), of=None if parted else value.of)


def _loop(self: Follower, body: Any, consts: list[Value], carry: list[Value], xs: list[Value],
          times: int, eqn: Any) -> tuple[list[Value], list[Value]]:  # fmt: skip
    """Carried and stacked values of a loop: what is carried goes in as it comes out."""
    sizes = [var.aval.shape for var in getattr(body, "jaxpr", body).invars]
    self.means.lost(*(v.factor for v in carry))
    carry = [
        self.tape.either(
            Value(
                tuple(Axis(n) if a is WILD else a for a, n in zip(v.axes, shape, strict=True)), True
            ),
            [v],
        )
        for v, shape in zip(carry, sizes[len(consts) :], strict=False)
    ]
    self.times *= times
    out = self.run(body, [*consts, *carry, *xs], eqn)
    self.times //= times
    self.means.lost(*(v.factor for v in out[: len(carry)]))
    for before, after in zip(carry, out, strict=False):
        pairs = [(a, b) for a, b in zip(before.axes, after.axes, strict=True)]
        self.align(pairs, Reason.CARRIED.at(self.where(eqn)))
        self.tape.also(before, after)
    return [as_now(v) for v in carry], out[len(carry) :]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many behind them are carried."""
    p = eqn.params
    if "num_consts" in p:
        return p["num_consts"], p["num_carry"]
    first, second, *_ = (len(part) for part in p["ft_in"].unpack())
    return first, second


@primitive(RULES, "scan")
def _scan(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    p = eqn.params
    first, carried = scan_counts(eqn)
    second = first + carried
    xs = []
    for v in ins[second:]:
        self.fix(v.axes[0], Reason.SCANNED.at(self.where(eqn)))
        xs.append(v._replace(axes=tuple(a.now() for a in v.axes[1:])))
    length = p.get("length") or eqn.invars[second].aval.shape[0]
    carry, stacked = _loop(self, p["jaxpr"], ins[:first], ins[first:second], xs, length, eqn)
    return [*carry, *(v._replace(axes=(Axis(length, DATA), *v.axes)) for v in stacked)]


@primitive(RULES, "while")
def _while(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    test, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry, _ = _loop(
        self, eqn.params["body_jaxpr"], ins[test : test + body], ins[test + body :], [], 1,
        eqn,
    )  # fmt: skip
    self.run(eqn.params["cond_jaxpr"], [*ins[:test], *carry], eqn)
    return carry


@primitive(RULES, "cond")
def _cond(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    index, *args = ins
    platforms = eqn.params.get("branches_platforms")
    if platforms and None in platforms:  # all branches compute the same: the general one tells
        return self.run(eqn.params["branches"][platforms.index(None)], args, eqn)
    before, outs, costs = self.costs, [], []
    for branch in eqn.params["branches"]:
        self.costs = []
        outs.append(self.run(branch, args, eqn))
        costs.append(self.costs)
    # The dearest branch is the one that counts.
    self.costs = before + max(costs, key=lambda c: sum(k.factor for k in c))
    self.means.lost(*(v.factor for values in outs for v in values))
    for other in outs[1:]:
        for a, b in zip(outs[0], other, strict=True):
            self.align(list(zip(a.axes, b.axes, strict=True)), Reason.BRANCH.at(self.where(eqn)))
    return [
        self.tape.either(
            Value(
                tuple(
                    b.now() if a is WILD else a.now() for a, b in zip(v.axes, w.axes, strict=True)
                ),
                index.data or v.data or w.data,
            ),
            [v, w],
        )
        for v, w in zip(outs[0], outs[-1], strict=True)
    ]
