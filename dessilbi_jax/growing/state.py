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
        lambda s: _of_more(s, structure) if isinstance(s, SplitLBIState) else s,
        made,
        is_leaf=lambda x: isinstance(x, SplitLBIState),
    )
    return in_form_of(made, before, after)


def _grown(plan: Plan, known: str, path: str, leaf: Any) -> Any:
    """One array, zero in what is new; new groups may be nonzero where a run settles.

    Its axes are those of the leaf, of length 1, or have one entry for each of equal blocks.
    """
    leaf = jnp.asarray(leaf)
    try:
        shape, places = plan.cells(known, leaf.shape)
    except ValueError as error:
        raise ValueError(f"opt_state does not fit {known}: {error}") from None
    if shape == leaf.shape:
        return leaf
    fill = "/allowed/" in f"/{path}/" and leaf.dtype == bool
    return placed(leaf, shape, places, fill)


def _of_more(state: SplitLBIState, structure: Channels) -> SplitLBIState:
    """The state with the joint groups of the wider network, and what they may be at most."""
    if state.settled != ():
        # As of a network of any size; the next update says what is allowed of this one.
        budget = state.settled.budget
        kind = jnp.iinfo if jnp.issubdtype(budget.dtype, jnp.integer) else jnp.finfo
        most = jnp.where(state.settled.done, budget, kind(budget.dtype).max)
        state = state._replace(settled=state.settled._replace(budget=most))
    if state.ties == ():
        return state
    treedef = jax.tree.structure(state.v)
    told = structure.resolve(state.v)
    return state._replace(ties=tie_trees(treedef, told, True))
