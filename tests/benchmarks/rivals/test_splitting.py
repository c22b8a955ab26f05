"""ADMM: Z is a projection, U the running sum, and the pull ρ (W − Z + U)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.harness import masks
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import splitting
from benchmarks.rivals.rival import exact


def cut(values, k):
    """The k largest magnitudes of a list of arrays."""
    flat = np.concatenate([np.ravel(v) for v in values])
    flat[np.argsort(-np.abs(flat))[k:]] = 0
    return flat


def test_z_is_the_projection_and_u_the_running_sum():
    draw = np.random.default_rng(0)
    params = {"b": jnp.ones(3), "v": jnp.asarray(draw.normal(size=(4, 3)), jnp.float32),
              "w": jnp.asarray(draw.normal(size=(2, 2, 3, 4)), jnp.float32)}  # fmt: skip
    tx = splitting.pull(0.1, 2, 3)
    update = jax.jit(tx.update)
    state = tx.init(params)._replace(k=jnp.asarray(7))
    zeros = {name: jnp.zeros_like(w) for name, w in params.items()}
    z = u = np.zeros(60, np.float32)
    for i in range(8):
        updates, state = update(zeros, state, params)
        w = np.concatenate([np.ravel(params["v"]), np.ravel(params["w"])])
        if i in (3, 5, 7):
            z = cut([w + u], 7)
            u = u + w - z
        pulled = 0.1 * (w - z + u) if i >= 3 else np.zeros(60)
        for pieces, expected in ((state.z, z), (state.u, u), (masks.kernels(updates), pulled)):
            flat = np.concatenate([np.ravel(p) for p in pieces])
            np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(updates["b"], 0)
        step = {name: jnp.asarray(draw.normal(size=w.shape), jnp.float32) * 0.1
                for name, w in params.items()}  # fmt: skip
        params = optax.apply_updates(params, step)
    assert np.count_nonzero(np.concatenate([np.ravel(p) for p in state.z])) == 7


def test_the_projection_is_of_the_exact_size_where_magnitudes_are_equal():
    kept = splitting.projection([jnp.ones((3, 3)), -jnp.ones((2, 2))], jnp.asarray(10))
    assert sum(int(jnp.count_nonzero(k)) for k in kept) == 10


@pytest.fixture(scope="module")
def work():
    return Work(Setting("lenet300", "mnist", epochs=4, rate=0.05, batch=16, widths=(16, 8)), 0)


def test_a_run_ends_exact_and_costs_one_run(work):
    rival = splitting.RIVALS[0]
    found = rival.find(work, 0.1, rho=0.03, interval=4)
    assert exact(found, 0.1)
    assert found.cost.steps == work.steps()
    for m, w in zip(masks.kernels(found.mask), masks.kernels(found.params), strict=True):
        assert (np.asarray(w)[~np.asarray(m)] == 0).all()
    assert len({str(t) for t in rival.trials}) == 8


def test_a_stronger_pull_leaves_less_outside_the_mask(work):
    def outside(rho):
        tx = splitting._admm(work.rate(), 0.9, rho, 28, 8)
        fresh = tx.init(work.params)
        fresh = (fresh[0]._replace(k=jnp.asarray(1000)), *fresh[1:])
        end = work.train(tx, state=fresh)
        sizes = np.abs(np.concatenate([np.ravel(w) for w in masks.kernels(end.params)]))
        return np.sort(sizes)[:-1000].sum() / sizes.sum()

    assert outside(0.3) < 0.5 * outside(0.0)
