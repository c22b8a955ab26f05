"""Paths and lookups of the leaves of pytrees."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def leaf_paths(params: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their '/'-joined paths.

    The last key of wrapped leaves (`value` of NNX variables and of Linen's boxes) is left out.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.tree import leaf_paths
        >>> [path for path, _ in leaf_paths({"fc1": {"kernel": jnp.ones(2)}})]
        ['fc1/kernel']
    """
    out = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":
            keys = keys[:-1]
        out.append((jax.tree_util.keystr(keys, simple=True, separator="/"), leaf))
    return out


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf holds floating point or complex numbers (bfloat16 too)."""
    return jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def find_leaf(known: Iterable[str], path: str) -> str:
    """The known path that is `path`, or the only one that ends so, or that it ends with.

    Raises:
        ValueError: there is none, or more than one.
    """
    if path in known:
        return path
    ends = [k for k in known if k.endswith(f"/{path}") or path.endswith(f"/{k}")]
    if len(ends) != 1:
        what = f"fits {', '.join(sorted(ends))}" if ends else "is not a leaf of this network"
        raise ValueError(f"{path} {what}; its leaves are: {', '.join(known)}")
    return ends[0]


def to_host(tree: Any) -> Any:
    """All of each array as NumPy, also where parts of it lie with other processes.

    In a run of several processes all of them have to call it, with the same arrays.
    """

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return jax.device_get(x)  # which leaves names and numbers alone

    return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(fetch, tree)
