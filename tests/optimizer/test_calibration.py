"""λ predicted from a probe, the step-size bound, and the diagnosis of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_auto_lam import STEPS, run, small_net

import dessilbi_jax as dl

SETTINGS = {"nu": 100.0, "momentum": 0.9, "variant": "toolbox", "structure": dl.weights}


@pytest.mark.slow
def test_a_probe_predicts_lambda():
    """λ from the first third of a run gives the density asked at the end of another."""
    closed = dl.dessilbi(0.02, lam=1e6, **SETTINGS)
    params, state, _ = run(closed, steps=70)
    lam = dl.calibrate(params, dl.weights, 0.02, STEPS, nu=100.0, density=0.1, probe=state)
    _, _, path = run(dl.dessilbi(0.02, lam=lam, **SETTINGS))
    assert path.density()[-1] == pytest.approx(0.1, rel=0.5)


@pytest.mark.slow
def test_parameters_alone_give_the_order_of_magnitude():
    _, params = small_net()
    guess = dl.calibrate(params, dl.weights, 0.02, STEPS, nu=100.0, density=0.1)
    _, state, _ = run(dl.dessilbi(0.02, lam=dl.auto(density=0.1, steps=STEPS), **SETTINGS))
    assert 0.3 < guess / float(dl.get_state(state).lam) < 3


@pytest.mark.slow
def test_calibrate_refuses_what_it_cannot_do():
    _, params = small_net()
    common = {"learning_rate": 0.1, "steps": 100}
    with pytest.raises(TypeError, match="exactly one of density"):
        dl.calibrate(params, dl.weights, **common)
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got 1.5"):
        dl.calibrate(params, dl.weights, **common, density=1.5)
    with pytest.raises(ValueError, match="nu must be positive"):
        dl.calibrate(params, dl.weights, **common, density=0.1, nu=0.0)
    with pytest.raises(ValueError, match="a rule has its own"):
        dl.calibrate(params, [("fc1/kernel", (0,), {"lam": 1.0})], **common, density=0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(ValueError, match="are zero"):
        dl.calibrate(zeros, dl.weights, **common, density=0.1)
    tx = dl.dessilbi(0.02, lam=1.0, **SETTINGS)
    _, state, _ = run(tx, steps=30)
    with pytest.raises(ValueError, match="the probe has made 30 updates"):
        dl.calibrate(params, dl.weights, 0.02, 30, density=0.1, probe=state)


def quadratic():
    """A smooth, strongly convex loss with known Lipschitz constant 5 of its gradient."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    hessian = jnp.asarray(rotation @ np.diag(np.linspace(0.1, 5, 12)) @ rotation.T, jnp.float32)
    optimum = jnp.asarray(rng.standard_normal(12), jnp.float32)

    def loss(params):
        off = params["kernel"].ravel() - optimum
        return 0.5 * off @ hessian @ off

    return loss, {"kernel": jnp.zeros((3, 4))}


def test_the_bound_is_the_theorems():
    loss, params = quadratic()
    bound = dl.step_size_bound(loss, params, nu=2.0, iterations=200)
    assert bound == pytest.approx(2 / (5 + 0.5), rel=1e-3)
    with pytest.raises(ValueError, match="nu must be positive"):
        dl.step_size_bound(loss, params, nu=-1.0)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        dl.step_size_bound(loss, params, nu=1.0, iterations=0)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [dl.weights, dl.columns], ids=["lasso", "groups"])
@pytest.mark.parametrize("kappa", [1.0, 5.0])
def test_lyapunov_value_never_rises_below_the_bound(structure, kappa):
    """Theorem 1: F descends and ∇L̄ vanishes below the bound; at 1.5 times it, it does not."""
    loss, start = quadratic()
    nu = 2.0
    bound = dl.step_size_bound(loss, start, nu, iterations=200)

    def trajectory(rate, steps):
        tx = dl.dessilbi(rate, kappa=kappa, nu=nu, lam=0.2, structure=structure)
        params, state = start, tx.init(start)
        values = []
        for _ in range(steps):
            before = state
            updates, state = jax.jit(tx.update)(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            if not np.isfinite(params["kernel"]).all():
                return values, params, state
            found = dl.diagnose(loss, params, state, before, learning_rate=rate, nu=nu, kappa=kappa)
            values.append(found.lyapunov)
        return values, params, state

    with jax.enable_x64(True):
        values, params, state = trajectory(0.9 * bound, 150)
        scale = max(map(abs, values))
        assert max(np.diff(values)) <= 1e-6 * scale
        gamma = dl.gamma(state)["kernel"]
        gradient = jax.grad(loss)(params)["kernel"] + (params["kernel"] - gamma) / nu
        coupling = (gamma - params["kernel"]) / nu
        first = jax.grad(loss)(start)["kernel"]
        size = float(jnp.linalg.norm(gradient) + jnp.linalg.norm(coupling))
        assert size < 0.05 * float(jnp.linalg.norm(first))
        values, params, _ = trajectory(1.5 * bound, 60)
        assert max(np.diff(values)) > 1e-3 * scale or not np.isfinite(params["kernel"]).all()


@pytest.mark.slow
def test_diagnosis_speaks_plainly():
    _, params = small_net()

    def loss(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    tx = dl.dessilbi(0.02, lam=1e3, **SETTINGS)
    params, state, _ = run(tx, steps=10)
    found = dl.diagnose(loss, params, state, learning_rate=0.02, nu=100.0, steps=10_000)
    assert any("cannot open within this run" in w for w in found.warnings)
    assert any("acts as weight decay of 0.01" in w for w in found.warnings)
    assert found.density == 0
    assert found.augmented_loss == pytest.approx(found.loss + found.distance**2 / 200, rel=1e-5)
    assert "warning: " in str(found)
    fine = dl.diagnose(loss, params, state, learning_rate=0.02, nu=100.0)
    assert fine.warnings == ()
    with pytest.raises(ValueError, match="kappa must be positive"):
        dl.diagnose(loss, params, state, learning_rate=0.02, kappa=0.0)


def test_diagnosis_counts_what_was_not_finite():
    params = {"kernel": jnp.array([[jnp.nan, 1.0]])}
    tx = dl.dessilbi(0.1, lam=0.1)
    _, state = tx.update(params, tx.init(params), params)
    found = dl.diagnose(lambda p: jnp.float32(0), params, state, learning_rate=0.1)
    assert any("1 entries of W were not finite" in w for w in found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "penalty", [dl.group_lasso(), dl.elastic_net(0.5), dl.sparse_group_lasso(0.3)], ids=str
)
def test_the_lyapunov_value_is_its_formula(penalty):
    """With Ω from the penalty itself, which `diagnose` recovers from what the state holds."""
    loss, params = quadratic()
    rate, kappa, nu, lam = 0.1, 2.0, 2.0, 0.02
    tx = dl.dessilbi(rate, kappa, nu, lam, dl.columns, penalty=penalty)
    state = tx.init(params)
    for _ in range(12):
        before = state
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    gamma = dl.gamma(state)["kernel"]
    assert int(jnp.sum(gamma != 0)) > 0
    g = dl.get_state(before).v["kernel"] - dl.gamma(before)["kernel"] / kappa
    (leaf,) = dl.columns.resolve(params)
    augmented = loss(params) + jnp.sum((params["kernel"] - gamma) ** 2) / (2 * nu)
    expected = rate / kappa * augmented + penalty.value(gamma, leaf, lam) - jnp.sum(gamma * g)
    found = dl.diagnose(loss, params, state, before, learning_rate=rate, nu=nu, kappa=kappa)
    assert found.lyapunov == pytest.approx(float(expected), rel=1e-4)
