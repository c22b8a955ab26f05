"""λ found from the speed at which V is seen to move: the estimator behind `dl.auto`.

Γ of a group opens when ‖V_g‖ exceeds λ, and V moves by learning_rate/(κν)·(W − Γ) a step. The
natural clock of V is therefore its *travel*, the sum of learning_rate/(κν), which a schedule
fixes in advance. At an estimate the level of V that a given share of the elements exceeds is
extrapolated to the moment asked for,

    level(V + r·ρ·(W − Γ)),   r = travel still to come,

where ρ = (1 − e^{−br})/(br) is the share of today's speed that will be kept on average. The rate
b, by which the coupling lets W decay (or by which W still grows), is measured: each estimate
compares the level it finds with the one that the estimate before it predicted at constant speed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.optimizer.settings import Auto
from dessilbi_jax.prox.norms import group_norms
from dessilbi_jax.prox.penalty import Penalty, shrink_all
from dessilbi_jax.prox.shrink import select
from dessilbi_jax.structure.joint import count_groups, families, firsts
from dessilbi_jax.structure.leaf import LeafGroups

# When λ is estimated, as fractions of the way to the moment asked for.
MOMENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Half way the density is aimed at no more than this share of the one asked for, so that the
# path stays a path from simple to complex also when the learning rate has dropped by then.
HALF_WAY = 0.6
_MANTISSA_BITS_LEFT_OUT = 9  # levels are found to 2^-14


class Automatic(NamedTuple):
    """What the automatic choice of λ has found so far.

    Attributes:
        steps: step (count of updates) of each estimate, 0 where it is still to come.
        lams: λ chosen at each.
        scale: λ of each structured leaf is `lam` times this.
        level: level of V at the last estimate.
        predicted: level that a constant speed would have had at the next estimate.
        decay: measured rate of decay of the speed, per unit of travel.
    """

    steps: jax.Array
    lams: jax.Array
    scale: jax.Array
    level: jax.Array
    predicted: jax.Array
    decay: jax.Array


def init(leaves: int) -> Automatic:
    """The state before the first estimate; `leaves` is the number of structured leaves."""
    zero = jnp.zeros([], jnp.float32)
    return Automatic(
        steps=jnp.zeros(len(MOMENTS), jnp.int32),
        lams=jnp.zeros(len(MOMENTS), jnp.float32),
        scale=jnp.ones(leaves, jnp.float32),
        level=zero,
        predicted=zero + 0,
        decay=zero + 0,
    )


def moments(step: Any) -> jax.Array:
    """The counts of updates at which λ is estimated on the way to `step`."""
    return jnp.maximum(jnp.floor(jnp.asarray(MOMENTS) * step), 1).astype(jnp.int32)


def travel(learning_rate: Any, start: Any, stop: Any, kappa: Any, nu: Any) -> jax.Array:
    """Σ learning_rate(s)/(κν) over the steps start ≤ s < stop."""
    start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    if callable(learning_rate):

        def add(s: jax.Array, total: jax.Array) -> jax.Array:
            return total + jnp.asarray(learning_rate(s), jnp.float32)

        total = jax.lax.fori_loop(start, stop, add, jnp.zeros([], jnp.float32))
    else:
        distance = jnp.maximum(stop - start, 0).astype(jnp.float32)
        total = jnp.asarray(learning_rate, jnp.float32) * distance
    out: jax.Array = total / (kappa * nu)
    return out


def fractions(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    v: Sequence[jax.Array],
    lams: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Density by elements and by groups that V would have under the given λ of each leaf.

    A joint group is one group, and all its members' elements count.
    """

    def count(chosen: jax.Array, once: np.ndarray | None) -> jax.Array:
        # In integers: float32 would stop counting at 2^24.
        chosen = chosen if once is None else chosen & once.reshape(chosen.shape)
        return jnp.sum(chosen, dtype=jnp.int32).astype(jnp.float32)

    elements = groups = jnp.zeros([], jnp.float32)
    first = firsts([leaf.joint for leaf in leaves])
    shrinks = shrink_all(leaves, penalties, v, lams, 1.0)
    for leaf, value, shrink, once in zip(leaves, v, shrinks, first, strict=True):
        units = select(value, shrink)
        chosen = count(units, None)
        if shrink.threshold.dtype == bool:  # units are groups
            elements = elements + chosen * leaf.group_size
            groups = groups + (chosen if once is None else count(units, once))
        else:
            elements = elements + chosen
            by_group = None if shrink.strength.dtype == bool else shrink.strength > 1
            groups = groups + (chosen if by_group is None else count(by_group, once))
    return elements / sum(leaf.size for leaf in leaves), groups / count_groups(leaves)


def level(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    scale: Sequence[jax.Array],
    v: Callable[[], Sequence[jax.Array]],
    density: Any,
    by_group: bool,
    active: Any = True,
) -> jax.Array:
    """The smallest λ (float32, to 2^-14) at which V selects at most `density`.

    Bisects on the bits of λ: positive floats are ordered as their bits are, so 22 counts of
    V suffice whatever its scale, with no sorting and no memory, and sums are all that sharded
    arrays have to exchange. Where `active` is False no pass is made at all, also under `vmap`.
    """

    def density_at(bits: jax.Array) -> jax.Array:
        lam = jax.lax.bitcast_convert_type(bits << _MANTISSA_BITS_LEFT_OUT, jnp.float32)
        return fractions(leaves, penalties, v(), [lam * s for s in scale])[int(by_group)]

    def halve(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = carry  # the density at low is above the one asked for, at high it is not
        middle = low + (high - low) // 2
        above = density_at(middle) > density
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low = jnp.zeros([], jnp.int32)
    high = jnp.where(active, 0x7F800000 >> _MANTISSA_BITS_LEFT_OUT, 0).astype(jnp.int32)
    _, high = jax.lax.while_loop(lambda c: c[1] - c[0] > 1, halve, (low, high))
    return jax.lax.bitcast_convert_type(high << _MANTISSA_BITS_LEFT_OUT, jnp.float32)


def relative_scale(leaves: Sequence[LeafGroups], v: Sequence[jax.Array]) -> list[jax.Array]:
    """λ of each leaf relative to the others: its rule's λ, evened between kinds of groups.

    Leaves of one kind (`LeafGroups.kind`, or all of single elements) share one scale, so that
    they compete with each other by the size of their V, and so do leaves with joint groups;
    between kinds, λ follows the mean group norm of V, in units of the first kind's.
    """
    family = families(leaves, ["elements" if leaf.elementwise else leaf.kind for leaf in leaves])
    joint = [leaf.joint for leaf in leaves]
    norms = group_norms([leaf.counts or () for leaf in leaves], joint, v)
    norms = [
        norm if once is None else jnp.where(once.reshape(norm.shape), norm, 0)
        for norm, once in zip(norms, firsts(joint), strict=True)
    ]
    mean = {}
    for each in dict.fromkeys(family):
        members = [i for i, other in enumerate(family) if other == each]
        total = sum(jnp.sum(norms[i]).astype(jnp.float32) for i in members)
        mean[each] = total / count_groups([leaves[i] for i in members])
    size = {each: jnp.where(value > 0, value, 1) for each, value in mean.items()}
    unit = size[family[0]]  # so that λ keeps its meaning while V grows
    return [
        size[each] / unit * (leaf.lam or 1.0) for leaf, each in zip(leaves, family, strict=True)
    ]


def kept_speed(decay: jax.Array, distance: jax.Array) -> jax.Array:
    """ρ = (1 − e^{−x})/x with x = decay·distance: mean of a speed that falls by e^{−x}."""
    x = jnp.clip(decay * distance, -1.0, 30.0)
    small = jnp.abs(x) < 1e-4
    return jnp.where(small, 1 - x / 2, -jnp.expm1(-x) / jnp.where(small, 1, x))


def measured_decay(kept: jax.Array, distance: jax.Array) -> jax.Array:
    """The decay whose share of speed kept over `distance` is `kept`, by bisection."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        slower = -jnp.expm1(-middle) / jnp.where(middle == 0, 1, middle) < kept
        slower = jnp.where(middle == 0, kept > 1, slower)  # there the share kept is 1
        return jnp.where(slower, low, middle), jnp.where(slower, middle, high)

    low, high = jax.lax.fori_loop(0, 30, halve, (jnp.float32(-4), jnp.float32(30)))
    out: jax.Array = (low + high) / 2 / jnp.maximum(distance, 1e-30)
    return out


def estimate(
    state: Automatic,
    lam: jax.Array,
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    v: Sequence[jax.Array],
    speeds: Callable[[], Sequence[jax.Array]],
    count: jax.Array,
    target: Auto,
    clock: Callable[[Any, Any], jax.Array],
) -> tuple[jax.Array, Automatic]:
    """A new λ if one is due after update number `count`, else the one there was.

    Args:
        state: what was found so far.
        lam: λ now in force, infinite before the first estimate.
        leaves, penalties, v: one entry each for every structured leaf.
        speeds: gives W − Γ of each; a function, so that it is only computed when needed.
        count: updates made, this one included.
        target: what was asked for.
        clock: travel between two steps.
    """
    when = moments(target.due)
    number = jnp.sum(when < count)  # estimates before this one
    due = jnp.any(when == count)

    def renew(_: Any) -> tuple[jax.Array, Automatic]:
        first = state.steps[0] == 0
        scale = [s.astype(jnp.float32) for s in relative_scale(leaves, v)]

        def level_after(distance: Any, density: Any, active: Any = True) -> jax.Array:
            def moved() -> list[jax.Array]:
                return [
                    a + distance.astype(jnp.real(a).dtype) * b
                    for a, b in zip(v, speeds(), strict=True)
                ]

            return level(leaves, penalties, scale, moved, density, target.by_group, due & active)

        density = jnp.asarray(target.share, jnp.float32)
        now = level_after(jnp.zeros([]), density)
        last = when[jnp.maximum(number - 1, 0)]
        # Travel of the speeds already used: V holds those up to this update.
        since = clock(last, count)
        expected = jnp.maximum(state.predicted - state.level, 1e-30)
        kept = (now - state.level) / expected
        decay = jnp.where(first, 0.0, measured_decay(kept, since))
        following = when[jnp.minimum(number + 1, len(MOMENTS) - 1)]
        predicted = level_after(clock(count, following), density)

        left = clock(count, target.due)
        final = level_after(left * kept_speed(decay, left), density)
        middle = jnp.floor(jnp.asarray(target.due) / 2).astype(jnp.int32)
        to_middle = clock(count, middle)
        before = count <= middle
        half = level_after(to_middle * kept_speed(decay, to_middle), HALF_WAY * density, before)
        chosen = jnp.where(before, jnp.maximum(final, half), final)
        at = jnp.minimum(number, len(MOMENTS) - 1)
        return chosen, Automatic(
            steps=state.steps.at[at].set(count),
            lams=state.lams.at[at].set(chosen),
            scale=jnp.stack(scale),
            level=now,
            predicted=predicted,
            decay=decay,
        )

    out: tuple[jax.Array, Automatic] = jax.lax.cond(due, renew, lambda _: (lam, state), None)
    return out
