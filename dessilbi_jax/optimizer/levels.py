"""How much of V a λ selects, and which λ selects how much: quantiles without sorting."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.prox.norms import group_norms, how_many
from dessilbi_jax.prox.penalty import Penalty, shrink_all
from dessilbi_jax.prox.shrink import select
from dessilbi_jax.structure.joint import count_groups, families, firsts
from dessilbi_jax.structure.leaf import LeafGroups

_MANTISSA_BITS_LEFT_OUT = 9  # levels are found to 2^-14


def fractions(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    v: Sequence[jax.Array],
    lams: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Density by elements and by groups that V would have under the given λ of each leaf.

    A joint group is one group, and all its members' elements count.
    """

    def count(chosen: jax.Array, once: np.ndarray | None) -> jax.Array:
        return how_many(chosen if once is None else chosen & once.reshape(chosen.shape))

    elements = groups = jnp.zeros([], jnp.float32)
    first = firsts([leaf.joint for leaf in leaves])
    shrinks = shrink_all(leaves, penalties, v, lams, 1.0)
    for leaf, value, shrink, once in zip(leaves, v, shrinks, first, strict=True):
        units = select(value, shrink)
        chosen = count(units, None)
        if shrink.threshold.dtype == bool:  # units are groups
            elements = elements + chosen * float(leaf.group_size)
            groups = groups + (chosen if once is None else count(units, once))
        else:
            elements = elements + chosen
            by_group = None if shrink.strength.dtype == bool else shrink.strength > 1
            groups = groups + (chosen if by_group is None else count(by_group, once))
    # Floats: totals may be beyond what an int32 holds.
    return elements / float(sum(leaf.size for leaf in leaves)), groups / float(count_groups(leaves))


def level(
    leaves: Sequence[LeafGroups],
    penalties: Sequence[Penalty],
    scale: Sequence[jax.Array],
    v: Callable[[], Sequence[jax.Array]],
    density: Any,
    by_group: bool,
    active: Any = True,
) -> jax.Array:
    """The smallest λ (float32, to 2^-14) at which V selects at most `density`.

    Bisects on the bits of λ: positive floats are ordered as their bits are, so 22 counts of
    V suffice whatever its scale, with no sorting and no memory, and sums are all that sharded
    arrays have to exchange. Where `active` is False no pass is made at all, also under `vmap`.
    """

    def density_at(bits: jax.Array) -> jax.Array:
        lam = jax.lax.bitcast_convert_type(bits << _MANTISSA_BITS_LEFT_OUT, jnp.float32)
        return fractions(leaves, penalties, v(), [lam * s for s in scale])[int(by_group)]

    def halve(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = carry  # the density at low is above the one asked for, at high it is not
        middle = low + (high - low) // 2
        above = density_at(middle) > density
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low = jnp.zeros([], jnp.int32)
    high = jnp.where(active, 0x7F800000 >> _MANTISSA_BITS_LEFT_OUT, 0).astype(jnp.int32)
    _, high = jax.lax.while_loop(lambda c: c[1] - c[0] > 1, halve, (low, high))
    return jax.lax.bitcast_convert_type(high << _MANTISSA_BITS_LEFT_OUT, jnp.float32)


def relative_scale(leaves: Sequence[LeafGroups], v: Sequence[jax.Array]) -> list[jax.Array]:
    """λ of each leaf relative to the others: its rule's λ, evened between kinds of groups.

    Leaves of one kind (`LeafGroups.kind`, or all of single elements) share one scale, so that
    they compete with each other by the size of their V, and so do leaves that share groups;
    between kinds, which for channels are the sets that go together, λ follows the mean group norm
    of V, in units of the first kind's.
    """
    family = families(leaves, ["elements" if leaf.elementwise else leaf.kind for leaf in leaves])
    joint = [leaf.joint for leaf in leaves]
    norms = group_norms([leaf.counts or () for leaf in leaves], joint, v)
    norms = [
        norm if once is None else jnp.where(once.reshape(norm.shape), norm, 0)
        for norm, once in zip(norms, firsts(joint), strict=True)
    ]
    mean = {}
    for each in dict.fromkeys(family):
        members = [i for i, other in enumerate(family) if other == each]
        total = sum(jnp.sum(norms[i]).astype(jnp.float32) for i in members)
        mean[each] = total / float(count_groups([leaves[i] for i in members]))
    size = {each: jnp.where(value > 0, value, 1) for each, value in mean.items()}
    unit = size[family[0]]  # so that λ keeps its meaning while V grows
    return [
        size[each] / unit * (leaf.lam or 1.0) for leaf, each in zip(leaves, family, strict=True)
    ]
