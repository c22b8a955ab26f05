"""LinBreg and AdaBreg: v takes the steps, θ is its prox, λ is steered."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.harness import masks
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import bregman
from benchmarks.rivals.rival import exact


@pytest.fixture(scope="module")
def work():
    return Work(Setting("lenet300", "mnist", epochs=2, rate=0.05, batch=32, widths=(16, 8)), 0)


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(0)
    tree = {"b": jnp.ones(4), "w": jnp.asarray(draw.normal(size=(8, 4)), jnp.float32)}
    return bregman.sparse_start(tree, 0.3, 1)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def started(params, lam, wanted):
    v = bregman.subgradient(params, lam)
    return bregman.BregmanState(v, jnp.asarray(lam), jnp.asarray(wanted))


def test_theta_starts_as_the_prox_of_its_subgradient(params):
    close(bregman.soft(bregman.subgradient(params, 0.7), 0.7), params)


def test_v_moves_by_the_steps_alone_and_theta_is_its_prox(params):
    tx, lam = bregman.bregman(0.0), 0.2
    state, w, v = started(params, lam, 10), params, bregman.subgradient(params, lam)
    update, draw = jax.jit(tx.update), np.random.default_rng(1)
    for _ in range(6):
        d = jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape) * 0.1, jnp.float32), w)
        updates, state = update(d, state, w)
        w = optax.apply_updates(w, updates)
        v = jax.tree.map(jnp.add, v, d)
    close(state.v, v)
    a = np.asarray(v["w"])
    expected = np.sign(a) * np.maximum(np.abs(a) - lam, 0)
    close(w, {"b": v["b"], "w": expected})
    # prox: θ minimises ‖θ − δv‖²/2 + δλ|θ|, entry by entry
    grid = np.linspace(-4, 4, 8001)
    best = [grid[np.argmin((grid - x) ** 2 / 2 + lam * np.abs(grid))] for x in a.ravel()]
    np.testing.assert_allclose(np.ravel(w["w"]), best, atol=2e-3)


def test_without_lambda_it_is_sgd(params):
    tx = optax.chain(optax.sgd(0.1, 0.9), bregman.bregman(0.0))
    plain = optax.sgd(0.1, 0.9)
    state = (*tx.init(params)[:-1], started(params, 0.0, 1))
    other, a, b = plain.init(params), params, params
    for _ in range(3):
        updates, state = tx.update(a, state, a)
        a = optax.apply_updates(a, updates)
        updates, other = plain.update(b, other, b)
        b = optax.apply_updates(b, updates)
    close(a, b)


@pytest.mark.parametrize(("wanted", "factor"), [(0, 1.1), (32, 0.9)])
def test_lambda_is_steered_and_its_change_moves_no_weight(params, wanted, factor):
    tx = bregman.bregman(0.1)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = started(params, 0.2, wanted)
    state = state._replace(v={**state.v, "w": jnp.where(params["w"] == 0, 0.1, state.v["w"])})
    _, state = tx.update(zero, state, params)
    assert float(state.lam) == pytest.approx(0.2 * factor)
    close(bregman.soft(state.v, state.lam), params)
    close(state.v["w"][params["w"] == 0], np.full((params["w"] == 0).sum(), 0.1 * factor))


def test_the_start_is_sparse_with_the_variance_kept(work):
    dense = np.asarray(work.params["fc1"]["kernel"])
    start = np.asarray(bregman.sparse_start(work.params, 0.1, 0)["fc1"]["kernel"])
    assert np.mean(start != 0) == pytest.approx(0.1, abs=0.01)
    assert start.var() == pytest.approx(dense.var(), rel=0.1)


@pytest.mark.parametrize("rival", bregman.RIVALS, ids=lambda r: r.name)
def test_a_run_ends_exact_and_costs_one_run(work, rival):
    found = rival.find(work, 0.1, lam=0.05)
    assert exact(found, 0.1)
    assert found.cost.steps == work.steps()
    for m, w in zip(masks.kernels(found.mask), masks.kernels(found.params), strict=True):
        assert (np.asarray(w)[~np.asarray(m)] == 0).all()
    assert len({str(t) for t in rival.trials}) == 8
