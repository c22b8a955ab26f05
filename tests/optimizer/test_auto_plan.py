"""λ found inside a run that is no straight one: pauses, changed plans, sizes, and what is compiled.

W is held still, so that all there is to find is known: V grows by the travel of its clock alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from dessilbi_jax.optimizer import auto_lam, step
from dessilbi_jax.optimizer.settings import CLOSED

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

W = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
STILL = jax.tree.map(jnp.zeros_like, W)


def make(rate=0.05, **auto):
    return dl.dessilbi(rate, nu=20.0, lam=dl.auto(**auto), structure=dl.weights)


def go(tx, state, updates):
    """The state so many updates later, and the density after each."""

    def one(state, _):
        _, state = tx.update(STILL, state, W)
        return state, jnp.mean(dl.support(state)["kernel"], dtype=jnp.float32)

    return jax.jit(lambda s: jax.lax.scan(one, s, length=updates))(state)


def phases(*parts):
    """A schedule of (rate, updates), the last part without end."""
    ends = np.cumsum([updates for _, updates in parts[:-1]]).tolist()
    return optax.join_schedules([optax.constant_schedule(rate) for rate, _ in parts], ends)


# --- where nothing moves -----------------------------------------------------------------------

RESTING = {
    "no rest": 0.05,
    **{f"none for {n}": phases((0.0, n), (0.05, 0)) for n in (80, 120, 200, 330)},
    "pause": phases((0.05, 100), (0.0, 100), (0.05, 0)),
    "pause over many moments": phases((0.05, 30), (0.0, 300), (0.05, 0)),
    "pauses, one of them at the end": phases((0.0, 50), (0.05, 90), (0.0, 60), (0.05, 100), (0, 0)),
    "nearly none": phases((1e-7, 150), (0.05, 0)),
    "warm-up": optax.linear_schedule(0.0, 0.05, 200),
    "drop": phases((0.05, 200), (0.0005, 0)),
}


@pytest.mark.parametrize("rate", RESTING.values(), ids=RESTING)
def test_nothing_is_measured_where_nothing_moves(rate):
    tx = make(rate, density=0.1, steps=400)
    state, density = go(tx, tx.init(W), 400)
    assert float(density[-1]) == pytest.approx(0.1, abs=0.02)
    assert float(density.max()) <= 0.13
    assert float(density[:40].max()) == 0
    found = dl.get_state(state).auto
    lams = np.asarray(found.lams)[np.asarray(found.steps) > 0]
    assert lams.max() < 1.3 * lams.min(), "λ stays near the first estimate"


@pytest.mark.parametrize("rest", [0, 120], ids=["at once", "rest first"])
def test_a_learning_rate_that_is_injected_may_rest_too(rest):
    """Then it reaches the step as a number, which tells nothing of what it was or will be."""
    rate = phases((0.0, rest), (0.05, 100), (0.0, 50), (0.05, 0)) if rest else 0.05
    tx = optax.inject_hyperparams(
        lambda learning_rate: make(learning_rate, density=0.1, steps=400)
    )(rate)
    _, density = go(tx, tx.init(W), 400)
    assert float(density[-1]) == pytest.approx(0.1, abs=0.02)
    assert float(density.max()) <= 0.13


def test_estimates_count_from_the_first_update_that_moves():
    tx = make(phases((0.0, 100), (0.05, 0)), density=0.1, steps=400)
    state, _ = go(tx, tx.init(W), 400)
    found = dl.get_state(state).auto
    assert int(found.origin) == int(found.start) == 100
    assert found.steps.tolist() == [130, 160, 190, 220, 250, 280, 310, 340]


def test_nothing_at_all_moves():
    tx = make(optax.constant_schedule(0.0), density=0.1, steps=40)
    state, density = go(tx, tx.init(W), 60)
    assert float(density.max()) == 0
    assert float(dl.get_state(state).lam) == CLOSED
    path = dl.SolutionPath()
    path.record(60, state)
    assert not path.ranked


def test_a_probe_that_has_not_moved_is_parameters_alone():
    tx = make(phases((0.0, 100), (0.05, 0)), density=0.1, steps=400)
    state, _ = go(tx, tx.init(W), 50)
    rate = phases((0.0, 100), (0.05, 0))
    asked = {"nu": 20.0, "density": 0.1}
    alone = dl.calibrate(W, dl.weights, rate, 400, **asked)
    assert dl.calibrate(W, dl.weights, rate, 400, probe=state, **asked) == pytest.approx(alone)


# --- another plan ------------------------------------------------------------------------------

CHANGES = {
    # name: ((steps, density) before, updates made, (steps, density) after, tolerance)
    "longer, behind the end": ((400, 0.1), 400, (500, 0.1), 0.03),
    "longer, behind the last estimate": ((400, 0.1), 350, (600, 0.1), 0.03),
    "longer, early": ((400, 0.1), 60, (800, 0.1), 0.02),
    "shorter": ((400, 0.1), 250, (300, 0.1), 0.03),
    "shorter, before anything was estimated": ((4000, 0.1), 250, (300, 0.1), 0.03),
    "denser": ((400, 0.1), 330, (400, 0.3), 0.08),
    "sparser": ((400, 0.3), 200, (400, 0.1), 0.03),
    "a few updates left": ((400, 0.1), 395, (400, 0.3), 0.08),
    "one update left": ((400, 0.1), 399, (400, 0.3), 0.08),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_plan_holds_over_the_updates_that_remain(change):
    (steps, density), made, (until, asked), tolerance = change
    before = make(steps=steps, density=density)
    state, _ = go(before, before.init(W), made)
    state, seen = go(make(steps=until, density=asked), state, until - made)
    assert float(seen[-1]) == pytest.approx(asked, abs=tolerance)
    found = dl.get_state(state).auto
    assert int(found.due) == until
    assert float(found.share) == pytest.approx(asked)


def test_between_the_plans_the_lam_in_force_stays():
    state, _ = go(make(steps=400, density=0.1), make(steps=400, density=0.1).init(W), 300)
    later, _ = go(make(steps=600, density=0.1), state, 20)
    assert float(dl.get_state(later).lam) == float(dl.get_state(state).lam)
    assert int(dl.get_state(later).auto.start) == 300


def test_the_same_plan_goes_on_bit_for_bit():
    tx = make(steps=200, density=0.1)
    whole, _ = go(tx, tx.init(W), 200)
    half, _ = go(tx, tx.init(W), 90)
    rest, _ = go(make(steps=200, density=0.1), half, 110)
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_groups_instead_of_elements_is_another_plan():
    elements, groups = (
        dl.dessilbi(0.05, nu=20.0, lam=dl.auto(steps=200, **share), structure=dl.neurons)
        for share in ({"density": 0.1}, {"group_density": 0.5})
    )
    state, _ = go(elements, elements.init(W), 150)
    _, density = go(groups, state, 50)
    assert float(density[-1]) == pytest.approx(0.5, abs=0.05)


def test_a_plan_that_has_passed_promises_nothing_and_diagnose_says_so():
    tx = make(steps=40, density=0.1)
    state, density = go(tx, tx.init(W), 400)
    found = dl.diagnose(lambda _: jnp.zeros(()), W, state, learning_rate=0.05, nu=20.0)
    (warning,) = (w for w in found.warnings if "planned" in w)
    assert "400 updates of 40 planned" in warning
    assert f"{float(density[-1]):.2%}" in warning
    early = make(steps=400, density=0.1, at=0.5)  # planned to go on behind the moment asked for
    found = dl.diagnose(
        lambda _: jnp.zeros(()), W, go(early, early.init(W), 400)[0], learning_rate=0.05, nu=20.0
    )
    assert not [w for w in found.warnings if "planned" in w]
    shorter, _ = go(make(steps=30, density=0.3), state, 10)
    assert float(dl.get_state(shorter).lam) == float(dl.get_state(state).lam)
    long = make(steps=400, density=0.1)
    found = dl.diagnose(
        lambda _: jnp.zeros(()), W, go(long, long.init(W), 30)[0], learning_rate=0.05, steps=100
    )
    assert any("its density at update 400, the run has 100" in w for w in found.warnings)
    at_the_end = go(tx, tx.init(W), 40)[0]
    found = dl.diagnose(lambda _: jnp.zeros(()), W, at_the_end, learning_rate=0.05, nu=20.0)
    assert not [w for w in found.warnings if "planned" in w]


def test_a_density_that_is_injected_can_be_changed_on_the_way():
    tx = optax.inject_hyperparams(lambda density: make(steps=200, density=density))(density=0.1)
    state, _ = go(tx, tx.init(W), 120)
    state.hyperparams["density"] = jnp.float32(0.3)
    _, density = go(tx, state, 80)
    assert float(density[-1]) == pytest.approx(0.3, abs=0.05)


# --- any size ----------------------------------------------------------------------------------

HUGE = {
    "one leaf": {"kernel": (2**16, 2**16)},
    "one long axis": {"kernel": (2**32 + 3,)},
    "many leaves": {f"fc{i}": (2**15, 2**15) for i in range(4)},
    "stacked": {"kernel": (96, 2**14, 2**14)},
}
STRUCTURES = {"weights": dl.weights, "last axis": (-1,), "first axis": (0,), "layer": ()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shapes", HUGE.values(), ids=HUGE)
def test_more_elements_than_an_int32_counts(shapes, structure):
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    for share in ({"density": 0.01}, {"group_density": 0.01}):
        tx = dl.dessilbi(
            0.1, nu=20.0, lam=dl.auto(steps=100, **share), structure=[("", STRUCTURES[structure])]
        )
        state = jax.eval_shape(tx.init, params)
        assert jax.eval_shape(tx.update, params, state, params) == (params, state)


@pytest.mark.parametrize("shape", [(), (0,), (10,), (3, 4), (2, 3, 5), (5, 2, 3, 2)])
@pytest.mark.parametrize("chunk", [1, 4, 6, 7, 2**30])
def test_counts_in_pieces(shape, chunk, monkeypatch):
    from dessilbi_jax.prox import norms

    monkeypatch.setattr(norms, "_CHUNK", chunk)
    chosen = np.random.default_rng(0).random(shape) < 0.5
    assert float(norms.how_many(jnp.asarray(chosen))) == np.count_nonzero(chosen)


def test_the_count_of_skipped_entries_stays_at_the_largest_there_is():
    tx = dl.dessilbi(0.1, lam=0.1, structure=dl.weights)
    bad = {"kernel": jnp.full((4, 4), jnp.nan)}
    state = tx.init(bad)
    state = state._replace(split=state.split._replace(skipped=jnp.int32(2**31 - 130)))
    for _ in range(2):
        state = tx.update(bad, state, bad)[1]
    assert int(state.split.skipped) == step._MOST


# --- what JAX is told to look for, and what it compiles ----------------------------------------


@pytest.fixture
def looking_for_faults():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


STEPS_OF = {
    "auto": lambda: make(steps=20, density=0.1),
    "auto, lean": lambda: dl.dessilbi(
        0.05, lam=dl.auto(steps=20, density=0.1), structure=dl.filters, lean=True
    ),
    "rules": lambda: dl.dessilbi(0.05, structure=[("", (-1,), {"lam": 0.1})]),
    "given": lambda: dl.dessilbi(0.05, lam=0.1, penalty=dl.sparse_group_lasso(0.5)),
}


@pytest.mark.usefixtures("looking_for_faults")
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
@pytest.mark.parametrize("kind", STEPS_OF)
def test_nothing_is_infinite_or_nan_on_the_way(kind, compiled):
    tx = STEPS_OF[kind]()
    state = jax.jit(tx.init)(W) if compiled else tx.init(W)
    update = jax.jit(tx.update) if compiled else tx.update
    path = dl.SolutionPath()
    for i in range(20):
        _, state = update(STILL, state, W)
        path.record(i + 1, state)
    dl.support(state)
    dl.gamma(state)
    dl.diagnose(lambda _: jnp.zeros(()), W, state, learning_rate=0.05, steps=20)


_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compiled.append(event) if "backend_compile" in event else None
)

RATE = optax.cosine_decay_schedule(0.05, 400)
EAGER = {
    "adam": lambda: optax.adam(1e-3),
    "a given λ": lambda: dl.dessilbi(0.05, lam=0.1, structure=dl.weights),
    "lean, momentum, decay": lambda: dl.dessilbi(
        0.05, lam=0.1, momentum=0.9, weight_decay=1e-4, lean=True, variant="paper"
    ),
    "auto": lambda: make(steps=20, density=0.1),
    "auto, a schedule": lambda: make(RATE, steps=20, group_density=0.1),
    "auto, rules": lambda: dl.dessilbi(
        RATE, lam=dl.auto(steps=20, density=0.1), penalty=dl.sparse_group_lasso(0.5),
        structure=[("", (-1,), {"lam": 0.1, "penalty": dl.elastic_net(0.1)})],
    ),
    "freeze": lambda: dl.dessilbi(0.05, lam=0.01, freeze=lambda count: count > 2),
    "wrap": lambda: dl.wrap(
        optax.adamw(RATE), RATE, lam=dl.auto(steps=20, density=0.1), structure=dl.weights
    ),
    "add_split_lbi": lambda: optax.chain(
        optax.scale_by_adam(),
        dl.add_split_lbi(RATE, lam=dl.auto(steps=20, density=0.1), structure=dl.weights),
        optax.scale_by_learning_rate(RATE),
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate, nu, density: dl.dessilbi(
            learning_rate, nu=nu, lam=dl.auto(steps=20, density=density),
            structure=[("", dl.weights)],
        )
    )(learning_rate=RATE, nu=20.0, density=0.1),
    "keep_support": lambda: optax.chain(
        dl.dessilbi(0.05, lam=0.1), dl.keep_support({"kernel": jnp.ones((64, 64), bool)})
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EAGER)
def test_outside_of_jit_an_update_is_compiled_once(kind):
    tx = EAGER[kind]()
    state = tx.init(W)
    for _ in range(2):
        _, state = tx.update(W, state, W)
    _compiled.clear()
    for _ in range(6):  # over moments at which λ is estimated
        _, state = tx.update(W, state, W)
    assert _compiled == []
    jax.jit(lambda x: x + len(kind))(jnp.ones(7)).block_until_ready()
    assert _compiled, "compilations are counted"


@functools.cache
def _moments(start, due):
    return auto_lam.moments(jnp.int32(start), jnp.int32(due)).tolist()


def test_moments_of_a_short_rest_are_inside_it():
    assert _moments(390, 400) == [391, 392, 393, 394, 395, 396, 397, 398]
    assert _moments(398, 400) == [399] * 8
