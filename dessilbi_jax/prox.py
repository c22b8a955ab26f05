"""Proximal operators and group norms: from V to Γ.

Every penalty of the library is one formula,

    Ω_λ(Γ) = λ·mix·‖Γ‖₁ + λ·(1 − mix)·Σ_g w_g ‖Γ_g‖₂ + (μ/2)·‖Γ‖²,

and Γ = prox_{κΩ_λ}(κV) is always

    Γ = scale · max(0, 1 − 1/strength_g) · S_threshold(V),

with S the soft threshold. The three numbers of that line are a `Shrink`: they are all that is
needed to rebuild Γ from V, which is what the lean optimizer state stores.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax._joint import Numbers, group_sizes, joint_sums
from dessilbi_jax.structure import LeafGroups


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


def group_sum(x: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Sum over each group of a leaf; the result has shape `counts`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import group_sum
        >>> group_sum(jnp.arange(8.0).reshape(2, 4), (1, 2)).tolist()
        [[10.0, 18.0]]
    """
    whole = tuple(i for i, c in enumerate(counts) if c == 1 and x.shape[i] != 1)
    x = jnp.sum(x, axis=whole, keepdims=True)  # keepdims: explicit sharding stays readable
    for axis, (n, c) in enumerate(zip(x.shape, counts, strict=True)):
        if n != c:
            x = jnp.sum(_cut(x, axis, c), axis=axis + 1)
    return x


def _cut(x: jax.Array, axis: int, pieces: int) -> jax.Array:
    """An axis cut in two: the pieces and their length.

    Under explicit sharding JAX cuts an axis where whole pieces lie on each device; where they
    do not, the axis is gathered first.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    if pieces % math.prod(sharding.mesh.shape[name] for name in names):
        spec = jax.P(*sharding.spec[:axis], None, *sharding.spec[axis + 1 :])
        x = jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, spec))
    return x.reshape(*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])


def expand(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One number a group, made to broadcast against the leaf (axes of length 1 stay so)."""
    for axis, n in enumerate(shape):
        if groups.shape[axis] not in (1, n):
            where = jax.typeof(groups).sharding  # explicit sharding needs to be told
            where = where if any(where.spec) else None
            groups = jnp.repeat(groups, n // groups.shape[axis], axis=axis, out_sharding=where)
    return groups


def group_norm(v: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Euclidean norm of each group, shape `counts`; its gradient at a zero group is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import group_norm
        >>> group_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]), (1, 2)).tolist()
        [[5.0, 0.0]]
    """
    if counts == v.shape:
        return jnp.where(v == 0, 0, jnp.abs(v))
    return _root(_square(v, counts))


def group_norms(
    counts: Sequence[tuple[int, ...]],
    joint: Sequence[Numbers],
    v: Sequence[jax.Array],
    squares: Sequence[jax.Array | None] | None = None,
) -> list[jax.Array]:
    """`group_norm` of several leaves: a joint group is normed as a whole, over all its members.

    Args:
        counts: number of groups along each axis (`LeafGroups.counts`), for each leaf.
        joint: the joint group of every cell (`LeafGroups.joint`), for each leaf.
        v: the leaves.
        squares: their sums of squares over each cell, for the leaves where they are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import group_norms
        >>> kernel, bias = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([4.0, 1.0])
        >>> norms = group_norms([(1, 2), (2,)], [(0, 1), (0, 1)], [kernel, bias])
        >>> [norm.tolist() for norm in norms]
        [[[5.0, 1.0]], [5.0, 1.0]]
    """
    known = [None] * len(v) if squares is None else squares
    own = [j is None and square is None for j, square in zip(joint, known, strict=True)]
    each = [
        x if alone else _square(x, cells) if square is None else square
        for x, cells, alone, square in zip(v, counts, own, known, strict=True)
    ]
    return [
        group_norm(x, cells) if alone else _root(x)
        for x, cells, alone in zip(joint_sums(joint, each), counts, own, strict=True)
    ]


def _square(v: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    return group_sum(jnp.real(v * jnp.conj(v)), counts)


def _root(square: jax.Array) -> jax.Array:
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def soft_threshold(v: jax.Array, lam: jax.Array | float) -> jax.Array:
    """argmin_x ½|x − v|² + λ|x|, element by element: sign(v)·max(|v| − λ, 0).

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import soft_threshold
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
        >>> from dessilbi_jax.prox import group_soft_threshold
        >>> group_soft_threshold(jnp.array([[3.0, 0.1], [4.0, 0.1]]), 1.0, (1, 2)).tolist()
        [[2.4000000953674316, 0.0], [3.200000047683716, 0.0]]
    """
    return v * expand(_group_factor(group_norm(v, counts) / lam), v.shape)


def _group_factor(strength: jax.Array) -> jax.Array:
    """max(0, 1 − 1/strength), without dividing by zero."""
    selected = strength > 1
    return jnp.where(selected, 1 - 1 / jnp.where(selected, strength, 2), 0)


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Ω_λ(Γ) = λ·mix·‖Γ‖₁ + λ·(1 − mix)·Σ_g w_g‖Γ_g‖₂ + (μ/2)‖Γ‖².

    The default is the group lasso, which with groups of one element is the lasso. Use the
    constructors `group_lasso`, `sparse_group_lasso` and `elastic_net`.

    Attributes:
        mix: share of λ that acts on single elements, in [0, 1).
        mu: strength of the quadratic part, ≥ 0.
        sqrt_size: w_g is the square root of the group's size if True, else 1.

    Raises:
        ValueError: for a mix outside [0, 1) or a mu that is negative or not finite.
    """

    mix: float = 0.0
    mu: float = 0.0
    sqrt_size: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mix < 1:
            raise ValueError(f"mix must lie in [0, 1), got {self.mix}")
        if not 0 <= self.mu < math.inf:
            raise ValueError(f"mu must be a finite number ≥ 0, got {self.mu}")

    def shrink(
        self, v: jax.Array, leaf: LeafGroups, lam: jax.Array, kappa: jax.Array | float
    ) -> Shrink:
        """The numbers that turn V into Γ = prox_{κΩ_λ}(κV), for one leaf.

        Args:
            v: V of the leaf.
            leaf: its groups.
            lam: λ, a positive scalar array; infinite closes every group.
            kappa: κ > 0.
        """
        return shrink_all([leaf], [self], [v], [lam], kappa)[0]


def shrink_all(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    v: Sequence[jax.Array],
    lams: Sequence[Any],
    kappa: jax.Array | float,
    squares: Sequence[jax.Array | None] | None = None,
) -> list[Shrink]:
    """`Penalty.shrink` of several leaves, which joint groups may span.

    Args:
        leaves, penalties, v, lams: the groups, Ω, V and λ of each (structured) leaf.
        kappa: κ > 0.
        squares: of the leaves where they are known, the sums of squares over each cell of V, or
            of S_{mix·λ}(V) where the penalty has a `mix`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import Penalty, shrink_all
        >>> from dessilbi_jax.structure import LeafGroups
        >>> leaves = [LeafGroups(name, (1,), (1,), joint=(0,)) for name in ("scale", "bias")]
        >>> v = [jnp.array([3.0]), jnp.array([4.0])]
        >>> [s.strength.tolist() for s in shrink_all(leaves, [Penalty()] * 2, v, [2.5] * 2, 1.0)]
        [[2.0], [2.0]]
    """
    lams = [jnp.asarray(lam, jnp.real(x).dtype) for x, lam in zip(v, lams, strict=True)]
    grouped = [i for i, leaf in enumerate(leaves) if not leaf.elementwise]
    inner = [
        soft_threshold(v[i], penalties[i].mix * lams[i]) if penalties[i].mix else v[i]
        for i in grouped
    ]
    cells = [leaves[i].counts or () for i in grouped]
    known = None if squares is None else [squares[i] for i in grouped]
    each = group_norms(cells, [leaves[i].joint for i in grouped], inner, known)
    norms = dict(zip(grouped, each, strict=True))
    sizes = group_sizes(leaves)
    out = []
    for i, (x, lam, penalty) in enumerate(zip(v, lams, penalties, strict=True)):
        ones = (1,) * x.ndim
        nothing = jnp.zeros(ones, bool)
        scale = jnp.full(ones, kappa / (1 + kappa * penalty.mu), lam.dtype)
        if i not in norms:  # ‖·‖₂ of one element is its modulus, so both parts add up
            out.append(Shrink(nothing, jnp.broadcast_to(lam, ones), scale))
            continue
        weight = (1 - penalty.mix) * (_sqrt(sizes[i], lam.dtype) if penalty.sqrt_size else 1.0)
        # A zero norm stays zero whatever λ is, also where λ is infinite or zero.
        strength = jnp.where(norms[i] > 0, norms[i] / (weight * lam), 0)
        threshold = jnp.broadcast_to(penalty.mix * lam, ones) if penalty.mix else nothing
        out.append(Shrink(strength, threshold, scale))
    return out


def _sqrt(size: Any, dtype: Any) -> Any:
    return math.sqrt(size) if isinstance(size, int) else np.sqrt(size).astype(dtype)


def group_lasso(*, sqrt_size: bool = False) -> Penalty:
    """λ Σ_g w_g‖Γ_g‖₂ with w_g = 1, or √|g| with `sqrt_size` (Yuan & Lin 2006).

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.group_lasso(sqrt_size=True)
        Penalty(mix=0.0, mu=0.0, sqrt_size=True)
    """
    return Penalty(sqrt_size=sqrt_size)


def sparse_group_lasso(mix: float, *, sqrt_size: bool = False) -> Penalty:
    """λ·mix·‖Γ‖₁ + λ·(1 − mix)·Σ_g w_g‖Γ_g‖₂ (Simon et al. 2013).

    Its prox shrinks single elements by mix·λ first and then the groups by (1 − mix)·w_g·λ.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.sparse_group_lasso(0.5).mix
        0.5
    """
    return Penalty(mix=mix, sqrt_size=sqrt_size)


def elastic_net(mu: float, *, sqrt_size: bool = False) -> Penalty:
    """λ Σ_g w_g‖Γ_g‖₂ + (μ/2)‖Γ‖²; with single elements λ‖Γ‖₁ + (μ/2)‖Γ‖² (Zou & Hastie 2005).

    Its prox divides what the lasso leaves by 1 + κμ.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.elastic_net(0.1).mu
        0.1
    """
    return Penalty(mu=mu, sqrt_size=sqrt_size)


def apply_shrink(v: jax.Array, shrink: Shrink) -> jax.Array:
    """Γ = scale · max(0, 1 − 1/strength_g) · S_threshold(V) for one leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox import Shrink, apply_shrink
        >>> lasso = Shrink(jnp.zeros(1, bool), jnp.full(1, 0.5), jnp.full(1, 2.0))
        >>> apply_shrink(jnp.array([1.0, -0.2]), lasso).tolist()
        [1.0, 0.0]
    """
    strength, threshold, scale = shrink
    if threshold.dtype != bool:
        v = soft_threshold(v, threshold)
    if strength.dtype != bool:
        scale = scale * expand(_group_factor(strength), v.shape)
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
