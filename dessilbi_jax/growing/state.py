"""The state of an optimizer, wider together with its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.plan import Plan, placed
from dessilbi_jax.dependency.structure import Channels
from dessilbi_jax.optimizer.state import SplitLBIState, tie_trees
from dessilbi_jax.slimming.optimizer_state import in_form_of, known_leaf, state_arrays
from dessilbi_jax.tree import leaf_paths


def grown_state(opt_state: Any, plan: Plan, structure: Channels, before: Any, after: Any) -> Any:
    """An optimizer state with every array that belongs to a leaf of the plan grown alike.

    Args:
        opt_state: the state.
        plan: what is to be kept of the wider network to have the first.
        structure: the channels of the wider network, by which joint groups are numbered.
        before, after: the arrays of the network and of the wider one.
    """
    ours = state_arrays(opt_state)
    leaves = []
    for path, leaf in leaf_paths(opt_state):
        known = known_leaf(path, plan) if np.ndim(leaf) and id(leaf) not in ours else None
        leaves.append(leaf if known is None else _grown(plan, known, path, leaf))
    made = jax.tree.unflatten(jax.tree.structure(opt_state), leaves)
    made = jax.tree.map(
        lambda s: _renumbered(s, structure) if isinstance(s, SplitLBIState) else s,
        made,
        is_leaf=lambda x: isinstance(x, SplitLBIState),
    )
    return in_form_of(made, before, after)


def _grown(plan: Plan, known: str, path: str, leaf: Any) -> Any:
    """One array, zero in what is new; new groups may be nonzero where a run settles.

    Its axes are those of the leaf, of length 1, or have one entry for each of equal blocks.
    """
    small, large = plan.shape(known), plan.shapes[known]
    if np.ndim(leaf) != len(large):
        raise ValueError(
            f"opt_state does not fit {known}: it holds shape {np.shape(leaf)}, expected {small}"
        )
    leaf = jnp.asarray(leaf)
    fill = "/allowed/" in f"/{path}/" and leaf.dtype == bool
    places: list[Any] = []
    shape = []
    for axis, n in enumerate(leaf.shape):
        if n == 1 or axis not in plan.keep.get(known, {}):
            places.append(np.arange(n))
            shape.append(n)
            continue
        if small[axis] % n:
            raise ValueError(
                f"opt_state does not fit {known}: axis {axis} has {n} positions, the network's "
                f"{small[axis]}"
            )
        block = small[axis] // n
        alive = np.zeros(large[axis], bool)
        alive[list(plan.keep[known][axis])] = True
        blocks = alive.reshape(-1, block)
        places.append(np.flatnonzero(blocks.all(1)))
        shape.append(len(blocks))
    if tuple(shape) == leaf.shape:
        return leaf
    return placed(leaf, shape, places, fill)


def _renumbered(state: SplitLBIState, structure: Channels) -> SplitLBIState:
    """The state with the joint groups of the wider network."""
    if state.ties == ():
        return state
    treedef = jax.tree.structure(state.v)
    told = structure.resolve(state.v)
    return state._replace(ties=tie_trees(treedef, told, True))
