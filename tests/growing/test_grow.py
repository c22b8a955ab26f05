"""Wider networks: the same outputs, the same old numbers, new channels that learn, and back."""

import jax
import jax.numpy as jnp
import networks_equinox
import networks_linen
import networks_nnx
import networks_plain
import numpy as np
import optax
import pytest
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import models
from dessilbi_jax.frameworks import as_network

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

MODULES = {
    "nnx": networks_nnx, "linen": networks_linen, "equinox": networks_equinox,
    "plain": networks_plain,
}  # fmt: skip
NAMES = [(kind, name) for kind, module in MODULES.items() for name in module.CASES]
KEY = jax.random.key(0)


def larger(groups, rng, among=None):
    """Random new sizes of sets of channels that are named but once."""
    names = [each.name for each in groups.sets]
    return {
        each.name: len(each.groups) + int(rng.integers(0, 4))
        for each in groups.sets
        if names.count(each.name) == 1 and (among is None or each.name in among)
    }


def assert_same(tree, other):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def traced(model, fn, inputs):
    network = as_network(model, fn)
    return dl.channel_groups(network.fn, network.tree, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_random_growths_keep_the_outputs_and_lead_back(name):
    kind, family = name
    case = MODULES[kind].CASES[family]()
    model, fn = (case.params, case.fn) if case.model is None else (case.model, case.call)
    groups = traced(model, fn, case.inputs)
    sizes = larger(groups, np.random.default_rng(0))
    assert any(size > len(each.groups) for each in groups.sets for size in [sizes[each.name]])
    options = {} if case.rebuild is None or case.model is not None else {"rebuild": case.rebuild}
    wide = dl.grow(model, sizes, *case.inputs, key=KEY, fn=fn, **options)
    assert {s.name: len(s.groups) for s in wide.groups.sets} == sizes
    # Old numbers are where the plan says, and what reads new channels is zero.
    tree = as_network(wide.model, wide.fn).tree
    assert_same(wide.plan.apply(tree), as_network(model, fn).tree)
    expected, got = (
        jax.jit(network.fn)(network.tree, *case.inputs)
        for network in (as_network(model, fn), as_network(wide.model, wide.fn))
    )
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(got, expected, atol=1e-5 * scale)
    assert wide.params[1] > wide.params[0]
    assert wide.flops[1] > wide.flops[0]


def perceptron():
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (6, 4), "bias": (4,)}, "b": {"kernel": (4, 3)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip


def net(p, x):
    return jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


X = jnp.asarray(np.random.default_rng(1).normal(size=(32, 6)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(32, 3)), jnp.float32)


def optimizers(groups):
    rule = {"lam": 0.05, "nu": 5.0, "structure": dl.channels(groups)}
    settled = dl.settle(groups=3, steps=100)
    return {
        "sgd": dl.dessilbi(0.05, momentum=0.9, **rule),
        "adam": optax.chain(optax.scale_by_adam(), dl.add_split_lbi(0.1, **rule),
                            optax.scale_by_learning_rate(0.1)),
        "lean": dl.dessilbi(0.05, momentum=0.9, lean=True, **rule),
        "settling": dl.dessilbi(0.05, momentum=0.9, settle=settled, **rule),
    }  # fmt: skip


def trained(tx, params, state, steps, fn=net):
    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((fn(p, X) - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("kind", ["sgd", "adam", "lean", "settling"])
def test_the_state_grows_along_and_new_channels_learn(kind):
    params = perceptron()
    tx = optimizers(dl.channel_groups(net, params, X))[kind]
    params, state = trained(tx, params, tx.init(params), 8)
    wide = dl.grow(params, {"a/kernel": 9}, X, key=KEY, fn=net, opt_state=state)
    again = optimizers(wide.groups)[kind]
    # The same form, shapes and dtypes as a state made anew, so that nothing is compiled twice.
    fresh = again.init(wide.model)
    assert jax.tree.structure(wide.opt_state) == jax.tree.structure(fresh)
    for a, b in zip(jax.tree.leaves(wide.opt_state), jax.tree.leaves(fresh), strict=True):
        assert (jnp.shape(a), a.dtype) == (jnp.shape(b), b.dtype)
    mine, start = dl.get_state(wide.opt_state), dl.get_state(fresh)
    new = jnp.arange(9) >= 4
    for name in ("v",) if kind == "lean" else ("v", "gamma"):
        grown, first = getattr(mine, name)["a"], getattr(start, name)["a"]
        np.testing.assert_array_equal(grown["kernel"][:, new], first["kernel"][:, new])
        assert float(jnp.abs(grown["kernel"][:, :4]).max()) > 0
    back = dl.slim(wide.model, wide.plan, X, fn=net, opt_state=wide.opt_state)
    assert_same(back.model, params)
    if kind == "settling":  # the next update says what is allowed of a network of this size
        settled = dl.get_state(back.opt_state).settled
        assert int(settled.budget) == np.iinfo(np.int32).max
        assert not settled.done
        state = jax.tree.map(
            lambda leaf, grown: grown if np.shape(leaf) == () and int(grown) > 2**30 else leaf,
            state, back.opt_state,
        )  # fmt: skip
    assert_same(back.opt_state, state)

    before = wide.model
    assert not before["b"]["kernel"][4:].any()
    params, state = trained(again, before, wide.opt_state, 3)
    moved = jnp.abs(params["b"]["kernel"][4:]).min(axis=1)
    assert float(moved.min()) > 0  # each reader at once
    kernels = jnp.abs(params["a"]["kernel"] - before["a"]["kernel"])[:, 4:].max(axis=0)
    assert float(kernels.min()) > 0  # and then what makes them, each by itself
    assert len({float(x) for x in kernels}) == 5


def test_the_old_network_goes_on_as_it_would_have():
    params = perceptron()
    tx = optimizers(dl.channel_groups(net, params, X))["sgd"]
    params, state = trained(tx, params, tx.init(params), 8)
    wide = dl.grow(params, {"a/kernel": 6}, X, key=KEY, fn=net, opt_state=state)
    again = optimizers(wide.groups)["sgd"]
    one, _ = trained(tx, params, state, 1)
    other, _ = trained(again, wide.model, wide.opt_state, 1)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(wide.plan.apply(other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_batch_normalisation_in_both_modes_and_the_zoo():
    model = models.build("resnet-small", input_shape=(8, 8, 3), widths=(3, 4, 5))
    x = jax.random.normal(KEY, (4, 8, 8, 3))
    sizes = {"conv1/kernel": 5, "stage2_block1/conv1/kernel": 6}
    wide = dl.grow(model, sizes, x, key=KEY)
    for mode in ("eval", "train"):
        getattr(model, mode)(), getattr(wide.model, mode)()
        a, b = (nnx.jit(lambda m: m(x))(each) for each in (model, wide.model))
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max()))
    assert models.widths(wide.model)[0] == 5


def test_means_over_channels_are_made_by_zeros_and_scaled():
    rng = np.random.default_rng(0)
    params = {
        "e": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32), "scale": jnp.ones(8),
        "out": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    }  # fmt: skip

    def normed(p, x):
        h = x @ p["e"]
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-9) * p["scale"]
        return h @ p["out"]

    wide = dl.grow(params, {"e": 12}, X, key=KEY, fn=normed)
    assert not wide.model["e"][:, 8:].any()
    assert wide.model["out"][8:].all()
    np.testing.assert_allclose(wide.model["scale"], np.sqrt(8 / 12), rtol=1e-6)
    grads = jax.grad(lambda p: jnp.mean((normed(p, X) - Y) ** 2))(wide.model)
    assert (jnp.abs(grads["e"][:, 8:]).max(axis=0) > 0).all()  # all new ones can be learnt
    np.testing.assert_allclose(normed(wide.model, X), normed(params, X), rtol=2e-5, atol=1e-5)


def test_what_is_drawn_comes_from_the_key_or_from_the_user():
    params = perceptron()
    one, same, other = (
        dl.grow(params, {"a/kernel": 6}, X, key=jax.random.key(k), fn=net).model for k in (0, 0, 1)
    )
    assert_same(one, same)
    assert (one["a"]["kernel"][:, 4:] != other["a"]["kernel"][:, 4:]).all()
    assert not one["a"]["bias"][4:].any()

    def init(path, shape, key):
        return jnp.full(shape, {"a/kernel": 7.0, "a/bias": 2.0}[path])

    mine = dl.grow(params, {"a/kernel": 6}, X, key=KEY, fn=net, init=init).model
    assert (mine["a"]["kernel"][:, 4:] == 7).all()
    assert (mine["a"]["bias"][4:] == 2).all()
    wide = dl.grow(params, {"a/kernel": 1000}, X, key=KEY, fn=net).model
    assert float(wide["a"]["kernel"][:, 4:].std()) == pytest.approx(6**-0.5, rel=0.05)


ERRORS = {
    "no such set": ({"c/kernel": 9}, ValueError, r"no channels 'c/kernel'.*there are a/kernel"),
    "an output": ({"b/kernel": 9}, ValueError, r"b/kernel cannot grow: .*output"),
    "fewer": ({"a/kernel": 2}, ValueError, "dl.slim smaller"),
    "no number": ({"a/kernel": 4.5}, TypeError, "must be an integer, got 4.5"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_grow_is_told(case):
    sizes, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        dl.grow(perceptron(), sizes, X, key=KEY, fn=net)


def test_code_that_keeps_a_width_is_told():
    params = perceptron()

    def literal(p, x):
        h = jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"])
        return (h + jnp.zeros(4)) @ p["b"]["kernel"]

    with pytest.raises((TypeError, ValueError), match=r"larger arrays|cannot grow"):
        dl.grow(params, {"a/kernel": 6}, X, key=KEY, fn=literal)
    state = optax.adam(0.1).init({"other": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="opt_state is of another network"):
        dl.grow(params, {"a/kernel": 6}, X, key=KEY, fn=net, opt_state=state)
