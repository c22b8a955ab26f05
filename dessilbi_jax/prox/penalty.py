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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.prox.norms import group_norms
from dessilbi_jax.prox.shrink import Shrink, apply_shrink, soft_threshold
from dessilbi_jax.structure.joint import firsts, group_sizes
from dessilbi_jax.structure.leaf import LeafGroups


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

    def prox(
        self, v: jax.Array, leaf: LeafGroups, lam: jax.Array | float, kappa: jax.Array | float = 1.0
    ) -> jax.Array:
        """argmin_Γ ‖Γ − κV‖²/2 + κΩ_λ(Γ) for one leaf, which is Γ of V.

        Arguments are those of `shrink`.

        Example:
            >>> import jax.numpy as jnp
            >>> from dessilbi_jax.prox.penalty import elastic_net
            >>> from dessilbi_jax.structure.leaf import LeafGroups
            >>> elastic_net(1.0).prox(jnp.array([3.0, -0.5]), LeafGroups("w", (2,), (2,)), 1.0)
            Array([1., 0.], dtype=float32)
        """
        return apply_shrink(v, self.shrink(v, leaf, jnp.asarray(lam), kappa))

    def value(self, gamma: jax.Array, leaf: LeafGroups, lam: jax.Array | float) -> jax.Array:
        """Ω_λ(Γ) of one leaf, a scalar.

        Args:
            gamma: Γ of the leaf.
            leaf: its groups.
            lam: λ ≥ 0.

        Example:
            >>> import jax.numpy as jnp
            >>> from dessilbi_jax.prox.penalty import group_lasso
            >>> from dessilbi_jax.structure.leaf import LeafGroups
            >>> column = LeafGroups("w", (2, 1), (1, 1))
            >>> float(group_lasso().value(jnp.array([[3.0], [4.0]]), column, 2.0))
            10.0
        """
        return total_value([leaf], [self], [gamma], [lam])


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
        >>> from dessilbi_jax.prox.penalty import Penalty, shrink_all
        >>> from dessilbi_jax.structure.leaf import LeafGroups
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


def total_value(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    gamma: Sequence[jax.Array],
    lams: Sequence[Any],
) -> jax.Array:
    """Ω_λ(Γ) summed over several leaves; a group that spans leaves counts once.

    Args:
        leaves, penalties, gamma, lams: the groups, Ω, Γ and λ of each (structured) leaf; members
            of one joint group have the same penalty and λ.
    """
    joint = [leaf.joint for leaf in leaves]
    norms = group_norms([leaf.counts or () for leaf in leaves], joint, gamma)
    sizes, once = group_sizes(leaves), firsts(joint)
    total = jnp.zeros([], jnp.result_type(*(jnp.real(x).dtype for x in gamma)))
    for i, (x, lam, penalty) in enumerate(zip(gamma, lams, penalties, strict=True)):
        modulus = jnp.abs(x)
        weight = _sqrt(sizes[i], norms[i].dtype) if penalty.sqrt_size else 1.0
        each = weight * norms[i]
        first = once[i]
        each = each if first is None else jnp.where(first.reshape(each.shape), each, 0)
        total += lam * (penalty.mix * jnp.sum(modulus) + (1 - penalty.mix) * jnp.sum(each))
        total += penalty.mu / 2 * jnp.sum(modulus**2)
    return total


def _sqrt(size: Any, dtype: Any) -> Any:
    return math.sqrt(size) if isinstance(size, int) else np.sqrt(size).astype(dtype)


def group_lasso(*, sqrt_size: bool = False) -> Penalty:
    """λ Σ_g w_g‖Γ_g‖₂ with w_g = 1, or √|g| with `sqrt_size` (Yuan & Lin 2006).

    References:
        M. Yuan and Y. Lin, "Model selection and estimation in regression with grouped variables",
        JRSS B 68(1), 2006.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.group_lasso(sqrt_size=True)
        Penalty(mix=0.0, mu=0.0, sqrt_size=True)
    """
    return Penalty(sqrt_size=sqrt_size)


def sparse_group_lasso(mix: float, *, sqrt_size: bool = False) -> Penalty:
    """λ·mix·‖Γ‖₁ + λ·(1 − mix)·Σ_g w_g‖Γ_g‖₂ (Simon et al. 2013).

    Its prox shrinks single elements by mix·λ first and then the groups by (1 − mix)·w_g·λ.

    References:
        N. Simon, J. Friedman, T. Hastie and R. Tibshirani, "A sparse-group lasso", JCGS 22(2),
        2013.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.sparse_group_lasso(0.5).mix
        0.5
    """
    return Penalty(mix=mix, sqrt_size=sqrt_size)


def elastic_net(mu: float, *, sqrt_size: bool = False) -> Penalty:
    """λ Σ_g w_g‖Γ_g‖₂ + (μ/2)‖Γ‖²; with single elements λ‖Γ‖₁ + (μ/2)‖Γ‖² (Zou & Hastie 2005).

    Its prox divides what the lasso leaves by 1 + κμ.

    References:
        H. Zou and T. Hastie, "Regularization and variable selection via the elastic net", JRSS B
        67(2), 2005.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.elastic_net(0.1).mu
        0.1
    """
    return Penalty(mu=mu, sqrt_size=sqrt_size)
