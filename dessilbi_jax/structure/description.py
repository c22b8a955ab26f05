"""What a structure makes of every leaf, as a printable table."""

import dataclasses
from typing import Any

from dessilbi_jax.structure.joint import count_groups
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.named import filters
from dessilbi_jax.structure.rules import StructureLike, resolve
from dessilbi_jax.text import columns


@dataclasses.dataclass(frozen=True)
class Description:
    """What a structure makes of a parameter tree; print it to read it.

    Attributes:
        rows: the groups of every leaf, in the order of its leaves.
        lam: λ of the leaves whose rule has none, for printing.
    """

    rows: tuple[LeafGroups, ...]
    lam: float | str | None = None

    def __str__(self) -> str:
        table = [("leaf", "shape", "groups of", "groups", "of size", "λ")]
        for leaf in self.rows:
            shape = "×".join(map(str, leaf.shape)) or "scalar"
            if leaf.counts is None:
                table.append((leaf.path, shape, f"dense: {leaf.reason}", "", "", ""))
                continue
            lam = self.lam if leaf.lam is None else leaf.lam
            shown = "" if lam is None else f"{lam:g}" if isinstance(lam, int | float) else str(lam)
            table.append(
                (leaf.path, shape, leaf.spec, f"{leaf.groups:,}", f"{leaf.group_size:,}", shown)
            )
        total = sum(leaf.size for leaf in self.rows)
        inside = sum(leaf.size for leaf in self.rows if leaf.counts is not None)
        groups = count_groups(self.rows)
        return (
            f"{columns(table, right={3, 4}, rule=True)}\n"
            f"{inside:,} of {total:,} parameters in {groups:,} groups"
        )


def describe(
    params: Any, structure: StructureLike = filters, lam: float | str | None = None
) -> Description:
    """What `structure` makes of every leaf: path, shape, groups and λ, as a printable table.

    Args:
        params: the parameters, or their shapes (`jax.ShapeDtypeStruct`).
        structure: as for `dl.dessilbi`.
        lam: λ of the leaves whose rule has none, for printing.

    Raises:
        ValueError: as `dl.dessilbi` would: rules that match nothing, nothing structured.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"fc": {"bias": jnp.ones(8), "kernel": jnp.ones((4, 8))}}
        >>> print(dl.describe(params, dl.neurons, lam=0.1))
        leaf       shape  groups of                             groups  of size  λ
        ----------------------------------------------------------------------------
        fc/bias    8      dense: not named kernel, w or weight
        fc/kernel  4×8    neurons                                    8        4  0.1
        32 of 40 parameters in 8 groups
    """
    return Description(tuple(resolve(structure, params)), lam)
