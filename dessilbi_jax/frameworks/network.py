"""A network of whatever framework as a pure function of a tree of arrays."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dessilbi_jax.frameworks.sizes import resize


@dataclasses.dataclass(frozen=True)
class Network:
    """A network taken apart.

    Attributes:
        fn: `fn(tree, *inputs)`, in evaluation mode.
        tree: its arrays.
        put: builds the network anew around other arrays, also smaller ones.
    """

    fn: Callable[..., Any]
    tree: Any
    put: Callable[[Any], Any]


def is_module(model: Any) -> bool:
    """Whether this is a network by itself: a Flax NNX module, or a callable pytree (Equinox)."""
    if _is_nnx(model):
        return True
    return callable(model) and any(_is_array(x) for x in jax.tree.leaves(model))


def as_network(model: Any, fn: Callable[..., Any] | None = None) -> Network:
    """Takes a network apart.

    Args:
        model: a Flax NNX module, a callable pytree such as an Equinox module, or a tree of
            arrays.
        fn: `fn(model, *inputs)`; may be left out where the model can be called.

    Raises:
        TypeError: a tree that cannot be called, and no function.
    """
    if fn is None and not is_module(model):
        raise TypeError(
            f"a {type(model).__name__} cannot be called; give the network's function as fn=, "
            "which takes the parameters and the inputs"
        )
    call = fn or _call
    if _is_nnx(model):
        return _from_nnx(model, call)
    leaves, treedef = jax.tree.flatten(model)
    # What is no array, such as an activation function kept as a leaf, stays where it is.
    tree = jax.tree.unflatten(treedef, [x if _is_array(x) else None for x in leaves])

    def put(arrays: Any) -> Any:
        found = iter(jax.tree.leaves(arrays))
        whole = jax.tree.unflatten(treedef, [next(found) if _is_array(x) else x for x in leaves])
        for layer in _layers(whole, set()):
            resize(layer)
        return whole

    return Network(lambda arrays, *inputs: call(_filled(model, arrays), *inputs), tree, put)


def _filled(model: Any, arrays: Any) -> Any:
    """The model with these arrays in the place of its own."""
    found = iter(jax.tree.leaves(arrays))
    return jax.tree.map(lambda x: next(found) if _is_array(x) else x, model)


def _call(model: Any, *inputs: Any) -> Any:
    return model(*inputs)


def _from_nnx(model: Any, call: Callable[..., Any]) -> Network:
    nnx = sys.modules["flax.nnx"]  # the core does not import it; whoever made the model has
    evaluating = nnx.clone(model)
    evaluating.eval()
    graph, state = nnx.split(evaluating)

    def put(arrays: Any) -> Any:
        smaller = nnx.clone(model)
        nnx.update(smaller, arrays)
        for _, layer in nnx.iter_graph(smaller):
            if isinstance(layer, nnx.Module):
                resize(layer)
        return smaller

    return Network(
        lambda arrays, *inputs: call(nnx.merge(graph, arrays), *inputs),
        nnx.to_pure_dict(state),
        put,
    )


def _is_nnx(model: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _layers(node: Any, seen: set[int]) -> list[Any]:
    """The objects inside a tree, wherever they are."""
    if id(node) in seen or _is_array(node):
        return []
    seen.add(id(node))
    if isinstance(node, dict):
        parts = list(node.values())
    elif isinstance(node, list | tuple):
        parts = list(node)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        parts = list(vars(node).values())
    else:
        return []
    inner = [layer for part in parts for layer in _layers(part, seen)]
    return [node, *inner] if dataclasses.is_dataclass(node) else inner
