"""The driver: closed forms of orthogonal designs, exact entries, stops, folds, dtypes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dessilbi_jax.stats import path
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.precision import precision_of

Z = np.array([3.0, -1.0, 0.5, 0.0])
KAPPA, ALPHA = 2.0, 0.1


def towards(z, u, gamma):
    return (), gamma - z


MODEL = path.Model(towards)


@pytest.fixture(scope="module")
def trace():
    """½‖Γ − z‖²: an orthogonal design."""
    with precision_of(np.float64):
        z = jnp.asarray(Z)
        out = path.run(MODEL, Groups((4,)), z, (), kappa=KAPPA, alpha=ALPHA, t_max=5.0)
        return path.finished(out)


def test_entries_are_at_the_inverse_of_the_slope_and_not_at_a_step(trace):
    np.testing.assert_allclose(trace.entry_times, [1 / 3, 1, 2, np.inf], rtol=1e-14)
    np.testing.assert_array_equal(trace.entry_signs, [1, -1, 1, 0])
    assert path.ranking(Groups((4,)), trace).tolist() == [0, 1, 2, 3]


def test_snapshots_are_those_of_the_discrete_closed_form(trace):
    """From t₀ on: V moves by αz while Γ is zero, then z − Γ shrinks by 1 − κα a step."""
    steps = np.floor((trace.ts - trace.t0) / ALPHA + 1e-9)
    for j in (1, 2):
        # Steps until |V| passes 1, from V = t₀|z|; there Γ = κ(|V| − 1).
        first = np.floor((1 / abs(Z[j]) - trace.t0) / ALPHA) + 1
        start = KAPPA * ((trace.t0 + first * ALPHA) * abs(Z[j]) - 1)
        inside = steps >= first
        k = steps[inside] - first
        at_step = abs(Z[j]) + (start - abs(Z[j])) * (1 - KAPPA * ALPHA) ** k
        share = (trace.ts[inside] - trace.t0 - steps[inside] * ALPHA) / ALPHA
        expected = at_step + share * KAPPA * ALPHA * (abs(Z[j]) - at_step)
        got = trace.gamma[inside, j] * np.sign(Z[j])
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_many_small_steps_give_the_continuous_closed_form():
    with precision_of(np.float64):
        out = path.run(MODEL, Groups((4,)), jnp.asarray(Z), (), kappa=KAPPA, alpha=1e-4, t_max=5.0)
        out = path.finished(out)
    for j in (0, 1, 2):
        expected = Z[j] * (1 - np.exp(-KAPPA * np.maximum(out.ts - 1 / abs(Z[j]), 0)))
        np.testing.assert_allclose(out.gamma[:, j], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("limit", "entered"), [({"max_support": 2}, 2), ({"max_entered": 3}, 3), ({"max_iter": 1}, 1)]
)
def test_stops_keep_the_state_at_the_stop_as_the_last_snapshot(limit, entered):
    with precision_of(np.float64):
        z = jnp.asarray(Z)
        out = path.run(MODEL, Groups((4,)), z, (), kappa=KAPPA, alpha=ALPHA, t_max=5.0, **limit)
        out = path.finished(out)
    assert np.isfinite(out.entry_times).sum() == entered
    assert out.ts[-1] == out.stop_time == pytest.approx(out.t0 + out.n_iter * ALPHA)
    assert (np.diff(out.ts) > 0).all()
    assert len(out.gamma) == len(out.ts) < 100
    np.testing.assert_array_equal(out.gamma[-1], out.end[2])


def test_times_before_the_first_entry_have_nothing_in_them():
    with precision_of(np.float64):
        ts = jnp.asarray([0.1, 0.2, 2.0])
        out = path.finished(
            path.run(MODEL, Groups((4,)), jnp.asarray(Z), (), kappa=KAPPA, alpha=ALPHA, ts=ts)
        )
    np.testing.assert_allclose(out.v[0], 0.1 * Z)
    assert not out.gamma[:2].any()
    assert out.gamma[2].any()


@pytest.mark.parametrize(
    "groups",
    [Groups((4,), joint=(0, 0, 1, 1)), Groups((2, 2), (2, 1)), Groups((2, 2), (1, 2))],
    ids=["numbers", "rows", "columns"],
)
def test_groups_enter_where_their_norm_reaches_one_and_grow_along_z(groups):
    z = Z.reshape(groups.shape)
    with precision_of(np.float64):
        out = path.finished(
            path.run(MODEL, groups, jnp.asarray(z), (), kappa=50.0, alpha=0.02, t_max=4.0)
        )
    norms = np.asarray(groups.norms(jnp.asarray(z)))
    # After the other group entered nothing changes here: each moves by itself.
    np.testing.assert_allclose(out.entry_times, 1 / norms, rtol=1e-6)
    np.testing.assert_allclose(out.gamma[-1], z, rtol=1e-6, atol=1e-9)
    on_host = groups.shrunk_on_host(out.v[40])
    np.testing.assert_allclose(50.0 * on_host, out.gamma[40], rtol=1e-9, atol=1e-12)


def test_weights_are_thresholds():
    w = np.array([1.0, 2.0, 1.0, 1.0])
    with precision_of(np.float64):
        out = path.finished(
            path.run(
                MODEL, Groups((4,)), jnp.asarray(Z), (), kappa=KAPPA, alpha=ALPHA, t_max=5.0,
                weights=jnp.asarray(w),
            )
        )  # fmt: skip
    np.testing.assert_allclose(out.entry_times, [1 / 3, 2, 2, np.inf], rtol=1e-12)


def loss_with_an_offset(y, u, gamma):
    return jnp.mean((y - u - gamma) ** 2) / 2


def test_what_is_not_penalised_moves_by_its_own_gradient_and_stays_where_it_is_allowed():
    y = np.array([0.0, 0.1, -0.1, 8.0])
    model = path.of_loss(loss_with_an_offset)
    kept = path.of_loss(loss_with_an_offset, project=at_least_one)
    assert path.of_loss(loss_with_an_offset) is model
    with precision_of(np.float64):
        free, held = (
            path.finished(
                path.run(
                    m, Groups((4,)), jnp.asarray(y), jnp.asarray(2.0), kappa=20.0, alpha=0.05,
                    max_support=2, t_max=20.0,
                )
            )
            for m in (model, kept)
        )  # fmt: skip
    assert free.u[-1] < 0.5
    assert held.u.min() == 1.0


def at_least_one(u):
    return jnp.maximum(u, 1.0)


def test_folds_and_kappas_under_vmap_are_the_single_paths():
    zs = np.stack([Z, 2 * Z, Z[::-1].copy()])
    kappas = np.array([1.0, 2.0, 4.0])

    def one(z, kappa):
        return path.follow(MODEL, Groups((4,)), z, (), kappa=kappa, alpha=0.1 / kappa, t_max=3.0)

    with precision_of(np.float64):
        many = jax.jit(jax.vmap(one))(jnp.asarray(zs), jnp.asarray(kappas))
        for k in range(3):
            alone = path.run(
                MODEL, Groups((4,)), jnp.asarray(zs[k]), (), kappa=kappas[k],
                alpha=0.1 / kappas[k], t_max=3.0,
            )  # fmt: skip
            assert int(many.n_iter[k]) == int(alone.n_iter)
            np.testing.assert_allclose(many.gamma[k], alone.gamma, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(many.entry_times[k], alone.entry_times, rtol=1e-12)


def test_float32_is_float32_and_agrees_to_kappa_times_its_precision(trace):
    with precision_of(np.float32):
        z = jnp.asarray(Z.astype(np.float32))
        out = path.finished(
            path.run(MODEL, Groups((4,)), z, (), kappa=KAPPA, alpha=ALPHA, t_max=5.0)
        )
    assert {x.dtype for x in (out.gamma, out.v, out.ts)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(out.gamma, trace.gamma, atol=KAPPA * 60 * 6e-8)
    assert jnp.ones(1).dtype == np.float32, "the global setting stays"


def test_where_the_slope_is_rounding_nothing_enters():
    with precision_of(np.float64):
        z = jnp.asarray(1e-17 * Z)
        out = path.finished(
            path.run(MODEL, Groups((4,)), z, (), kappa=KAPPA, alpha=ALPHA, t_max=5.0, floor=1e-15)
        )
    assert np.isinf(out.entry_times).all()
    assert out.t0 == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((0.0, 1.0), "kappa"), ((1.0, 1.0, -1.0), "alpha"), ((10.0, 4.0, 0.06), "diverges from 0.05")],
)
def test_steps_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        path.step_length(*arguments)


def test_the_driver_is_short():
    assert len(Path(path.__file__).read_text().splitlines()) < 300
