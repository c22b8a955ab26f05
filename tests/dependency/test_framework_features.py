"""Features of frameworks: shared keys and values, kernels chosen by index, parts on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cut_truth import check_cut, half_of_each, projected, ticket_masks
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import dessilbi_jax as dl
from dessilbi_jax.frameworks import as_network

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def r(seed, *shape):  # NumPy's, so that nothing is compiled to make it
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


class Attending(nnx.Module):
    """NNX's own attention, with fewer heads for keys and values."""

    def __init__(self, kv_heads):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4, 16, qkv_features=16, num_kv_heads=kv_heads, decode=False, rngs=rngs
        )

    def __call__(self, x):
        return self.last(self.attention(self.first(x)))


@pytest.mark.parametrize(("kv_heads", "groups", "stays"), [(4, 36, 0), (2, 34, 0), (1, 40, 4)])
def test_attention_of_the_framework_comes_back_usable(kv_heads, groups, stays):
    net, x = Attending(kv_heads), r(0, 2, 5, 6)
    found = dl.channel_groups(net, x)
    assert found.count == groups, str(found)
    network, gone = as_network(net), half_of_each(found)
    masks = ticket_masks(found, network.tree, gone)
    small = dl.slim(net, masks, x, groups=found)
    assert (found.kept_by(small.plan) & gone).sum() == stays
    # With one head for keys and values, NNX wants values to be as many as queries are: 2 of them
    # stay, and that is said. 2 queries stay because `out` has groups of its own outputs already,
    # so that no ticket can empty what reads them as well.
    assert any("2 of attention/value/kernel" in note for note in small.notes) == bool(stays)
    want = network.fn(projected(network.tree, masks), x)
    np.testing.assert_allclose(small.model(x), want, atol=1e-5)


def chosen(p, x):
    """A mixture of experts that takes each row's kernels by index."""
    which = jnp.argmax(x @ p["router"], -1)
    h = jax.nn.relu(jnp.einsum("bi,bio->bo", x, p["up"][which]) + p["bias"][which])
    return jnp.einsum("bh,bho->bo", h, p["down"][which])


def test_kernels_chosen_by_index():
    params = {"router": r(0, 5, 3), "up": r(1, 3, 5, 8), "bias": r(2, 3, 8), "down": r(3, 3, 8, 4)}
    check_cut(chosen, params, (r(4, 7, 5),), 8)


def on_devices(kernel):
    """Batches, or hidden units, parted among two devices."""

    def net(p, x):
        mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])
        if kernel:
            specs = (P(), P(None, "d"), P("d"))
            inner = jax.shard_map(
                lambda x, a, b: jax.lax.psum(jax.nn.relu(x @ a) @ b, "d"),
                mesh=mesh, in_specs=specs, out_specs=P(),
            )  # fmt: skip
        else:
            inner = jax.shard_map(
                lambda x, a, b: jax.nn.relu(x @ a) @ b,
                mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d"),
            )  # fmt: skip
        return jax.nn.relu(inner(x, p["a"], p["b"])) @ p["o"]

    return net, {"a": r(0, 5, 8), "b": r(1, 8, 6), "o": r(2, 6, 3)}, (r(3, 4, 5),)


@pytest.mark.parametrize(("kernel", "groups"), [(False, 14), (True, 6)])
def test_functions_on_the_parts_of_devices(kernel, groups):
    net, params, inputs = on_devices(kernel)
    check_cut(net, params, inputs, groups)
    if kernel:
        found = dl.channel_groups(net, params, *inputs)
        assert "parted among devices at" in str(found.reasons["a", 1])


def test_a_reason_names_the_line_of_the_user():
    found = dl.channel_groups(Attending(4), r(0, 2, 5, 6))
    told = {str(why) for why in found.reasons.values()}
    assert not [why for why in told if "normalization.py" in why or "attention.py" in why]
    assert any("test_framework_features.py" in why for why in told)
