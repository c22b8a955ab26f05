"""Activation maximisation: the image that a filter responds to most."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.interpretation.units import Maps, Unit, maps_of

_LEAK = 0.01


@dataclasses.dataclass(frozen=True)
class Maximised:
    """Images that maximise a unit's activation, the best first.

    Attributes:
        images: [starts, *shape], or [units, starts, *shape] for several units.
        activations: [starts] or [units, starts], the mean of the unit's map on each.
    """

    images: jax.Array
    activations: jax.Array


def activation_maximisation(
    fn: Callable[..., Any],
    params: Any,
    unit: Unit | None,
    shape: tuple[int, ...],
    *,
    key: jax.Array,
    starts: int = 4,
    steps: int = 128,
    rate: float = 0.2,
    l2: float = 0.2,
    tv: float = 0.2,
    jitter: int = 2,
    bounds: tuple[Any, Any] | None = None,
    axes: tuple[int, int] = (1, 2),
    activated: bool = False,
) -> Maximised:
    """The images on which the mean a(x) of a unit's map is largest, by gradient ascent.

    From noise of standard deviation 1, with η falling from `rate` to 0 in a straight line,

        x ← x + η · (g / rms(g) − l2 · x − tv · ∇TV(x)),   g = ∇a(x),

    where rms(g) is the root of the mean square of g, so that one set of penalties serves layers of
    any scale, and TV(x) = Σ √(|∂x|² + ε) is the total variation. The image is shifted at random
    before each gradient and back behind it. With `activated`, the ReLU that follows passes 1 % of
    what is below 0 in g, so that a start which does not reach it still climbs. All starts, and all
    units, are one compiled step.

    Args:
        fn: `fn(params, x)`, in evaluation mode; or a Flax NNX module or an Equinox module.
        params: its arrays; None for a module's own.
        unit: as for `guided_gradients`; several indices give an axis for them in front. None: the
            map is what `fn` returns.
        shape: of one image as the network takes it, an axis of 1 for the batch included where it
            has one: (1, 28, 28, 1).
        key: of starts and shifts; the same key gives the same images.
        starts: images that are started from, for each unit.
        steps: of the ascent.
        rate: η at the first step, in units of the input.
        l2: weight of ‖x‖²/2; the larger, the closer to 0 the image stays.
        tv: weight of the total variation; the larger, the smoother the image.
        jitter: pixels, the largest shift along each of `axes`.
        bounds: (lowest, highest) value of the input, numbers or arrays that broadcast against it;
            images are kept within.
        axes: rows and columns of an image; (1, 2) for [1, H, W, C] and for [C, H, W].
        activated: maximise behind the ReLU that follows, across a normalisation. Before it, the
            mean counts what a filter answers to against what it is silenced by: that of a first
            convolution is linear and asks for an image of one colour, and that of a filter with
            mostly negative weights for an empty one.

    Raises:
        TypeError: a unit that is none, or without one a function that does not return one array.
        ValueError: settings out of range; a leaf or unit that is not there, a leaf that makes no
            channels, a shape that the network cannot take; `activated` where no ReLU follows.

    References:
        D. Erhan, Y. Bengio, A. Courville and P. Vincent, "Visualizing Higher-Layer Features of a
        Deep Network", 2009; A. Mahendran and A. Vedaldi, "Understanding Deep Image Representations
        by Inverting Them", CVPR 2015, for total variation and jitter.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dessilbi_jax.interpretation import activation_maximisation
        >>> params = {"a": jnp.array([[1.0, -2.0], [0.0, 2.0]])}
        >>> found = activation_maximisation(
        ...     lambda p, x: x @ p["a"], params, ("a", 1), (1, 2), key=jax.random.key(0), l2=1.0,
        ...     tv=0.0, jitter=0)
        >>> found.images.shape, jnp.round(found.images[0], 2).tolist()
        ((4, 1, 2), [[-1.0, 1.0]])
    """
    shape = tuple(shape)
    _check(shape, starts, steps, rate, l2, tv, jitter, axes)
    like = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    maps = maps_of(fn, params, like, unit, activated)
    low, high = (None, None) if bounds is None else (jnp.asarray(b, like.dtype) for b in bounds)
    ascend, activation = _ascent(maps, shape, (l2, tv), jitter, axes, (low, high))
    start, shifts = jax.random.split(key)
    units = len(maps.index)
    images = jax.random.normal(start, (units, starts, *shape), like.dtype)
    images = images if bounds is None else jnp.clip(images, low, high)
    keys = jax.random.split(shifts, steps)
    for i in range(steps):  # not a loop inside XLA, in which convolutions are slow on a CPU
        images = ascend(maps.traced.arrays, images, keys[i], rate * (1 - i / steps))
    reached = np.asarray(activation(maps.traced.arrays, images))
    order = np.argsort(-reached, axis=1, kind="stable")
    best = jnp.asarray(np.take_along_axis(reached, order, axis=1))
    images = images[np.arange(units)[:, None], order]
    return Maximised(images[0], best[0]) if maps.single else Maximised(images, best)


def _check(
    shape: tuple[int, ...], starts: int, steps: int, rate: float, l2: float, tv: float,
    jitter: int, axes: tuple[int, int],
) -> None:  # fmt: skip
    for name, count, least in (("starts", starts, 1), ("steps", steps, 1), ("jitter", jitter, 0)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")
    for name, value in (("rate", rate), ("l2", l2), ("tv", tv)):
        if not (np.isfinite(value) and (value > 0 or (value == 0 and name != "rate"))):
            above = "above 0" if name == "rate" else "of at least 0"
            raise ValueError(f"{name} must be a finite number {above}, got {value!r}")
    if (tv or jitter) and not all(-len(shape) <= axis < len(shape) for axis in axes):
        raise ValueError(
            f"axes {axes} are to be the rows and columns of an image of shape {shape}: it has "
            f"{len(shape)} axes. Give others, or tv=0 and jitter=0"
        )


def _ascent(
    maps: Maps, shape: tuple[int, ...], penalties: tuple[float, float], jitter: int,
    axes: tuple[int, int], bounds: tuple[Any, Any],
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:  # fmt: skip
    """One compiled step for [units, starts] images, and their activations."""
    l2, tv = penalties

    leaking = maps.leaking(_LEAK)

    def mean(arrays: Any, x: jax.Array, unit: jax.Array) -> jax.Array:
        return maps.of(arrays, x)[unit].mean()

    def climbed(arrays: Any, x: jax.Array, unit: jax.Array) -> jax.Array:
        return maps.of(arrays, x, leaking)[unit].mean()

    def step(arrays: Any, x: jax.Array, unit: jax.Array, key: jax.Array, eta: Any) -> jax.Array:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1) if jitter else None
        seen = x if shift is None else jnp.roll(x, shift, axes)
        g = jax.grad(climbed, 1)(arrays, seen, unit)
        g = g if shift is None else jnp.roll(g, -shift, axes)
        g = g / (jnp.sqrt(jnp.mean(g**2)) + 1e-12)
        g = g - l2 * x - (tv * jax.grad(_variation)(x, axes) if tv else 0.0)
        x = x + eta * g
        return x if bounds[0] is None else jnp.clip(x, *bounds)

    @jax.jit
    def ascend(arrays: Any, images: jax.Array, key: jax.Array, eta: Any) -> jax.Array:
        units, starts = images.shape[:2]
        keys = jax.random.split(key, (units, starts))
        each = jax.vmap(step, (None, 0, None, 0, None))
        index = jnp.arange(units)
        return jax.vmap(each, (None, 0, 0, 0, None))(arrays, images, index, keys, eta)

    @jax.jit
    def activation(arrays: Any, images: jax.Array) -> jax.Array:
        each = jax.vmap(mean, (None, 0, None))
        return jax.vmap(each, (None, 0, 0))(arrays, images, jnp.arange(images.shape[0]))

    return ascend, activation


def _variation(x: jax.Array, axes: tuple[int, int], eps: float = 1e-3) -> jax.Array:
    """The total variation, with ε so that it has a gradient where the image is flat."""
    down, right = (jnp.roll(x, -1, axis) - x for axis in axes)
    # The last row and column have no neighbour behind them.
    for axis in axes:
        n = x.shape[axis]
        last = jnp.arange(n).reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])
        if axis == axes[0]:
            down = jnp.where(last == n - 1, 0.0, down)
        else:
            right = jnp.where(last == n - 1, 0.0, right)
    return jnp.sqrt(down**2 + right**2 + eps).sum()
