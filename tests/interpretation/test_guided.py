"""Guided gradients against a network written by hand, finite differences, and four frameworks."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dessilbi_jax.interpretation import guided_gradients, unit_counts

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 6)), jnp.float32)
PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32),
          "bias": jnp.asarray(RNG.normal(size=5), jnp.float32)},
    "b": {"kernel": jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)},
}  # fmt: skip
UNIT = ("b/kernel", 2)


@jax.custom_vjp
def by_hand(x):
    return jnp.maximum(x, 0)


by_hand.defvjp(lambda x: (by_hand(x), x), lambda x, g: (jnp.where((x > 0) & (g > 0), g, 0.0),))


@jax.custom_vjp
def straight_through(x):
    return jnp.maximum(x, 0) + 0 * x


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g,))


@jax.custom_vjp
def deconv(x):
    return jnp.maximum(x, 0)


deconv.defvjp(lambda x: (deconv(x), None), lambda _, g: (jnp.maximum(g, 0),))


def mlp(relu):
    return lambda p, x: relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


def gradient(relu, unit=2):
    return jax.grad(lambda x: mlp(relu)(PARAMS, x)[:, unit].sum())(X)


def in_scan(x):
    return jax.lax.scan(lambda c, row: (c, jax.nn.relu(row)), 0.0, x)[1]


def carried(x):
    return jax.lax.scan(lambda c, _: (jnp.maximum(c, 0.0), None), x, None, length=2)[0]


def in_branch(x):
    return jax.lax.cond(x.sum() > 1e9, jnp.sin, jax.nn.relu, x)


# Each computes max(x, 0), or does so on these inputs.
SAME = {
    "jax.nn.relu": jax.nn.relu,
    "max": lambda x: jnp.maximum(x, 0),
    "max of zero": lambda x: jax.lax.max(jnp.zeros_like(x), x),
    "relu6": lambda x: jax.nn.relu6(x / 8) * 8,
    "clip": lambda x: jnp.clip(x, 0, 100),
    "clamp": lambda x: jax.lax.clamp(0.0, x, 100.0),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where not": lambda x: jnp.where(x <= 0, 0.0, x),
    "product": lambda x: x * (x > 0),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "vmap": jax.vmap(jax.jit(jax.nn.relu)),
    "scan": in_scan,
    "carried": carried,
    "branch": in_branch,
    "custom": deconv,
}


@pytest.mark.parametrize("name", SAME)
def test_relus_however_written_pass_what_is_positive_both_ways(name):
    found = guided_gradients(mlp(SAME[name]), PARAMS, X, UNIT)
    expected = gradient(by_hand)
    assert np.abs(expected - gradient(jax.nn.relu)).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def normalised(x):
    """The variance is kept from falling below 0, as Flax and Equinox do it."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(0.0, (x**2).mean(-1, keepdims=True) - mean**2)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


@pytest.mark.parametrize(
    "fn", [jnp.tanh, jax.nn.softplus, jax.nn.leaky_relu, jax.nn.gelu, normalised, straight_through]
)
def test_whatever_is_no_relu_keeps_its_gradient_which_is_said(fn):
    with pytest.warns(UserWarning, match="no ReLU lies between the input and b/kernel, unit 2"):
        found = guided_gradients(mlp(fn), PARAMS, X, UNIT)
    np.testing.assert_allclose(found, gradient(fn), atol=1e-5)


def test_equals_finite_differences_where_every_relu_passes_everything():
    params, x = jax.tree.map(jnp.abs, (PARAMS, X))
    net = mlp(jax.nn.relu)
    found = np.asarray(guided_gradients(net, params, x, UNIT))
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for i, j in ((0, 0), (1, 3), (2, 5)):
        step = np.zeros((3, 6))
        step[i, j] = 1e-4
        ends = [
            (np.maximum((np.asarray(x, float) + d) @ host["a"]["kernel"] + host["a"]["bias"], 0)
             @ host["b"]["kernel"])[:, 2].sum()
            for d in (step, -step)
        ]  # fmt: skip
        assert found[i, j] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4)


def test_several_units_without_a_unit_and_before_or_behind_the_relu():
    net = mlp(jax.nn.relu)
    many = guided_gradients(net, PARAMS, X, ("b/kernel", [2, 0]))
    np.testing.assert_allclose(many, [gradient(by_hand), gradient(by_hand, 0)], atol=1e-5)
    alone = guided_gradients(lambda p, x: net(p, x)[:, 2], PARAMS, X)
    np.testing.assert_allclose(alone, many[0], atol=1e-6)
    # The first layer is linear before its ReLU: the gradient is the filter itself, bias or not.
    kernel = np.asarray(PARAMS["a"]["kernel"])
    with pytest.warns(UserWarning, match="a/kernel, unit 1"):
        before = guided_gradients(net, PARAMS, X, ("a/kernel", 1))
    np.testing.assert_allclose(before, np.broadcast_to(kernel[:, 1], (3, 6)), atol=1e-6)
    behind = guided_gradients(net, PARAMS, X, ("a/kernel", 1), activated=True)
    on = np.asarray(X) @ kernel[:, 1] + PARAMS["a"]["bias"][1] > 0
    assert 0 < on.sum() < 3
    np.testing.assert_allclose(behind, on[:, None] * kernel[:, 1], atol=1e-6)


@jax.custom_vjp
def product(x, kernel):
    return x @ kernel


product.defvjp(lambda x, k: (x @ k, (x, k)), lambda s, g: (g @ s[1].T, s[0].T @ g))


def test_a_product_with_a_gradient_of_its_own_makes_units_too():
    def own(p, x):
        return product(jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]), p["b"]["kernel"])

    np.testing.assert_allclose(guided_gradients(own, PARAMS, X, UNIT), gradient(by_hand), atol=1e-5)


# One convolutional network in four ways: conv, batch normalisation, ReLU, conv, ReLU, dense.
WEIGHTS = {
    "conv1": RNG.normal(size=(3, 3, 2, 4)), "bias1": RNG.normal(size=4),
    "scale": RNG.uniform(0.5, 2, 4), "shift": RNG.normal(size=4), "mean": RNG.normal(size=4),
    "var": RNG.uniform(0.5, 2, 4), "conv2": RNG.normal(size=(3, 3, 4, 3)),
    "bias2": RNG.normal(size=3), "fc": RNG.normal(size=(3, 2)),
}  # fmt: skip
WEIGHTS = {name: jnp.asarray(w, jnp.float32) for name, w in WEIGHTS.items()}
IMAGES = jnp.asarray(RNG.normal(size=(2, 6, 6, 2)), jnp.float32)


def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain(p, x, relu=jax.nn.relu, until="fc"):
    x = conv(x, p["conv1"]) + p["bias1"]
    x = relu((x - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["shift"])
    if until == "conv1 behind":
        return x
    x = conv(x, p["conv2"]) + p["bias2"]
    if until == "conv2":
        return x
    return relu(x).mean((1, 2)) @ p["fc"]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="bn")(nn.Conv(4, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(3, (3, 3), name="conv2")(nn.relu(x)))
        return nn.Dense(2, use_bias=False, name="fc")(x.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv1, self.bn = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 3, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(3, 2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv2(nnx.relu(self.bn(self.conv1(x)))))
        return self.fc(x.mean((1, 2)))


class Equinox(eqx.Module):
    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    bn: list
    fc: eqx.nn.Linear

    def __call__(self, x):
        mean, var, scale, shift = (v[:, None, None] for v in self.bn)
        x = (self.conv1(x) - mean) / jnp.sqrt(var + 1e-5) * scale + shift
        x = jax.nn.relu(self.conv2(jax.nn.relu(x)))
        return self.fc(x.mean((1, 2)))


def linen():
    w = WEIGHTS
    params = {
        "conv1": {"kernel": w["conv1"], "bias": w["bias1"]},
        "conv2": {"kernel": w["conv2"], "bias": w["bias2"]},
        "bn": {"scale": w["scale"], "bias": w["shift"]}, "fc": {"kernel": w["fc"]},
    }  # fmt: skip
    stats = {"bn": {"mean": w["mean"], "var": w["var"]}}
    return Linen().apply, {"params": params, "batch_stats": stats}, "params/{}/kernel"


def nnx_module():
    model, w = Nnx(), WEIGHTS
    for layer, kernel, bias in ((model.conv1, "conv1", "bias1"), (model.conv2, "conv2", "bias2")):
        layer.kernel[...], layer.bias[...] = w[kernel], w[bias]
    model.bn.scale[...], model.bn.bias[...] = w["scale"], w["shift"]
    model.bn.mean[...], model.bn.var[...] = w["mean"], w["var"]
    model.fc.kernel[...] = w["fc"]
    return model, None, "{}/kernel"


def equinox_module():
    w, key = WEIGHTS, jax.random.key(0)
    model = Equinox(
        eqx.nn.Conv2d(2, 4, 3, padding=1, key=key), eqx.nn.Conv2d(4, 3, 3, padding=1, key=key),
        [w["mean"], w["var"], w["scale"], w["shift"]], eqx.nn.Linear(3, 2, use_bias=False, key=key),
    )  # fmt: skip
    turned = [jnp.transpose(w[name], (3, 2, 0, 1)) for name in ("conv1", "conv2")]
    return eqx.tree_at(
        lambda m: (m.conv1.weight, m.conv2.weight, m.conv1.bias, m.conv2.bias, m.fc.weight), model,
        (*turned, w["bias1"][:, None, None], w["bias2"][:, None, None], w["fc"].T),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    """By layer, the guided gradients of all its units, by hand."""
    ends = {"conv1": "conv1 behind", "conv2": "conv2", "fc": "fc"}
    out = {}
    for layer, until in ends.items():
        back = jax.jit(
            jax.jacrev(
                lambda x, until=until: plain(WEIGHTS, x, by_hand, until).reshape(
                    -1, WEIGHTS[ends_of[until]].shape[-1]).sum(0)
            )
        )  # fmt: skip
        out[layer] = np.asarray(back(IMAGES))
    assert np.abs(out["fc"]).max() > 0
    return out


ends_of = {"conv1 behind": "conv1", "conv2": "conv2", "fc": "fc"}


@pytest.mark.parametrize("kind", ["plain", "linen", "nnx", "equinox"])
def test_four_ways_of_writing_a_network_give_the_same(kind, expected):
    if kind == "equinox":
        module = equinox_module()
        turned = jnp.moveaxis(IMAGES, -1, 1)
        fn, params, path = lambda m, x: jax.vmap(m)(x), module, "{}/weight"
        assert list(unit_counts(module, None, turned[0])) == [f"{k}/weight" for k in expected]
        # A module by itself, on a single image, and mapped over a batch.
        one = guided_gradients(module, None, turned[0], ("fc/weight", 1))
        np.testing.assert_allclose(np.moveaxis(one, 0, -1), expected["fc"][1, 0], atol=1e-5)
    else:
        made = {"plain": lambda: (plain, WEIGHTS, "{}"), "linen": linen, "nnx": nnx_module}
        fn, params, path = made[kind]()
        turned = IMAGES
        counts = unit_counts(fn, params, IMAGES)
        assert counts == {path.format("conv1"): 4, path.format("conv2"): 3, path.format("fc"): 2}
    for layer, gradients in expected.items():
        unit = (path.format(layer), range(len(gradients)))
        found = guided_gradients(fn, params, turned, unit, activated=layer == "conv1")
        found = np.moveaxis(found, 2, -1) if kind == "equinox" else found
        np.testing.assert_allclose(found, gradients, atol=1e-5)


def test_what_cannot_be_looked_at_is_said():
    net = mlp(jax.nn.relu)

    def looked(unit, x=X, fn=net, params=PARAMS, **options):
        return guided_gradients(fn, params, x, unit, **options)

    with pytest.raises(ValueError, match="b/kernel has no unit 4: it makes 4, numbered from 0"):
        looked(("b/kernel", 4))
    with pytest.raises(ValueError, match="has no unit -1"):
        looked(("b/kernel", [0, -1]))
    with pytest.raises(ValueError, match=r"a/bias makes no channels.*read by add.*: a/kernel, b/k"):
        looked(("a/bias", 0))
    with pytest.raises(ValueError, match="c/kernel is not a leaf"):
        looked(("c/kernel", 0))
    with pytest.raises(ValueError, match=r"on an input of shape \(3, 5\)"):
        looked(UNIT, X[:, :5])
    with pytest.raises(ValueError, match="no ReLU follows b/kernel"):
        looked(UNIT, activated=True)
    with pytest.raises(TypeError, match=r"a unit is \(leaf path, output index\)"):
        looked(("b/kernel", 1.5))
    with pytest.raises(TypeError, match=r"floating-point numbers.*int32"):
        looked(UNIT, X.astype(jnp.int32))
    with pytest.raises(TypeError, match="got 2 arrays"):
        looked(None, fn=lambda p, x: (net(p, x), x))
    with pytest.raises(TypeError, match="params are None"):
        looked(UNIT, params=None)
    with pytest.raises(ValueError, match=r"2 operations read it"):
        looked(("w", 0), fn=lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], params={"w": jnp.eye(6)})

    def looped(p, x):
        return jax.lax.scan(lambda c, _: (c @ p["w"], None), x, None, length=2)[0]

    with pytest.raises(ValueError, match=r"read by scan .a loop or a branch.*do: none"):
        looked(("w", 0), fn=looped, params={"w": jnp.eye(6)})

    mesh = jax.make_mesh((1,), ("d",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match="a ReLU inside shard_map"):
        looked(UNIT, fn=mlp(mapped))
