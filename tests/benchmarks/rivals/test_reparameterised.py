"""Rivals that train the weights through a threshold or a mask that is learned with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.harness import masks
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import reparameterised as rep
from benchmarks.rivals.rival import exact

SETTING = Setting("lenet300", "mnist", epochs=2, rate=0.05, batch=32, widths=(16, 8))
NAMES = [rival.name for rival in rep.RIVALS]


def work(**kw):
    return Work(SETTING, seed=0, **kw)


@functools.cache
def found(name):
    rival = next(r for r in rep.RIVALS if r.name == name)
    return rival.find(work(), 0.03, **rival.trials[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_ticket_has_the_exact_size_and_costs_one_run(name):
    got = found(name)
    assert exact(got, 0.03)
    assert got.cost.steps == work().steps() == 16
    assert 0 < got.told["reached"] <= 1
    for w, m in zip(masks.kernels(got.params), masks.kernels(got.mask), strict=True):
        assert not np.asarray(w)[~np.asarray(m)].any()
    assert any(np.asarray(w).any() for w in masks.kernels(got.params))


def test_each_has_eight_trials_that_differ():
    for rival in rep.RIVALS:
        assert len({tuple(sorted(t.items())) for t in rival.trials}) == len(rival.trials) == 8
        assert rival.assumed


def test_the_soft_threshold_and_its_gradient_are_those_of_the_paper():
    w = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    g = jax.random.normal(jax.random.key(1), w.shape)
    s = jnp.float32(-0.3)
    at = 1 / (1 + np.exp(0.3))
    assert np.allclose(rep.soft(w, s), np.sign(w) * np.maximum(np.abs(w) - at, 0), atol=1e-6)
    slope = jax.grad(lambda s: jnp.sum(g * rep.soft(w, s)))(s)
    over = np.abs(w) > at
    assert np.allclose(slope, -at * (1 - at) * np.sum((g * np.sign(w))[over]), rtol=1e-5)


def test_each_kernel_has_its_own_threshold_and_a_bias_has_none():
    params = {"a": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}, "b": jnp.ones((1, 1, 2, 2))}
    seen = rep.thresholded({"params": params, "threshold": jnp.array([-99.0, 0.0])})
    assert np.allclose(seen["a"]["bias"], 1)
    assert np.allclose(seen["a"]["kernel"], 1)
    assert np.allclose(seen["b"], 0.5)


def test_decay_draws_the_threshold_up_and_leaves_biases():
    tx = rep.decaying_sgd(optax.constant_schedule(0.1), 0.0, 0.5)
    trained = {
        "params": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))},
        "threshold": jnp.array([-8.0]),
    }
    zero = jax.tree.map(jnp.zeros_like, trained)
    updates, _ = tx.update(zero, tx.init(trained), trained)
    after = optax.apply_updates(trained, updates)
    assert np.allclose(after["threshold"], -8 * 0.95)
    assert np.allclose(after["params"]["kernel"], 0.95)
    assert np.allclose(after["params"]["bias"], 1)


def _masked(m):
    return {"mask": {"bias": jnp.ones(()), "kernel": jnp.asarray(m)}}


def test_the_penalties_are_equal_at_zero_and_one_and_the_logarithm_is_strictly_concave():
    l1, log = rep.penalty(0.1), rep.penalty(0.1, 0.01)
    for value, share in [(0.0, 0.0), (1.0, 1.0)]:
        m = _masked(jnp.full((2, 3), value))
        assert np.allclose([l1(m), log(m)], 0.1 * 6 * share, atol=1e-6)
    m = jnp.array([[0.0, 0.2, 0.5, 1.0]])
    assert np.allclose(jax.grad(l1)(_masked(m))["mask"]["kernel"], 0.1)
    slopes = jax.grad(log)(_masked(m))["mask"]["kernel"]
    assert np.allclose(slopes, 0.1 / ((m + 0.01) * np.log(101)), rtol=1e-5)
    assert np.all(np.diff(slopes) < 0)


def test_the_mask_is_projected_after_each_step_and_the_weights_are_not():
    tx = rep.projected_sgd(optax.constant_schedule(1.0), 0.0)
    tree = jnp.array([[0.0, 0.4, 1.0, 0.3]])
    trained = {"params": {"k": tree}, "mask": {"k": tree}}
    gradient = jnp.array([[0.1, 0.1, -0.7, 0.9]])
    updates, _ = tx.update(
        {"params": {"k": gradient}, "mask": {"k": gradient}}, tx.init(trained), trained
    )
    after = optax.apply_updates(trained, updates)
    assert np.allclose(after["params"]["k"], [[-0.1, 0.3, 1.7, -0.6]])
    assert np.allclose(after["mask"]["k"], [[0.0, 0.3, 1.0, 0.0]])


@pytest.mark.parametrize("eps", [None, 0.1, 0.01])
def test_at_the_closing_strength_a_mask_without_a_loss_ends_at_zero(eps):
    seen = Work(dataclasses.replace(SETTING, momentum=0.0, epochs=20), seed=0)
    start = 0.5
    for pull, closed in ((0.8, False), (1.2, True)):
        slope = jax.grad(rep.penalty(pull * rep.closing(seen, start, eps), eps))
        tx = rep.projected_sgd(seen.rate(), seen.setting.momentum)
        trained = {"params": {"k": jnp.zeros((1, 1))}, "mask": {"k": jnp.full((1, 1), start)}}
        state = tx.init(trained)
        for _ in range(seen.steps()):
            updates, state = tx.update(slope(trained), state, trained)
            trained = optax.apply_updates(trained, updates)
        assert bool(trained["mask"]["k"][0, 0] == 0) is closed


def test_entries_of_the_mask_at_zero_are_taken_by_their_weight():
    seen = work()
    got = rep.relaxed_mask(seen, 0.5, pull=5.0)
    assert got.told["reached"] < 0.3
    for m in masks.kernels(got.mask)[:1]:  # not all from the last layers
        assert 0.2 < np.mean(m) < 0.8


def test_under_a_strong_penalty_the_mask_closes_and_stays_in_its_box():
    seen = work()
    m = jax.tree.map(lambda p: jnp.ones(p.shape if p.ndim >= 2 else ()), seen.params)
    tx = rep.projected_sgd(seen.rate(), 0.9)
    ran = seen.train(
        tx, {"params": seen.params, "mask": m}, view=rep.relaxed, penalty=rep.penalty(0.6)
    )
    values = np.concatenate([np.ravel(k) for k in masks.kernels(ran.params["mask"])])
    assert values.min() == 0
    assert values.max() <= 1
    assert np.mean(values == 0) > 0.5
    plain = seen.train(tx, {"params": seen.params, "mask": m}, view=rep.relaxed)
    assert masks.density(jax.tree.map(lambda k: k > 0, plain.params["mask"])) > 0.9


def test_equal_scores_are_taken_in_the_order_of_the_second():
    params = {"a": jnp.zeros((1, 4)), "b": jnp.zeros((1, 2))}
    first = {"a": jnp.array([[0.0, 1.0, 1.0, 0.5]]), "b": jnp.array([[1.0, 0.0]])}
    second = {"a": jnp.array([[9.0, 0.1, -0.3, 9.0]]), "b": jnp.array([[0.2, 0.0]])}
    mask = rep.ranked(params, first, second, 2 / 6)
    assert mask["a"].tolist() == [[False, False, True, False]]
    assert mask["b"].tolist() == [[True, False]]


def test_one_run_serves_all_densities_and_is_counted_for_each(tmp_path):
    seen = work(folder=tmp_path)
    big = rep.soft_threshold(seen, 0.1, decay=1e-3, start=-5.0)
    small = rep.soft_threshold(seen, 0.02, decay=1e-3, start=-5.0)
    assert len(list(tmp_path.iterdir())) == 1
    assert big.cost.steps == small.cost.steps == seen.steps()
    for m, n in zip(masks.kernels(big.mask), masks.kernels(small.mask), strict=True):
        assert not np.any(~np.asarray(m) & np.asarray(n))
