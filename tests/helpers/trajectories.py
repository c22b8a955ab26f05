"""Small deterministic problems that the tests of the core share."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.tree import leaf_paths

# Runs take microseconds, their compilation seconds, most of which are for optimisation.
QUICK = {"xla_backend_optimization_level": 0}


def network(dtype: Any = jnp.float32, out: int = 16) -> dict[str, Any]:
    """A convolution and a dense layer with biases: two structured leaves and two dense ones."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"conv": {"kernel": (3, 3, 8, 16)}, "fc": {"kernel": (16, out), "bias": (out,)}}
    shapes["conv"]["bias"] = (16,)
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    values = [jax.random.normal(k, s, dtype) for k, s in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(treedef, values)
    # Filters with norms from 0.2 to 2, so that they enter one after the other.
    params["conv"]["kernel"] *= jnp.linspace(0.2 / 72**0.5, 2 / 72**0.5, 16).astype(dtype)
    return params


def gradient(params: Any) -> Any:
    """Gradient of a quadratic whose minimum has group norms of very different sizes."""

    def leaf(w: jax.Array) -> jax.Array:
        size = jnp.linspace(0.0, 2.0, w.shape[-1] if w.ndim else 1).astype(w.dtype)
        if w.ndim == 4:
            size = size / (w.size / w.shape[-1]) ** 0.5
        target = size * jnp.cos(jnp.arange(w.size)).reshape(w.shape).astype(w.dtype)
        return (w - target.reshape(w.shape)) / 2

    return jax.tree.map(leaf, params)


@dataclasses.dataclass(frozen=True)
class Channels:
    """A structure whose groups span leaves: cell i of every leaf is a member of group i.

    `axes` holds (pattern, axis) pairs: which leaves, and the axis that their cells lie along.
    """

    axes: tuple[tuple[str, int], ...]

    def resolve(self, params: Any) -> list[LeafGroups]:
        return [self._leaf(path, tuple(leaf.shape)) for path, leaf in leaf_paths(params)]

    def _leaf(self, path: str, shape: tuple[int, ...]) -> LeafGroups:
        for pattern, axis in self.axes:
            if re.search(pattern, path):
                n = shape[axis]
                counts = tuple(n if i == axis % len(shape) else 1 for i in range(len(shape)))
                return LeafGroups(path, shape, counts, "channels", joint=tuple(range(n)))
        return LeafGroups(path, shape, None, reason="no channels")


# Filters of the convolution with the rows of the dense layer that read them, in `network`.
JOINED = Channels((("conv/kernel", -1), ("kernel", 0)))


class Trajectory(NamedTuple):
    """All steps of a run, stacked along the first axis, and where it ended."""

    params: Any
    gamma: Any
    support: Any
    v: Any
    lam: jax.Array
    last_params: Any
    last_state: Any


def runner(tx: optax.GradientTransformation, steps: int) -> Any:
    """A compiled function from (parameters, state) to the `Trajectory` of `steps` updates."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        inner = dl.get_state(state)
        seen = (params, dl.gamma(state), dl.support(state), inner.v, inner.lam)
        return (params, state), seen

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params: Any, state: Any) -> Any:
        (last_params, last_state), seen = jax.lax.scan(step, (params, state), length=steps)
        return Trajectory(*seen, last_params, last_state)

    return run


def trajectory(tx: optax.GradientTransformation, params: Any, steps: int) -> Trajectory:
    """Runs `steps` updates from a fresh state."""
    return runner(tx, steps)(params, tx.init(params))


def assert_trees_close(got: Any, expected: Any, rtol: float = 1e-6) -> None:
    """Leaves equal to `rtol` of the largest element of each leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    named = jax.tree_util.tree_flatten_with_path(got)[0]
    for (path, a), b in zip(named, jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        scale = 0 if b.dtype == bool else np.max(np.abs(b[np.isfinite(b)]), initial=0)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=rtol * scale, err_msg=jax.tree_util.keystr(path)
        )


def opened(tree: Any) -> float:
    """Share of True in a tree of bool arrays."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(int(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
