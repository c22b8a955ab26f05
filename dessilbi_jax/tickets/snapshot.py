"""What one state says about its units: which are selected, how strongly, and what belongs together.

A *unit* is what can be selected by itself: a group, or a single element where the penalty
thresholds elements.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.optimizer.reading import laid_on
from dessilbi_jax.optimizer.state import SplitLBIState, has_lam, is_hidden
from dessilbi_jax.prox.norms import expand, group_sum
from dessilbi_jax.prox.shrink import Shrink, fraction_of_threshold, select
from dessilbi_jax.tree import leaf_paths, shape_of, to_host


class Observed(NamedTuple):
    """A state as a path records it, by leaf path.

    Attributes:
        count: updates that the state has made.
        skipped: entries of V that W, not being finite, has left unchanged so far.
        shapes: the shape of every leaf.
        hidden: leaves and branches that are hidden from the state and whose shape is not known.
        chosen: of structured leaves, which units are selected.
        strength: of structured leaves, ‖V_g‖ over λ of each unit, float32.
        zero: of structured leaves, which units have no weight that is not zero, where W is given.
        ties: of leaves that share groups with others, the number of each unit's group.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count
    skipped: int
    shapes: dict[str, tuple[int, ...]]
    hidden: tuple[str, ...]
    chosen: dict[str, np.ndarray]
    strength: dict[str, np.ndarray]
    zero: dict[str, np.ndarray]
    ties: dict[str, np.ndarray]


def observe(state: SplitLBIState, params: Any = None) -> Observed:
    """What a path records of a state; in a run of several processes all of them have to call it.

    Args:
        state: the state.
        params: W, which tells the shapes of leaves hidden from the state, and which units are zero.

    Raises:
        ValueError: parameters of another tree, or W that is not finite, naming the leaf.
    """
    whole = dict(leaf_paths(state.v))
    hidden = tuple(path for path, leaf in leaf_paths(state.v, is_leaf=is_hidden) if is_hidden(leaf))
    zero: dict[str, np.ndarray] = {}
    if params is not None:
        laid_on(state, params)  # which says where they do not fit
        whole, hidden = dict(leaf_paths(params)), ()
        w = {path: whole[path] for path, _ in leaf_paths(state.v)}
        zero, finite = to_host(_zeros(state, w))
        broken = [path for path, fine in finite.items() if not fine]
        if broken:
            raise ValueError(
                f"the weights {broken[0]} are not finite, so that nothing about them can be "
                "recorded: go back to a checkpoint before"
            )
    chosen, strength = to_host(_units(state))
    return Observed(
        count=int(state.count),
        skipped=int(state.skipped),
        shapes={path: shape_of(leaf) for path, leaf in whole.items()},
        hidden=hidden,
        chosen=chosen,
        strength=strength,
        zero=zero,
        ties=_ties(state),
    )


@jax.jit
def _zeros(state: SplitLBIState, w: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By path of the structured leaves: which units of W are zero, and whether W is finite."""
    zero, finite = {}, {}
    flat = [jax.tree.leaves(tree) for tree in state.shrink]
    for (path, v), *shrink in zip(leaf_paths(state.v), *flat, strict=True):
        if v.dtype == bool:
            continue
        leaf = Shrink(*shrink)
        units = v.shape if leaf.threshold.dtype != bool else leaf.strength.shape
        zero[path] = group_sum((w[path] != 0).astype(jnp.float32), units) == 0
        finite[path] = jnp.isfinite(w[path]).all()
    return zero, finite


def _ties(state: SplitLBIState) -> dict[str, np.ndarray]:
    """By leaf path, the joint group of each unit, where leaves share groups.

    Where the penalty thresholds single elements, these are selected by themselves.
    """
    leaves = zip(
        leaf_paths(state.v),
        jax.tree.leaves(state.ties),
        jax.tree.leaves(state.shrink.threshold),
        strict=False,  # without joint groups there are no ties
    )
    return {
        path: to_host(tie)
        for (path, _), tie, threshold in leaves
        if tie.dtype != bool and threshold.dtype == bool
    }


@jax.jit
def _units(state: SplitLBIState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """By leaf path: which units are selected, and ‖V_g‖ over λ."""
    chosen, strength = {}, {}
    flat = [jax.tree.leaves(tree) for tree in state.shrink]
    settles = state.settled != ()
    allowed = jax.tree.leaves(state.settled.allowed) if settles else [None] * len(flat[0])
    for (path, v), may, *shrink in zip(leaf_paths(state.v), allowed, *flat, strict=True):
        if v.dtype == bool:
            continue
        leaf = Shrink(*shrink)
        chosen[path] = select(v, leaf)
        if settles:  # W's own support, once the run has settled
            units = expand(may, chosen[path].shape) | jnp.zeros_like(chosen[path])
            chosen[path] = jnp.where(state.settled.done, units, chosen[path])
        beyond = leaf.strength
        if leaf.threshold.dtype != bool:
            beyond = fraction_of_threshold(v, v, leaf)
        # Without a λ there is nothing to tell units apart by.
        strength[path] = jnp.where(has_lam(state), beyond, 0).astype(jnp.float32)
    return chosen, strength
