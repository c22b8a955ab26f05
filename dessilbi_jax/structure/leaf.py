"""The groups of one leaf of the parameters."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LeafGroups:
    """The groups of one leaf of the parameters.

    Attributes:
        path: the leaf's keys joined by '/', for example `conv1/kernel`.
        shape: the leaf's shape.
        counts: number of groups along each axis, or None for a dense leaf (no V, no Γ).
        spec: the name of what was chosen, for printing.
        lam: λ of this leaf's own rule, or None to follow the transformation's λ.
        penalty: penalty of this leaf's own rule, or None for the transformation's.
        reason: why the leaf is dense, when it is.
        unread: whether it is a kernel that is dense only because the structure cannot tell what
            its axes mean.
        joint: the joint group of every cell of the grid, row-major, or None where the leaf's
            groups are its own. Cells with the same number, of this or of several leaves, are one
            group, and the norm of V runs over all of them.
        kind: equal for leaves whose groups are of one kind, whatever they are called; leaves of
            single elements are of one kind always.

    Raises:
        ValueError: where `joint` has not one number a cell, or the leaf is dense.
    """

    path: str
    shape: tuple[int, ...]
    counts: tuple[int, ...] | None
    spec: str = "dense"
    lam: float | None = None
    penalty: Any = None
    reason: str = ""
    joint: tuple[int, ...] | None = None
    kind: Hashable = None
    unread: bool = False

    def __post_init__(self) -> None:
        if self.joint is not None and len(self.joint) != self.groups:
            raise ValueError(
                f"joint must give one number for each of the {self.groups} cells of {self.path} "
                f"(counts {self.counts}), got {len(self.joint)}"
            )

    @property
    def elementwise(self) -> bool:
        """True where every group holds a single element (the lasso)."""
        return self.counts == self.shape and self.joint is None

    @property
    def groups(self) -> int:
        """Number of cells of the grid: of groups, unless they are joint."""
        return 0 if self.counts is None else int(np.prod(self.counts, dtype=np.int64))

    @property
    def size(self) -> int:
        """Number of elements of the leaf."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def group_size(self) -> int:
        """Number of elements in each cell of the grid."""
        return self.size // max(self.groups, 1)
