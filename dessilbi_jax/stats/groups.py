"""Which elements of Γ enter together: ℓ1, groups by number, rows, columns, blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.prox import Penalty, group_norms, group_sum, joint_sums
from dessilbi_jax.structure.leaf import LeafGroups


@dataclasses.dataclass(frozen=True)
class Groups:
    """Ω(Γ) = Σ_g ‖Γ_g‖₂ over a partition of an array: ℓ1 where each element is its own group.

    Attributes:
        shape: shape of Γ.
        counts: number of cells along each axis, a divisor of the axis; None: each element is one.
            (1, p) has one cell for each column of a matrix, (n, 1) for each row.
        joint: a number for every cell, row-major; cells of equal numbers are one group.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.stats.groups import Groups
        >>> Groups((3,), joint=(0, 0, 1)).norms(jnp.array([3.0, 4.0, 2.0])).tolist()
        [5.0, 5.0, 2.0]
        >>> Groups((2, 2), (2, 1)).prox(jnp.array([[3.0, 4.0], [0.5, 0.5]]))
        Array([[2.4, 3.2],
               [0. , 0. ]], dtype=float32)
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...] | None = None
    joint: tuple[int, ...] | None = None

    @property
    def leaf(self) -> LeafGroups:
        """The groups as the optimizer knows them."""
        return LeafGroups("gamma", self.shape, self.counts or self.shape, joint=self.joint)

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of what there is one of a cell."""
        return self.counts or self.shape

    @property
    def firsts(self) -> np.ndarray:
        """The first cell of each group, row-major, groups in the order of their numbers."""
        numbers = np.arange(math.prod(self.cells)) if self.joint is None else self.joint
        return np.unique(numbers, return_index=True)[1]

    def once(self) -> np.ndarray:
        """Which cells are the first of their group, shape `cells`."""
        out = np.zeros(math.prod(self.cells), bool)
        out[self.firsts] = True
        return out.reshape(self.cells)

    def shrunk_on_host(self, v: np.ndarray) -> np.ndarray:
        """`prox` by NumPy, for single questions to a path: they would compile for each shape."""
        if self.joint is None and self.cells == self.shape:
            return v - np.clip(v, -1, 1)
        cells = np.asarray(self.joint or range(math.prod(self.cells))).reshape(self.cells)
        for axis, (n, c) in enumerate(zip(self.shape, self.cells, strict=True)):
            cells = np.repeat(cells, n // c, axis=axis)
        norm = np.sqrt(np.bincount(cells.reshape(-1), (v**2).reshape(-1)))[cells]
        return np.where(norm > 1, v * (1 - 1 / np.where(norm > 1, norm, 2)), 0).astype(v.dtype)

    def norms(self, v: jax.Array) -> jax.Array:
        """‖V_g‖ of the group of every cell, shape `cells`."""
        return group_norms([self.cells], [self.joint], [v])[0]

    def prox(self, v: jax.Array) -> jax.Array:
        """argmin_Γ ‖Γ − V‖²/2 + Ω(Γ)."""
        return Penalty().prox(v, self.leaf, 1.0)

    def dots(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a_g · b_g of the group of every cell, shape `cells`."""
        return joint_sums([self.joint], [group_sum(a * b, self.cells)])[0]

    def spread(self, cells: jax.Array) -> jax.Array:
        """One number a cell, in the shape of Γ."""
        for axis, (n, c) in enumerate(zip(self.shape, self.cells, strict=True)):
            cells = jnp.repeat(cells, n // c, axis=axis)
        return cells

    def crossing(self, v: jax.Array, d: jax.Array) -> jax.Array:
        """The s ≥ 0 at which ‖V_g + s·d_g‖ = 1, for groups that go from inside to outside.

        s = [−V·d + √((V·d)² − ‖d‖²(‖V‖² − 1))] / ‖d‖², which is (sgn d − V)/d of one element.
        """
        vd, dd, vv = self.dots(v, d), self.dots(d, d), self.dots(v, v)
        root = jnp.sqrt(jnp.maximum(vd**2 + dd * jnp.maximum(1 - vv, 0), 0))
        return jnp.maximum((root - vd) / jnp.where(dd > 0, dd, 1), 0)
