"""Groups that span leaves: sums over their members, and what counts them once.

The cells of a leaf's grid (`structure`) can be members of larger, *joint* groups: every cell has a
number, and cells of the same number, of one leaf or of several, are one group. The numbers are
known when a step is traced, so a sum over members is a few gathers of fixed shape: unlike a
scatter, it adds in the same order on every backend.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from dessilbi_jax.structure.joint import Numbers, renumbered


def joint_sums(joint: Sequence[Numbers], cells: Sequence[jax.Array]) -> list[jax.Array]:
    """For every cell the sum over all cells with its number; leaves without numbers unchanged.

    Args:
        joint: the numbers of each leaf's cells, or None.
        cells: one number a cell, an array for each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.prox.joint import joint_sums
        >>> a, b = joint_sums([(0, 1), (1, 1)], [jnp.array([1.0, 2.0]), jnp.array([[3.0], [4.0]])])
        >>> a.tolist(), b.tolist()
        ([1.0, 9.0], [[9.0], [9.0]])
    """
    out = list(cells)
    tied = [i for i, numbers in enumerate(joint) if numbers is not None]
    if not tied:
        return out
    dtype = jnp.result_type(*(out[i].dtype for i in tied))
    group_of = renumbered([joint[i] for i in tied])
    flat = jnp.concatenate([gathered(out[i]).astype(dtype).reshape(-1) for i in tied])
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
        own = gathered(_take(whole, numbers).reshape(out[i].shape).astype(out[i].dtype))
        out[i] = placed_like(own, out[i])
    return out


def _take(x: jax.Array, index: np.ndarray) -> jax.Array:
    return x.at[index.astype(np.int32)].get(mode="promise_in_bounds")


def gathered(x: jax.Array) -> jax.Array:
    """The whole of a few numbers on every device.

    Explicit sharding wants that said. The compiler's own sharding would spread what one member
    has to all others, which may be meant to lie elsewhere.
    """
    where = jax.typeof(x).sharding
    if any(where.spec):
        whole: jax.Array = jax.sharding.reshard(x, jax.sharding.NamedSharding(where.mesh, jax.P()))
        return whole
    by_compiler = AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types
    if by_compiler and isinstance(x, jax.core.Tracer):
        constrained: jax.Array = jax.lax.with_sharding_constraint(x, jax.P())
        return constrained
    return x


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """An array laid on the devices as another one of its shape, where that was said explicitly."""
    where = jax.typeof(like).sharding
    return jax.sharding.reshard(x, where) if any(where.spec) else x
