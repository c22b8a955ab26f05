"""The convolutions of the networks against XLA's own, and where each form is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from dessilbi_jax import models
from dessilbi_jax.models import _common, _conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def arrays(size, kernel, dtype=jnp.float32, groups=1):
    """Images and a kernel with numbers of about unit size."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *size, groups * kernel[2]), np.float32)
    scale = np.prod(kernel[:3]) ** -0.5
    return jnp.asarray(x, dtype), jnp.asarray(scale * rng.standard_normal(kernel), dtype)


def both(x, kernel, strides, padding, **kw):
    """Output and gradients of a sum of squares, by XLA and by ours."""
    out = []
    for conv in (lax.conv_general_dilated, _conv.convolve):
        apply = functools.partial(
            conv, window_strides=strides, padding=padding, dimension_numbers=LAYOUT, **kw
        )

        def loss(x, kernel, apply=apply):
            y = apply(x, kernel)
            return (y.astype(jnp.float32) ** 2).sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
        out.append((y, *grads))
    return out


def close(first, second, limit):
    for a, b in zip(first, second, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= limit * np.abs(a).max()


# Rows, columns; kernel; strides; padding: each takes the products.
STRIDED = [
    ((8, 8), (3, 3, 8, 5), (2, 2), "SAME"),
    ((9, 7), (3, 3, 16, 8), (2, 2), "VALID"),
    ((7, 10), (3, 3, 9, 4), (2, 2), [(1, 1), (1, 1)]),
    ((11, 8), (3, 3, 8, 4), (3, 2), [(0, 2), (4, 1)]),
    ((9, 8), (1, 1, 12, 6), (2, 2), "SAME"),
    ((9, 8), (2, 3, 8, 3), (1, 2), "VALID"),
    ((10, 10), (1, 5, 8, 1), (2, 1), "SAME"),
    ((4, 4), (2, 2, 8, 4), (4, 4), "VALID"),
]


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), STRIDED)
def test_values_and_gradients_are_xlas(size, kernel, strides, padding):
    x, k = arrays(size, kernel)
    apply = functools.partial(
        _conv.convolve, window_strides=strides, padding=padding, dimension_numbers=LAYOUT
    )
    assert "platform_index" in str(jax.make_jaxpr(jax.grad(lambda k: apply(x, k).sum()))(k))
    close(*both(x, k, strides, padding), 2e-6)


LEFT_TO_XLA = [
    ((8, 8), (3, 3, 8, 5), (1, 1), "SAME", {}),
    ((8, 8), (3, 3, 3, 5), (2, 2), "SAME", {}),
    ((12, 12), (5, 5, 8, 5), (2, 2), "SAME", {}),
    ((8, 8), (3, 3, 8, 6), (2, 2), "SAME", {"feature_group_count": 2}),
    ((8, 8), (3, 3, 8, 6), (2, 2), "SAME", {"rhs_dilation": (2, 2)}),
    ((8, 8), (3, 3, 8, 6), (2, 2), [(1, 1), (1, 1)], {"lhs_dilation": (2, 2)}),
    ((8, 8), (3, 3, 8, 6), (2, 2), [(-1, 1), (0, 0)], {}),
    ((8, 8), (3, 3, 8, 6), (2, 2), "SAME", {"precision": "highest"}),
]


@pytest.mark.parametrize(("size", "kernel", "strides", "padding", "kw"), LEFT_TO_XLA)
def test_all_else_is_left_to_xla(size, kernel, strides, padding, kw):
    x, k = arrays(size, kernel, groups=kw.get("feature_group_count", 1))

    def program(conv):
        def loss(x, k):
            return conv(x, k, strides, padding, dimension_numbers=LAYOUT, **kw).sum()

        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, k))

    assert program(_conv.convolve) == program(lax.conv_general_dilated)


def test_half_precision_and_other_layouts_are_left_to_xla():
    x, k = arrays((8, 8), (3, 3, 8, 6), jnp.bfloat16)
    close(*both(x, k, (2, 2), "SAME"), 0)
    x, k = arrays((8, 8), (3, 3, 8, 6))
    ours, xla = (
        conv(x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (2, 2), "SAME")
        for conv in (_conv.convolve, lax.conv_general_dilated)
    )
    close([xla], [ours], 0)


def loss_of(x):
    def loss(k):
        y = _conv.convolve(x, k, (2, 2), "SAME", dimension_numbers=LAYOUT)
        return jnp.sin(y).sum()

    return loss


def test_other_platforms_have_xlas_convolutions():
    x, k = arrays((8, 8), (3, 3, 8, 6))
    traced = jax.jit(jax.grad(loss_of(x))).trace(k)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 2
        assert "dot_general" not in text
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert text.count("stablehlo.dot_general") == 9


def test_curvature_remat_and_vmap():
    x, k = arrays((6, 6), (3, 3, 8, 2))

    def by_xla(k):
        return jnp.sin(
            lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=LAYOUT)
        ).sum()

    def all_of(loss):
        grad = jax.grad(loss)
        ks = jnp.stack([k, 2 * k])
        return jax.jvp(grad, (k,), (k,))[1], jax.grad(jax.checkpoint(loss))(k), jax.vmap(grad)(ks)

    close(jax.jit(lambda: all_of(by_xla))(), jax.jit(lambda: all_of(loss_of(x)))(), 5e-6)


def test_a_batch_divided_among_devices():
    x, k = arrays((6, 6), (3, 3, 8, 4))
    x = jnp.concatenate([x] * 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    grad = jax.jit(lambda x, k: jax.grad(loss_of(x))(k))
    close([grad(x, k)], [grad(sharded, k)], 2e-6)


def test_the_networks_use_it():
    model = nnx.eval_shape(lambda: models.build("resnet20", widths=(8, 8, 8)))
    layers = [m for _, m in nnx.iter_graph(model) if isinstance(m, nnx.Conv)]
    assert len(layers) == 21
    assert all(layer.conv_general_dilated is _conv.convolve for layer in layers)


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 3), (1, 4)])
def test_pooling_shares_the_gradient_as_maxima_do(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (4, *size, 3)), jnp.float32)  # many are equal
    dy = jnp.asarray(rng.standard_normal((4, size[0] // 2, size[1] // 2, 3)), jnp.float32)

    def by_maxima(x):
        parts = [
            x[:, i : size[0] // 2 * 2 : 2, j : size[1] // 2 * 2 : 2] for i, j in np.ndindex(2, 2)
        ]
        return jnp.maximum(jnp.maximum(*parts[:2]), jnp.maximum(*parts[2:]))

    y, gradient = jax.vjp(_common.max_pool, x)
    np.testing.assert_array_equal(y, nnx.max_pool(x, (2, 2), (2, 2)))
    wanted = jax.vjp(by_maxima, x)[1](dy)[0]
    np.testing.assert_array_equal(gradient(dy)[0], wanted)


def test_pooling_keeps_half_precision():
    x = jnp.arange(16, dtype=jnp.bfloat16).reshape(1, 4, 4, 1)
    assert jax.grad(lambda x: _common.max_pool(x).sum())(x).dtype == jnp.bfloat16
