"""Settling: inside the run, what may be nonzero shrinks to exactly the budget.

At `cuts` moments from `begin` to `end` the allowed support loses the weights of least magnitude, or
the groups whose norm is least beside the mean norm of those that are left of their layer, until at
the last it holds the budget. Of the k-th of K cuts it keeps

    budget + (all − budget)·(1 − k/K)³

(the schedule of Zhu and Gupta, 2017). What has left is zero in W, in the state of the optimizer
around the coupling, in V and in Γ, and stays so: its gradient is taken for zero. Γ goes on being
selected among what is left, and the coupling acts there as everywhere: weights outside Γ decay by
1/ν, so that those that are to leave are small by then.

How many are kept is exact. Thresholds are found by bisection of the bits of a float32, as λ is:
sums are all that sharded arrays have to exchange, and nothing is sorted. Among equals at the
threshold those of lower leaf and index are kept.

References:
    M. Zhu and S. Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model
    Compression", ICLR workshop 2018, Eq. 1.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dessilbi_jax.optimizer.asked import Settle
from dessilbi_jax.optimizer.budget import Frame, frame
from dessilbi_jax.optimizer.largest import TOP, fitting, largest
from dessilbi_jax.optimizer.same import Same
from dessilbi_jax.optimizer.settings import Settings
from dessilbi_jax.prox.joint import gathered, placed_like
from dessilbi_jax.prox.norms import expand, group_norms
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.tree import is_inexact


class Settled(NamedTuple):
    """What settling has come to.

    Attributes:
        allowed: what may be nonzero: a tree of bool arrays like the parameters, in the shape of
            the groups where a leaf has groups of more than one element, and with all axes of
            length 1 for dense leaves.
        budget: how many weights or groups are allowed at most now, int32, or what parameters or
            operations in channels, float32.
        done: whether that is the budget asked for.
    """

    allowed: Any
    budget: jax.Array
    done: jax.Array


def init(settings: Settings, groups: Sequence[LeafGroups], params: optax.Params) -> Any:
    """The state before the first update: all is allowed. The empty tuple where nothing settles."""
    if settings.settling is None:
        return ()
    leaves, treedef = jax.tree.flatten(params)
    budget = jnp.zeros([], jnp.int32)
    if any(leaf.counts is not None for leaf in groups):
        known = frame(settings.settling, groups, settings.structure)
        budget = jnp.array(known.total, _dtype(known))
    allowed = [_all(leaf, p) for leaf, p in zip(groups, leaves, strict=True)]
    return Settled(jax.tree.unflatten(treedef, allowed), budget, jnp.zeros([], bool))


def _dtype(known: Frame) -> Any:
    return jnp.int32 if known.amount is None else jnp.float32


def advance(
    settings: Settings,
    settled: Settled,
    groups: Sequence[LeafGroups],
    params: optax.Params,
    count: jax.Array,
    states: Any,
) -> tuple[Settled, Any]:
    """What is allowed at an update, and states with zeros in what has left.

    Where the update makes no cut nothing is computed, and arrays pass as they are.

    Args:
        settings: of the transformation.
        settled: of the state.
        groups: of all leaves of the parameters.
        params: W.
        count: updates made before this one.
        states: trees in which arrays of the parameters' shapes are found and emptied.
    """
    plan = settings.settling
    assert plan is not None
    if all(leaf.counts is None for leaf in groups):
        return settled, states
    fixed = Same((tuple(groups), dataclasses.replace(plan, steps=None), settings.structure))
    out: tuple[Settled, Any] = _advance(fixed, plan.steps, settled, params, count, states)
    return out


# Compiled by itself, so that outside of `jax.jit` it is not traced and compiled in every update;
# inline, so that inside it is as if it were written there.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _advance(
    fixed: Same[tuple[tuple[LeafGroups, ...], Settle, Any]],
    steps: Any,
    settled: Settled,
    params: optax.Params,
    count: jax.Array,
    states: Any,
) -> tuple[Settled, Any]:
    groups, plan, structure = fixed.value
    leaves: list[Any] = jax.tree.leaves(params)
    treedef: Any = jax.tree.structure(params)
    places = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
    known = frame(plan, groups, structure)
    wanted, done = _wanted(plan, known, count + 1, steps)
    allowed = treedef.flatten_up_to(settled.allowed)

    def cut(operand: Any) -> Any:
        allowed, states = operand
        some = [leaves[i] for i in places]
        new = list(allowed)
        for i, mask in zip(
            places, _kept(known, some, [allowed[i] for i in places], wanted, plan.minimum),
            strict=True,
        ):  # fmt: skip
            new[i] = mask
        whole = [spread_over(mask, leaf) for mask, leaf in zip(new, leaves, strict=True)]
        return new, emptied(states, jax.tree.unflatten(treedef, whole), treedef)

    # What has settled stays so, also in a network that has been cut since.
    cuts = (wanted < settled.budget) & ~settled.done
    new, states = jax.lax.cond(cuts, cut, lambda x: x, (allowed, states))
    budget = jnp.where(cuts, wanted, settled.budget)
    return Settled(jax.tree.unflatten(treedef, new), budget, settled.done | done), states


def spread_over(allowed: jax.Array, leaf: Any) -> jax.Array:
    """Which elements of a leaf are allowed, from what `Settled` holds of it."""
    return jnp.broadcast_to(expand(allowed, leaf.shape), leaf.shape)


def emptied(states: Any, allowed: Any, treedef: Any) -> Any:
    """States with zeros where nothing is allowed, in whatever looks like the parameters."""
    keep = jax.tree.leaves(allowed)

    def like(x: Any) -> bool:
        if treedef.num_leaves == 0:
            return False
        return bool(jax.tree.structure(x, is_leaf=_hidden) == treedef)

    def empty(x: Any) -> Any:
        if not like(x):
            return x
        flat = jax.tree.leaves(x, is_leaf=_hidden)
        out = [
            jnp.where(mask, leaf, jnp.zeros_like(leaf))
            if hasattr(leaf, "shape") and leaf.shape == mask.shape and is_inexact(leaf)
            else leaf
            for leaf, mask in zip(flat, keep, strict=True)
        ]
        return jax.tree.unflatten(treedef, out)

    return jax.tree.map(empty, states, is_leaf=like)


def _hidden(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _all(leaf: LeafGroups, p: Any) -> jax.Array:
    if leaf.counts is None:
        return jnp.ones((1,) * len(leaf.shape), bool)
    if leaf.elementwise and isinstance(p, jax.Array):
        return jnp.ones_like(p, bool)  # keeps the sharding
    return jnp.ones(leaf.counts, bool)


def _wanted(
    plan: Settle, known: Frame, count: jax.Array, steps: Any
) -> tuple[jax.Array, jax.Array]:
    """How many may be left behind an update, and whether that is the budget."""
    steps = jnp.asarray(steps, jnp.float32)
    begin, end = jnp.round(plan.begin * steps), jnp.round(plan.end * steps)
    way = (count - begin) / jnp.maximum(end - begin, 1) * max(plan.cuts - 1, 1)
    # The first cut at `begin`, the last at `end`; a little is allowed for rounding.
    made = jnp.clip(jnp.floor(way + 1e-4) + 1, 0, plan.cuts).astype(jnp.int32)
    if plan.cuts == 1:
        made = (count >= end).astype(jnp.int32)
    schedule = known.target + np.ceil(
        (known.total - known.target) * (1 - np.arange(plan.cuts + 1) / plan.cuts) ** 3
    )
    wanted = jnp.asarray(schedule, _dtype(known))[made]
    return wanted, made == plan.cuts


def _kept(
    known: Frame,
    w: Sequence[jax.Array],
    allowed: Sequence[jax.Array],
    wanted: jax.Array,
    minimum: int,
) -> list[jax.Array]:
    """What stays of what is allowed: of each leaf, over its grid."""
    norms = _norms(known.groups, w)
    laid = []
    for layer in known.layers:
        norm, mask = norms[layer.leaf], allowed[layer.leaf]
        if layer.cells is not None:
            norm, mask = (gathered(x).reshape(-1)[layer.cells] for x in (norm, mask))
        laid.append((norm.astype(jnp.float32), mask))
    scores = []
    for (norm, mask), mean in zip(laid, _means(known, laid), strict=True):
        norm = norm / mean
        bits = jax.lax.bitcast_convert_type(norm, jnp.int32)
        # Not finite: counted as the largest. Bits of what has left: −1, below all others.
        bits = jnp.where(jnp.isfinite(norm), jnp.clip(bits, 0, TOP), TOP)
        scores.append(jnp.where(mask, bits, -1))
    if known.amount is None:
        stay = largest(scores, [int(layer.cost) for layer in known.layers], wanted, minimum)
    else:
        # A little is allowed for rounding.
        stay = fitting(scores, functools.partial(_left, known), wanted * (1 + 1e-6), minimum)
    out = list(allowed)
    for layer, mask in zip(known.layers, stay, strict=True):
        for i, cells in layer.members:
            if cells is None:
                out[i] = mask
                continue
            each = jnp.broadcast_to(mask[:, None], cells.shape).reshape(-1)
            flat = gathered(out[i]).reshape(-1).at[cells.reshape(-1)].set(each)
            out[i] = placed_like(flat.reshape(out[i].shape), allowed[i])
    return out


def _left(known: Frame, stay: Sequence[jax.Array]) -> jax.Array:
    """What channels leave, of those that stay by layer."""
    assert known.amount is not None
    alive = jnp.ones(known.amount.groups, bool)
    for layer, mask in zip(known.layers, stay, strict=True):
        if layer.numbers is not None:  # what has to stay in the network has numbers beyond these
            alive = alive.at[layer.numbers].set(mask, mode="drop")
    return known.amount.left(alive)


def _norms(groups: Sequence[LeafGroups], w: Sequence[jax.Array]) -> list[jax.Array]:
    """By leaf the norm of each group of W; of an element, its magnitude."""
    wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in w]
    norms: list[Any] = [None] * len(groups)
    grouped = [i for i, leaf in enumerate(groups) if not leaf.elementwise]
    if grouped:
        found = group_norms(
            [groups[i].counts or () for i in grouped],
            [groups[i].joint for i in grouped],
            [wide[i] for i in grouped],
        )
        for i, norm in zip(grouped, found, strict=True):
            norms[i] = norm
    return [jnp.abs(x) if norm is None else norm for x, norm in zip(wide, norms, strict=True)]


def _means(known: Frame, laid: Sequence[tuple[jax.Array, jax.Array]]) -> list[Any]:
    """What norms are measured by, so that layers compete: their means over what is allowed.

    Groups of different layers differ in size and in the spread of their initial weights. Single
    elements compete by their magnitudes, all with one mean.
    """
    single = [known.groups[layer.leaf].elementwise for layer in known.layers]
    if all(single):
        return [1.0] * len(laid)
    totals = [
        (jnp.sum(jnp.where(mask & jnp.isfinite(norm), norm, 0)), jnp.sum(mask, dtype=jnp.float32))
        for norm, mask in laid
    ]
    together: Any = (0.0, 0.0)
    for alone, (total, count) in zip(single, totals, strict=True):
        if alone:
            together = (together[0] + total, together[1] + count)
    means = [together if alone else own for alone, own in zip(single, totals, strict=True)]
    return [jnp.where(total > 0, total / jnp.maximum(count, 1), 1) for total, count in means]
