import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dessilbi_jax import models
from dessilbi_jax.models import _common

SMALL = {
    "lenet300": {"input_shape": (8, 8, 1), "widths": (12, 6)},
    "lenet5": {"input_shape": (16, 18, 2), "widths": (3, 4, 7)},
    "resnet-small": {"input_shape": (9, 8, 3), "widths": (4, 6)},
    "vgg-small": {"input_shape": (8, 10, 3), "widths": (4, 4, 6, 6)},
}
NAMES = tuple(SMALL)


def leaves(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def shapes(build):
    """Shapes of the parameters of the network that `build` makes, without computing them."""
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(build), nnx.Param))
    return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


def test_leaf_names_and_layouts():
    assert shapes(lambda: models.build("lenet300")) == {
        "fc1/kernel": (784, 300),
        "fc1/bias": (300,),
        "fc2/kernel": (300, 100),
        "fc2/bias": (100,),
        "fc3/kernel": (100, 10),
        "fc3/bias": (10,),
    }
    lenet5 = shapes(lambda: models.build("lenet5"))
    assert lenet5["conv1/kernel"] == (5, 5, 1, 20)
    assert lenet5["conv2/kernel"] == (5, 5, 20, 50)
    assert lenet5["fc1/kernel"] == (800, 500)
    for name, small in SMALL.items():
        for path, shape in shapes(functools.partial(models.build, name, **small)).items():
            kind = path.split("/")[-1]
            assert kind in ("kernel", "bias", "scale")
            assert (len(shape) >= 2) == (kind == "kernel"), path


@pytest.mark.parametrize("name", NAMES)
def test_he_initialisation(name):
    shape = (32, 32, 3) if name.endswith("-small") else (28, 28, 1)
    for path, leaf in leaves(models.build(name, input_shape=shape, seed=3)).items():
        if path.endswith("bias"):
            assert (leaf == 0).all(), path
        elif path.endswith("scale"):
            assert (leaf == 1).all(), path
        else:
            fan_in = np.prod(leaf.shape[:-1])
            z = leaf.astype(np.float64).ravel() * np.sqrt(fan_in / 2)
            # six standard errors of mean, variance and fourth moment of N(0, 1)
            error = 6 / np.sqrt(z.size)
            assert abs(z.mean()) < error, path
            assert abs(z.var() - 1) < np.sqrt(2) * error, path
            assert abs((z**4).mean() - 3) < np.sqrt(96) * error, path
            if z.size > 10_000:  # a truncated normal would stop at about 2.3
                assert abs(z).max() > 3, path


def test_seed_decides_the_parameters():
    one, same, other = (models.build("lenet300", seed=seed) for seed in (5, 5, 6))
    for path, leaf in leaves(one).items():
        np.testing.assert_array_equal(leaf, leaves(same)[path])
        if path.endswith("kernel"):
            assert (leaf != leaves(other)[path]).any()


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients(name):
    small = SMALL[name]
    model = models.build(name, classes=5, **small)
    x = jax.random.normal(jax.random.key(0), (4, *small["input_shape"]))

    @nnx.jit
    def logits_and_gradients(model):
        def loss(model):
            logits = model(x)
            return (logits[:, 0] ** 2).sum(), logits

        gradients, logits = nnx.grad(loss, has_aux=True)(model)
        return logits, gradients

    logits, gradients = logits_and_gradients(model)
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    for path, leaf in nnx.to_flat_state(gradients):
        if path[-1] == "kernel":
            assert jnp.any(leaf[...] != 0), path


def test_lenet5_is_what_it_says():
    """Against the same network written with lax and the stock windowed pooling."""
    model = models.build("lenet5", **SMALL["lenet5"])
    p = leaves(model)
    x = jax.random.normal(jax.random.key(1), (3, 16, 18, 2))

    def layer(x, name):
        y = jax.lax.conv_general_dilated(
            x, p[name + "/kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nnx.max_pool(jnp.maximum(y + p[name + "/bias"], 0), (2, 2), (2, 2))

    y = layer(layer(x, "conv1"), "conv2").reshape(3, -1)
    y = jnp.maximum(y @ p["fc1/kernel"] + p["fc1/bias"], 0) @ p["fc2/kernel"] + p["fc2/bias"]
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_max_pool_equals_the_windowed_one(size):
    x = jax.random.normal(jax.random.key(2), (2, *size, 3))

    def value_and_gradient(pool):
        gradient = jax.grad(lambda x: (pool(x) ** 2).sum())
        return jax.jit(lambda x: (pool(x), gradient(x)))(x)

    got = value_and_gradient(_common.max_pool)
    expected = value_and_gradient(lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("name", ["resnet-small", "vgg-small"])
def test_batch_norm_training_and_evaluation(name):
    model = models.build(name, **SMALL[name])
    x = 3 + 2 * jax.random.normal(jax.random.key(3), (16, *SMALL[name]["input_shape"]))
    forward = nnx.jit(lambda model, x: (model(x), model.conv1(x)))

    def statistics():
        return [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]

    fresh = statistics()
    first, response = forward(model, x)  # training mode from the start
    after_one = statistics()
    assert all((a != b).any() for a, b in zip(fresh, after_one, strict=True))
    response = np.asarray(response, np.float64)
    mean, variance = response.mean((0, 1, 2)), response.var((0, 1, 2))
    np.testing.assert_allclose(model.bn1.mean[...], 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.bn1.var[...], 0.9 + 0.1 * variance, rtol=1e-4)
    model.eval()
    whole, _ = forward(model, x)
    alone, _ = forward(model, x[:1])
    for a, b in zip(after_one, statistics(), strict=True):
        np.testing.assert_array_equal(a, b)
    # evaluated, an image's logits do not depend on its batch; trained, they do
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(first, whole, atol=1e-3)
    model.train()
    np.testing.assert_allclose(forward(model, x)[0], first, rtol=1e-4, atol=1e-5)
    assert not np.allclose(forward(model, x[:1])[0], first[:1], atol=1e-3)


def test_widths_reach_every_layer():
    assert shapes(lambda: models.build("lenet300", widths=[7]))["fc2/kernel"] == (7, 10)
    vgg = shapes(lambda: models.build("vgg-small", input_shape=(32, 32, 3), widths=(5, 6, 7)))
    assert [vgg[f"conv{i}/kernel"][3] for i in (1, 2, 3)] == [5, 6, 7]
    assert vgg["fc/kernel"] == (7, 10)
    resnet = shapes(lambda: models.build("resnet-small", widths=np.array([5, 6, 7, 8])))
    assert resnet["stage4_block1/conv2/kernel"] == (3, 3, 8, 8)
    assert "stage1_block1/shortcut/kernel" not in resnet


def test_sizes_of_the_publication_are_taken_where_none_are_given():
    assert shapes(lambda: models.build("vgg-small"))["conv1/kernel"] == (3, 3, 3, 32)
    other = shapes(lambda: models.build("lenet5", input_shape=[32, 28, 3], classes=7))
    assert other["conv1/kernel"] == (5, 5, 3, 20)
    assert other["fc1/kernel"] == (5 * 4 * 50, 500)
    assert other["fc2/kernel"] == (500, 7)
    for name in models.names():
        entry = models.entry(name)
        assert len(entry.input_shape) in (1, 3)
        assert entry.counts is None or len(entry.widths) in entry.counts
        assert entry.meaning
        assert entry.source


def test_example_inputs():
    model = nnx.eval_shape(lambda: models.build("resnet20"))
    assert models.example_input(model, 3) == jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)
    model = nnx.eval_shape(lambda: models.build("gpt-mini"))
    assert models.example_input(model) == jax.ShapeDtypeStruct((1, *model.input_shape), jnp.int32)


def test_widths_are_read_from_the_network():
    for name, widths, full in (
        ("lenet300", (7, 5), (7, 5)),
        ("vgg-small", (5, 6, 7), (5, 6, 7)),
        ("resnet-small", (5, 6, 7), (5, 5, 6, 6, 7, 7)),
        ("resnet-small", (5, 4, 6, 3, 7, 2), (5, 4, 6, 3, 7, 2)),
    ):
        model = nnx.eval_shape(lambda name=name, widths=widths: models.build(name, widths=widths))
        assert models.widths(model) == full


@pytest.mark.parametrize("fans", [((3, 3, 64, 128), 9 * 192), ((784, 300), 1084)])
def test_glorot_initialisation(fans):
    shape, total = fans
    kernel = np.asarray(_common.glorot_normal(jax.random.key(1), shape, jnp.float32), np.float64)
    z = kernel.ravel() * np.sqrt(total / 2)
    assert abs(z.mean()) < 6 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 6 * np.sqrt(2 / z.size)
    conv = models.ConvN((8, 8, 3), widths=(64, 64, 5, 4), rngs=nnx.Rngs(0)).conv2.kernel
    assert float(conv[...].std()) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.05)


def test_large_kernels_are_drawn_in_larger_blocks():
    shape = (1100, 1000)
    kernel = np.asarray(_common.he_normal(jax.random.key(1), shape, jnp.float32), np.float64)
    z = kernel * np.sqrt(shape[0] / 2)
    assert kernel.shape == shape
    for part in (z[:1000], z[1060:]):  # the first and the second block
        assert abs(part.mean()) < 6 / np.sqrt(part.size)
        assert abs(part.var() - 1) < 6 * np.sqrt(2 / part.size)
    assert abs((z[:20] * z[1060:1080]).mean()) < 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet-5", "did you mean 'lenet5'"),
        ("LeNet300", "did you mean 'lenet300'"),
        ("vgg-smal", "did you mean 'vgg-small'"),
        ("ResNet-50", "did you mean 'resnet50'"),
        ("wrn-28-10", "did you mean 'wide-resnet-28-10'"),
        ("mobilenetv2", "did you mean 'mobilenet-v2'"),
        ("zzz", "unknown network 'zzz': There are lenet300, lenet5"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(ValueError, match=message):
        models.build(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lenet5", {"input_shape": (8, 8, 1)}, "lenet5 needs images of 16x16 .* got 8x8"),
        ("lenet5", {"widths": (20, 50)}, "widths of lenet5 must be 3 numbers"),
        ("resnet20", {"widths": (4,) * 9}, "widths of resnet20 must be 3 or 12 numbers .channels"),
        ("lenet300", {"widths": ()}, "widths of lenet300 must be one number or more"),
        ("lenet300", {"widths": (300, 0)}, "widths must be whole numbers of at least 1, got 0"),
        ("lenet300", {"widths": (3.5,)}, "got 3.5"),
        ("lenet300", {"input_shape": (28, 28)}, "must be .height, width, channels."),
        ("lenet300", {"input_shape": (28, -1, 1)}, "sizes in input_shape .* got -1"),
        ("lenet300", {"classes": 0}, "classes must be whole numbers of at least 1, got 0"),
        ("lenet300", {"classes": True}, "got True"),
        ("lenet300", {"dtype": "int8"}, "dtype must be a floating-point type .* got int8"),
    ],
)
def test_impossible_networks(name, settings, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_input_of_the_wrong_kind(name):
    small = SMALL[name]
    model = models.build(name, **small)
    height, width, channels = small["input_shape"]
    for shape in [(height, width, channels), (2, height + 1, width, channels), (2, height, width)]:
        with pytest.raises(ValueError, match=r"built for images of shape \[batch, "):
            model(jnp.zeros(shape))
    with pytest.raises(TypeError, match="takes floating-point images, got uint8"):
        model(jnp.zeros((2, height, width, channels), jnp.uint8))
