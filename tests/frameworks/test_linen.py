"""Linen modules with widths written in their code: cut without a change, and trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cut_truth import half_of_each, projected, ticket_masks
from flax import linen as nn

import dessilbi_jax as dl

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


class Images(nn.Module):
    """Convolutions of every kind, with normalisations, dropout and batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
        x = nn.Conv(6, (3, 3), name="wide")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 3), feature_group_count=6)(x)
        x = nn.relu(nn.ConvTranspose(5, (2, 2), strides=(2, 2))(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.DenseGeneral((2, 3))(x.mean((1, 2)))


class Tokens(nn.Module):
    """Embedding, recurrent cells and attention, made in `setup`."""

    def setup(self):
        self.embed = nn.Embed(11, 12)
        self.cells = [nn.RNN(nn.GRUCell(8)), nn.RNN(nn.OptimizedLSTMCell(10))]
        self.attention = nn.MultiHeadDotProductAttention(4, qkv_features=16)
        self.head = nn.Dense(3)

    def __call__(self, ids):
        x = self.embed(ids)
        for cell in self.cells:
            x = cell(x)
        return self.head(self.attention(x, x).mean(1))


IDS = np.random.default_rng(0).integers(0, 11, (2, 5))
PIXELS = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
CASES = {
    "images": (Images(), PIXELS, 4 + 6 + 5),  # group normalisation goes group by group
    "tokens": (Tokens(), IDS, 12 + 8 + 10 + 4 + 10),
    "a layer by itself": (nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]), PIXELS, 8),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module_with_literal_widths_is_cut_as_it_is_and_trains_on(name):
    model, x, count = CASES[name]
    variables = model.init(jax.random.key(0), x)
    groups = dl.channel_groups(model.apply, variables, x)
    assert groups.count == count, str(groups)
    gone = half_of_each(groups)
    masks = ticket_masks(groups, variables, gone)
    small = dl.slim(variables, masks, x, fn=model.apply, groups=groups)
    np.testing.assert_array_equal(groups.kept_by(small.plan), ~gone)
    want = model.apply(projected(variables, masks), x)
    np.testing.assert_allclose(small.fn(small.model, x), want, atol=1e-5)

    def loss(params, rest):
        out = model.apply({**rest, "params": params}, x)
        return jnp.mean((out - 1) ** 2)

    rest = {kind: tree for kind, tree in small.model.items() if kind != "params"}
    step = jax.jit(jax.value_and_grad(dl.fitted(loss, small.plan)))
    params, tx = small.model["params"], optax.sgd(0.05)
    state, losses = tx.init(params), []
    for _ in range(5):
        value, grads = step(params, rest)
        updates, state = tx.update(grads, state)
        params, losses = optax.apply_updates(params, updates), [*losses, float(value)]
    assert losses == sorted(losses, reverse=True)
    again = dl.channel_groups(small.fn, small.model, x)
    assert again.count == (~gone).sum()


def test_batch_statistics_go_on_with_mutable_collections():
    model, x, _ = CASES["images"]
    variables = model.init(jax.random.key(0), x)
    mask = {"params/wide/kernel": np.broadcast_to(np.arange(6) < 2, (3, 3, 8, 6)),
            "params/wide/bias": np.arange(6) < 2}  # fmt: skip
    masks = {**mask, "params/BatchNorm_0/scale": np.arange(6) < 2,
             "params/BatchNorm_0/bias": np.arange(6) < 2, "params/Conv_1/bias": np.arange(6) < 2,
             "params/Conv_1/kernel": np.broadcast_to(np.arange(6) < 2, (3, 3, 1, 6))}  # fmt: skip
    small = dl.slim(variables, masks, x, fn=model.apply)

    def train(variables, key):
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    out, changed = dl.fitted(train, small.plan)(small.model, jax.random.key(1))
    assert out.shape == (2, 2, 3)
    assert changed["batch_stats"]["BatchNorm_0"]["mean"].shape == (2,)
    with pytest.raises(Exception, match="expected to generate shape"):
        train(small.model, jax.random.key(1))  # the user's own function keeps its widths


def test_initialising_and_wide_variables_are_left_as_they_are():
    model, x, _ = CASES["images"]
    variables = model.init(jax.random.key(0), x)
    plan = dl.channel_groups(model.apply, variables, x).plan(None)
    again = dl.fitted(model.init, plan)(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_array_equal(
        dl.fitted(model.apply, plan)(variables, x), model.apply(variables, x)
    )
    wrapped = dl.fitted(model.apply, plan)
    assert dl.fitted(wrapped, plan) is wrapped


def test_a_width_in_other_code_is_named():
    class Reshaped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dense(8)(x).reshape(-1, 8))

    x = jnp.ones((2, 4))
    variables = Reshaped().init(jax.random.key(0), x)
    mask = {"params/Dense_1/kernel": np.broadcast_to(np.arange(8) < 4, (4, 8)),
            "params/Dense_1/bias": np.arange(8) < 4}  # fmt: skip
    with pytest.raises(TypeError, match="cannot run with smaller arrays"):
        dl.slim(variables, mask, x, fn=Reshaped().apply)
