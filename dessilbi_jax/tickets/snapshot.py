"""What one state says about its units: which are selected, how strongly, and what belongs together.

A *unit* is what can be selected by itself: a group, or a single element where the penalty
thresholds elements.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.optimizer.state import SplitLBIState, has_lam
from dessilbi_jax.prox.shrink import Shrink, fraction_of_threshold, select
from dessilbi_jax.tree import leaf_paths, to_host


class Observed(NamedTuple):
    """A state as a path records it, by leaf path.

    Attributes:
        shapes: the shape of every leaf.
        chosen: of structured leaves, which units are selected.
        strength: of structured leaves, ‖V_g‖ over λ of each unit, float32.
        ties: of leaves that share groups with others, the number of each unit's group.
    """

    shapes: dict[str, tuple[int, ...]]
    chosen: dict[str, np.ndarray]
    strength: dict[str, np.ndarray]
    ties: dict[str, np.ndarray]


def observe(state: SplitLBIState) -> Observed:
    """What a path records of a state; in a run of several processes all of them have to call it."""
    shapes = {path: tuple(leaf.shape) for path, leaf in leaf_paths(state.v)}
    chosen, strength = to_host(_units(state))
    return Observed(shapes, chosen, strength, _ties(state))


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
    for (path, v), *shrink in zip(leaf_paths(state.v), *flat, strict=True):
        if v.dtype == bool:
            continue
        leaf = Shrink(*shrink)
        chosen[path] = select(v, leaf)
        beyond = leaf.strength
        if leaf.threshold.dtype != bool:
            beyond = fraction_of_threshold(v, v, leaf)
        # Without a λ there is nothing to tell units apart by.
        strength[path] = jnp.where(has_lam(state), beyond, 0).astype(jnp.float32)
    return chosen, strength
