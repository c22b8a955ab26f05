"""λ found from the speed at which V is seen to move: the estimator behind `dl.auto`.

Γ of a group opens when ‖V_g‖ exceeds λ, and V moves by learning_rate/(κν)·(W − Γ) a step. The
natural clock of V is therefore its *travel*, the sum of learning_rate/(κν), which a schedule
fixes in advance. At an estimate the level of V that a given share of the elements exceeds is
extrapolated to the moment asked for,

    level(V + r·ρ·(W − Γ)),   r = travel still to come,

where ρ = (1 − e^{−br})/(br) is the share of today's speed that will be kept on average. The rate
b, by which the coupling lets W decay (or by which W still grows), is measured: each estimate
compares the level it finds with the one that the estimate before it predicted at constant speed.

What is measured is measured against the travel that there was, not against steps: where V did not
travel (a learning rate of zero) there is no estimate, and updates before the first that moves V
do not count as a part of the way. The plan (when, and how much) is part of the state: under
another one the estimates are laid anew over the updates that remain, with the λ in force and the
decay measured so far to begin with.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dessilbi_jax.optimizer.asked import Auto
from dessilbi_jax.optimizer.levels import level, relative_scale
from dessilbi_jax.optimizer.same import Same
from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.prox.shrink import Shrink, apply_shrink
from dessilbi_jax.structure.leaf import LeafGroups

# When λ is estimated, as fractions of the way to the moment asked for.
MOMENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Half way the density is aimed at no more than this share of the one asked for, so that the
# path stays a path from simple to complex also when the learning rate has dropped by then.
HALF_WAY = 0.6


# A decay is measured from levels that are known to 2^-14; what that makes of it over all the way
# that is left has to stay small (an eighth of a decay of 1).
_RESOLVED = 2.0**-10


class Automatic(NamedTuple):
    """What the automatic choice of λ has found so far, and the plan that it was found for.

    Attributes:
        steps: step (count of updates) of each estimate, 0 where it is still to come.
        lams: λ chosen at each.
        scale: λ of each structured leaf is `lam` times this.
        level: level of V at the last estimate.
        predicted: level that a constant speed would have had at the next estimate.
        ahead: travel to that next estimate, as the learning rate then promised.
        since: travel since the last estimate.
        decay: measured rate of decay of the speed, per unit of travel.
        origin: count of updates before the first that moved V.
        start: count of updates from which on the estimates are laid.
        due: count of updates at which the share is to be reached.
        share: the share asked for.
        by_group: whether it is one of groups.
        planned: updates of the whole run.
    """

    steps: jax.Array
    lams: jax.Array
    scale: jax.Array
    level: jax.Array
    predicted: jax.Array
    ahead: jax.Array
    since: jax.Array
    decay: jax.Array
    origin: jax.Array
    start: jax.Array
    due: jax.Array
    share: jax.Array
    by_group: jax.Array
    planned: jax.Array


class Plan(NamedTuple):
    """What is asked for, as arrays: the last fields of `Automatic`."""

    due: jax.Array
    share: jax.Array
    by_group: jax.Array
    planned: jax.Array

    @classmethod
    def of(cls, target: Auto) -> "Plan":
        """The plan of what `dl.auto` made."""
        return cls(
            jnp.array(target.due, jnp.int32),
            jnp.array(target.share, jnp.float32),
            jnp.array(target.by_group, bool),
            jnp.array(target.steps, jnp.int32),
        )


def init(leaves: int, target: Auto) -> Automatic:
    """The state before the first estimate; `leaves` is the number of structured leaves."""

    zero = functools.partial(jnp.zeros, [])  # each its own: one could not be donated twice
    return Automatic(
        steps=jnp.zeros(len(MOMENTS), jnp.int32),
        lams=jnp.zeros(len(MOMENTS), jnp.float32),
        scale=jnp.ones(leaves, jnp.float32),
        level=zero(jnp.float32),
        predicted=zero(jnp.float32),
        ahead=zero(jnp.float32),
        since=zero(jnp.float32),
        decay=zero(jnp.float32),
        origin=zero(jnp.int32),
        start=zero(jnp.int32),
        **Plan.of(target)._asdict(),
    )


def moments(start: jax.Array, stop: jax.Array) -> jax.Array:
    """The counts of updates at which λ is estimated on the way from `start` to `stop`."""
    way = jnp.floor(jnp.asarray(MOMENTS, jnp.float32) * (stop - start).astype(jnp.float32))
    out: jax.Array = start + jnp.maximum(way, 1).astype(jnp.int32)
    return out


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


class Frame(NamedTuple):
    """What an estimate is compiled for: equal in every update of a run, and hashable.

    Attributes:
        leaves: the groups of each structured leaf.
        penalties: Ω of each.
        by_group: whether groups are counted.
        schedule: the learning rate, where it is a schedule.
    """

    leaves: tuple[LeafGroups, ...]
    penalties: tuple[Penalty, ...]
    by_group: bool
    schedule: Callable[[Any], Any] | None


class Moment(NamedTuple):
    """What an estimate reads behind an update.

    Attributes:
        v: V' of each structured leaf.
        w: W of each, as far as it is known.
        shrink: what turned each V into Γ.
        count: updates made, this one included.
        rate: learning rate of this update.
        kappa: κ.
        nu: ν.
        plan: what is asked for.
    """

    v: list[jax.Array]
    w: list[jax.Array]
    shrink: list[Shrink]
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    rate: Any
    kappa: Any
    nu: Any
    plan: Plan

    def speeds(self) -> list[jax.Array]:
        """W − Γ of each leaf, zero where it is not finite.

        Also of frozen groups: those that a new λ closes set off again.
        """
        each = [
            w.astype(v.dtype) - apply_shrink(v, shrink)
            for w, v, shrink in zip(self.w, self.v, self.shrink, strict=True)
        ]
        return [jnp.where(jnp.isfinite(x), x, 0) for x in each]


def estimate(
    state: Automatic, lam: jax.Array, frame: Frame, now: Moment
) -> tuple[jax.Array, Automatic]:
    """A new λ if one is due after this update, else the one there was.

    Args:
        state: what was found so far.
        lam: λ now in force, float32, `CLOSED` before the first estimate.
        frame: what does not change during a run.
        now: what was made by the update.
    """
    out: tuple[jax.Array, Automatic] = _estimate(Same(frame), state, lam, now)
    return out


# Compiled by itself, so that outside of `jax.jit` it is not traced and compiled in every update;
# inline, so that inside it is as if it were written there.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _estimate(
    same: Same[Frame], state: Automatic, lam: jax.Array, now: Moment
) -> tuple[jax.Array, Automatic]:
    frame = same.value
    state = _laid(state, now)
    when = moments(state.start, state.due)
    count = now.count
    due = jnp.any(when == count) & (count <= state.due) & (state.since > 0)

    def renew(_: Any) -> tuple[jax.Array, Automatic]:
        first = jnp.max(state.steps) == 0
        scale = [s.astype(jnp.float32) for s in relative_scale(frame.leaves, now.v)]

        def clock(start: Any, stop: Any) -> jax.Array:
            rate = now.rate if frame.schedule is None else frame.schedule
            return travel(rate, start, stop, now.kappa, now.nu)

        def level_after(distance: Any, density: Any, active: Any = True) -> jax.Array:
            def moved() -> list[jax.Array]:
                return [
                    a + distance.astype(jnp.real(a).dtype) * b
                    for a, b in zip(now.v, now.speeds(), strict=True)
                ]

            return level(
                frame.leaves, frame.penalties, scale, moved, density, frame.by_group, due & active
            )

        reached = level_after(jnp.zeros([]), state.share)
        expected = state.predicted - state.level
        left = clock(count, state.due)
        reach = jnp.maximum(left / state.since, 1)
        seen = ~first & (expected > _RESOLVED * reach * state.level)
        # Speed over the speed that was predicted. Travel as it was: a learning rate that comes as
        # a number may have been another one when the prediction was made.
        kept = (reached - state.level) / jnp.where(seen, expected, 1) * (state.ahead / state.since)
        decay = jnp.where(seen, measured_decay(kept, state.since), state.decay)
        following = jnp.min(jnp.where(when > count, when, state.due))
        ahead = clock(count, following)
        predicted = level_after(ahead, state.share)

        final = level_after(left * kept_speed(decay, left), state.share)
        middle = state.origin + (state.due - state.origin) // 2
        to_middle = clock(count, middle)
        before = count <= middle
        half = level_after(to_middle * kept_speed(decay, to_middle), HALF_WAY * state.share, before)
        chosen = jnp.where(before, jnp.maximum(final, half), final)
        at = jnp.minimum(jnp.sum(when < count), len(MOMENTS) - 1)
        return chosen, state._replace(
            steps=state.steps.at[at].set(count),
            lams=state.lams.at[at].set(chosen),
            scale=jnp.stack(scale),
            level=reached,
            predicted=predicted,
            ahead=ahead,
            since=jnp.zeros_like(state.since),
            decay=decay,
        )

    out: tuple[jax.Array, Automatic] = jax.lax.cond(due, renew, lambda _: (lam, state), None)
    return out


def _laid(state: Automatic, now: Moment) -> Automatic:
    """The state with this update's travel, laid anew where the plan is not the one it holds."""
    before = now.count - 1
    changed = functools.reduce(
        jnp.logical_or, [a != b for a, b in zip(now.plan, state[-len(now.plan) :], strict=True)]
    )
    start = jnp.where(changed, before, state.start)
    rests = jnp.asarray(now.rate, jnp.float32) == 0
    pace = jnp.asarray(now.rate, jnp.float32) / (now.kappa * now.nu)
    return state._replace(
        steps=jnp.where(changed, 0, state.steps),
        lams=jnp.where(changed, 0, state.lams),
        since=jnp.where(changed, 0, state.since) + pace,
        origin=jnp.where((state.origin == before) & rests, now.count, state.origin),
        start=jnp.where((start == before) & rests, now.count, start),
        **now.plan._asdict(),
    )
