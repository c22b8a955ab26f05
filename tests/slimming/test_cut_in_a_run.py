"""A network that is cut in the middle of its run, with its optimizer's state, and trains on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dessilbi_jax as dl

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

STEPS, CUT, LEFT = 60, 45, 5
X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 10)), jnp.float32)
Y = jnp.sin(X[:, :3])


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.norm = nnx.Linear(10, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.b = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.norm(self.a(x))))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.a, self.b = eqx.nn.Linear(10, 16, key=one), eqx.nn.Linear(16, 3, key=two)

    def __call__(self, x):
        return jax.vmap(lambda row: self.b(jax.nn.relu(self.a(row))))(x)


def optimizer(groups):
    return dl.dessilbi(
        0.05, momentum=0.9, lam=dl.auto(group_density=0.5, steps=STEPS, at=0.5), nu=10.0,
        structure=dl.channels(groups), settle=dl.settle(groups=LEFT),
    )  # fmt: skip


def nnx_steps(model, tx, state, steps):
    @nnx.jit
    def step(model, state):
        def loss(model):
            return jnp.mean((model(X) - Y) ** 2)

        params = nnx.state(model, nnx.Param)
        updates, state = tx.update(nnx.grad(loss)(model), state, params)
        nnx.update(model, optax.apply_updates(params, updates))
        return state

    for _ in range(steps):
        state = step(model, state)
    return model, state


def equinox_steps(model, tx, state, steps):
    @eqx.filter_jit
    def step(model, state):
        params, rest = eqx.partition(model, eqx.is_array)
        grads = jax.grad(lambda p: jnp.mean((eqx.combine(p, rest)(X) - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return eqx.combine(optax.apply_updates(params, updates), rest), state

    for _ in range(steps):
        model, state = step(model, state)
    return model, state


KINDS = {
    "nnx": (Nnx, nnx_steps, lambda m: nnx.state(m, nnx.Param), lambda m: m.a.kernel.shape[1]),
    "equinox": (
        Equinox, equinox_steps, lambda m: eqx.filter(m, eqx.is_array), lambda m: m.a.out_features,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_cut_in_place_the_run_goes_on_as_the_masked_one_does(kind):
    make, run, params_of, width = KINDS[kind]
    model = make()
    if kind == "nnx":
        model.train()
    tx = optimizer(dl.channel_groups(model, X))
    model, state = run(model, tx, tx.init(params_of(model)), CUT)
    assert bool(dl.get_state(state).settled.done)

    small = dl.slim(model, dl.support(state), X, opt_state=state)
    assert width(small.model) == LEFT
    again = optimizer(dl.channel_groups(small.model, X))
    narrow, rest = run(small.model, again, small.opt_state, STEPS - CUT)
    whole, _ = run(model, tx, state, STEPS - CUT)  # the masked network, without the cut
    if kind == "nnx":
        narrow.eval(), whole.eval()
    np.testing.assert_allclose(narrow(X), whole(X), atol=2e-5)
    assert bool(dl.get_state(rest).settled.done)
    assert int(dl.get_state(rest).settled.budget) == LEFT
    assert int(dl.get_state(rest).count) == STEPS
