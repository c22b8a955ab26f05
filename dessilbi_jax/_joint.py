"""Groups that span leaves: sums over their members, and what counts them once.

The cells of a leaf's grid (`structure`) can be members of larger, *joint* groups: every cell has a
number, and cells of the same number, of one leaf or of several, are one group. The numbers are
known when a step is traced, so a sum over members is a few gathers of fixed shape: unlike a
scatter, it adds in the same order on every backend.
"""

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from dessilbi_jax.structure import LeafGroups

# The numbers of a leaf's cells, row-major, or None where its groups are its own.
Numbers: TypeAlias = "Sequence[int] | np.ndarray | None"


def joint_sums(joint: Sequence[Numbers], cells: Sequence[jax.Array]) -> list[jax.Array]:
    """For every cell the sum over all cells with its number; leaves without numbers unchanged.

    Args:
        joint: the numbers of each leaf's cells, or None.
        cells: one number a cell, an array for each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax._joint import joint_sums
        >>> a, b = joint_sums([(0, 1), (1, 1)], [jnp.array([1.0, 2.0]), jnp.array([[3.0], [4.0]])])
        >>> a.tolist(), b.tolist()
        ([1.0, 9.0], [[9.0], [9.0]])
    """
    out = list(cells)
    tied = [i for i, numbers in enumerate(joint) if numbers is not None]
    if not tied:
        return out
    dtype = jnp.result_type(*(out[i].dtype for i in tied))
    group_of = _renumbered([joint[i] for i in tied])
    flat = jnp.concatenate([_gathered(out[i]).astype(dtype).reshape(-1) for i in tied])
    padded = jnp.concatenate([flat, jnp.zeros(1, dtype)])
    members = np.argsort(group_of, kind="stable")
    count = np.bincount(group_of)
    start = np.cumsum(count) - count
    # Groups with up to 1, 2, 4, … members are summed as one table each, filled up with zeros: at
    # most twice as many entries as there are cells, whatever the sizes are.
    width = 2 ** np.ceil(np.log2(count)).astype(int)
    sums, place, done = [], np.empty_like(count), 0
    for columns in np.unique(width):
        rows = np.flatnonzero(width == columns)
        column = np.arange(columns)
        inside = column < count[rows, None]
        table = np.where(inside, members[start[rows, None] + column * inside], flat.size)
        sums.append(jnp.sum(_take(padded, table), axis=1))
        place[rows] = done + np.arange(rows.size)
        done += rows.size
    whole = jnp.concatenate(sums)
    ends = np.cumsum([out[i].size for i in tied])[:-1]
    for i, numbers in zip(tied, np.split(place[group_of], ends), strict=True):
        own = _gathered(_take(whole, numbers).reshape(out[i].shape).astype(out[i].dtype))
        out[i] = _placed_like(own, out[i])
    return out


def firsts(joint: Sequence[Numbers]) -> list[np.ndarray | None]:
    """For each leaf, which cells are the first of their group, so that each is counted once.

    A flat bool array a leaf; None where its groups are its own.
    """
    out: list[np.ndarray | None] = [None] * len(joint)
    tied = [i for i, numbers in enumerate(joint) if numbers is not None]
    if tied:
        group_of = _renumbered([joint[i] for i in tied])
        first = np.zeros(group_of.size, bool)
        first[np.unique(group_of, return_index=True)[1]] = True
        ends = np.cumsum([len(joint[i] or ()) for i in tied])[:-1]
        for i, part in zip(tied, np.split(first, ends), strict=True):
            out[i] = part
    return out


def count_groups(leaves: Sequence[LeafGroups]) -> int:
    """Number of groups of all leaves; a joint one counts once."""
    first = firsts([leaf.joint for leaf in leaves])
    return sum(
        leaf.groups if part is None else int(part.sum())
        for leaf, part in zip(leaves, first, strict=True)
    )


def group_sizes(leaves: Sequence[LeafGroups]) -> list[Any]:
    """For each leaf the number of elements in the groups of its cells.

    An integer where all its groups have the same size, else an array in the shape of the grid.
    """
    out: list[Any] = [leaf.group_size for leaf in leaves]
    tied = [i for i, leaf in enumerate(leaves) if leaf.joint is not None]
    if tied:
        group_of = _renumbered([leaves[i].joint for i in tied])
        each = np.concatenate([np.full(leaves[i].groups, leaves[i].group_size) for i in tied])
        size = np.zeros(group_of.max() + 1, np.int64)
        np.add.at(size, group_of, each)
        ends = np.cumsum([leaves[i].groups for i in tied])[:-1]
        for i, part in zip(tied, np.split(size[group_of], ends), strict=True):
            same = bool((part == part[0]).all())
            out[i] = int(part[0]) if same else part.reshape(leaves[i].counts)
    return out


def families(leaves: Sequence[LeafGroups], kinds: Sequence[Hashable]) -> list[int]:
    """A number for each leaf: equal for leaves of one kind, and for leaves that share a group."""
    family = list(range(len(leaves)))
    seen: dict[Hashable, int] = {}
    for i, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True)):
        for key in [("kind", kind), *(("group", number) for number in set(leaf.joint or ()))]:
            one, other = family[seen.setdefault(key, i)], family[i]
            if one != other:
                family = [min(one, other) if each in (one, other) else each for each in family]
    return family


def check_joint(leaves: Sequence[LeafGroups]) -> None:
    """All members of a joint group must be shrunk alike.

    Raises:
        ValueError: naming two leaves that share a group but differ in λ or penalty.
    """
    seen: dict[int, LeafGroups] = {}
    for leaf in leaves:
        for number in set(leaf.joint or ()):
            other = seen.setdefault(number, leaf)
            if (other.lam, other.penalty) != (leaf.lam, leaf.penalty):
                raise ValueError(
                    f"{other.path} and {leaf.path} share joint group {number}, but their λ and "
                    f"penalty differ: {other.lam}, {other.penalty} and {leaf.lam}, {leaf.penalty}; "
                    "give all members of a group the same"
                )


def _renumbered(numbers: Sequence[Any]) -> np.ndarray:
    """The numbers of all cells in one row, as 0, 1, 2, …"""
    row = np.concatenate([np.asarray(part).reshape(-1) for part in numbers])
    return np.unique(row, return_inverse=True)[1].reshape(-1)


def _take(x: jax.Array, index: np.ndarray) -> jax.Array:
    return x.at[index.astype(np.int32)].get(mode="promise_in_bounds")


def _gathered(x: jax.Array) -> jax.Array:
    """The whole of a few numbers on every device.

    Explicit sharding wants that said. The compiler's own sharding would spread what one member
    has to all others, which may be meant to lie elsewhere.
    """
    where = jax.typeof(x).sharding
    if any(where.spec):
        return jax.sharding.reshard(x, jax.sharding.NamedSharding(where.mesh, jax.P()))
    by_compiler = AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types
    if by_compiler and isinstance(x, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(x, jax.P())
    return x


def _placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    where = jax.typeof(like).sharding
    return jax.sharding.reshard(x, where) if any(where.spec) else x
