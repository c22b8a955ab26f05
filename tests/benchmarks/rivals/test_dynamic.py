"""SET and RigL: how the mask moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from benchmarks.harness import masks
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import dynamic
from benchmarks.rivals.rival import exact

RATE = optax.constant_schedule(0.1)


@pytest.fixture(scope="module")
def work():
    return Work(Setting("lenet300", "mnist", epochs=2, rate=0.05, batch=32, widths=(16, 8)), 0)


def moved_once(grow, drop, grads, params, mask, *, last=100):
    """The state and weights after one update that trains and a second one that moves the mask."""
    tx = dynamic.moving_mask(RATE, 0.9, 1, last, drop, grow)
    params = dl.project(params, mask)
    state = tx.init(params)._replace(mask=mask)
    update = jax.jit(tx.update)
    updates, state = update(grads, state, params)
    before = optax.apply_updates(params, updates)
    updates, after = update(grads, state, before)
    return before, state, optax.apply_updates(before, updates), after


@pytest.fixture(scope="module")
def case():
    draw = np.random.default_rng(0)
    params = {"b": jnp.ones(5), "w": jnp.asarray(draw.normal(size=(20, 5)), jnp.float32)}
    grads = {"b": jnp.ones(5), "w": jnp.asarray(draw.normal(size=(20, 5)), jnp.float32)}
    return params, grads, masks.random(params, masks.erdos_renyi(params, 0.4), 0.4, 0)


def test_rigl_drops_the_smallest_weights_and_grows_where_the_gradient_is_largest(case):
    params, grads, mask = case
    before, state, after, moved = moved_once("gradient", 0.5, grads, params, mask)
    active = int(mask["w"].sum())
    dropped = round(0.5 * 0.5 * (1 + np.cos(np.pi / 100)) * active)
    w, old = np.abs(np.asarray(before["w"])), np.asarray(mask["w"])
    kept = np.zeros(old.size, bool)
    kept[np.argsort(-np.where(old, w, -1).ravel())[: active - dropped]] = True
    g = np.where(kept, -1, np.abs(np.asarray(grads["w"])).ravel())
    expected = kept.copy()
    expected[np.argsort(-g)[:dropped]] = True
    np.testing.assert_array_equal(np.asarray(moved.mask["w"]).ravel(), expected)
    kept = kept.reshape(old.shape)
    np.testing.assert_array_equal(after["w"], np.where(kept, before["w"], 0))
    np.testing.assert_array_equal(moved.momentum["w"], np.where(kept, state.momentum["w"], 0))


def test_set_grows_at_random_and_by_the_same_share_at_all_times(case):
    params, grads, mask = case
    *_, one = moved_once("random", 0.5, grads, params, mask)
    *_, two = moved_once("random", 0.5, jax.tree.map(lambda g: 3 * g, grads), params, mask)
    assert one.mask["w"].sum() == mask["w"].sum()
    by_gradient = dynamic.largest(jnp.abs(grads["w"]), 20)
    assert not (by_gradient <= one.mask["w"]).all()
    weights = jnp.arange(1.0, 101.0).reshape(20, 5)
    kept, new = dynamic.rewired(mask["w"], weights, jnp.ones((20, 5)), jnp.asarray(0.25))
    assert (int(kept.sum()), int(new.sum())) == (30, 40)
    assert two.count == 2


def test_between_moves_it_is_momentum_under_the_mask(case):
    params, grads, mask = case
    tx = dynamic.moving_mask(RATE, 0.9, 50, 100, 0.3, "gradient")
    held = optax.chain(optax.sgd(0.1, 0.9), dl.keep_support(mask))
    w = a = b = dl.project(params, mask)
    state, other = tx.init(w)._replace(mask=mask), held.init(w)
    for _ in range(3):
        updates, state = tx.update(grads, state, a)
        a = optax.apply_updates(a, updates)
        updates, other = held.update(grads, other, b)
        b = optax.apply_updates(b, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_after_the_last_move_the_mask_stays(case):
    params, grads, mask = case
    *_, stays = moved_once("gradient", 0.5, grads, params, mask, last=0)
    np.testing.assert_array_equal(stays.mask["w"], mask["w"])


def test_the_first_mask_is_erdos_renyi_of_the_exact_size(work):
    mask = masks.random(work.params, masks.erdos_renyi(work.params, 0.1), 0.1, 3)
    shares = masks.erdos_renyi(work.params, 0.1)
    np.testing.assert_allclose(masks.by_layer(mask), shares, atol=0.01)
    assert round(masks.density(mask) * masks.size(mask)) == round(0.1 * masks.size(mask))


@pytest.mark.parametrize(("rival", "every"), [(dynamic.RIVALS[0], 3), (dynamic.RIVALS[1], 3)])
def test_a_run_moves_the_mask_and_ends_exact(work, rival, every):
    found = rival.find(work, 0.1, drop=0.5, every=every)
    assert exact(found, 0.1)
    assert found.cost.steps == work.steps()
    shares = masks.erdos_renyi(work.params, 0.1)
    first = masks.random(work.params, shares, 0.1, work.seed)
    assert masks.by_layer(found.mask) == masks.by_layer(first)
    pairs = list(zip(*map(masks.kernels, (found.mask, first, found.params)), strict=True))
    assert any((m != f).any() for m, f, _ in pairs)
    assert all((np.asarray(w)[~np.asarray(m)] == 0).all() for m, _, w in pairs)
    assert len({str(t) for t in rival.trials}) == 8
