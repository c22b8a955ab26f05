"""DessiLBI between the parts of an optimizer, written in place."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dessilbi_jax.optimizer import write_order
from dessilbi_jax.optimizer.kernels.choice import Momentum
from dessilbi_jax.optimizer.settings import ScalarOrSchedule
from dessilbi_jax.optimizer.state import SplitLBIState
from dessilbi_jax.optimizer.step import SplitLBI, replaced
from dessilbi_jax.prox.norms import expand

Freeze: TypeAlias = bool | jax.Array | Callable[[Any], Any]


class DessiLBIState(NamedTuple):
    """State of `dessilbi` and `wrap`: that of the parts around the coupling, and its own."""

    before: Any
    split: SplitLBIState
    behind: Any
    last: Any


def around(
    before: optax.GradientTransformation,
    split: SplitLBI,
    behind: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule | None = None,
    last: optax.GradientTransformation | None = None,
    freeze: Freeze = False,
    momentum: Momentum | None = None,
) -> optax.GradientTransformationExtraArgs:
    """chain(before, coupling, behind, −learning_rate, last), with V advanced behind `behind`.

    It computes what `optax.chain` would; but since V moves only after the updates have read it,
    everything can be written in place (`_order`).

    With `freeze`, or while it gives True for the count of updates, W and V of groups that are
    selected do not move.

    `momentum` describes the `optax.trace`, with the decay of weights before it, that is all that
    `before` or, where it accumulates the coupling, `behind` does: kernels then do it too.

    Raises:
        TypeError: for a `freeze` that is neither a bool nor a callable.
    """
    # An array is what `optax.inject_hyperparams` makes of a callable.
    if not (callable(freeze) or isinstance(freeze, bool | np.bool_ | jax.Array)):
        raise TypeError(
            f"freeze must be True, False or a callable from the count of updates to one of them, "
            f"got {freeze!r}"
        )
    before, behind, last = (
        optax.with_extra_args_support(tx or optax.identity()) for tx in (before, behind, last)
    )

    def init(params: optax.Params) -> DessiLBIState:
        return DessiLBIState(
            before.init(params), split.init(params), behind.init(params), last.init(params)
        )

    def stopped(split_state: SplitLBIState, params: Any) -> list[jax.Array | None] | None:
        if isinstance(freeze, bool | np.bool_) and not freeze:
            return None
        on = freeze(split_state.count) if callable(freeze) else freeze
        on = jnp.asarray(on).astype(bool)
        masks = split.selected(split_state, params)
        return [None if mask is None else mask & on for mask in masks]

    def update(
        updates: optax.Updates,
        state: DessiLBIState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, DessiLBIState]:
        given = updates
        updates, before_state = before.update(updates, state.before, params, **extra)
        given, trace = (updates, None) if momentum is None else (given, _trace(state))
        updates = split.couple(updates, state.split, params)
        updates, behind_state = behind.update(updates, state.behind, params, **extra)
        updates = jax.tree.map(lambda u: write_order.apart(u)[0], updates)
        frozen = stopped(state.split, params)
        made = split.fused(state.split, params, given, updates, frozen, momentum, trace)
        updates = replaced(updates, made, "update")
        split_state, readers = split.advance(state.split, params, updates, frozen, made)
        rate: Any = -1.0 if learning_rate is None else learning_rate
        if callable(rate):
            rate = rate(state.split.count)
        leaves, treedef = jax.tree.flatten(updates)
        leaves = [
            write_order.after(jnp.asarray(-rate, u.dtype), *read) * u
            for u, read in zip(leaves, readers, strict=True)
        ]
        updates = jax.tree.unflatten(treedef, leaves)
        updates, last_state = last.update(updates, state.last, params, **extra)
        if frozen is not None:
            leaves = [
                u if stop is None else jnp.where(expand(stop, u.shape), 0, u)
                for u, stop in zip(jax.tree.leaves(updates), frozen, strict=True)
            ]
            updates = jax.tree.unflatten(treedef, leaves)
        out = DessiLBIState(before_state, split_state, behind_state, last_state)
        if trace is not None and made:
            new = optax.TraceState(replaced(_trace(out), made, "trace"))
            out = jax.tree.map(lambda x: new if _is_trace(x) else x, out, is_leaf=_is_trace)
        return updates, out

    return optax.GradientTransformationExtraArgs(init, update)


def _is_trace(x: Any) -> bool:
    return isinstance(x, optax.TraceState)


def _trace(state: DessiLBIState) -> Any:
    """The one momentum in the state of `dessilbi`."""
    (found,) = filter(_is_trace, jax.tree.leaves(state, is_leaf=_is_trace))
    return found.trace
