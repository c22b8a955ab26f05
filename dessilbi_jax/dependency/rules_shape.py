"""Following channels through what moves, cuts and joins arrays."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dessilbi_jax.dependency.axes import WILD, Axis, Labels, is_open
from dessilbi_jax.dependency.follower import Follower, Rule, primitive, unknown
from dessilbi_jax.dependency.reasons import DATA, Reason
from dessilbi_jax.dependency.values import Value, shapes

RULES: dict[str, Rule] = {}
_LARGEST = 1 << 22  # labels of more positions than this are not followed through a reshape


@primitive(RULES, "broadcast_in_dim")
def _broadcast(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    shape = shapes(eqn)[0]
    source = dict(zip(eqn.params["broadcast_dimensions"], ins[0].axes, strict=True))
    axes = tuple(
        Axis(1, DATA) if n == 1 else source[i] if i in source and source[i].size != 1 else WILD
        for i, n in enumerate(shape)
    )
    return [Value(axes, ins[0].data)]


@primitive(RULES, "transpose")
def _transpose(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    return [Value(tuple(ins[0].axes[i] for i in eqn.params["permutation"]), ins[0].data)]


@primitive(RULES, "squeeze")
def _squeeze(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    gone = eqn.params["dimensions"]
    return [Value(tuple(a for i, a in enumerate(ins[0].axes) if i not in gone), ins[0].data)]


@primitive(RULES, "rev")
def _reverse(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    axes = list(ins[0].axes)
    for at in eqn.params["dimensions"]:
        if is_open(axes[at]):
            self.fix(axes[at], DATA)
        elif axes[at] is not WILD:
            axes = self.part(axes, at, np.arange(axes[at].size)[::-1])
    return [Value(tuple(axes), ins[0].data)]


@primitive(RULES, "reshape")
def _reshape(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    new = shapes(eqn)[0]
    old = [a for a, var in zip(ins[0].axes, eqn.invars[0].aval.shape, strict=True) if var != 1]
    sizes = [n for n in eqn.invars[0].aval.shape if n != 1]
    if 0 in sizes or eqn.params.get("dimensions") is not None:
        return unknown(self, eqn, ins)
    out: list[Axis] = []
    i = 0
    wanted = [n for n in new if n != 1]
    while wanted:  # the shortest runs of old and new axes with as many positions
        j, k = i + 1, 1
        while (a := math.prod(sizes[i:j])) != (b := math.prod(wanted[:k])):
            j, k = (j + 1, k) if a < b else (j, k + 1)
        run, shape = [a.now() for a in old[i:j]], wanted[:k]
        out += run if j - i == k == 1 else _merge(self, run, sizes[i:j], shape, self.where(eqn))
        i, wanted = j, wanted[k:]
    rest = iter(out)
    return [Value(tuple(Axis(1, DATA) if n == 1 else next(rest) for n in new), ins[0].data)]


def _merge(
    self: Follower, axes: list[Axis], sizes: list[int], shape: list[int], at: str
) -> list[Axis]:
    """The axes of a run that is reshaped as a whole."""
    if all(a is WILD for a in axes):
        return [WILD] * len(shape)
    if math.prod(sizes) > _LARGEST and any(a is not WILD and a.fixed is None for a in axes):
        for axis in axes:
            self.pin(axis, Reason.RESHAPED_LARGE.at(at))
    self.label([a for a in axes if a is not WILD])
    atoms = None
    for labels in {id(a.labels): a.labels for a in axes if a.labels is not None}.values():
        inside = [a for a in labels.axes if a in axes]
        if [a for a in axes if a in labels.axes] != inside:
            # Put together in another order, as a channel shuffle does: code that reads one of the
            # lengths from its arrays loses the same positions in every row of the other.
            self.decide(labels)
            inside = [a for a in labels.axes if a in axes]
        if len(inside) < len(labels.axes):
            # Merged with data, as in depth to space, they cannot go; the axes outside still can.
            data = any(a is not WILD and a.fixed is not None for a in axes)
            stay = [a for a in labels.axes if a not in axes] if data else inside
            self.keep_only(labels, stay, Reason.RESHAPED.at(at))
            if data:
                continue
        if atoms is not None or math.prod(sizes) > _LARGEST:
            self.partition.pin(labels.atoms, Reason.MERGED.at(at))
            continue
        order = sorted(range(len(inside)), key=lambda i: axes.index(labels.axes[i]))
        full = [n if a in inside else 1 for a, n in zip(axes, sizes, strict=True)]
        atoms = np.broadcast_to(labels.atoms.transpose(order).reshape(full), sizes)
    if atoms is None:
        whys = [a.fixed for a in axes if a is not WILD and a.fixed is not None]
        why = next((why for why in whys if why.reason is not Reason.DATA), DATA)
        return [Axis(n, why) for n in shape]
    return self.derived(atoms.reshape(shape), [[a for a in axes if a is not WILD]] * len(shape))


@primitive(RULES, "slice")
def _slice(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    p, axes = eqn.params, list(ins[0].axes)
    steps = p["strides"] or (1,) * len(axes)
    bounds = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    for at, (start, limit, step) in enumerate(bounds):
        taken = len(range(start, limit, step))
        if taken == eqn.invars[0].aval.shape[at]:
            continue
        if step != 1 and start < step and not axes[at].size % step and axes[at] is not WILD:
            axes = self.every(axes, at, start, step)
        elif step != 1:
            self.fix(axes[at], Reason.STRIDED.at(self.where(eqn)))
            axes[at] = axes[at] if axes[at] is WILD and taken > 1 else Axis(taken, DATA)
        else:
            why = Reason.CUT.at("a slice", self.where(eqn))
            axes = self.equal_part(axes, at, start, taken, why)
            axes[at] = Axis(1, DATA) if axes[at] is WILD and taken == 1 else axes[at]
    return [Value(tuple(axes), ins[0].data)]


@primitive(RULES, "split")
def _split(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    at, start, out = eqn.params["axis"], 0, []
    for size in map(int, eqn.params["sizes"]):
        axes = [a.now() for a in ins[0].axes]
        axes = self.equal_part(axes, at, start, size, Reason.CUT.at("a split", self.where(eqn)))
        out.append(Value(tuple(axes), ins[0].data))
        start += size
    return out


@primitive(RULES, "unstack")
def _unstack(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    at, out = eqn.params["axis"], []
    for i in range(len(eqn.outvars)):
        axes = [a.now() for a in ins[0].axes]
        axes = self.equal_part(axes, at, i, 1, Reason.CUT.at("unstacking", self.where(eqn)))
        out.append(Value((*axes[:at], *axes[at + 1 :]), ins[0].data))
    return out


@primitive(RULES, "stack")
def _stack(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    at = eqn.params["axis"]
    axes = list(ins[0].axes)
    for v in ins[1:]:
        self.align(list(zip(axes, v.axes, strict=True)), Reason.JOINED.at(self.where(eqn)))
        axes = [b.now() if a is WILD else a.now() for a, b in zip(axes, v.axes, strict=True)]
    axes.insert(at, Axis(len(ins), DATA))
    return [Value(tuple(axes), any(v.data for v in ins))]


@primitive(RULES, "tile")
def _tile(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    axes = list(ins[0].axes)
    for at, times in enumerate(eqn.params["reps"]):
        n = eqn.invars[0].aval.shape[at]
        if times != 1 and n == 1:
            axes[at] = WILD
        elif times != 1:
            axes = self.part(axes, at, np.tile(np.arange(n), times))
    return [Value(tuple(axes), ins[0].data)]


@primitive(RULES, "concatenate")
def _concatenate(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    at = eqn.params["dimension"]
    axes = list(ins[0].axes)
    for v in ins[1:]:
        pairs = [(a, b) for i, (a, b) in enumerate(zip(axes, v.axes, strict=True)) if i != at]
        self.align(pairs, Reason.JOINED.at(self.where(eqn)))
        axes = [b if a is WILD else a.now() for a, b in zip(axes, v.axes, strict=True)]
    sizes = [var.aval.shape[at] for var in eqn.invars]
    axes[at] = _joined(self, [v.axes[at] for v in ins], sizes)
    return [Value(tuple(axes), any(v.data for v in ins))]


def _joined(self: Follower, parts: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    """The axis made of others, one behind the other."""
    parts = [p.now() for p in parts]
    for part in parts:  # one by one: they are axes of different arrays
        self.label([part] if part is not WILD else [])
    for part in parts:
        if part.labels is not None:
            self.decide(part.labels)
    if all(p.labels is None for p in parts):
        return Axis(sum(sizes), DATA)
    atoms = []
    for part, size in zip(parts, sizes, strict=True):
        if part.labels is not None:
            atoms.append(part.labels.atoms)
            continue
        atoms.append(self.partition.fresh(size))
        if part is not WILD:
            self.partition.pin(atoms[-1], part.fixed or DATA)
    origins = [o for p in parts for o in p.origins]
    out = Axis(sum(sizes), origins=origins)
    Labels(np.concatenate(atoms), [out])
    return out


@primitive(RULES, "pad")
def _pad(self: Follower, eqn: Any, ins: list[Value]) -> list[Value]:
    axes = list(ins[0].axes)
    for at, (low, high, inner) in enumerate(eqn.params["padding_config"]):
        if not (low or high or inner):
            continue
        axis, size = axes[at], shapes(eqn)[0][at]
        if axis is WILD or axis.fixed is not None:
            axes[at] = Axis(size, DATA)
        elif inner or low < 0 or high < 0:
            self.fix(axis, Reason.PADDED.at(self.where(eqn)))
            axes[at] = Axis(size, Reason.PADDED.at(self.where(eqn)))
        else:
            axes[at] = _joined(self, [WILD, axis, WILD], [low, axis.size, high])
    return [Value(tuple(axes), ins[0].data)]
