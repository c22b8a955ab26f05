"""Without a stored Γ everything is the same, at 8 bytes a parameter."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import assert_trees_close, gradient, network, opened, trajectory

import dessilbi_jax as dl
from dessilbi_jax.optimizer import write_order


def lam_up_and_down(count):
    return 0.12 + 0.05 * jnp.sin(jnp.asarray(count, jnp.float32))


def rules(conv, fc, **options):
    """Penalties of the convolution (by filter) and of the dense layer."""
    conv_spec, conv_penalty = conv
    fc_spec, fc_penalty = fc
    return {
        "structure": [
            ("conv/kernel", conv_spec, {"penalty": conv_penalty}),
            ("fc/kernel", fc_spec, {"penalty": fc_penalty}),
        ],
        "lam": 0.1,
        **options,
    }


SPARSE = dl.sparse_group_lasso(0.3)
AUTO = {"lam": dl.auto(density=0.3, steps=24)}
RUNS = {
    "filters and weights": {"lam": 0.1, "momentum": 0.9, "variant": "paper"},
    "lam schedule": {"lam": lam_up_and_down, "variant": "toolbox", "momentum": 0.9},
    "sparse groups, elastic net": rules(
        (dl.filters, SPARSE), (dl.weights, dl.elastic_net(0.5)), kappa=5.0, lam=0.02
    ),
    "weighted groups, blocks": rules(
        (dl.slices, dl.group_lasso(sqrt_size=True)), (dl.blocks((4, 2)), SPARSE), lam=0.04
    ),
    "auto": {**AUTO, "momentum": 0.9},
    "auto, sparse groups": {**AUTO, "penalty": SPARSE, "structure": dl.neurons},
}


def both(options):
    for lean in (False, True):
        tx = dl.dessilbi(0.1, **{"nu": 1.0, **options}, lean=lean)
        yield trajectory(tx, network(), 24)


def assert_same_supports(one, other):
    """At every step; no norm of these runs comes within rounding of λ."""
    for a, b in zip(jax.tree.leaves(one.support), jax.tree.leaves(other.support), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", RUNS)
def test_lean_is_full(name):
    full, lean = both(RUNS[name])
    assert_trees_close(lean.params, full.params)
    assert_trees_close(lean.v, full.v)
    assert_trees_close(lean.gamma, full.gamma)
    assert_same_supports(lean, full)
    np.testing.assert_allclose(lean.lam, full.lam, rtol=1e-6)
    inner = dl.get_state(lean.last_state)
    assert inner.gamma == ()
    chex.assert_trees_all_equal_shapes_and_dtypes(
        inner.shrink, dl.get_state(full.last_state).shrink
    )
    for leaf in ("conv", "fc"):  # some groups in, some out
        assert 0 < opened(dl.support(lean.last_state)[leaf]["kernel"]) < 1


@pytest.mark.parametrize("name", ["lam schedule", "sparse groups, elastic net"])
def test_both_are_the_formula(name):
    options = RUNS[name]
    for run in both(options):
        lam = np.asarray(run.lam, np.float64)
        v = jax.tree.map(lambda x: np.asarray(x, np.float64), run.v)
        for step in range(24):
            expected = _gamma(v, step, lam[step], options.get("structure"))
            for layer in ("conv", "fc"):
                got = np.asarray(run.gamma[layer]["kernel"][step])
                np.testing.assert_allclose(got, expected[layer], rtol=0, atol=2e-6)


def _gamma(v, step, lam, mixed):
    """Γ by the formulas of the paper and of Simon et al., in float64."""
    conv, fc = v["conv"]["kernel"][step], v["fc"]["kernel"][step]
    mix, mu, kappa = (0.3, 0.5, 5.0) if mixed else (0.0, 0.0, 1.0)
    inner = np.sign(conv) * np.maximum(np.abs(conv) - mix * lam, 0)
    norm = np.sqrt(np.sum(inner**2, axis=(0, 1, 2)))
    factor = np.maximum(0, 1 - (1 - mix) * lam / np.where(norm > 0, norm, 1))
    soft = np.sign(fc) * np.maximum(np.abs(fc) - lam, 0)
    return {"conv": kappa * inner * factor, "fc": kappa * soft / (1 + kappa * mu)}


@pytest.mark.parametrize(
    ("options", "lean"),
    [(RUNS["sparse groups, elastic net"], False), (RUNS["auto"], True)],
    ids=["full", "auto-lean"],
)
def test_the_order_for_one_cpu_device_computes_the_same(options, lean, monkeypatch):
    """Tests run on eight devices; alone on a CPU, results are computed in a prescribed order."""
    runs = []
    for alone in (False, True):
        monkeypatch.setattr(write_order, "matters", lambda _, alone=alone: alone)
        tx = dl.dessilbi(0.1, **{"nu": 1.0, **options}, lean=lean)
        runs.append(trajectory(tx, network(), 24))
    several, one = runs
    assert_trees_close(one.params, several.params)
    assert_trees_close(one.v, several.v)
    # Γ is made from the difference of V and λ, so it is as exact as these are.
    for a, b, v in zip(*map(jax.tree.leaves, (one.gamma, several.gamma, several.v)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(v))))
    assert_same_supports(one, several)


@pytest.mark.parametrize("kind", ["masked", "if finite", "projected", "not applied", "bfloat16"])
def test_v_does_not_depend_on_what_becomes_of_the_update(kind, monkeypatch):
    """In the order for one CPU device V' is read from W': but from that of the update itself."""
    monkeypatch.setattr(write_order, "matters", lambda _: True)
    start = network(jnp.bfloat16 if kind == "bfloat16" else jnp.float32)
    mask = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 3 > 0, start)

    def end(lean):
        tx = dl.dessilbi(0.1, nu=1.0, lam=0.1, momentum=0.9, lean=lean, accumulator_dtype="float32")
        if kind == "masked":
            tx = optax.chain(tx, dl.keep_support(mask))
        if kind == "if finite":
            tx = optax.apply_if_finite(tx, 5)

        @jax.jit
        def step(params, state, count):
            grads = gradient(params)
            if kind == "if finite":
                grads = jax.tree.map(lambda g: jnp.where(count == 4, jnp.nan, g), grads)
            updates, state = tx.update(grads, state, params)
            new = optax.apply_updates(params, updates)
            if kind == "projected":
                new = dl.project(new, mask)
            if kind == "not applied":
                new = jax.tree.map(lambda a, b: jnp.where(count % 3 == 1, a, b), params, new)
            return new, state

        params, state = start, tx.init(start)
        for count in range(12):
            params, state = step(params, state, count)
        return params, dl.get_state(state).v, dl.support(state)

    full, lean = end(False), end(True)
    # Γ of lean is rebuilt in float32 from V, as the stored one was made.
    rtol = 2e-2 if kind == "bfloat16" else 2e-6
    assert_trees_close(lean[0], full[0], rtol)
    assert_trees_close(lean[1], full[1], rtol)
    assert 0 < opened(full[2]) < 1
    if kind != "bfloat16":
        for a, b in zip(jax.tree.leaves(lean[2]), jax.tree.leaves(full[2]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_gamma_does_not_depend_on_the_lam_of_the_step_that_reads_it():
    def schedule(count):
        return jnp.where(count < 3, 0.1, 1e3)

    params = network()
    tx = dl.dessilbi(0.1, nu=1.0, lam=schedule, lean=True, structure=dl.weights)
    state, seen = tx.init(params), []
    for _ in range(4):
        before = dl.gamma(state)
        updates, new = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        # The coupling of this step is (W − Γ)/ν with the Γ of the step before.
        expected = jax.tree.map(lambda w, g: -0.1 * (w - g), params["fc"], before["fc"])
        np.testing.assert_allclose(updates["fc"]["kernel"], expected["kernel"], rtol=1e-5)
        seen.append(float(jnp.sum(jnp.abs(before["fc"]["kernel"]))))
        params, state = optax.apply_updates(params, updates), new
    assert seen[3] > 0  # the fourth step, whose λ closes all, still read an open Γ
    assert opened(dl.support(state)["fc"]["kernel"]) == 0


def state_bytes(tx, params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params)))


@pytest.mark.parametrize(
    ("structure", "stored"),
    [(dl.filters, 32), (dl.weights, 0), (dl.layers, 2), (dl.slices, 32 * 32)],
    ids=["filters", "weights", "layers", "slices"],
)
@pytest.mark.parametrize("auto", [False, True])
def test_bytes_of_the_state(structure, stored, auto):
    """8 bytes a structured parameter and 4 a group; 5 a dense one, of which 4 are momentum."""
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 32, 32)), "bias": jnp.ones(1000)},
        "fc": {"kernel": jnp.ones((64, 100))},
    }
    structured, dense = 9 * 1024 + 6400, 1000
    options = {"lam": dl.auto(density=0.1, steps=100)} if auto else {"lam": 0.1}
    constant = 250  # counters, scales and what the automatic choice of λ remembers
    lean = dl.dessilbi(0.1, momentum=0.9, structure=structure, lean=True, **options)
    exact = 8 * structured + 5 * dense + 4 * stored
    assert exact <= state_bytes(lean, params) <= exact + constant
    full = dl.dessilbi(0.1, momentum=0.9, structure=structure, **options)
    assert state_bytes(full, params) == state_bytes(lean, params) + 4 * structured + dense
    without = dl.dessilbi(0.1, structure=structure, lean=True, **options)
    assert state_bytes(without, params) <= 4 * structured + dense + 4 * stored + constant


def test_bytes_stay_what_they_are_at_init():
    params = network()
    tx = dl.dessilbi(0.1, lam=0.1, momentum=0.9, lean=True, structure=dl.slices)
    state = tx.init(params)
    _, after = tx.update(gradient(params), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_narrow_parameters_and_momentum_take_six_bytes():
    params = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
    tx = dl.dessilbi(0.1, lam=0.1, momentum=0.9, lean=True, accumulator_dtype=jnp.bfloat16)
    assert 6 * 4096 <= state_bytes(tx, params) <= 6 * 4096 + 64
