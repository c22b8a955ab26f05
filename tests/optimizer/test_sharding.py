"""Eight devices compute what one does, whichever way parameters lie on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trajectories import QUICK, assert_trees_close, gradient, network, opened

import dessilbi_jax as dl

pytestmark = pytest.mark.slow

STEPS = 10
# One network with every kind of group.
RULES = [
    ("filters", dl.filters),
    ("weights", dl.weights),
    ("blocks", dl.blocks((4, 2))),
    ("pieces", dl.blocks((2, 16))),  # larger than what lies on one device
    ("layer", dl.layers),
    ("heads", dl.heads(4)),
]
SHAPES = {
    "filters": (3, 3, 8, 16), "weights": (16, 16), "blocks": (32, 16), "pieces": (8, 32),
    "layer": (16, 16), "heads": (16, 32), "bias": (16,),
}  # fmt: skip
OPTIONS = {
    "full": {"lam": 0.09, "momentum": 0.9, "variant": "paper"},
    "lean": {"lam": 0.09, "momentum": 0.9, "variant": "paper", "lean": True},
    "auto lean": {"lam": dl.auto(density=0.4, steps=20), "momentum": 0.9, "lean": True},
}
# The axes of the mesh along each leaf's last two axes (inputs, outputs).
LAYOUTS = {"outputs": (None, "x"), "inputs": ("x", None), "both": ("y", "x")}


def parameters():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    # Group norms of about the same size, spread along the outputs.
    params["filters"] *= jnp.linspace(0.05, 0.3, 16)
    params["blocks"] *= jnp.linspace(0.1, 0.7, 16)
    params["pieces"] *= jnp.linspace(0.05, 0.3, 32)
    params["layer"] *= 0.1
    params["heads"] *= jnp.linspace(0.01, 0.15, 32)
    return params


def shard(params, layout, kind):
    sizes = (4, 2) if layout == "both" else (8,)
    mesh = jax.make_mesh(sizes, ("x", "y")[: len(sizes)], axis_types=(kind,) * len(sizes))
    axes = LAYOUTS[layout]

    def put(leaf):
        spec = P("x") if leaf.ndim == 1 else P(*(None,) * (leaf.ndim - 2), *axes)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return mesh, jax.tree.map(put, params)


def pull(params):
    """A gradient that needs no exchange between devices."""
    return jax.tree.map(lambda w: 0.1 * w, params)


def train(tx, params, state):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        updates, state = tx.update(pull(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def transformation(name):
    return dl.dessilbi(0.1, nu=1.0, structure=RULES, **OPTIONS[name])


@functools.partial(jax.jit, compiler_options=QUICK)
def seen(params, state):
    """What is compared: W, V, λ, Γ and its support."""
    inner = dl.get_state(state)
    return params, inner.v, inner.lam, dl.gamma(state), dl.support(state)


@functools.cache
def on_one_device(name):
    tx, params = transformation(name), parameters()
    params, state = train(tx, params, jax.jit(tx.init)(params))
    for leaf in ("filters", "weights", "blocks", "pieces", "heads"):
        assert 0 < opened(dl.support(state)[leaf]) < 1, leaf
    path = dl.SolutionPath()
    path.record(STEPS, state)
    return seen(params, state), path.support(STEPS)


def assert_same(name, params, state):
    (w, v, lam, gamma, support), recorded = on_one_device(name)
    got_w, got_v, got_lam, got_gamma, got_support = seen(params, state)
    assert_trees_close(got_w, w)
    assert_trees_close(got_v, v)
    np.testing.assert_allclose(got_lam, lam, rtol=1e-6)
    path = dl.SolutionPath()  # which reads sharded states too
    path.record(STEPS, state)
    for leaf, mask in support.items():
        # Γ is the difference of V and λ, so its rounding is theirs.
        atol = 3e-6 * float(jnp.max(jnp.abs(v[leaf])))
        np.testing.assert_allclose(got_gamma[leaf], gamma[leaf], rtol=0, atol=atol, err_msg=leaf)
        np.testing.assert_array_equal(got_support[leaf], mask, err_msg=leaf)
        np.testing.assert_array_equal(path.support(STEPS)[leaf], recorded[leaf], err_msg=leaf)


def assert_sharded_like(params, state, layout):
    """V, Γ and the momentum lie where their parameters lie, an eighth of them on each device."""
    inner = dl.get_state(state)
    for tree in (inner.v, inner.gamma or inner.v):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), name
            held = [shard.data.nbytes for shard in leaf.addressable_shards]
            assert held == [leaf.nbytes // (4 if leaf.ndim == 1 and layout == "both" else 8)] * 8


@pytest.mark.parametrize(
    ("name", "layout"), [("full", "both"), ("lean", "outputs"), ("auto lean", "inputs")]
)
def test_sharded_by_the_compiler(name, layout):
    tx = transformation(name)
    _, params = shard(parameters(), layout, AxisType.Auto)
    state = tx.init(params)
    assert_sharded_like(params, state, layout)
    params, state = train(tx, params, state)
    assert_same(name, params, state)
    assert_sharded_like(params, state, layout)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("full", "outputs"), ("full", "inputs"), ("lean", "both"), ("auto lean", "both")],
)
def test_explicit_sharding(name, layout):
    tx = transformation(name)
    mesh, params = shard(parameters(), layout, AxisType.Explicit)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        assert_sharded_like(params, state, layout)
        # The types, shardings included, are those that an update gives back: fit for a scan.
        after = jax.eval_shape(tx.update, params, state, params)[1]
        for then, now in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert str(jax.typeof(then)) == str(jax.typeof(now))
        params, state = train(tx, params, state)
    assert_same(name, params, state)
    assert_sharded_like(params, state, layout)


def test_out_shardings_made_from_those_of_the_parameters():
    """The usual recipe: shardings for a state, from those of the parameters, before it exists."""
    tx = transformation("full")
    mesh, params = shard(parameters(), "both", AxisType.Auto)
    shardings = jax.tree.map(lambda p: p.sharding, params)
    everywhere = NamedSharding(mesh, P())
    abstract = jax.eval_shape(tx.init, params)

    def place(leaf, sharding):
        return sharding if leaf.shape and leaf.shape != (1,) * leaf.ndim else everywhere

    placed = optax.tree.map_params(
        tx, place, abstract, shardings, transform_non_params=lambda _: everywhere
    )
    inner = dl.get_state(placed)
    assert jax.tree.leaves(inner.v) == jax.tree.leaves(shardings)
    v = jax.jit(lambda p: dl.get_state(tx.init(p)).v, out_shardings=inner.v)(params)
    assert v["weights"].sharding == params["weights"].sharding


def test_pmap_with_averaged_gradients_is_one_device():
    tx, params = dl.dessilbi(0.1, nu=1.0, lam=0.4, momentum=0.9), network()
    shares = jnp.linspace(0.0, 2.0, 8)  # of the gradient, with mean 1

    def step(params, state, share):
        grads = jax.tree.map(lambda g: share * g, gradient(params))
        updates, state = tx.update(jax.lax.pmean(grads, "devices"), state, params)
        return optax.apply_updates(params, updates), state

    everywhere = jax.tree.map(lambda x: jnp.stack([x] * 8), (params, tx.init(params)))
    parallel = jax.pmap(step, axis_name="devices")
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(8):
        everywhere = parallel(*everywhere, shares)
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    assert len(jax.devices()) == 8
    for device in (0, 7):
        got = jax.tree.map(lambda x, device=device: x[device], everywhere)
        assert_trees_close(got[0], params)
        assert_trees_close(dl.gamma(got[1]), dl.gamma(state), 1e-5)
        np.testing.assert_array_equal(
            dl.support(got[1])["fc"]["kernel"], dl.support(state)["fc"]["kernel"]
        )
    assert 0 < opened(dl.support(state)["fc"]["kernel"]) < 1
