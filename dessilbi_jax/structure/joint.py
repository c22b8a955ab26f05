"""Groups that span leaves: their numbering, and what counts them once."""

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np

from dessilbi_jax.structure.leaf import LeafGroups

# The numbers of a leaf's cells, row-major, or None where its groups are its own.
Numbers: TypeAlias = "Sequence[int] | np.ndarray | None"


def firsts(joint: Sequence[Numbers]) -> list[np.ndarray | None]:
    """For each leaf, which cells are the first of their group, so that each is counted once.

    A flat bool array a leaf; None where its groups are its own.
    """
    out: list[np.ndarray | None] = [None] * len(joint)
    tied = [i for i, numbers in enumerate(joint) if numbers is not None]
    if tied:
        group_of = renumbered([joint[i] for i in tied])
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
        group_of = renumbered([leaves[i].joint for i in tied])
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


def renumbered(numbers: Sequence[Any]) -> np.ndarray:
    """The numbers of all cells in one row, as 0, 1, 2, …"""
    row = np.concatenate([np.asarray(part).reshape(-1) for part in numbers])
    return np.unique(row, return_inverse=True)[1].reshape(-1)
