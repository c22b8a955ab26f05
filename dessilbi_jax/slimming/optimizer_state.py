"""Cutting the state of an optimizer together with its parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.dependency.structure import Channels, channels
from dessilbi_jax.optimizer.auto_lam import Automatic
from dessilbi_jax.optimizer.state import SplitLBIState
from dessilbi_jax.prox.shrink import Shrink
from dessilbi_jax.tree import leaf_paths


def _cut_state(
    opt_state: Any, plan: Plan, before: Any, after: Any, fresh: Callable[[], ChannelGroups] | None
) -> Any:
    """An optimizer state with every array that belongs to a leaf of the plan cut alike.

    Trees of modules that keep sizes of their own (Equinox) become those of the smaller network.

    Args:
        opt_state: the state.
        plan: what is cut.
        before, after: the arrays of the network and of the smaller one.
        fresh: traces the smaller network: of a layer with a single channel left, nothing can be
            removed any more, so that it is dense then. None where it cannot be traced.
    """
    treedef = jax.tree.structure(opt_state)
    ours = state_arrays(opt_state)
    named = leaf_paths(opt_state)
    leaves = [leaf for _, leaf in named]
    known = [
        known_leaf(path, plan) if np.ndim(leaf) and id(leaf) not in ours else None
        for path, leaf in named
    ]

    def made(arrays: Any) -> Any:
        # Copies, so that donating the smaller network leaves the other one whole.
        return {
            i: jnp.copy(x if (path := known[i]) is None else plan.cut(path, x))
            for i, x in arrays.items()
        }

    # Compiled as a whole: leaf by leaf, each shape would be compiled for itself.
    there = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
    for i, array in jax.jit(made)(there).items():
        leaves[i] = array
    for i, path in enumerate(known):
        if path is not None and i not in there:
            leaves[i] = plan.cut(path, leaves[i])
    cut = _renumbered(jax.tree.unflatten(treedef, leaves))
    if fresh is not None and any(s.ties != () for s in _states(cut)):
        again = channels(fresh())
        cut = jax.tree.map(
            lambda s: _dense_where_told(s, again) if isinstance(s, SplitLBIState) else s,
            cut,
            is_leaf=lambda x: isinstance(x, SplitLBIState),
        )
    return in_form_of(cut, before, after)


def in_form_of(opt_state: Any, before: Any, after: Any) -> Any:
    """A state whose trees are those of another network's arrays, where modules keep sizes."""
    old: Any = jax.tree.structure(before)
    new: Any = jax.tree.structure(after)
    if old == new:
        return opt_state
    return jax.tree.map(
        lambda x: jax.tree.unflatten(new, jax.tree.leaves(x)) if _has_form(x, old) else x,
        opt_state,
        is_leaf=lambda x: _has_form(x, old),
    )


def known_leaf(path: str, plan: Plan) -> str | None:
    """The leaf of the network that an array of an optimizer's state belongs to."""
    known = [k for k in plan.shapes if path == k or path.endswith(f"/{k}")]
    # Parts of the plan's paths: of Linen's `params/fc/kernel` the state has `fc/kernel`.
    known = known or [k for k in plan.shapes if _shared(path, k)]
    return max(known, key=len) if known else None


def check_opt_state(opt_state: Any, plan: Plan) -> None:
    """A state over the parameters of another network is an error.

    Raises:
        ValueError: no array of it belongs to a leaf of the network; or, beside arrays that do, it
            has one of a leaf that the network lacks.
    """
    ours = state_arrays(opt_state)
    named = [
        (path, known_leaf(path, plan))
        for path, leaf in leaf_paths(opt_state)
        if np.ndim(leaf) and id(leaf) not in ours
    ]
    if not named:
        return  # of an optimizer that keeps nothing of the parameters
    # What stands before the path of a parameter: the name of a tree that is like them.
    trees = {path[: -len(known)] for path, known in named if known and path.endswith(known)}
    odd = [path for path, known in named if known is None]
    if len(odd) == len(named):
        raise ValueError(
            f"opt_state is of another network: {odd[0]} is none of {', '.join(plan.shapes)}; give "
            "the state of the optimizer that trained this one"
        )
    for path in odd:
        if any(tree and path.startswith(tree) for tree in trees):
            raise ValueError(
                f"opt_state is of another network: it has {path}, which this network lacks; give "
                "the state of the optimizer that trained this one"
            )


def _has_form(x: Any, treedef: Any) -> bool:
    return bool(jax.tree.structure(x) == treedef)


def _renumbered(opt_state: Any) -> Any:
    """The joint groups that are left numbered from 0 on, as a state made anew has them."""

    def renumber(state: Any) -> Any:
        if not isinstance(state, SplitLBIState) or state.ties == ():
            return state
        leaves, treedef = jax.tree.flatten(state.ties)
        there = [np.ravel(x) for x in leaves if x.dtype != bool]
        known = np.unique(np.concatenate(there))
        new = [
            x if x.dtype == bool else jnp.asarray(np.searchsorted(known, x), x.dtype)
            for x in leaves
        ]
        return state._replace(ties=jax.tree.unflatten(treedef, new))

    return jax.tree.map(renumber, opt_state, is_leaf=lambda x: isinstance(x, SplitLBIState))


def _shared(path: str, known: str) -> bool:
    """Whether a path ends like a known one, but for the name of its collection."""
    return path.endswith("/" + known.partition("/")[2]) and "/" in known


def _dense_where_told(state: SplitLBIState, structure: Channels) -> SplitLBIState:
    """The state with leaves dense whose joint groups the smaller network has no more."""
    v, treedef = jax.tree.flatten(state.v)
    if state.ties == ():
        return state
    ties, told = jax.tree.leaves(state.ties), structure.resolve(state.v)
    gone = [
        x.dtype != bool and tie.dtype != bool and leaf.counts is None
        for x, tie, leaf in zip(v, ties, told, strict=True)
    ]

    def dense(tree: Any, whole: bool) -> Any:
        leaves = [
            jnp.zeros(x.shape if whole else (1,) * x.ndim, bool) if out else x
            for x, out in zip(jax.tree.leaves(tree), gone, strict=True)
        ]
        return jax.tree.unflatten(treedef, leaves)

    auto = state.auto
    if isinstance(auto, Automatic):
        left = [not out for x, out in zip(v, gone, strict=True) if x.dtype != bool]
        auto = auto._replace(scale=auto.scale[np.array(left)])
    return state._replace(
        v=dense(state.v, True),
        gamma=state.gamma if state.gamma == () else dense(state.gamma, True),
        shrink=Shrink(*(dense(tree, False) for tree in state.shrink)),
        ties=dense(state.ties, False),
        auto=auto,
    )


def _states(opt_state: Any) -> list[SplitLBIState]:
    every = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, SplitLBIState))
    return [s for s in every if isinstance(s, SplitLBIState)]


def state_arrays(opt_state: Any) -> set[int]:
    """Arrays of the optimizer's own, such as what was found of λ, that belong to no leaf."""
    return {id(x) for s in _states(opt_state) if isinstance(s.auto, Automatic) for x in s.auto}
