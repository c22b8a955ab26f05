"""Sets of groups: those of one leaf, or those that several leaves share."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class GroupSet(NamedTuple):
    """Groups that lie in the same leaves, such as the channels of a convolution.

    Attributes:
        names: paths of the leaves, in the order given.
        places: by path, the number of each unit's group, flat, from 0 to size - 1.
        size: number of groups.
    """

    names: tuple[str, ...]
    places: Mapping[str, np.ndarray]
    size: int

    def of_groups(self, units: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the value of each group, from those of units, which are equal within a group.

        Args:
            units: by path, a value a unit, in any shape.

        Returns:
            [size].
        """
        first = np.asarray(units[self.names[0]]).ravel()
        out = np.zeros(self.size, first.dtype)
        for name in reversed(self.names):
            out[self.places[name]] = np.asarray(units[name]).ravel()
        return out


def group_sets(
    groups: Mapping[str, tuple[int, ...]], ties: Mapping[str, np.ndarray]
) -> list[GroupSet]:
    """Returns the sets of groups of structured leaves, in the order of their first leaf.

    Args:
        groups: by leaf path, the shape of its units.
        ties: of leaves that share groups with others, the number of each unit's group.

    Example:
        >>> ties = {"conv/bias": np.arange(2), "conv/kernel": np.arange(2)}
        >>> sets = group_sets({"conv/bias": (2,), "conv/kernel": (1, 2), "fc": (4, 3)}, ties)
        >>> [(each.names, each.size) for each in sets]
        [(('conv/bias', 'conv/kernel'), 2), (('fc',), 12)]
    """
    of_number: dict[int, set[str]] = {}
    together = {name: {name} for name in groups}
    for name, numbers in ties.items():
        for number in np.unique(numbers).tolist():
            others = of_number.setdefault(number, together[name])
            if others is not together[name]:
                merged = others | together[name]
                for each in merged:
                    together[each] = merged
                for known, names in of_number.items():
                    if names & merged:
                        of_number[known] = merged
    found: list[GroupSet] = []
    done: set[str] = set()
    for name in groups:
        if name in done:
            continue
        members = tuple(each for each in groups if each in together[name])
        done |= set(members)
        if name not in ties:
            size = math.prod(groups[name])
            found.append(GroupSet(members, {name: np.arange(size)}, size))
            continue
        numbers = np.unique(np.concatenate([ties[each].ravel() for each in members]))
        places = {each: np.searchsorted(numbers, ties[each].ravel()) for each in members}
        found.append(GroupSet(members, places, numbers.size))
    return found
