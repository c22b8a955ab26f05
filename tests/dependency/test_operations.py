"""Operations that networks of other kinds are made of: what is removable, and that the cut is true.

Each is held against the network under only the masks of a ticket over `dl.channels(groups)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cut_truth import check_cut

import dessilbi_jax as dl

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def r(seed, *shape):  # NumPy's, so that nothing is compiled to make it
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


SENDERS, RECEIVERS = jnp.array([0, 1, 2, 3, 3, 0]), jnp.array([1, 2, 3, 0, 1, 2])


def messages(reduce):
    """A graph network: messages along edges, reduced at their receivers."""

    def net(p, x):
        h = jax.nn.relu(x @ p["a"])
        m = jax.nn.relu(h[SENDERS] @ p["b"] + p["bb"])
        g = reduce(m)
        return (g @ p["c"] + h @ p["d"]).mean(0)

    params = {"a": r(0, 5, 6), "b": r(1, 6, 8), "bb": r(2, 8), "c": r(3, 8, 3), "d": r(4, 6, 3)}
    return net, params, (r(5, 4, 5),), 14


def experts(p, x):
    """A mixture of experts: each row goes through the kernels of its own."""
    h = jax.nn.relu(jax.lax.ragged_dot(x, p["up"], jnp.array([3, 0, 4])))
    return jax.lax.ragged_dot(h, p["down"], jnp.array([3, 0, 4])) @ p["o"]


def spectral(p, x):
    """A transform over time, complex weights by channel, and back."""
    h = jax.nn.relu(x @ p["a"])
    f = jnp.fft.rfft(h.swapaxes(1, 2)) * (p["re"] + 1j * p["im"])[:, None]
    h = jnp.fft.irfft(f, n=h.shape[1]).swapaxes(1, 2)
    return jax.nn.relu(h) @ p["o"]


@jax.custom_batching.custom_vmap
def doubled(x):
    return 2 * x


@doubled.def_vmap
def _doubled(size, batched, x):
    return 2 * x, batched[0]


def by_custom_vmap(p, x):
    return doubled(jax.nn.relu(x @ p["a"])) @ p["o"]


def interleaved(p, x):
    h = x @ p["a"]
    return (jnp.tanh(h[..., ::2]) * jax.nn.sigmoid(h[..., 1::2])) @ p["o"]


def blur(how):
    """A depthwise convolution with a kernel that is made for the number of channels."""

    def net(p, x):
        h = jax.nn.relu(conv(x, p["a"]))
        c = h.shape[-1]
        box = np.outer([1, 2, 1], [1, 2, 1])[:, :, None, None].astype(np.float32) / 16
        kernel = {
            "numpy": lambda: np.tile(box, (1, 1, 1, c)),
            "tile": lambda: jnp.tile(box, (1, 1, 1, c)),
            "broadcast": lambda: jnp.broadcast_to(box, (3, 3, 1, c)),
            "ones": lambda: jnp.ones((3, 3, 1, c)),
            "repeat": lambda: jnp.repeat(jnp.asarray(box), c, 3),
            "two of each": lambda: jnp.tile(box, (1, 1, 1, 2 * c)),
        }[how]()
        h = conv(h, kernel, feature_group_count=c)
        return jax.nn.relu(conv(h, p["b"])).mean((1, 2)) @ p["o"]

    into = 12 if how == "two of each" else 6
    params = {"a": r(0, 3, 3, 3, 6), "b": r(1, 3, 3, into, 5), "o": r(2, 5, 2)}
    return net, params, (r(3, 1, 6, 6, 3),), 11


def conv(x, k, **more):
    return jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


def shuffle(p, x):
    """Channels of two branches dealt in turns: the same positions go from both."""
    h = jnp.concatenate([jax.nn.relu(x @ p["a"]), jax.nn.relu(x @ p["b"])], -1)
    h = h.reshape(len(x), 2, -1).swapaxes(1, 2).reshape(len(x), -1)
    return h @ p["o"]


def decoder(kind):
    """A dense layer whose outputs become an image, with something by channel before the next."""

    def net(p, z):
        h = (z @ p["fc"]).reshape(z.shape[0], 4, 4, -1)
        if kind == "bias":
            h = h + p["b"]
        if kind == "scale":
            h = h * p["b"]
        if kind == "norm":
            h = (h - h.mean((0, 1, 2))) * p["b"]
        return conv(jax.nn.relu(h), p["conv"])

    params = {"fc": r(0, 5, 128), "conv": r(1, 3, 3, 8, 3)}
    if kind != "none":
        params["b"] = r(2, 8)
    return net, params, (r(3, 2, 5),), 8


def ensemble(p, x):
    """Several networks side by side, by vmap over their parameters."""
    out = jax.vmap(lambda q: jax.nn.relu(x @ q["a"]) @ q["o"])(p)
    return out.mean(0)


def joined_kernels(p, x):
    """Gate and values by one product, whose kernel is put together in the code."""
    h = x @ jnp.concatenate([p["gate"], p["up"]], 1)
    gate, up = jnp.split(h, 2, -1)
    return (jax.nn.silu(gate) * up) @ p["o"]


def low_rank(p, x):
    """A kernel with its adapter merged: the rank can go by itself."""
    return jax.nn.relu(x @ (p["w"] + p["a"] @ p["b"])) @ p["o"]


def cosine(p, x):
    """Sums that zeros leave as they are."""
    a, b = jax.nn.relu(x @ p["a"]), jax.nn.relu(x @ p["b"])
    return (a * b).sum(-1) / (jnp.sqrt((a * a).sum(-1) * (b * b).sum(-1)) + 1e-3)


def ones_over_channels(p, x):
    h = jax.nn.relu(conv(x, p["a"]))
    return conv(h, jnp.ones((1, 1, h.shape[-1], 2))).mean((1, 2))


CASES = {
    "segment_sum": messages(lambda m: jax.ops.segment_sum(m, RECEIVERS, 4)),
    "segment_max": messages(lambda m: jax.ops.segment_max(m, RECEIVERS, 4)),
    "scatter-add": messages(lambda m: jnp.zeros((4, m.shape[1])).at[RECEIVERS].add(m)),
    "scatter": messages(lambda m: jnp.zeros((4, m.shape[1])).at[RECEIVERS].set(m)),
    "experts": (
        experts, {"up": r(0, 3, 5, 8), "down": r(1, 3, 8, 6), "o": r(2, 6, 2)}, (r(3, 7, 5),), 14,
    ),
    "spectral": (
        spectral, {"a": r(0, 5, 8), "re": r(1, 8), "im": r(2, 8), "o": r(3, 8, 3)},
        (r(4, 2, 6, 5),), 8,
    ),
    "custom_vmap": (by_custom_vmap, {"a": r(0, 5, 8), "o": r(1, 8, 3)}, (r(2, 4, 5),), 8),
    "interleaved": (interleaved, {"a": r(0, 5, 20), "o": r(1, 10, 3)}, (r(2, 4, 5),), 10),
    "shuffle": (shuffle, {"a": r(0, 5, 4), "b": r(1, 5, 4), "o": r(2, 8, 3)}, (r(3, 6, 5),), 4),
    "ensemble": (ensemble, {"a": r(0, 3, 5, 10), "o": r(1, 3, 10, 2)}, (r(2, 4, 5),), 10),
    "joined kernels": (
        joined_kernels, {"gate": r(0, 5, 8), "up": r(1, 5, 8), "o": r(2, 8, 3)}, (r(3, 4, 5),), 8,
    ),
    "low rank": (
        low_rank, {"w": r(0, 5, 8), "a": r(1, 5, 4), "b": r(2, 4, 8), "o": r(3, 8, 3)},
        (r(4, 4, 5),), 12,
    ),
    "cosine": (cosine, {"a": r(0, 5, 8), "b": r(1, 5, 8)}, (r(2, 4, 5),), 8),
    "ones": (ones_over_channels, {"a": r(0, 3, 3, 3, 6)}, (r(3, 1, 6, 6, 3),), 6),
    **{f"blur, {how}": blur(how) for how in
       ("numpy", "tile", "broadcast", "ones", "repeat", "two of each")},
    **{f"decoder, {kind}": decoder(kind) for kind in ("none", "bias", "scale", "norm")},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_and_cut(name):
    check_cut(*CASES[name])


def test_positions_of_a_shuffle_that_are_not_the_same_are_no_ticket_of_it():
    net, params, inputs, _ = CASES["shuffle"]
    masks = {
        name: np.broadcast_to(np.isin(np.arange(4), keep), (5, 4))
        for name, keep in (("a", [0, 1]), ("b", [2, 3]))
    }
    with pytest.raises(ValueError, match=r"empties no channel: .*dl\.channels\(groups\)"):
        dl.slim(params, masks, *inputs, fn=net)


MEANS = {
    "layer norm": lambda h: (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 0.1),
    "mean": lambda h: h - h.mean(-1, keepdims=True),
    "mean square, squashed": lambda h: h * jax.nn.sigmoid((h * h).mean(-1, keepdims=True)),
    "root mean square, shifted": lambda h: (
        1 + h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)
    ),
    "softmax": lambda h: jax.nn.softmax(h),
    "sum of one more": lambda h: h / (h + 1).sum(-1, keepdims=True),
}


@pytest.mark.parametrize("name", MEANS)
def test_reductions_that_the_number_of_channels_changes_keep_them(name):
    params = {"a": r(0, 5, 8), "o": r(1, 8, 3)}
    groups = dl.channel_groups(
        lambda p, x: MEANS[name](jax.nn.relu(x @ p["a"])) @ p["o"], params, r(2, 4, 5)
    )
    assert groups.count == 0
    assert "reduced over" in str(groups.reasons["a", 1])


def test_random_numbers_of_training_say_so():
    def net(p, x, key):
        h = jax.nn.relu(x @ p["a"])
        return jnp.where(jax.random.bernoulli(key, 0.9, h.shape), h / 0.9, 0) @ p["o"]

    params = {"a": r(0, 5, 8), "o": r(1, 8, 3)}
    groups = dl.channel_groups(net, params, r(2, 4, 5), jax.random.key(0))
    assert "trace it in evaluation mode" in str(groups.reasons["a", 1])
