"""Tickets that signals can pass: live weights, held against what a linear network lets through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import dessilbi_jax as dl
from dessilbi_jax.tickets.liveness import births

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

WIDTHS = (5, 7, 6, 4)


def mlp(seed=0, widths=WIDTHS):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return {
        f"fc{i}": {"kernel": jax.random.normal(keys[i], (widths[i], widths[i + 1])) / 3}
        for i in range(len(widths) - 1)
    }


def forward(params, x):
    for i in range(len(params)):
        x = x @ params[f"fc{i}"]["kernel"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def linear(params, x):
    for i in range(len(params)):
        x = x @ params[f"fc{i}"]["kernel"]
    return x


def residual(params, x):
    x = x @ params["fc0"]["kernel"]
    x = x + jax.nn.relu(x @ params["fc1"]["kernel"])
    return x @ params["fc2"]["kernel"]


RESIDUAL = {"widths": (5, 6, 6, 4), "apply": residual}


def through(apply, params, masks):
    """Which weights change an output when all kept weights are one: those on a live path.

    With ones and no cancelling, ∂(sum of outputs)/∂w·w of the network without its ReLUs is the
    number of paths through w.
    """
    ones = jax.tree.map(lambda p, m: jnp.where(m, 1.0, 0.0), params, masks)
    x = jnp.ones((1, params["fc0"]["kernel"].shape[0]))
    grads = jax.grad(lambda p: apply(p, x).sum())(ones)
    return jax.tree.map(lambda g, m: np.asarray((g > 0) & m), grads, masks)


def bits(masks):
    return {f"{name}/kernel": np.asarray(leaf["kernel"]) for name, leaf in masks.items()}


NETWORKS = {
    "chain": (mlp(), forward),
    "residual": (mlp(widths=RESIDUAL["widths"]), residual),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    params, apply = NETWORKS[request.param]
    return params, apply, dl.channel_groups(apply, params, jnp.ones((2, 5)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.02, 0.6))
def test_live_is_what_lies_on_a_path(network, seed, share):
    params, apply, groups = network
    rng = np.random.default_rng(seed)
    masks = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < share), params)
    places = {path: np.where(m, 0.0, np.inf) for path, m in bits(masks).items()}
    shapes = {path: m.shape for path, m in places.items()}
    found = {path: cells < np.inf for path, cells in births(groups, shapes, places).items()}
    expected = bits(through(apply, params, masks))
    for path, cells in found.items():
        if apply is forward:
            np.testing.assert_array_equal(cells, expected[path], err_msg=path)
        else:  # the stream of a residual network is one channel before and behind what is added
            assert (cells >= expected[path]).all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_birth_is_the_first_prefix_in_which_a_weight_is_live(network, seed):
    params, _, groups = network
    rng = np.random.default_rng(seed)
    shapes = {f"{name}/kernel": leaf["kernel"].shape for name, leaf in params.items()}
    order = rng.permutation(sum(map(np.prod, shapes.values())))
    ends = np.cumsum([np.prod(s) for s in shapes.values()])[:-1]
    places = {
        path: part.reshape(shapes[path]).astype(float)
        for path, part in zip(shapes, np.split(order, ends), strict=True)
    }
    born = births(groups, shapes, places)
    for k in (3, 8, 15, 30, order.size):
        some = {path: np.where(p < k, 0.0, np.inf) for path, p in places.items()}
        now = births(groups, shapes, some)
        for path, cells in now.items():
            np.testing.assert_array_equal(born[path] < k, cells < np.inf)


def trained(params, structure=dl.weights, steps=40):
    tx = dl.dessilbi(0.05, nu=20.0, lam=dl.auto(density=0.1, steps=steps), structure=structure)
    state, path = tx.init(params), dl.SolutionPath()
    update = jax.jit(lambda s: tx.update(jax.tree.map(jnp.zeros_like, params), s, params)[1])
    for _ in range(steps):
        state = update(state)
    path.record(steps, state)
    return path


def test_a_small_ticket_is_connected_where_the_network_is_given():
    params = mlp(widths=(64, 64, 64, 64))
    path = trained(params)
    x = jax.random.normal(jax.random.key(1), (256, 64))
    groups = dl.channel_groups(forward, params, x[:2])

    def largest(ticket):
        return float(jnp.abs(linear(dl.project(params, ticket.mask(params)), x)).max())

    before = None
    for density in (0.001, 0.002, 0.005, 0.01, 0.1):
        blind, ticket = (path.ticket(density=density, network=net) for net in (None, groups))
        assert "was not looked at" in blind.note
        assert "live" not in blind.card
        assert ticket.card["weights"] == blind.card["weights"], "the size is the one asked for"
        assert largest(ticket) > 0
        dead = ticket.card["weights"][0] - ticket.card["live"]
        assert dead <= 2, "a layer's minimum, and what ends no path yet"
        assert ("lie on no path" in ticket.note) == (dead > 0)
        kept = {path: np.array(mask) for path, mask in ticket.masks.items()}
        if before is not None:  # nested, as without
            assert all((kept[p] | ~before[p]).all() for p in kept)
        before = kept
    assert largest(path.ticket(density=0.002)) == 0, "the case this is for"


def test_what_no_choice_can_connect_is_said():
    params = mlp(widths=(64, 64, 64, 64))
    path = trained(params)
    groups = dl.channel_groups(forward, params, jnp.ones((2, 64)))
    ticket = path.ticket(weights=2, minimum=0, network=groups)
    assert ticket.card["live"] == 0
    assert "nothing passes" in ticket.note
    assert path.ticket(at=40, network=groups).card["live"] > 0
    assert "was not looked at" in path.ticket(at=40).note


@pytest.mark.parametrize("structure", [dl.neurons, dl.input_channels, dl.blocks((2, 2))])
@pytest.mark.parametrize("options", [{}, {"per_layer": True}, {"rank": "strength"}])
def test_groups_of_every_kind_are_counted_and_preferred(structure, options):
    params = mlp(widths=(16, 16, 16, 16))
    path = trained(params, structure)
    groups = dl.channel_groups(forward, params, jnp.ones((2, 16)))
    ticket = path.ticket(density=0.25, network=groups, **options)
    expected = sum(m.sum() for m in bits(through(linear, params, ticket.mask(params))).values())
    assert 0 < expected <= ticket.card["live"] <= ticket.card["weights"][0]


def test_convolutions_norms_and_joint_groups():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.conv2 = nnx.Conv(8, 8, (3, 3), rngs=rngs)
            self.fc = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv1(x)))
            return self.fc((x + self.conv2(x)).mean((1, 2)))

    net = Net(nnx.Rngs(0))
    groups = dl.channel_groups(net, jnp.ones((2, 6, 6, 1)))
    params = nnx.state(net, nnx.Param)
    for structure in (dl.channels(groups), dl.weights):
        path = trained(params, structure)
        ticket = path.ticket(density=0.3, network=groups)
        assert 0 < ticket.card["live"] <= ticket.card["weights"][0]
        assert "was not looked at" not in ticket.note


def test_another_network_or_no_network_is_refused():
    params = mlp()
    path = trained(params)
    other = mlp(widths=(5, 8, 6, 4))
    with pytest.raises(ValueError, match=r"network= does not fit fc0/kernel: .*\(5, 8\).*\(5, 7\)"):
        path.ticket(density=0.5, network=dl.channel_groups(forward, other, jnp.ones((2, 5))))
    for wrong in (params, "net", forward):
        with pytest.raises(TypeError, match=r"network must be dl\.channel_groups"):
            path.ticket(density=0.5, network=wrong)


# --- weights that are zero already -------------------------------------------------------------


def pruned_further(share, **record):
    """A path of a run on a network of which only so much was left."""
    w = {"kernel": jax.random.normal(jax.random.key(0), (32, 32))}
    old = {"kernel": jax.random.uniform(jax.random.key(1), (32, 32)) < share}
    w = dl.project(w, old)
    tx = optax.chain(
        dl.dessilbi(0.05, nu=20.0, lam=dl.auto(density=0.1, steps=40), structure=dl.weights),
        dl.keep_support(old),
    )
    state, path = tx.init(w), dl.SolutionPath()
    update = jax.jit(lambda s: tx.update(jax.tree.map(jnp.zeros_like, w), s, w)[1])
    for _ in range(40):
        state = update(state)
    path.record(40, state, **dict.fromkeys(record, w))
    return path, np.asarray(old["kernel"])


@pytest.mark.parametrize("rank", ["entry", "strength"])
@pytest.mark.parametrize("options", [{}, {"per_layer": True}, {"minimum": 0}])
def test_dead_weights_come_last_and_are_told(rank, options):
    path, old = pruned_further(0.3)
    left = int(old.sum())
    fits = path.ticket(weights=left, rank=rank, **options)
    np.testing.assert_array_equal(fits.masks["kernel"], old)
    assert "were zero before" not in fits.note
    more = path.ticket(weights=left + 17, rank=rank, **options)
    assert (more.masks["kernel"] & ~old).sum() == 17
    assert more.note.startswith("17 of the kept weights were zero before")


def test_weights_that_became_zero_on_the_way_are_known_from_the_parameters():
    """Their V has moved, so that only W can tell."""
    w = {"kernel": jnp.array([[3.0, 2.0, 1.0, 0.5]])}
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.15, structure=dl.weights)
    _, state = tx.update(w, tx.init(w), w)
    dead = {"kernel": w["kernel"].at[0, 0].set(0.0)}
    blind, told = dl.SolutionPath(), dl.SolutionPath()
    blind.record(1, state)
    told.record(1, state, dead)
    assert blind.ticket(weights=2).masks["kernel"].tolist() == [[True, True, False, False]]
    assert told.ticket(weights=2).masks["kernel"].tolist() == [[False, True, True, False]]


def test_dead_weights_are_no_path():
    params = mlp(widths=(8, 8, 8, 8))
    params["fc1"]["kernel"] = jnp.zeros((8, 8))
    path = trained(params)
    groups = dl.channel_groups(forward, params, jnp.ones((2, 8)))
    ticket = path.ticket(density=0.5, network=groups)
    assert ticket.card["live"] == 0
    assert "nothing passes" in ticket.note
