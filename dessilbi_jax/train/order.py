"""The order in which a network uses its parameters, from its input to its output."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dessilbi_jax.train.step import Network, Tree
from dessilbi_jax.tree import leaf_paths


def used_in_order(
    network: Network,
    params: Tree,
    stats: Tree,
    input_shape: tuple[int, ...],
    dtype: Any = jnp.uint8,
) -> list[str]:
    """Returns the paths of all leaves of the parameters, first used first; unused ones come last.

    The network is traced, not run.

    Args:
        network: its functions.
        params: its parameters, or their shapes.
        stats: its batch statistics, or their shapes.
        input_shape: of one input: an image, or a window of tokens.
        dtype: of an input, as the training data has it.

    Example:
        >>> from dessilbi_jax import models
        >>> from dessilbi_jax.train.step import split_network
        >>> model = models.build("lenet300", input_shape=(8, 8, 1), widths=(4,))
        >>> used_in_order(*split_network(model, [0.0], [1.0]), (8, 8, 1))
        ['fc1/kernel', 'fc1/bias', 'fc2/kernel', 'fc2/bias']
    """
    example = jax.ShapeDtypeStruct((1, *input_shape), dtype)
    shapes = jax.eval_shape(lambda tree: tree, (params, stats))

    def forward(params: Tree, stats: Tree, inputs: jax.Array) -> jax.Array:
        return network.evaluate(params, stats, network.normalise(inputs))

    closed = jax.make_jaxpr(forward)(*shapes, example)
    paths = [path for path, _ in leaf_paths(params)]
    named = dict(zip(closed.jaxpr.invars, paths, strict=False))
    seen = dict.fromkeys(_uses(closed.jaxpr, named))
    return [*seen, *(path for path in paths if path not in seen)]


def _uses(jaxpr: Any, named: dict[Any, str]) -> Iterator[str]:
    """The names of inputs in the order in which a program uses them, within its parts too."""
    for equation in jaxpr.eqns:
        given = [v for v in equation.invars if not hasattr(v, "val")]
        used = [named[v] for v in given if v in named]
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner: Any = getattr(part, "jaxpr", part)
            if len(used) > 1 and hasattr(inner, "eqns"):
                pairs = zip(reversed(inner.invars), reversed(equation.invars), strict=False)
                yield from _uses(
                    inner,
                    {v: named[o] for v, o in pairs if not hasattr(o, "val") and o in named},
                )
        yield from used
