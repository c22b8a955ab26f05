"""Sums that zeros leave as they are, means that a scale makes up for, and cuts at lengths read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cut_truth import check_cut, half_of_each, projected, ticket_masks
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax.frameworks import as_network

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def r(seed, *shape):  # NumPy's, so that nothing is compiled to make it
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def root_mean_square(x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-9)


def lengths(x):
    return jnp.sqrt((x * x).sum(-1, keepdims=True))


IDS = jnp.arange(6)


def language_model(norm, tied=False):
    """A residual stream of 8 numbers with one block of 12 hidden units."""

    def net(p, ids):
        x = p["emb"][ids]
        x = x + jax.nn.silu(norm(x, p["g1"]) @ p["up"]) @ p["down"]
        return norm(x, p["g2"]) @ (p["emb"].T if tied else p["head"])

    params = {"emb": r(0, 11, 8), "g1": 1 + r(1, 8), "up": r(2, 8, 12), "down": r(3, 12, 8),
              "g2": 1 + r(4, 8), "head": r(5, 8, 11)}  # fmt: skip
    if tied:
        del params["head"]
    return net, params, (IDS,)


NORMS = {
    "scale behind": lambda x, g: root_mean_square(x) * g,
    "scale in the factor": lambda x, g: x * (jax.lax.rsqrt((x * x).mean(-1, keepdims=True)) * g),
    "a quotient": lambda x, g: g * x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True)),
    "root of n": lambda x, g: x / (lengths(x) / np.sqrt(x.shape[-1])) * g,
    "no scale": lambda x, g: root_mean_square(x),
    "one and more": lambda x, g: root_mean_square(x) * (1 + g),
}


def stacked(p, ids):
    """Blocks in a scan: each has a scale of its own, all are multiplied alike."""

    def block(x, q):
        x = x + jax.nn.silu(root_mean_square(x) * q["g"] @ q["up"]) @ q["down"]
        return x, None

    x, _ = jax.lax.scan(block, p["emb"][ids], p["blocks"])
    return root_mean_square(x) * p["g"] @ p["head"]


def siamese(compare):
    def net(p, x, y):
        a, b = (jax.nn.relu(z @ p["a"] + p["ab"]) @ p["b"] for z in (x, y))
        return compare(a, b)

    return net, {"a": r(0, 5, 8), "ab": r(1, 8), "b": r(2, 8, 6)}, (r(3, 4, 5), r(4, 4, 5)), 14


def quantised(p, x):
    """Activations in 8 bits, by the largest of each row."""
    h = jax.nn.silu(x @ p["a"])
    step = jnp.abs(h).max(-1, keepdims=True) / 127
    return (jnp.round(h / step) * step) @ p["o"]


def responses(p, x):
    """Global response normalisation (ConvNeXt V2)."""
    h = jax.nn.gelu(x @ p["a"])
    size = jnp.sqrt((h * h).sum((1, 2), keepdims=True))
    ratio = size / (size.mean(-1, keepdims=True) + 1e-9)
    return (p["g"] * (h * ratio) + h) @ p["o"]


def attention(p, x, size=4):
    """Grouped queries by one product, cut at lengths read from the arrays."""
    b, t, _ = x.shape
    q_size = p["o"].shape[0]
    k_size = (p["qkv"].shape[1] - q_size) // 2
    q, k, v = jnp.split(x @ p["qkv"], [q_size, q_size + k_size], -1)
    q, k, v = (z.reshape(b, t, -1, size) for z in (q, k, v))
    k, v = (jnp.repeat(z, q.shape[2] // z.shape[2], 2) for z in (k, v))
    a = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), -1)
    return jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(b, t, -1) @ p["o"]


def by_slices(p, x):
    """The same as three slices."""
    n = p["o"].shape[0]
    h = x @ p["in"]
    gate, up = h[:, :n], h[:, n : 2 * n]
    return (jax.nn.silu(gate) * up) @ p["o"] + h[:, 2 * n :] @ p["o2"]


def state_space(p, u, size=4, states=3):
    """Mamba-2: [z | x | B | C | dt] by one product, and heads."""
    b, t, _ = u.shape
    heads = p["A"].shape[0]
    wide = heads * size
    cuts = np.cumsum([wide, wide, states, states])
    z, xs, into, out, dt = jnp.split(u @ p["in"], cuts, -1)
    xs, dt = xs.reshape(b, t, heads, size), jax.nn.softplus(dt + p["dtb"])

    def step(h, s):
        decay = jnp.exp(-s[0] * jnp.exp(p["A"]))[..., None, None]
        h = h * decay + (s[0][..., None] * s[1])[..., None] * s[2][:, None, None]
        return h, jnp.einsum("bhdn,bn->bhd", h, s[3])

    start = jnp.zeros((b, heads, size, states))
    _, y = jax.lax.scan(step, start, tuple(a.swapaxes(0, 1) for a in (dt, xs, into, out)))
    y = y.swapaxes(0, 1) + xs * p["D"][:, None]
    return (y.reshape(b, t, wide) * jax.nn.silu(z)) @ p["out"]


CASES = {
    **{f"rms, {name}": (*language_model(norm), 20) for name, norm in NORMS.items()},
    "rms, tied": (*language_model(NORMS["scale behind"], tied=True), 20),
    "rms, stacked": (
        stacked,
        {"emb": r(0, 11, 8), "g": 1 + r(1, 8), "head": r(2, 8, 11),
         "blocks": {"g": 1 + r(3, 3, 8), "up": r(4, 3, 8, 12), "down": r(5, 3, 12, 8)}},
        (IDS,), 20,
    ),
    "siamese, products": siamese(lambda a, b: a @ b.T),
    "siamese, distances": siamese(lambda a, b: ((a - b) ** 2).sum(-1)),
    "siamese, cosines": siamese(lambda a, b: (a / lengths(a)) @ (b / lengths(b)).T),
    "quantised": (quantised, {"a": r(0, 5, 8), "o": r(1, 8, 3)}, (r(2, 4, 5),), 8),
    "responses": (
        responses, {"a": r(0, 5, 8), "g": r(1, 8), "o": r(2, 8, 3)}, (r(3, 2, 4, 4, 5),), 8,
    ),
    "grouped queries": (attention, {"qkv": r(0, 16, 32), "o": r(1, 16, 3)}, (r(2, 2, 5, 16),), 2),
    "joined kernels of grouped queries": (
        lambda p, x: attention(
            {"qkv": jnp.concatenate([p["q"], p["k"], p["v"]], 1), "o": p["o"]}, x
        ),
        {"q": r(0, 16, 16), "k": r(1, 16, 8), "v": r(2, 16, 8), "o": r(3, 16, 3)},
        (r(4, 2, 5, 16),), 2,
    ),
    "slices": (
        by_slices, {"in": r(0, 5, 16), "o": r(1, 6, 3), "o2": r(2, 4, 3)}, (r(3, 4, 5),), 10,
    ),
    "state space": (
        state_space,
        {"in": r(0, 16, 42), "A": r(1, 4), "dtb": r(2, 4), "D": r(3, 4), "out": r(4, 16, 3)},
        (r(5, 2, 5, 16),), 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_and_cut(name):
    check_cut(*CASES[name])


def test_scales_make_up_for_the_channels_that_are_missing():
    net, params, inputs = language_model(NORMS["scale behind"])
    small = check_cut(net, params, inputs, 20)
    np.testing.assert_allclose(
        np.sort(np.asarray(small.model["g1"])),
        np.sort(np.sqrt(2) * np.asarray(params["g1"])[list(small.plan.keep["g1"][0])]),
        rtol=1e-6,
    )
    assert any("multiplied: g1 by 1.41421, g2 by 1.41421" in note for note in small.notes)


def scale_twice(x, g):
    """Its scale is also added: it cannot be multiplied."""
    return root_mean_square(x) * g + g


KEPT = {
    "a scale that is added too": lambda p, x: scale_twice(x @ p["a"], p["g"]) @ p["o"],
    "a scale by the width": lambda p, x: (
        jnp.tanh((x @ p["a"]) @ (x @ p["b"]).T * p["a"].shape[1] ** -0.5) @ x @ p["c"]
    ),
    "a width before the sum": lambda p, x: jax.nn.softmax(
        (x @ p["a"] / np.sqrt(p["a"].shape[1])) @ (x @ p["b"]).T
    ) @ x @ p["c"],
    "parts at lengths of its own": lambda p, x: (
        lambda h: h[:, :3] @ p["o"][:3] + h[:, 3:] @ p["o"][3:]
    )(x @ p["a"]),
    "the largest of any sign": lambda p, x: (x @ p["a"]).max(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_the_width_changes_keeps_its_channels(name):
    params = {"a": r(0, 5, 8), "b": r(1, 5, 8), "g": r(2, 8), "o": r(3, 8, 3), "c": r(4, 5, 3)}
    groups = dl.channel_groups(KEPT[name], params, r(5, 4, 5))
    assert not groups.removable("a", 1).any(), str(groups)


def test_an_epsilon_that_counts_keeps_the_stream_and_says_so():
    def norm(x, g):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-2) * g

    net, params, inputs = language_model(norm)
    groups = dl.channel_groups(net, params, *inputs)
    gone = half_of_each(groups)
    masks = ticket_masks(groups, params, gone)
    small = dl.slim(params, masks, *inputs, fn=net)
    assert small.model["emb"].shape == (11, 8)
    assert small.model["up"].shape == (8, 6)
    (note,) = (n for n in small.notes if "stay" in n)
    assert "4 of down. Means are taken over them beside an ε" in note
    want = net(projected(params, masks), *inputs)
    np.testing.assert_allclose(net(small.model, *inputs), want, atol=1e-5)
    rough = dl.slim(params, masks, *inputs, fn=net, approximate=True)
    assert rough.model["emb"].shape == (11, 4)
    assert 1e-5 < rough.difference < 0.1


class Normalised(nnx.Module):
    """A residual stream under layer normalisations."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.emb = nnx.Embed(11, 16, rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 12, rngs=rngs), nnx.Linear(12, 16, rngs=rngs)
        self.head = nnx.Linear(16, 11, rngs=rngs)

    def __call__(self, ids):
        x = self.emb(ids)
        x = x + self.down(nnx.gelu(self.up(self.norm1(x))))
        return self.head(self.norm2(x))


def test_layer_normalisation_is_cut_where_it_is_asked_for_and_says_how_far_it_is_off():
    net = Normalised()
    params = as_network(net).tree
    strict = dl.channel_groups(net, IDS)
    assert strict.count == 12
    assert "test_means.py" in str(strict.reasons["emb/embedding", 1])  # not the framework's line
    groups = dl.channel_groups(net, IDS, approximate=True)
    assert groups.count == 28
    gone = half_of_each(groups)
    masks = ticket_masks(groups, params, gone)
    small = dl.slim(net, masks, IDS, groups=groups)
    assert small.model.emb.embedding.shape == (11, 8)
    want = as_network(net).fn(projected(params, masks), IDS)
    got = small.model(IDS)
    off = float(jnp.abs(want - got).max() / jnp.abs(want).max())
    np.testing.assert_allclose(small.difference, off, rtol=1e-3)
    assert 1e-5 < off < 0.5
    assert any("approximate: means that layer" in note for note in small.notes)
    np.testing.assert_allclose(  # √(16/8), beside what was learnt
        np.asarray(small.model.norm1.scale), np.sqrt(2), rtol=1e-6
    )
    with pytest.raises(TypeError, match="approximate= has no use with groups="):
        dl.slim(net, masks, IDS, groups=groups, approximate=True)
