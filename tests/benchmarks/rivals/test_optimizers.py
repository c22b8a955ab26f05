"""The optimizers of the classification table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.rivals import optimizers
from dessilbi_jax.train.step import nothing


def by_name(name):
    return next(o for o in optimizers.OPTIMIZERS if o.name == name)


def test_adabound_against_its_equations():
    grads = np.random.default_rng(0).normal(size=(12, 3))
    tx = optimizers.adabound(1e-3)
    w = jnp.zeros(3)
    state = tx.init(w)
    m, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for t, g in enumerate(grads, start=1):
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state)
        w = optax.apply_updates(w, updates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (np.sqrt(v) + 1e-8)
        lower, upper = 0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t))
        expected -= np.clip(step, lower, upper) * m
    np.testing.assert_allclose(w, expected, rtol=1e-4)


def test_adabound_is_adam_at_first_and_sgd_in_the_end():
    g = jnp.asarray([0.5, -0.01])
    bound, adam = optimizers.adabound(1e-3), optax.adam(1e-3)
    first, _ = bound.update(g, bound.init(g))
    theirs, _ = adam.update(g, adam.init(g))
    np.testing.assert_allclose(first, theirs, rtol=1e-3)
    late = optimizers.ScaleByAdaBoundState(jnp.int32(10**7), g, g**2)
    moved, _ = optimizers.scale_by_adabound(1e-3).update(g, late)
    np.testing.assert_allclose(moved, 0.1 * g, rtol=1e-3)


def test_the_final_rate_of_adabound_follows_the_schedule():
    g = jnp.asarray([0.5])
    late = optimizers.ScaleByAdaBoundState(jnp.int32(10**7), g, g**2)
    schedule = optax.piecewise_constant_schedule(1e-3, {1000: 0.1})
    moved, _ = optimizers.scale_by_adabound(schedule).update(g, late)
    np.testing.assert_allclose(moved, 0.01 * g, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("SGD l1", lambda w: 1e-3 * np.sign(w)), ("SGD Mom-Wd", lambda w: 1e-4 * w)],
)
def test_penalties_are_on_kernels_alone(name, gradient):
    params = {"kernel": jnp.asarray([[0.5, -2.0]]), "bias": jnp.asarray([3.0])}
    found = jax.grad(by_name(name).penalty)(params)
    np.testing.assert_allclose(found["kernel"], gradient(np.asarray(params["kernel"])), rtol=1e-6)
    assert not found["bias"].any()


def test_decay_stands_where_the_papers_have_it():
    decayed = {o.name for o in optimizers.OPTIMIZERS if o.penalty is not nothing}
    assert decayed == {
        "SGD l1", "SGD Mom-Wd", "SGD Nesterov", "DessiLBI-Mom-Wd, toolbox",
        "DessiLBI-Mom-Wd, paper",
    }  # fmt: skip


def test_one_object_for_one_schedule():
    rate = optax.constant_schedule(0.1)
    assert optimizers.made("Adam", rate, 100) is optimizers.made("Adam", rate, 100)
