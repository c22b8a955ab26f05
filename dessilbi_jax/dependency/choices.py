"""Which answers to take where a walk had to choose: the ones with which most weights can go.

A walk asks which of several axes is to lose positions, whether zeros leave a sum as it is, whether
parts are cut at lengths of other arrays. Where nothing comes of the usual answer another is tried,
and taken where the network then runs with fewer channels and is the same program but for lengths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from dessilbi_jax.dependency.axes import Question
from dessilbi_jax.dependency.follower import Follower
from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.tree import dtype_of, leaf_paths

_TRIES = 8  # walks to find out which axis is to lose positions


def best(
    found: Callable[[Mapping[Question, int]], tuple[ChannelGroups, Follower]],
    runs: Callable[[ChannelGroups, Follower], bool],
) -> ChannelGroups:
    """The groups with which most weights can go, of a few choices of axes.

    A choice is tried anew where nothing has come of it, each of its axes in turn. Another one is
    taken where the network runs with one channel less of each set, as code does that reads its
    lengths from its arrays, and has the same numbers in it then.
    """
    choices: dict[Question, int] = {}
    groups, walk = found(choices)
    most, tries = _free(groups), 0
    tried: set[frozenset[tuple[Question, int]]] = set()
    while tries < _TRIES:
        untried = (frozenset(c - choices.items()) for c in _changes(walk))
        change = next((c for c in untried if c and c not in tried), None)
        if change is None:
            break
        tried.add(change)
        tries += 1
        wanted = {**choices, **dict(change)}
        other, other_walk = found(wanted)
        if _free(other) > most and not other_walk.wrong and runs(other, other_walk):
            choices, groups, walk, most = wanted, other, other_walk, _free(other)
    return groups


def _changes(walk: Follower) -> list[frozenset[tuple[Question, int]]]:
    """What could be answered otherwise, of the questions that nothing has come of.

    All sums together come first: the normalisations of a network stand and fall together.
    """
    lost = {
        question: asked.options
        for question, asked in walk.asked.items()
        if question not in walk.means.hopeless
        and all(walk.partition.pinned(a.ravel()).all() for a in asked.atoms)
    }
    sums = frozenset((question, 1) for question in lost if question[0] in ("summed", "cut"))
    single = [frozenset({(q, at)}) for q, options in lost.items() for at in range(1, options)]
    return [sums, *single] if len(sums) > 1 else single


def runs_with_fewer(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    closed: Any,
    groups: ChannelGroups,
    walk: Follower,
) -> bool:
    """Whether the network with one channel less of each set is the same program but for lengths."""
    kept = np.ones(groups.count, bool)
    for each in groups.sets:
        if len(each.groups) > 1:
            kept[each.groups[0]] = False
    smaller = _smaller(fn, params, inputs, groups, kept)
    return smaller is not None and _alike(closed.jaxpr, smaller.jaxpr, walk, kept)


def _smaller(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    groups: ChannelGroups,
    kept: np.ndarray,
) -> Any:
    """The jaxpr of the network with some channels less; None where it does not run."""
    plan = groups.plan_of(kept)
    leaves = [
        jax.ShapeDtypeStruct(plan.shape(path), dtype_of(leaf)) for path, leaf in leaf_paths(params)
    ]
    try:
        return jax.make_jaxpr(fn)(jax.tree.unflatten(jax.tree.structure(params), leaves), *inputs)
    except Exception:  # whatever the network's code makes of other lengths
        return None


def _alike(here: Any, there: Any, walk: Follower, kept: np.ndarray) -> bool:
    """Whether the program for fewer channels differs from another one only as it should.

    Numbers in it are the same, but for those that means divide by: code that computes a number
    from a width, as a scale of 1/√d, does not only lose zeros. And where it cuts an axis into parts
    of other arrays' lengths, the same channels are in each part.
    """
    for a, b in zip(here.eqns, there.eqns, strict=False):
        if a.primitive is not b.primitive:
            return True  # other code, for other widths: running both will tell
        means = walk.means.approximate or id(a) in walk.means.equations
        for x, y in zip(a.invars, b.invars, strict=True):
            numbers = [v.val for v in (x, y) if isinstance(v, Literal) and np.ndim(v.val) == 0]
            if len(numbers) == 2 and numbers[0] != numbers[1] and not means:
                return False
        if id(a) in walk.cut_at and not any(
            _parts(b, at) == [int(np.append(kept, True)[part].sum()) for part in _cut(a, at, n)]
            for at, n in walk.cut_at[id(a)]
        ):
            return False
        for x, y in zip(_inner(a), _inner(b), strict=False):
            if not _alike(x, y, walk, kept):
                return False
    return True


def _cut(eqn: Any, at: int, numbers: np.ndarray) -> list[np.ndarray]:
    """The groups before, in and behind what a slice takes, or those of each part of a split."""
    if eqn.primitive.name == "split":
        return np.split(numbers, np.cumsum(eqn.params["sizes"])[:-1])
    return np.split(numbers, [eqn.params["start_indices"][at], eqn.params["limit_indices"][at]])


def _parts(eqn: Any, at: int) -> list[int]:
    """How many positions lie in each of these parts."""
    return [len(part) for part in _cut(eqn, at, np.arange(eqn.invars[0].aval.shape[at]))]


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation."""
    found = [each for p in eqn.params.values() for each in (p if isinstance(p, tuple) else (p,))]
    return [getattr(each, "jaxpr", each) for each in found if hasattr(each, "eqns")
            or hasattr(each, "jaxpr")]  # fmt: skip


def _free(groups: ChannelGroups) -> tuple[float, int]:
    """How many weights lie in positions that can be removed, and in how many groups."""
    total = 0.0
    for path, shape in groups.shapes.items():
        stay = 1.0
        for axis in range(len(shape)):
            numbers = groups.numbers.get((path, axis))
            if numbers is not None:
                stay *= float(np.mean(numbers < 0))
        total += (1 - stay) * math.prod(shape)
    return total, groups.count
