"""DessiLBI between the parts of an optimizer, written in place.

What is computed is `optax.chain(before, coupling, behind, −learning_rate, last)`, with V advanced
beside it. When arrays are donated, each result is to take the place of an old array that nothing
needs any more; on a single CPU device that takes an order, stated by `write_order`:

- Γ stored, coupling behind the momentum:  V' from W and Γ, then W' from W, m' and Γ, then Γ'.
- Γ stored, coupling before it:            m' from W and Γ, and as above.
- lean, coupling before the momentum:      m' from W and V, then V' from W and V, then W'.
- lean, coupling behind it: W' and V' each need the other's old value. W' is written first, from W,
  m' and V, and V' reads W − Γ from W' again: with c = learning_rate/ν,

      W' = W − learning_rate·m' − c·(W − Γ)   ⇒   W − Γ = (W' + learning_rate·m' − Γ)/(1 − c).

  This W' is that of the update, whatever becomes of the parameters afterwards. Where the gradient
  is not finite, V stays as it does where W is not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dessilbi_jax.optimizer import settling, step, write_order
from dessilbi_jax.optimizer.settings import Settings
from dessilbi_jax.optimizer.state import SplitLBIState, check_type
from dessilbi_jax.prox.norms import expand

Freeze: TypeAlias = bool | jax.Array | Callable[[Any], Any]
Stops: TypeAlias = Sequence[jax.Array | None]
_LARGEST_C = 0.5  # above it, reading W from W' loses digits


class DessiLBIState(NamedTuple):
    """State of `dessilbi` and `wrap`: that of the parts around the coupling, and its own."""

    before: Any
    split: SplitLBIState
    behind: Any
    last: Any


def around(
    settings: Settings,
    before: optax.GradientTransformation,
    behind: optax.GradientTransformation | None = None,
    last: optax.GradientTransformation | None = None,
    freeze: Freeze = False,
) -> optax.GradientTransformationExtraArgs:
    """chain(before, coupling, behind, −learning_rate, last), with V advanced beside it.

    Args:
        settings: of the step; where it is `finished`, updates are not multiplied by anything.
        before: what the gradient passes before it is coupled.
        behind: what accumulates the coupling, or None.
        last: what stands behind the learning rate, or None.
        freeze: whether, or a callable from the count of updates to whether, W and V of groups
            that are selected do not move.

    Raises:
        TypeError: for a `freeze` that is neither a bool nor a callable.
        ValueError: for a `freeze` beside settling.
    """
    # An array is what `optax.inject_hyperparams` makes of a callable.
    if not (callable(freeze) or isinstance(freeze, bool | np.bool_ | jax.Array)):
        raise TypeError(
            f"freeze must be True, False or a callable from the count of updates to one of them, "
            f"got {freeze!r}"
        )
    if settings.settling is not None and freeze is not False:
        raise ValueError(
            "settle and freeze exclude each other: frozen groups do not move, so that they could "
            "not leave; give one of them"
        )
    first, middle, end = (
        optax.with_extra_args_support(tx or optax.identity()) for tx in (before, behind, last)
    )

    def init(params: optax.Params) -> DessiLBIState:
        return DessiLBIState(
            first.init(params), step.init(settings, params), middle.init(params), end.init(params)
        )

    def update(
        updates: optax.Updates,
        state: DessiLBIState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, DessiLBIState]:
        check_type(state, DessiLBIState)
        now = step.read(settings, state.split, params, updates)
        keep: Stops = [None] * len(now.groups)
        if settings.settling is not None:
            state, updates, keep = _settled(now, state, updates, params)
            now = step.read(settings, state.split, params)
        stops = _stops(freeze, now)
        direction, first_state = first.update(updates, state.before, params, **extra)
        u, made = step.couple(now, direction, stops)
        if behind is not None:
            u = [_only(x, mask) for x, mask in zip(u, keep, strict=True)]
        accumulated, middle_state = middle.update(
            jax.tree.unflatten(now.treedef, u), state.behind, params, **extra
        )
        done = {i: each.v for i, each in made.items()}
        open_ = [leaf for leaf in now.leaves if leaf.place not in done]
        failed = step.not_finite(open_)
        failed = sum((each.failed for each in made.values()), failed)
        rate = jnp.asarray(-1.0) if settings.finished else now.rate

        pace = settings.pace_at(state.split.count)
        u = now.treedef.flatten_up_to(accumulated)
        v = dict(done)
        late = _read_again(now, open_) if behind is None and last is None else []
        for leaf in open_:
            i = leaf.place
            if leaf not in late:
                # A lean V is read by the update: it has to be there before V' is.
                then = () if not settings.lean else (write_order.apart(u[i])[0],)
                when = write_order.after(pace, *then, like=leaf.v)
                v[i] = step.moved(leaf, when, stops[i])
        for i in range(len(u)):
            # W' takes the place of W, which a V' that is made by now has read.
            last_read = [failed, *([v[i]] if i in v else [])]
            u[i] = -write_order.after(rate, *last_read, like=u[i]) * u[i]
        scaled = jax.tree.unflatten(now.treedef, u)
        scaled, end_state = end.update(scaled, state.last, params, **extra)
        u = [
            x if stop is None else jnp.where(expand(stop, x.shape), 0, x)
            for x, stop in zip(now.treedef.flatten_up_to(scaled), stops, strict=True)
        ]
        u = [
            x if mask is None else jnp.where(mask, x, -p.astype(x.dtype))
            for x, mask, p in zip(u, keep, now.treedef.flatten_up_to(params), strict=True)
        ]
        # W', as `optax.apply_updates` makes it: the compiler sees that both are the same.
        w = {leaf.place: (leaf.w + u[leaf.place]).astype(leaf.w.dtype) for leaf in now.leaves}
        given = now.treedef.flatten_up_to(direction)
        c = now.rate / settings.nu
        for leaf in late:
            i = leaf.place
            difference = (write_order.apart(w[i])[0] + rate * given[i] - leaf.gamma) / (1 - c)
            v[i] = step.moved(leaf, pace, stops[i], difference)
        v = {i: _only(x, keep[i]) for i, x in v.items()}
        split = step.advance(now, v, w, failed, made)
        out = DessiLBIState(first_state, split, middle_state, end_state)
        return jax.tree.unflatten(now.treedef, u), out

    return optax.GradientTransformationExtraArgs(init, update)


def _settled(
    now: step.Reading, state: DessiLBIState, updates: Any, params: Any
) -> tuple[DessiLBIState, Any, Stops]:
    """The state, the updates and what may be nonzero of each leaf, where the support shrinks."""
    split = state.split
    trees = (state.before, state.behind, state.last, split.v, split.gamma)
    settled, (before, behind, last, v, gamma) = settling.advance(
        now.settings, split.settled, now.groups, params, split.count, trees
    )
    state = state._replace(
        before=before, behind=behind, last=last,
        split=split._replace(settled=settled, v=v, gamma=gamma),
    )  # fmt: skip
    allowed = now.treedef.flatten_up_to(settled.allowed)
    keep = [
        None if leaf.counts is None else settling.spread_over(mask, p)
        for leaf, mask, p in zip(now.groups, allowed, jax.tree.leaves(params), strict=True)
    ]
    u = [_only(g, mask) for g, mask in zip(now.treedef.flatten_up_to(updates), keep, strict=True)]
    return state, jax.tree.unflatten(now.treedef, u), keep


def _only(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _stops(freeze: Freeze, now: step.Reading) -> Stops:
    """For each leaf the groups that do not move now, or None for those without any."""
    if isinstance(freeze, bool | np.bool_) and not freeze:
        return [None] * len(now.groups)
    on = freeze(now.state.count) if callable(freeze) else freeze
    on = jnp.asarray(on).astype(bool)
    return [None if mask is None else mask & on for mask in step.selected(now)]


def _read_again(now: step.Reading, leaves: list[step.Leaf]) -> list[step.Leaf]:
    """The leaves whose V' is to read W from W': in lean states, where the order matters.

    Not where c is known to be large or W has fewer digits than V.
    """
    c = now.rate / now.settings.nu
    if not now.settings.lean or (isinstance(c, float) and abs(c) > _LARGEST_C):
        return []
    return [x for x in leaves if x.w.dtype == x.v.dtype and write_order.matters(x.v)]
