"""DessiLBI inside everything that Optax and JAX put around an optimizer."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from trajectories import QUICK, assert_trees_close, gradient, network, opened, runner, trajectory

import dessilbi_jax as dl
from dessilbi_jax.optimizer import write_order
from dessilbi_jax.tree import leaf_paths

OPTIONS = {"nu": 1.0, "lam": 0.4}
AUTO = {"nu": 1.0, "lam": dl.auto(density=0.3, steps=20)}


def all_kernels(params):
    return {layer: {name: name == "kernel" for name in leaves} for layer, leaves in params.items()}


@pytest.fixture(scope="module")
def plain():
    run = trajectory(dl.dessilbi(0.1, **OPTIONS), network(), 12)
    assert 0.1 < opened(dl.support(run.last_state)["fc"]["kernel"]) < 0.9
    assert 0.1 < opened(dl.support(run.last_state)["conv"]["kernel"]) < 0.99
    return run


def assert_same(run, plain):
    assert_trees_close(run.params, plain.params)
    assert_trees_close(run.gamma, plain.gamma)
    chex.assert_trees_all_equal(run.support, plain.support)


# --- what Optax puts around it ---------------------------------------------------------------


def test_chain_of_its_parts_is_the_alias(plain):
    tx = optax.chain(
        optax.identity(),
        dl.add_split_lbi(0.1, **OPTIONS),
        optax.scale_by_learning_rate(0.1),
    )
    assert_same(trajectory(tx, network(), 12), plain)


def test_wrapped_sgd_is_the_alias(plain):
    assert_same(trajectory(dl.wrap(optax.sgd(0.1), 0.1, **OPTIONS), network(), 12), plain)


def test_variants_without_momentum_are_one(plain):
    assert_same(trajectory(dl.dessilbi(0.1, variant="paper", **OPTIONS), network(), 12), plain)


def test_scale_behind_the_coupling_changes_the_step_of_w_alone():
    tx = optax.chain(dl.add_split_lbi(0.1, **OPTIONS), optax.scale(-0.05))
    params = network()
    updates, state = tx.update(gradient(params), tx.init(params), params)
    full, full_state = dl.dessilbi(0.1, **OPTIONS).update(
        gradient(params), dl.dessilbi(0.1, **OPTIONS).init(params), params
    )
    assert_trees_close(updates, jax.tree.map(lambda u: u / 2, full))
    assert_trees_close(dl.get_state(state).v, dl.get_state(full_state).v)


def test_masked_leaves_pass_by(plain):
    tx = optax.chain(
        optax.masked(dl.add_split_lbi(0.1, **OPTIONS), all_kernels),
        optax.scale_by_learning_rate(0.1),
    )
    params = network()
    state = tx.init(params)
    update = jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(12):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(params, plain.last_params)
    chex.assert_trees_all_equal(dl.support(state, params), dl.support(plain.last_state))
    only_fc = optax.masked(
        dl.dessilbi(0.1, **OPTIONS), {"conv": False, "fc": {"kernel": True, "bias": False}}
    )
    assert [path for path, _ in leaf_paths(dl.get_state(only_fc.init(params)).v)] == ["fc/kernel"]


@pytest.mark.parametrize("partition", [optax.partition, optax.multi_transform])
def test_partition_trains_every_part_by_its_own(partition, plain):
    other = trajectory(dl.dessilbi(0.02, nu=0.1, lam=0.5), network(), 12)
    parts = {
        "conv": dl.dessilbi(0.1, **OPTIONS),
        "fc": dl.dessilbi(0.02, nu=0.1, lam=0.5),
        "frozen": optax.set_to_zero(),  # no leaf has this label
    }

    def labels(params):
        return {layer: dict.fromkeys(leaves, layer) for layer, leaves in params.items()}

    tx, params = partition(parts, labels), network()
    state, update = tx.init(params), jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(12):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    expected = {"conv": plain.last_params["conv"], "fc": other.last_params["fc"]}
    assert_trees_close(params, expected)
    expected = {
        "conv": dl.support(plain.last_state)["conv"], "fc": dl.support(other.last_state)["fc"],
    }  # fmt: skip
    chex.assert_trees_all_equal(dl.support(state, params, merge=True), expected)


def test_a_partition_may_have_ours_under_a_label_that_no_leaf_has():
    parts = {"ours": dl.dessilbi(0.1, **OPTIONS), "rest": optax.sgd(0.1)}
    tx = optax.partition(parts, lambda p: jax.tree.map(lambda _: "rest", p))
    params = network()
    updates, _ = tx.update(gradient(params), tx.init(params), params)
    assert_trees_close(updates, jax.tree.map(lambda g: -0.1 * g, gradient(params)))


@pytest.mark.parametrize("options", [OPTIONS, AUTO, {**OPTIONS, "lean": True}])
def test_apply_if_finite_leaves_the_state_as_if_the_step_had_not_been(options):
    params = network()
    clean = dl.dessilbi(0.1, momentum=0.9, **options)
    guarded = optax.apply_if_finite(clean, max_consecutive_errors=5)
    state, guarded_state, w = clean.init(params), guarded.init(params), params
    update, guarded_update = (
        jax.jit(clean.update, compiler_options=QUICK),
        jax.jit(guarded.update, compiler_options=QUICK),
    )
    for step in range(8):
        if step in (2, 5):
            bad = gradient(w)
            bad["fc"]["kernel"] = bad["fc"]["kernel"].at[1, 2].set((jnp.nan, jnp.inf)[step == 5])
            updates, guarded_state = guarded_update(bad, guarded_state, w)
            w = optax.apply_updates(w, updates)
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        updates, guarded_state = guarded_update(gradient(w), guarded_state, w)
        w = optax.apply_updates(w, updates)
    chex.assert_trees_all_equal(w, params)
    chex.assert_trees_all_equal(dl.get_state(guarded_state), dl.get_state(state))
    assert int(dl.get_state(state).skipped) == 0


@pytest.mark.parametrize("lean", [False, True])
def test_without_a_guard_v_is_left_alone_where_w_is_not_finite_and_that_is_counted(lean):
    tx, params = dl.dessilbi(0.1, lean=lean, structure=dl.weights, **OPTIONS), network()
    state, update = tx.init(params), jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(6):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    before = dl.get_state(state).v["fc"]["kernel"]
    bad = gradient(params)
    bad["fc"]["kernel"] = bad["fc"]["kernel"].at[1, 2].set(jnp.nan)
    updates, state = update(bad, state, params)
    assert np.isnan(updates["fc"]["kernel"][1, 2])  # the update passes through
    assert np.isnan(updates["fc"]["kernel"]).sum() == 1
    assert int(dl.get_state(state).skipped) == 0  # W was finite still
    at_nan = dl.get_state(state).v["fc"]["kernel"][1, 2]
    params = optax.apply_updates(params, updates)
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0, 0, 0, :3].set(jnp.inf)
    for steps in (1, 2):
        _, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        inner = dl.get_state(state)
        assert int(inner.skipped) == 4 * steps
        assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves(inner.v))
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(dl.gamma(state)))
        assert inner.v["fc"]["kernel"][1, 2] == at_nan
    moved = np.asarray(inner.v["fc"]["kernel"] != before)
    assert moved.sum() > 0.9 * moved.size  # all others went on


def test_flatten_leaves_nothing_to_recognise_and_the_error_says_so():
    tx = optax.flatten(dl.dessilbi(0.1, **OPTIONS))
    with pytest.raises(ValueError, match=r"optax\.flatten"):
        tx.init(network())


def test_flatten_works_with_a_rule():
    rule = [(".*", dl.weights)]
    flat = optax.flatten(dl.dessilbi(0.1, structure=rule, **OPTIONS))
    params, w = network(), network()
    whole = dl.dessilbi(0.1, structure=rule, **OPTIONS)
    state, whole_state = flat.init(params), whole.init(w)
    update, whole_update = jax.jit(flat.update), jax.jit(whole.update)
    for _ in range(8):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        updates, whole_state = whole_update(gradient(w), whole_state, w)
        w = optax.apply_updates(w, updates)
    assert_trees_close(params, w)
    expected = jax.flatten_util.ravel_pytree(dl.support(whole_state))[0]
    np.testing.assert_array_equal(dl.support(state), expected)
    assert 0 < opened(expected) < 1


def test_names_of_the_state_collide_with_nobody():
    tx = optax.chain(
        optax.scale_by_adam(), dl.add_split_lbi(0.1, **OPTIONS), optax.scale_by_learning_rate(0.1)
    )
    params = network()
    _, state = tx.update(gradient(params), tx.init(params), params)
    assert_trees_close(
        optax.tree.get(state, "nu"), jax.tree.map(lambda g: 0.001 * g * g, gradient(params)), 1e-5
    )
    assert_trees_close(optax.tree.get(state, "gamma"), dl.gamma(state))
    assert_trees_close(optax.tree.get(state, "v"), dl.get_state(state).v)
    assert float(optax.tree.get(state, "lam")) == np.float32(0.4)
    with_lam = optax.tree.set(state, lam=jnp.float32(0.5))
    assert float(dl.get_state(with_lam).lam) == 0.5


# --- what JAX puts around it -----------------------------------------------------------------

DONATED = {
    "full": {**OPTIONS, "momentum": 0.9},
    "lean": {**OPTIONS, "lean": True},
    "auto": {**AUTO, "lean": True},
    "lam is an array": {"nu": 1.0, "lam": np.float32(0.4)},
    "sparse groups": {**OPTIONS, "penalty": dl.sparse_group_lasso(0.3), "variant": "toolbox"},
    "scalar leaf": {**OPTIONS, "structure": [("conv/kernel", (-1,)), ("scale", ())]},
}


@pytest.mark.parametrize(
    ("which", "alone"), [*((which, True) for which in DONATED), ("full", False)]
)
def test_parameters_and_state_can_be_donated(which, alone, monkeypatch):
    monkeypatch.setattr(write_order, "matters", lambda _: alone)  # as on a single CPU device
    options = dict(DONATED[which])
    if which == "lam is an array":
        options["lam"] = jnp.array(options["lam"])
    tx, start = dl.dessilbi(0.1, **options), network()
    if which == "scalar leaf":
        start["scale"] = jnp.array(2.0)

    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    donating, copying = jax.jit(step, donate_argnums=(0, 1)), jax.jit(step)
    w, expected = start, tx.init(start)
    for _ in range(3):
        w, expected = copying(w, expected)
    for init in (tx.init, jax.jit(tx.init)):
        params = jax.tree.map(jnp.copy, start)
        state = init(params)  # also the second time: what the transformation holds stays its own
        first = params, dl.get_state(state).v
        for _ in range(3):
            params, state = donating(params, state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
        assert_trees_close((params, dl.get_state(state)), (w, dl.get_state(expected)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "alone"), [(OPTIONS, False), (AUTO, True)],
    ids=["number", "auto"],
)  # fmt: skip
def test_vmap_over_seeds_is_the_separate_runs(options, alone, monkeypatch):
    monkeypatch.setattr(write_order, "matters", lambda _: alone)
    tx = dl.dessilbi(0.1, **options)
    seeds = [network(), jax.tree.map(lambda x: x[::-1] * 1.5, network())]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    run = runner(tx, 18)
    batch = jax.vmap(run)(stacked, jax.vmap(tx.init)(stacked))
    if options is AUTO:  # also where all seeds share one clock
        shared = jax.vmap(lambda p: run(p, tx.init(p)))(stacked)
        assert_trees_close(shared.gamma, batch.gamma)
    for i, seed in enumerate(seeds):
        alone = run(seed, tx.init(seed))
        one = jax.tree.map(lambda x, i=i: x[i], batch)
        assert_trees_close(one.params, alone.params)
        assert_trees_close(one.gamma, alone.gamma, 1e-5)
        chex.assert_trees_all_equal(one.support, alone.support)
        np.testing.assert_allclose(one.lam, alone.lam, rtol=1e-6)
        assert 0 < opened(jax.tree.map(lambda x: x[-1], alone.support)["fc"]["kernel"]) < 1


def test_scan_is_the_loop(plain):
    tx, params = dl.dessilbi(0.1, **OPTIONS), network()
    state, update = tx.init(params), jax.jit(tx.update, compiler_options=QUICK)
    for step in range(12):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(
            dl.support(state), jax.tree.map(lambda x, step=step: x[step], plain.support)
        )
    assert_trees_close(params, plain.last_params)


def test_eager_is_jitted(plain):
    tx, params = dl.dessilbi(0.1, **OPTIONS), network()
    state = tx.init(params)
    for _ in range(6):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(params, jax.tree.map(lambda x: x[5], plain.params))
    assert_trees_close(dl.gamma(state), jax.tree.map(lambda x: x[5], plain.gamma), 1e-5)


# --- λ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [False, True])
def test_gamma_is_made_with_the_scheduled_lam_that_the_state_holds(lean):
    def schedule(count):
        return 0.6 - 0.04 * count

    run = trajectory(dl.dessilbi(0.1, nu=1.0, lam=schedule, lean=lean), network(), 10)
    np.testing.assert_allclose(run.lam, [0.6 - 0.04 * k for k in range(10)], rtol=1e-6)
    v, gamma = np.asarray(run.v["fc"]["kernel"]), np.asarray(run.gamma["fc"]["kernel"])
    lam = np.asarray(run.lam)[:, None, None]
    np.testing.assert_allclose(gamma, np.sign(v) * np.maximum(np.abs(v) - lam, 0), atol=1e-6)
    assert 0.1 < np.mean(gamma[-1] != 0) < 0.9


def test_every_rule_can_have_its_own_lam():
    rules = [("conv", (-1,), {"lam": 0.4}), ("fc/kernel", dl.weights, {"lam": 0.3})]
    run = trajectory(dl.dessilbi(0.1, nu=1.0, structure=rules), network(), 10)
    norm = np.sqrt(np.sum(np.asarray(run.v["conv"]["kernel"]) ** 2, axis=(1, 2, 3)))
    chosen = np.asarray(run.support["conv"]["kernel"])[:, 0, 0, 0, :]
    np.testing.assert_array_equal(chosen, norm > 0.4)
    np.testing.assert_array_equal(
        run.support["fc"]["kernel"], np.abs(np.asarray(run.v["fc"]["kernel"])) > np.float32(0.3)
    )
    assert 0 < chosen[-1].mean() < 1
    assert np.all(np.asarray(run.lam) == 2.0**96)  # no λ of its own is in force


def test_lam_of_a_rule_comes_before_the_common_one():
    rules = [("conv", (-1,)), ("fc/kernel", dl.weights, {"lam": 0.3})]
    run = trajectory(dl.dessilbi(0.1, nu=1.0, lam=0.4, structure=rules), network(), 10)
    own = [("conv", (-1,), {"lam": 0.4}), ("fc/kernel", dl.weights, {"lam": 0.3})]
    expected = trajectory(dl.dessilbi(0.1, nu=1.0, structure=own), network(), 10)
    chex.assert_trees_all_equal(run.support, expected.support)


# --- what parameters come in -----------------------------------------------------------------


def _train(params, steps=6, **options):
    tx = dl.dessilbi(0.1, **{"nu": 1.0, "lam": 0.1, **options})
    state, update = tx.init(params), jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(steps):
        updates, state = update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _check_reading(params, state, kernels):
    """Γ, support, projection and path know the parameters' own tree."""
    assert jax.tree.structure(dl.gamma(state)) == jax.tree.structure(params)
    mask = dl.support(state, params)
    sparse = dl.project(params, mask)
    assert jax.tree.structure(sparse) == jax.tree.structure(params)
    path = dl.SolutionPath()
    path.record(6, state)
    assert set(path.groups) == set(kernels)
    assert 0 < path.density()[0] < 1
    chex.assert_trees_all_equal(path.support(6, params), mask)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.fc1 = nnx.Linear(4, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc1(self.norm(self.conv1(x)).mean((1, 2)))


@pytest.mark.slow
def test_nnx_state():
    params = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
    names = ["conv1/bias", "conv1/kernel", "fc1/bias", "fc1/kernel", "norm/bias", "norm/scale"]
    assert [path for path, _ in leaf_paths(params)] == names
    _check_reading(*_train(params), ["conv1/kernel", "fc1/kernel"])


def test_nnx_optimizer_and_module():
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, dl.dessilbi(0.1, nu=1.0, lam=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model))

    for _ in range(6):
        step(model, optimizer, jnp.ones((2, 5, 5, 1)))
    assert int(dl.get_state(optimizer.opt_state).count[...]) == 6
    path = dl.SolutionPath()
    path.record(6, optimizer.opt_state)
    assert path.groups == {"conv1/kernel": (1, 1, 1, 4), "fc1/kernel": (4, 8)}
    assert 0 < path.density()[0] < 1
    # A module is a tree itself: statistics are leaves that have no kernel's name.
    state = dl.dessilbi(0.1, lam=0.1).init(model)
    structured = [path for path, v in leaf_paths(dl.get_state(state).v) if v.dtype != bool]
    assert structured == ["conv1/kernel", "fc1/kernel"]


def test_linen_dicts_and_boxes():
    layer = linen.Dense(
        5, kernel_init=linen.with_partitioning(linen.initializers.normal(1.0), (None, "model"))
    )
    params = layer.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    assert [path for path, _ in leaf_paths(params)] == ["bias", "kernel"]
    params, state = _train(params)
    assert isinstance(dl.get_state(state).v["kernel"], linen.Partitioned)
    _check_reading(params, state, ["kernel"])


@pytest.mark.slow
def test_equinox_modules():
    model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    params, state = _train(params)
    _check_reading(params, state, [f"layers/{i}/weight" for i in range(3)])
    rebuilt = eqx.combine(dl.project(params, dl.support(state)), model)
    assert rebuilt(jnp.ones(4)).shape == (3,)


def test_equinox_kernels_are_outputs_first():
    conv = eqx.filter(eqx.nn.Conv2d(3, 6, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    _, state = _train({"conv": conv}, steps=1)
    assert dl.get_state(state).shrink.strength["conv"].weight.shape == (6, 1, 1, 1)


@pytest.mark.slow
def test_haiku_dicts():
    key = jax.random.key(0)
    params = {
        "net/~/conv": {"w": jax.random.normal(key, (3, 3, 2, 4)), "b": jnp.zeros(4)},
        "net/~/linear": {"w": jax.random.normal(key, (6, 5)), "b": jnp.zeros(5)},
    }
    params, state = _train(params, lam=0.5)
    _check_reading(params, state, ["net/~/conv/w", "net/~/linear/w"])


@pytest.mark.parametrize(
    "container",
    [lambda a, b: (a, b), lambda a, b: [a, {"x": b}], lambda a, b: {"a": a, "n": None, "b": b}],
    ids=["tuple", "list", "with None"],
)
def test_plain_trees_with_rules(container):
    keys = jax.random.split(jax.random.key(0))
    params = container(jax.random.normal(keys[0], (4, 6)), jax.random.normal(keys[1], (5,)))
    params, state = _train(params, structure=[("", dl.weights)])
    _check_reading(params, state, [path for path, _ in leaf_paths(params)])


def test_a_bare_array():
    params, state = _train(
        jax.random.normal(jax.random.key(0), (4, 6)), structure=[("", (0,))], lam=1.4
    )
    _check_reading(params, state, [""])


def test_integer_leaves_stay_dense_and_untouched():
    params = {"kernel": jnp.array([[2.0, 0.1]]), "steps": jnp.array(3)}
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.1)
    grads = {"kernel": jnp.ones((1, 2)), "steps": jnp.array(0)}
    updates, state = tx.update(grads, tx.init(params), params)
    assert dl.get_state(state).v["steps"].dtype == bool
    assert optax.apply_updates(params, updates)["steps"] == 3
