"""The smaller network is the ticket's: held against W under only the ticket's masks.

The reference is `dl.project(params, masks)`, which every user has, and nothing that slimming makes.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax.slimming.compare import Differs, difference
from dessilbi_jax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def r(seed, *shape):  # NumPy's, so that nothing is compiled to make it
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def conv(x, k, padding="SAME", **more):
    return jax.lax.conv_general_dilated(
        x, k, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


def masks_of(groups, params, share=0.5, seed=0, members="all"):
    """Masks as a ticket over `dl.channels(groups)` has them, that empty some of each set."""
    rng = np.random.default_rng(seed)
    gone = np.zeros(groups.count, bool)
    for each in groups.sets:
        out = rng.permutation(each.groups)[: max(int(len(each.groups) * share), 1)]
        gone[out[: len(each.groups) - 1]] = True
    return dl.channels(groups, members).masks(params, ~gone), gone


def as_tree(masks, params):
    return jax.tree.unflatten(
        jax.tree.structure(params), [jnp.asarray(masks[p]) for p, _ in leaf_paths(params)]
    )


def truth(net, params, masks, x, small):
    """Largest difference of an output from the projected network, over the largest output."""
    run = jax.jit(net)  # operation by operation, each would be compiled for itself
    want = run(dl.project(params, as_tree(masks, params)), *x)
    got = run(small.model, *x)
    return float(jnp.abs(want - got).max() / jnp.abs(want).max())


ACTIVATIONS = {
    "relu": jax.nn.relu, "tanh": jnp.tanh, "silu": jax.nn.silu, "gelu": jax.nn.gelu, "abs": jnp.abs,
    "leaky": jax.nn.leaky_relu, "square": jnp.square, "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "cos": jnp.cos, "exp": jnp.exp,
    "one more": lambda h: h + 1, "softsign of one more": lambda h: jax.nn.soft_sign(h + 1),
}  # fmt: skip
CONSTANT = ("sigmoid", "softplus", "cos", "exp", "one more", "softsign of one more")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_constant_goes_into_the_bias_behind_it(name):
    params = {
        "a": r(0, 5, 8), "ab": r(1, 8), "b": r(2, 8, 6), "bb": r(3, 6), "o": r(4, 6, 3),
        "ob": r(5, 3),
    }  # fmt: skip

    def net(p, x):
        h = ACTIVATIONS[name](x @ p["a"] + p["ab"])
        h = ACTIVATIONS[name](h @ p["b"] + p["bb"])
        return h @ p["o"] + p["ob"]

    x = r(6, 7, 5)
    groups = dl.channel_groups(net, params, x)
    assert groups.count == 14
    masks, _ = masks_of(groups, params)
    small = dl.slim(params, masks, x, fn=net, groups=groups)
    assert small.model["b"].shape == (4, 3)
    assert truth(net, params, masks, [x], small) < 1e-5
    assert truth(net, params, masks, [r(7, 9, 5)], small) < 1e-5, "on inputs it has not seen"
    assert small.difference < 1e-5
    folded = any("took the constants" in note for note in small.notes)
    assert folded == (name in CONSTANT)
    assert ("bb, ob took" in str(small)) == folded


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_stays_where_nothing_can_hold_it(name, padding, bias):
    """At the edge of an image that is padded with zeros it is another one than inside."""
    params = {"a": r(0, 3, 3, 2, 6), "b": r(1, 3, 3, 6, 4), "bias": r(2, 4), "o": r(3, 4, 3)}

    def net(p, x):
        h = ACTIVATIONS[name](conv(x, p["a"]))
        h = conv(h, p["b"], padding) + (p["bias"] if bias else 0)
        return jax.nn.relu(h).mean((1, 2)) @ p["o"]

    x = r(4, 2, 6, 6, 2)
    params = params if bias else {k: v for k, v in params.items() if k != "bias"}
    groups = dl.channel_groups(net, params, x)
    masks, _ = masks_of(groups, params)
    small = dl.slim(params, masks, x, fn=net, groups=groups)
    assert truth(net, params, masks, [x], small) < 1e-5
    held = name == "relu" or (bias and padding == "VALID")
    assert small.model["a"].shape[3] == (3 if held else 6)
    assert small.model["o"].shape == (2, 3)
    assert any("channels that stay: 3 of a" in note for note in small.notes) == (not held)


def test_nothing_left_to_remove_is_refused():
    params = {"a": r(0, 5, 8), "o": r(4, 8, 3)}

    def net(p, x):
        return jax.nn.sigmoid(x @ p["a"]) @ p["o"]

    x = r(6, 7, 5)
    masks, _ = masks_of(dl.channel_groups(net, params, x), params)
    with pytest.raises(ValueError, match=r"nothing can be removed .* 4 of a.*give the layer"):
        dl.slim(params, masks, x, fn=net)


def test_a_bias_that_is_used_twice_holds_nothing():
    params = {"a": r(0, 5, 8), "o": r(4, 8, 8), "b": r(5, 8)}

    def net(p, x):
        return (jax.nn.sigmoid(x @ p["a"]) @ p["o"] + p["b"]) * p["b"].sum()

    x = r(6, 7, 5)
    masks, _ = masks_of(dl.channel_groups(net, params, x), params)
    with pytest.raises(ValueError, match="nothing can be removed"):
        dl.slim(params, masks, x, fn=net)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("before", [True, False], ids=["behind it", "before it"])
def test_batch_normalisation_without_a_scale(scale, before):
    """Its running statistics make a constant of a channel that is zero."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.c = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
            self.n = nnx.BatchNorm(8, use_scale=scale, rngs=rngs)
            self.d = nnx.Conv(8, 6, (1, 1), use_bias=False, rngs=rngs)
            self.m = nnx.BatchNorm(6, use_scale=scale, rngs=rngs)
            self.o = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.n(self.c(x)))
            x = self.m(self.d(x)) if before else self.d(x)
            return self.o(nnx.relu(x).mean((1, 2)))

    x = r(0, 4, 8, 8, 3) + 1
    net = Net(nnx.Rngs(0))
    net.train()
    for _ in range(20):
        net(x)
    net.eval()
    keep = np.arange(8) < 4
    masks = {"c/kernel": np.broadcast_to(keep, (3, 3, 3, 8)), "n/bias": keep}
    if scale:
        masks["n/scale"] = keep
    masked = nnx.clone(net)
    masked.c.kernel[...] *= masks["c/kernel"]
    masked.n.bias[...] *= keep
    if scale:
        masked.n.scale[...] *= keep
    if not scale and not before:  # d has no bias, and what is behind it is no leaf
        with pytest.raises(ValueError, match="nothing can be removed"):
            dl.slim(net, masks, x)
        return
    small = dl.slim(net, masks, x)
    want, got = masked(x), small.model(x)
    assert float(jnp.abs(want - got).max() / jnp.abs(want).max()) < 1e-5
    assert small.model.c.kernel.shape[3] == 4
    assert ("m/mean took" in str(small)) == (not scale)


def test_kernels_alone_leave_the_bias_as_a_constant():
    params = {"a": r(0, 5, 8), "ab": r(1, 8), "o": r(2, 8, 3), "ob": r(3, 3)}

    def net(p, x):
        return jax.nn.relu(x @ p["a"] + p["ab"]) @ p["o"] + p["ob"]

    x = r(4, 6, 5)
    groups = dl.channel_groups(net, params, x)
    masks, _ = masks_of(groups, params, members="kernels")
    assert masks["ab"].all()
    small = dl.slim(params, masks, x, fn=net)
    assert small.model["a"].shape == (5, 4)
    assert truth(net, params, masks, [x], small) < 1e-5


# --- what has to be zero for a channel to be silent --------------------------------------------


def multi_query(p, x):
    q = jnp.einsum("btd,dhk->bthk", x, p["q"])
    k, v = x @ p["k"], x @ p["v"]
    a = jax.nn.softmax(jnp.einsum("bqhk,bsk->bhqs", q, k), -1)
    return jnp.einsum("bqhk,hkd->bqd", jnp.einsum("bhqs,bsk->bqhk", a, v), p["o"])


def multi_head(p, x):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[n]) for n in "qkv")
    a = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k), -1)
    return jnp.einsum("bqhk,hkd->bqd", jnp.einsum("bhqs,bshk->bqhk", a, v), p["o"])


def talking(p, x):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[n]) for n in "qkv")
    a = jnp.einsum("bqhk,bshk->bhqs", q, k)
    a = jax.nn.softmax(jnp.einsum("bhqs,hg->bgqs", a, p["t"]), -1)
    return jnp.einsum("bqhk,hkd->bqd", jnp.einsum("bhqs,bshk->bqhk", a, v), p["o"])


def auto_encoder(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["w"].T + p["c"]


def tied(p, ids):
    x = p["e"][ids]
    x = x + jax.nn.relu(x @ p["up"]) @ p["dn"]
    return x @ p["e"].T


def gated(p, x):
    return (jax.nn.sigmoid(x @ p["g"]) * (x @ p["u"])) @ p["o"]


HEADS = {"q": r(0, 16, 4, 4), "k": r(1, 16, 4, 4), "v": r(2, 16, 4, 4), "o": r(3, 4, 4, 3)}
SHARED = {"q": r(0, 16, 4, 4), "k": r(1, 16, 4), "v": r(2, 16, 4), "o": r(3, 4, 4, 3)}
X = r(9, 2, 5, 16)
NETWORKS = {
    # name: (network, parameters, inputs, leaves that are structured)
    "multi-query": (multi_query, SHARED, X, {"q", "o", "v"}),
    "multi-head": (multi_head, HEADS, X, {"q", "k", "v"}),
    "talking heads": (talking, {**HEADS, "t": r(4, 4, 4)}, X, None),
    "tied auto-encoder": (
        auto_encoder, {"w": r(0, 5, 8), "b": r(1, 8), "c": r(2, 5)}, r(3, 4, 5), {"w", "b"},
    ),
    "tied embedding": (
        tied, {"e": r(0, 11, 6), "up": r(1, 6, 8), "dn": r(2, 8, 6)}, jnp.arange(5),
        {"e", "up", "dn"},
    ),
    "gated": (gated, {"g": r(0, 16, 8), "u": r(1, 16, 8), "o": r(2, 8, 3)}, X, {"g", "u"}),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_gamma_selects_is_what_is_cut(name, seed):
    net, params, x, structured = NETWORKS[name]
    groups = dl.channel_groups(net, params, x)
    leaves = dl.channels(groups).resolve(params)
    if structured is not None:
        assert {leaf.path for leaf in leaves if leaf.counts is not None} == structured
    masks, gone = masks_of(groups, params, seed=seed)
    small = dl.slim(params, masks, x, fn=net, groups=groups)
    assert truth(net, params, masks, [x], small) < 1e-5
    if structured is not None:
        np.testing.assert_array_equal(groups.kept_by(small.plan), ~gone)


def test_a_query_that_is_zero_is_no_silent_head():
    """It attends to all alike: the head goes with what reads it, not without."""
    groups = dl.channel_groups(multi_query, SHARED, X)
    keep = np.arange(4) < 2
    query = {"q": np.broadcast_to(keep[None, :, None], (16, 4, 4))}
    reader = {"o": np.broadcast_to(keep[:, None, None], (4, 4, 3))}
    assert groups.kept(query).all()
    assert (~groups.kept(reader)).sum() == (~groups.kept({**query, **reader})).sum() == 2
    for masks in (reader, {**query, **reader}):
        small = dl.slim(SHARED, masks, X, fn=multi_query, groups=groups)
        masks = {p: masks.get(p, np.ones(w.shape, bool)) for p, w in SHARED.items()}
        assert small.model["q"].shape == (16, 2, 4)
        assert truth(multi_query, SHARED, masks, [X], small) < 1e-5


# --- outputs that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("odd", [-jnp.inf, jnp.inf, jnp.nan])
def test_outputs_that_are_not_finite_do_not_switch_the_check_off(odd):
    params = {"a": r(0, 5, 8), "o": r(1, 8, 3)}

    def net(p, x):
        out = jax.nn.relu(x @ p["a"]) @ p["o"]
        return jnp.where(jnp.arange(3) == 0, odd, out)

    def wrong(p, x):
        return net(p, x) + (p["a"].shape[1] == 4)

    x = r(2, 6, 5)
    masks = {"a": np.broadcast_to(np.arange(8) < 4, (5, 8))}
    assert dl.slim(params, masks, x, fn=net).difference < 1e-5
    with pytest.raises(ValueError, match=r"outputs differ .*: outputs differ by"):
        dl.slim(params, masks, x, fn=wrong)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, jnp.inf], [1.0, -jnp.inf], "1 of 2 entries .* infinite or NaN"),
        ([1.0, jnp.nan], [1.0, 2.0], "1 of 2 entries .* infinite or NaN"),
        ([1.0, 2.0], [1.0, jnp.inf], "1 of 2 entries .* infinite or NaN"),
        ([jnp.nan, jnp.inf], [jnp.nan, jnp.inf], "no entry of the outputs is finite"),
        ([1.0, 2.0], [1.0, 2.1], r"differ by 5\.0e-02 of the largest, more than 1e-05"),
        ([1.0, 2.0], [1.0], r"shape \(1,\) instead of \(2,\)"),
    ],
)
def test_outputs_that_differ(a, b, message):
    with pytest.raises(Differs, match=message):
        difference(jnp.array(a), jnp.array(b))


@pytest.mark.parametrize(
    "x",
    [
        jnp.array([1.0, jnp.inf, -jnp.inf, jnp.nan]), jnp.array([1 + 1j, 2.0]), jnp.arange(3),
        jnp.array([True, False]), jax.random.key(0), jnp.zeros((0, 3)), jnp.bfloat16(2),
    ],
)  # fmt: skip
def test_outputs_of_every_kind_are_compared(x):
    assert difference({"a": x, "b": jnp.ones(2)}, {"a": x, "b": jnp.ones(2)}) == 0
    with pytest.raises(Differs, match="1 outputs instead of 2"):
        difference({"a": x, "b": jnp.ones(2)}, {"b": jnp.ones(2)})


def test_a_network_without_finite_outputs_cannot_be_compared():
    params = {"a": r(0, 5, 8), "o": r(1, 8, 3)}

    def net(p, x):
        return jnp.log(-jnp.exp(jax.nn.relu(x @ p["a"]) @ p["o"]))

    masks = {"a": np.broadcast_to(np.arange(8) < 4, (5, 8))}
    with pytest.raises(ValueError, match="no entry of the outputs is finite"):
        dl.slim(params, masks, r(2, 6, 5), fn=net)


# --- state of a layer with one channel ----------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("lam", [0.1, dl.auto(density=0.5, steps=40)], ids=["given", "automatic"])
@pytest.mark.parametrize("lean", [False, True])
def test_a_layer_with_one_channel_left_trains_on(keep, lam, lean):
    params, x = {"a": r(0, 4, 8), "b": r(1, 8, 6), "c": r(2, 6, 3)}, r(3, 2, 4)

    def net(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    def make(q):
        structure = dl.channels(dl.channel_groups(net, q, x))
        return dl.dessilbi(0.1, nu=5.0, lam=lam, momentum=0.9, lean=lean, structure=structure)

    masks = {
        "a": np.broadcast_to(np.arange(8) < keep, (4, 8)),
        "b": np.broadcast_to(np.arange(6) < 3, (8, 6)),
    }
    small = dl.slim(params, masks, x, fn=net, opt_state=make(params).init(params))
    tx = make(small.model)
    grads = jax.grad(lambda q: net(q, x).sum())(small.model)
    _, state = jax.jit(tx.update)(grads, small.opt_state, small.model)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(small.model))
    assert (dl.get_state(state).v["a"].dtype == bool) == (keep == 1)


# --- leaves that were not seen -------------------------------------------------------------------


def test_leaves_that_only_training_uses_are_told():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.head = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            self.aux = nnx.Linear(8, 3, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x):
            h = nnx.relu(self.a(x))
            y = self.head(self.drop(h))
            return y if self.drop.deterministic else (y, self.aux(h))

    net, x = Net(nnx.Rngs(0)), jnp.ones((4, 5))
    net.train()
    masks = {"a/kernel": np.broadcast_to(np.arange(8) < 4, (5, 8)), "a/bias": np.arange(8) < 4}
    small = dl.slim(net, masks, x)
    assert "note: aux/bias, aux/kernel are not used by the network as it was traced" in str(small)
    assert not functools.reduce(getattr, ("drop", "deterministic"), small.model)


# --- stacks of layers ----------------------------------------------------------------------------


def nnx_stack():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(6, 10, rngs=rngs), nnx.Linear(10, 6, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(x)))

    class Net(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def stacked(rngs):
                return Block(rngs)

            self.first, self.head = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
            self.blocks = stacked(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def through(x, block):
                return block(x)

            return self.head(through(self.first(x), self.blocks))

    net = Net(nnx.Rngs(0))
    return net, "kernel", r(0, 2, 5), lambda small: small.blocks.up


def equinox_stack():
    class Block(eqx.Module):
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, key):
            up, down = jax.random.split(key)
            self.up, self.down = eqx.nn.Linear(6, 10, key=up), eqx.nn.Linear(10, 6, key=down)

        def __call__(self, x):
            return x + self.down(jax.nn.relu(self.up(x)))

    class Net(eqx.Module):
        first: eqx.nn.Linear
        blocks: Block
        head: eqx.nn.Linear

        def __init__(self, key):
            first, head, blocks = jax.random.split(key, 3)
            self.first = eqx.nn.Linear(5, 6, key=first)
            self.head = eqx.nn.Linear(6, 3, key=head)
            self.blocks = eqx.filter_vmap(Block)(jax.random.split(blocks, 3))

        def __call__(self, x):
            arrays, rest = eqx.partition(self.blocks, eqx.is_array)
            x, _ = jax.lax.scan(
                lambda x, layer: (eqx.combine(layer, rest)(x), None), self.first(x), arrays
            )
            return self.head(x)

    return Net(jax.random.key(0)), "weight", r(0, 5), lambda small: small.blocks.up


@pytest.mark.parametrize("make", [nnx_stack, equinox_stack])
def test_a_stack_of_layers_is_cut_in_all_of_them(make):
    net, kernel, x, layer = make()
    groups = dl.channel_groups(net, x)
    assert groups.count == 6 + 10
    keep = np.arange(10) >= 4
    axis = groups.shapes[f"blocks/up/{kernel}"].index(10)
    shape = [10 if i == axis else 1 for i in range(3)]
    masks = {
        f"blocks/up/{kernel}": np.broadcast_to(
            keep.reshape(shape), groups.shapes[f"blocks/up/{kernel}"]
        ),
        "blocks/up/bias": np.broadcast_to(keep, (3, 10)),
    }
    small = dl.slim(net, masks, x)
    assert layer(small.model).out_features == 6
    assert small.difference < 1e-5
    assert small.model(x).shape == net(x).shape
    again = dl.channel_groups(small.model, x)
    assert again.count == 6 + 6


# --- recurrent cells -----------------------------------------------------------------------------


def nnx_recurrent(cell):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(cell(5, 8, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x)[:, -1])

    return Net(nnx.Rngs(0)), r(0, 2, 4, 5), lambda small: small.rnn.cell.hidden_features


def equinox_recurrent(cell):
    class Net(eqx.Module):
        cell: eqx.Module
        head: eqx.nn.Linear

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.cell, self.head = cell(5, 8, key=one), eqx.nn.Linear(8, 3, key=two)

        def __call__(self, x):
            start = jnp.zeros(self.cell.hidden_size)
            start = (start, start) if cell is eqx.nn.LSTMCell else start
            state, _ = jax.lax.scan(lambda s, row: (self.cell(row, s), None), start, x)
            return self.head(state[0] if isinstance(state, tuple) else state)

    return Net(jax.random.key(0)), r(0, 4, 5), lambda small: small.cell.hidden_size


RECURRENT = {
    **{
        f"nnx.{cell.__name__}": (nnx_recurrent, cell)
        for cell in (nnx.LSTMCell, nnx.GRUCell, nnx.SimpleCell, nnx.OptimizedLSTMCell)
    },
    **{
        f"eqx.nn.{cell.__name__}": (equinox_recurrent, cell)
        for cell in (eqx.nn.LSTMCell, eqx.nn.GRUCell)
    },
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_cells_come_back_usable(name):
    make, cell = RECURRENT[name]
    net, x, width = make(cell)
    groups = dl.channel_groups(net, x)
    assert groups.count == 8, str(groups)
    kept = np.arange(8) % 2 == 0
    plan = groups.plan_of(kept)
    masks = {}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) in groups.reads:
            continue
        shape = [-1 if i == axis else 1 for i in range(len(groups.shapes[path]))]
        mask = np.broadcast_to(kept[numbers].reshape(shape), groups.shapes[path])
        masks[path] = masks.get(path, True) & mask
    small = dl.slim(net, masks, x)
    assert small.plan.keep == plan.keep
    assert width(small.model) == 4
    assert small.difference < 1e-5
    assert small.model(x).shape == net(x).shape
