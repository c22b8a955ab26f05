"""Paths and lookups of the leaves of pytrees."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def leaf_paths(params: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree with their '/'-joined paths.

    The last key of wrapped leaves (`value` of NNX variables and of Linen's boxes) is left out.

    Args:
        params: the tree.
        is_leaf: what else is a leaf, as for `jax.tree.map`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.tree import leaf_paths
        >>> [path for path, _ in leaf_paths({"fc1": {"kernel": jnp.ones(2)}})]
        ['fc1/kernel']
    """
    out = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)[0]:
        if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":
            keys = keys[:-1]
        out.append((jax.tree_util.keystr(keys, simple=True, separator="/"), leaf))
    return out


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf, be it an array, a `jax.ShapeDtypeStruct` or a Python number.

    Example:
        >>> from dessilbi_jax.tree import shape_of
        >>> shape_of(1.5)
        ()
    """
    return tuple(np.shape(leaf))


def dtype_of(leaf: Any) -> Any:
    """The dtype of a leaf; of a Python number the one JAX takes it for."""
    return leaf.dtype if hasattr(leaf, "dtype") else jax.numpy.result_type(leaf)


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf holds floating point or complex numbers (bfloat16 too)."""
    return jax.numpy.issubdtype(dtype_of(leaf), jax.numpy.inexact)


def words(path: str) -> frozenset[str]:
    """The words that the components of a path are made of, in small letters.

    A component is split where a capital follows, at digits, and at whatever else is no letter.
    What the library itself looks for in names, it looks for among these, so that "subnet" is no
    "bn"; patterns that users give are regular expressions on the whole path.

    Example:
        >>> from dessilbi_jax.tree import words
        >>> sorted(words("BNLayer_0/tokenEmbedding/bn1"))
        ['bn', 'embedding', 'layer', 'token']
    """
    return frozenset(word.lower() for word in _WORD.findall(path))


def is_function(x: Any) -> bool:
    """Whether something is to be called, as Optax tells it: by its leaves.

    A function is its own leaf. A module of Equinox can be called too, but what it is made of
    cannot: it is a tree.

    Example:
        >>> from dessilbi_jax.tree import is_function
        >>> is_function(lambda params: params), is_function({"kernel": True})
        (True, False)
    """
    leaves = jax.tree.leaves(x)
    return bool(leaves) and all(map(callable, leaves))


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
