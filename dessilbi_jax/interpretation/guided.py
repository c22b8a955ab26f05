"""Guided gradients: what in an image a filter responds to."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dessilbi_jax.interpretation.units import Maps, Unit, maps_of

_AT_ONCE = 16  # units


def guided_gradients(
    fn: Callable[..., Any],
    params: Any,
    x: jax.Array,
    unit: Unit | None = None,
    *,
    activated: bool = False,
) -> jax.Array:
    """The gradient of the sum of a unit's map with respect to the input, by guided backpropagation.

    Where the network has y = max(x, 0), the gradient that is passed back is
    ∂x = ∂y where x > 0 and ∂y > 0, else 0; everything else has its own gradient. The network's code
    is not touched: its jaxpr is evaluated with this rule in place of that of max(x, 0), of
    `jax.nn.relu`, `relu6` and of clamps and choices that do the same, also inside loops, branches
    and calls. Leaky and smooth relatives (GELU, SiLU, ELU) keep their own gradients.

    Args:
        fn: `fn(params, x)`, in evaluation mode; or a Flax NNX module or an Equinox module.
        params: its arrays; None for a module's own.
        x: what the network is called with, of floating-point numbers; rows of a batch that do not
            see each other each have a gradient of their own.
        unit: (leaf path, output index); the leaf is a kernel, its map the output of the product or
            convolution that reads it, bias included, before the nonlinearity. With several indices
            the result has an axis for them in front. None: the map is what `fn` returns.
        activated: take the map behind the ReLU that follows, across a normalisation. For a first
            convolution this is what one wants: before the ReLU its map is linear, and the gradient
            the same for all images.

    Returns:
        An array like `x`, or [units, *x.shape].

    Warns:
        UserWarning: no ReLU lies between input and map, so that these are plain gradients.

    Raises:
        TypeError: an input that is not of floating-point numbers; a unit that is none; without a
            unit, a function that does not return one array.
        ValueError: a leaf or unit that is not there, a leaf that makes no channels, an input of
            another shape than the network takes; `activated` where no ReLU follows; a ReLU inside
            an operation that cannot be entered, such as `shard_map`.

    References:
        J. T. Springenberg, A. Dosovitskiy, T. Brox and M. Riedmiller, "Striving for Simplicity: The
        All Convolutional Net", ICLR 2015 (workshop).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dessilbi_jax.interpretation import guided_gradients
        >>> params = {"a": jnp.array([[1.0, -1.0], [1.0, 1.0]]), "b": jnp.array([[1.0], [-1.0]])}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> x = jnp.array([[1.0, 2.0]])
        >>> guided_gradients(net, params, x, ("b", 0)).tolist()  # plain: [[2.0, 0.0]]
        [[1.0, 1.0]]
    """
    maps = maps_of(fn, params, x, unit, activated)
    if not maps.has_relu:
        warnings.warn(
            f"no ReLU lies between the input and {maps.said}: guided gradients are plain gradients "
            "here",
            stacklevel=2,
        )
    found = compiled(maps)(maps.traced.arrays, x)
    return found[0] if maps.single else found


def compiled(maps: Maps) -> Callable[[Any, jax.Array], jax.Array]:
    """The guided gradients [units, *x.shape] of maps, as a function of other arrays and inputs.

    A few units at a time, so that a first layer of many fits into memory.
    """
    rule, units = maps.guided(), len(maps.index)
    at_once = min(units, _AT_ONCE)
    # The last ones overlap the ones before, so that all are as many.
    starts = [*range(0, units - at_once, at_once), units - at_once]

    @jax.jit
    def gradients(arrays: Any, x: jax.Array, start: jax.Array) -> jax.Array:
        sums, back = jax.vjp(lambda x: maps.of(arrays, x, rule).sum(axis=1), x)
        one = jnp.eye(units, dtype=sums.dtype)
        these = jax.lax.dynamic_slice_in_dim(one, start, at_once)
        found: jax.Array = jax.vmap(lambda g: back(g)[0])(these)
        return found

    def all_of(arrays: Any, x: jax.Array) -> jax.Array:
        parts = [gradients(arrays, x, start) for start in starts]
        new = [
            part[max(0, before + at_once - start) :]
            for before, start, part in zip([-at_once, *starts], starts, parts, strict=False)
        ]
        return jnp.concatenate(new)

    return all_of
