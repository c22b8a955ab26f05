"""Which groups are kept: the one form in which a support travels from a run to a cut.

A support has three forms, and no more:

- the optimizer's *state* (V and what it takes to rebuild Γ), where a support begins; `snapshot`
  reads which groups are selected out of it, and the path packs these bits, a row a record;
- *group bits* (`GroupMasks`): by leaf a bool array over the grid of its groups. A ticket and its
  file hold them, budgets are met by choosing them, channel groups read them. They are as few as
  there are decisions, and they remember which weights were one group;
- the *plan* (`Plan`): which indices of which axes stay, which a network is cut by.

Masks over elements are made from the bits where somebody reads them, and stored nowhere. (To put
groups in order `budget` numbers them in one row, as a group may lie in several leaves; that row
does not leave the module.)
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

_MOST_PARAMETERS = 2**40


def check_parameters(shapes: Mapping[str, Iterable[int]]) -> None:
    """Raises unless shapes that a file tells can be those of a network.

    Raises:
        ValueError: they cannot; masks of them would take all memory there is.
    """
    total = sum(math.prod(shape) for shape in shapes.values())
    if not 0 <= total <= _MOST_PARAMETERS:
        raise ValueError(f"its shapes are those of {total:,} parameters")


@dataclasses.dataclass(frozen=True, eq=False)
class GroupMasks(Mapping[str, np.ndarray]):
    """Group bits that read as masks: by leaf path, a bool array of the leaf's shape.

    The arrays are made when asked for and cannot be written to. Where every axis has one group
    or one a position they are views of the bits and take no memory.

    Attributes:
        shapes: the shape of every leaf by its path.
        bits: of the leaves whose groups could be selected: which are kept, in the shape of the
            grid of groups (`LeafGroups.counts`). All other leaves are whole.
        ties: of leaves that share groups with others, the number of each cell's group, in the
            shape of its bits.

    Raises:
        ValueError: bits of a leaf without a shape, of another dtype, or of a grid that does not
            cut the leaf into equal groups; ties without bits or of another shape.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.tickets import GroupMasks
        >>> masks = GroupMasks(
        ...     {"kernel": (2, 3), "bias": (3,)}, {"kernel": np.array([[True, False, True]])})
        >>> masks["kernel"].tolist(), masks["bias"].tolist()
        ([[True, False, True], [True, False, True]], [True, True, True])
        >>> masks.size("kernel"), masks.held()
        ((4, 6), (2, 3))
    """

    shapes: Mapping[str, tuple[int, ...]]
    bits: Mapping[str, np.ndarray]
    ties: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, bits in self.bits.items():
            if path not in self.shapes:
                raise ValueError(f"there are group bits of {path}, which has no shape")
            if bits.dtype != bool or not _cuts(bits.shape, self.shapes[path]):
                raise ValueError(
                    f"the group bits of {path} are {bits.dtype}{list(bits.shape)}, expected bool "
                    f"in a shape that cuts {self.shapes[path]} into equal groups"
                )
        for path, ties in self.ties.items():
            if path not in self.bits or ties.shape != self.bits[path].shape:
                raise ValueError(f"the shared groups of {path} do not fit its group bits")

    def __getitem__(self, path: str) -> np.ndarray:
        shape = self.shapes[path]
        mask = self.bits.get(path, np.ones((1,) * len(shape), bool))
        for axis, n in enumerate(shape):
            if mask.shape[axis] not in (1, n):
                mask = mask.repeat(n // mask.shape[axis], axis)
        return np.broadcast_to(mask, shape)  # which cannot be written to

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def structured(self) -> tuple[str, ...]:
        """Paths of the leaves whose groups could be selected."""
        return tuple(self.bits)

    def size(self, path: str) -> tuple[int, int]:
        """Elements of a leaf that are kept, and all of them."""
        of = math.prod(self.shapes[path])
        bits = self.bits.get(path)
        if bits is None:
            return of, of
        return int(np.count_nonzero(bits)) * of // max(bits.size, 1), of

    def held(self) -> tuple[int, int]:
        """Groups that are kept, and all; one that lies in several leaves counts once."""
        free = [bits for path, bits in self.bits.items() if path not in self.ties]
        kept = [self.ties[path][self.bits[path]] for path in self.ties]
        every = [self.ties[path].ravel() for path in self.ties]
        none = [np.zeros(0, np.int64)]
        return (
            sum(int(np.count_nonzero(bits)) for bits in free)
            + np.unique(np.concatenate(kept or none)).size,
            sum(bits.size for bits in free) + np.unique(np.concatenate(every or none)).size,
        )


def _cuts(grid: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a grid cuts a leaf of that shape into equal groups."""
    return len(grid) == len(shape) and all(
        c == n or (c > 0 and n % c == 0) for c, n in zip(grid, shape, strict=True)
    )


def _flatten(masks: GroupMasks) -> tuple[list[tuple[Any, np.ndarray]], tuple[str, ...]]:
    paths = tuple(sorted(masks))
    return [(jax.tree_util.DictKey(path), masks[path]) for path in paths], paths


def _unflatten(paths: tuple[str, ...], leaves: Iterable[Any]) -> Any:
    return dict(zip(paths, leaves, strict=True))


# Trees of masks are taken leaf by leaf everywhere; these are read like a dict of arrays.
jax.tree_util.register_pytree_with_keys(GroupMasks, _flatten, _unflatten)
