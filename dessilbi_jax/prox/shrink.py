"""From V to Γ: thresholds of single elements and of groups, and what is selected."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dessilbi_jax.prox.norms import expand, group_norm


class Shrink(NamedTuple):
    """How Γ follows from V in one leaf (or, as a tree of each, in all of them).

    Attributes:
        strength: group norm over its threshold, in the shape of the groups; a group is selected
            where it exceeds 1. All cells of a joint group hold that group's. A bool array where
            there is no threshold by group.
        threshold: threshold of single elements, with all axes of length 1. A bool array where
            there is none.
        scale: factor of what is left, with all axes of length 1: κ / (1 + κμ).
    """

    strength: jax.Array
    threshold: jax.Array
    scale: jax.Array


def soft_threshold(v: jax.Array, lam: jax.Array | float) -> jax.Array:
    """argmin_x ½|x − v|² + λ|x|, element by element: sign(v)·max(|v| − λ, 0).

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.shrink import soft_threshold
        >>> soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    if jnp.iscomplexobj(v):
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - lam, 0)
    return v - jnp.clip(v, -lam, lam)


def group_soft_threshold(
    v: jax.Array, lam: jax.Array | float, counts: tuple[int, ...]
) -> jax.Array:
    """argmin_X ½‖X − V‖² + λ Σ_g ‖X_g‖₂: V_g·max(0, 1 − λ/‖V_g‖), zero for a zero group.

    Args:
        v: the leaf.
        lam: λ > 0.
        counts: number of groups along each axis (`LeafGroups.counts`).

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.shrink import group_soft_threshold
        >>> group_soft_threshold(jnp.array([[3.0, 0.1], [4.0, 0.1]]), 1.0, (1, 2)).tolist()
        [[2.4000000953674316, 0.0], [3.200000047683716, 0.0]]
    """
    return v * expand(group_factor(group_norm(v, counts) / lam), v.shape)


def group_factor(strength: jax.Array) -> jax.Array:
    """max(0, 1 − 1/strength), without dividing by zero."""
    selected = strength > 1
    return jnp.where(selected, 1 - 1 / jnp.where(selected, strength, 2), 0)


def apply_shrink(v: jax.Array, shrink: Shrink) -> jax.Array:
    """Γ = scale · max(0, 1 − 1/strength_g) · S_threshold(V) for one leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.shrink import Shrink, apply_shrink
        >>> lasso = Shrink(jnp.zeros(1, bool), jnp.full(1, 0.5), jnp.full(1, 2.0))
        >>> apply_shrink(jnp.array([1.0, -0.2]), lasso).tolist()
        [1.0, 0.0]
    """
    strength, threshold, scale = shrink
    if threshold.dtype != bool:
        v = soft_threshold(v, threshold)
    if strength.dtype != bool:
        scale = scale * expand(group_factor(strength), v.shape)
    return scale * v


def select(v: jax.Array, shrink: Shrink) -> jax.Array:
    """Which units of a leaf are selected: Γ ≠ 0.

    The units are the groups, shape `counts`; where the penalty thresholds single elements they
    are the elements, in the leaf's shape.
    """
    if shrink.threshold.dtype == bool:
        return shrink.strength > 1
    by_element = jnp.abs(v) > shrink.threshold
    if shrink.strength.dtype == bool:
        return by_element
    return by_element & expand(shrink.strength > 1, v.shape)


def fraction_of_threshold(
    moved: jax.Array,
    v: jax.Array,
    shrink: Shrink,
    norms: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """How far along to selection each unit would be with V at `moved`; selected above 1.

    Args:
        moved: a V to judge.
        v: the V that `shrink` was made from.
        shrink: tells the thresholds.
        norms: group norms of `moved` and of `v`, from `group_norms`, where groups are joint.
    """
    if shrink.threshold.dtype != bool:
        return jnp.abs(moved) / shrink.threshold
    new, norm = norms or (group_norm(x, shrink.strength.shape) for x in (moved, v))
    return jnp.where(norm > 0, new * shrink.strength / jnp.where(norm > 0, norm, 1), 0)
