"""Where the channels of a wider network stand along the axes of its leaves."""

from collections.abc import Mapping

import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups, ChannelSet
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.text import near_miss


def widened(groups: ChannelGroups, sizes: Mapping[str, int]) -> Plan:
    """The plan that keeps of the wider network what the present one has.

    Args:
        groups: channels of the present network.
        sizes: by the name of a set of channels, how many it is to have.

    Raises:
        ValueError: a set that is not there or cannot grow, or fewer channels than there are.
        TypeError: a size that is no integer.
    """
    more: dict[int, int] = {}  # by place in `sets`, how many are new
    for name, size in sizes.items():
        at = _find(groups, name)
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"the size of {name} must be an integer, got {size!r}")
        there = len(groups.sets[at].groups)
        if size < there:
            raise ValueError(
                f"{name} has {there} channels, more than the {size} asked for: dl.grow makes "
                "networks larger, dl.slim smaller"
            )
        more[at] = int(size) - there
    shapes = dict(groups.shapes)
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (path, axis), numbers in groups.numbers.items():
        places = np.arange(len(numbers))
        for at, extra in more.items():
            if extra:
                places = _with_room(places, numbers, groups.sets[at], extra, (path, axis))
        if len(places) == len(numbers):
            continue
        shape = shapes[path]
        shapes[path] = (*shape[:axis], len(places), *shape[axis + 1 :])
        keep.setdefault(path, {})[axis] = tuple(np.flatnonzero(places >= 0).tolist())
    return Plan(shapes, keep)


def _find(groups: ChannelGroups, name: str) -> int:
    """The place of a set of channels among all."""
    found = [i for i, each in enumerate(groups.sets) if each.name == name]
    if len(found) == 1:
        return found[0]
    known = sorted({each.name for each in groups.sets})
    if found:
        raise ValueError(
            f"{name} makes {len(found)} sets of channels, so that its name says not which is to "
            "grow"
        )
    whys = [str(why) for (path, _), why in groups.reasons.items() if path == name]
    if name in groups.shapes:
        raise ValueError(f"{name} cannot grow: {'; '.join(dict.fromkeys(whys)) or 'no channels'}")
    raise ValueError(
        f"there are no channels {name!r}{near_miss(name, known)}; there are {', '.join(known)}"
    )


def _with_room(
    places: np.ndarray, numbers: np.ndarray, each: ChannelSet, extra: int, where: tuple[str, int]
) -> np.ndarray:
    """Places along an axis with −1 where new channels of a set come in.

    A set stands in an axis as copies of all its channels in turn, each over as many neighbouring
    positions: behind each copy there is room for the new ones.
    """
    rank = np.full(int(max(numbers.max(initial=-1), each.groups.max())) + 2, -1)
    rank[each.groups] = np.arange(len(each.groups))
    ranks = np.where(numbers < 0, -1, rank[numbers])
    here = np.where(places < 0, -1, np.append(ranks, -1)[places])
    out: list[int] = []
    at = 0
    while at < len(here):
        if here[at] < 0:
            out.append(int(places[at]))
            at += 1
            continue
        inner = 1
        while at + inner < len(here) and here[at + inner] == here[at]:
            inner += 1
        copy = np.repeat(np.arange(len(each.groups)), inner)
        if not np.array_equal(here[at : at + len(copy)], copy):
            path, axis = where
            raise ValueError(
                f"{each.name} cannot grow: along axis {axis} of {path} its channels do not stand "
                "in turn, so that where new ones would stand is not known"
            )
        out += [*places[at : at + len(copy)].tolist(), *[-1] * (extra * inner)]
        at += len(copy)
    return np.array(out)
