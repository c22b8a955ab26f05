"""The properties that optax asks of every optimizer, asked of ours in all its variants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import (
    JOINED,
    Channels,
    assert_trees_close,
    gradient,
    network,
    opened,
    trajectory,
)

import dessilbi_jax as dl
from dessilbi_jax.optimizer import write_order

EVERY_LEAF = [("", dl.weights)]
EVERY_LEAF_JOINT = Channels((("", -1),))
STEPS = 4000  # of runs with automatic λ; the descents go on beyond


def lam_schedule(count):
    return 0.05 + 0.05 * jnp.exp(-jnp.asarray(count, jnp.float32) / 50)


LASSO = {"nu": 1.0, "lam": 0.05}
AUTO = {"nu": 1.0, "lam": dl.auto(density=1.0, steps=STEPS, at=0.2)}

# Options of dl.dessilbi by name.
OURS = {
    "paper": {"variant": "paper"},
    "paper-momentum": {"variant": "paper", "momentum": 0.9},
    "paper-nesterov-lean": {"variant": "paper", "momentum": 0.9, "nesterov": True, "lean": True},
    "paper-decay": {"variant": "paper", "momentum": 0.9, "weight_decay": 1e-7},
    "toolbox": {"variant": "toolbox", "lean": True},
    "toolbox-nesterov-decay": {
        "variant": "toolbox", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-5,
    },
    "kappa": {"kappa": 5.0},
    "lam-schedule": {"lam": lam_schedule, "lean": True},
    "elastic-net": {"penalty": dl.elastic_net(1e-4)},
    "auto": {**AUTO, "variant": "paper"},
    "auto-lean": {**AUTO, "lean": True, "momentum": 0.9},
    "joint": {"structure": JOINED, "momentum": 0.9},
    "joint-auto-lean": {**AUTO, "structure": JOINED, "lean": True},
    "freeze": {"freeze": lambda count: count % 2 == 1, "lean": True},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_cpu_device(monkeypatch):
    """Update in the order of a single CPU device, though the tests have eight virtual ones."""
    monkeypatch.setattr(write_order, "matters", lambda _: True)


def wrapped(inner, **options):
    return lambda rate, **more: dl.wrap(inner(rate), rate, **{**LASSO, **options, **more})


def behind_adam(rate, **more):
    return optax.chain(
        optax.scale_by_adam(),
        dl.add_split_lbi(rate, **{**LASSO, **more}),
        optax.scale_by_learning_rate(rate),
    )


# Factories by name, taking a learning rate and options to change.
OTHERS = {
    "chain-adam": behind_adam,
    "wrap-adamw": wrapped(optax.adamw),
    "wrap-lion-lean": wrapped(optax.lion, lean=True),
    "wrap-adam-auto": wrapped(optax.adam, **AUTO),
    "wrap-muon": wrapped(optax.contrib.muon),
}
ALL = [*OURS, *OTHERS]
# The structure of those that are to hold every leaf.
EVERY = dict.fromkeys(ALL, EVERY_LEAF) | dict.fromkeys(
    [name for name in OURS if name.startswith("joint")], EVERY_LEAF_JOINT
)
# Learning rates on (parabola, Rosenbrock).
RATES = dict.fromkeys(ALL, (1e-2, 1e-3))
RATES |= {name: (1e-3, 3e-4) for name, options in OURS.items() if "momentum" in options}
RATES |= dict.fromkeys(OTHERS, (1e-2, 1e-2)) | {"wrap-lion-lean": (3e-3, 1e-3)}


def make(name, rate, **more):
    if name in OTHERS:
        return OTHERS[name](rate, **more)
    return dl.dessilbi(rate, **{**LASSO, **OURS[name], **more})


@pytest.fixture(params=ALL)
def name(request):
    return request.param


def parabola(dtype=jnp.float32):
    start = {"kernel": jnp.zeros((2, 2), dtype), "bias": jnp.array([-1.0, 10.0, 1.0], dtype)}
    end = {"kernel": jnp.array([[3.0, -2.0], [1.0, 4.0]], dtype)}
    end["bias"] = jnp.array([1.0, -1.0, 1.0], dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        end = jax.tree.map(lambda x: x * (1 + 1j), end)

    def loss(params):
        return sum(
            jnp.sum(jnp.abs(a - b) ** 2)
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(end), strict=True)
        )

    return start, end, loss


def rosenbrock():
    start = {"kernel": jnp.zeros(2)}

    def loss(params):
        x, y = params["kernel"]
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    return start, {"kernel": jnp.ones(2)}, loss


def descend(tx, start, loss, steps):
    """The last parameters and state, from a scan: a state whose type changes cannot pass it."""

    def step(carry, _):
        params, state = carry
        conjugated = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        updates, state = tx.update(conjugated, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((start, tx.init(start)))


@pytest.mark.slow
@pytest.mark.parametrize("target", [parabola, rosenbrock])
def test_converges_with_every_leaf_structured_and_gamma_open(name, target):
    start, end, loss = target()
    rate = RATES[name][target is rosenbrock]
    params, state = descend(make(name, rate, structure=EVERY[name]), start, loss, 60_000)
    for got, expected in zip(jax.tree.leaves(params), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(got, expected, rtol=3e-2, atol=3e-2)
    assert all(np.all(mask) for mask in jax.tree.leaves(dl.support(state)))
    # Γ has come after W: the path ends at the dense solution.
    for got, expected in zip(jax.tree.leaves(dl.gamma(state)), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(got, expected, rtol=6e-2, atol=6e-2)


@pytest.mark.parametrize(
    "name", ["paper", "toolbox", "kappa", "lam-schedule", "chain-adam", "joint"]
)
def test_converges_on_complex_leaves(name):
    start, end, loss = parabola(jnp.complex64)
    params, state = descend(make(name, RATES[name][0], structure=EVERY[name]), start, loss, STEPS)
    inner = dl.get_state(state)
    for w, v, gamma, expected in zip(
        *map(jax.tree.leaves, (params, inner.v, dl.gamma(state), end)), strict=True
    ):
        assert w.dtype == v.dtype == gamma.dtype == jnp.complex64
        np.testing.assert_allclose(w, expected, rtol=3e-2, atol=3e-2)
        np.testing.assert_allclose(np.angle(gamma), np.angle(v), atol=1e-5)  # prox keeps phases


def test_complex_groups_are_normed_by_modulus():
    params = {"kernel": jnp.array([[3.0 + 0j, 1.0], [4.0j, 1.0]])}
    tx = dl.dessilbi(1.0, nu=1.0, lam=2.5, structure=dl.neurons)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(dl.gamma(state)["kernel"], [[1.5, 0], [2j, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "paper-momentum", "toolbox-nesterov-decay", "auto-lean", "chain-adam", "wrap-muon",
        "joint-auto-lean", "freeze",
    ],
)  # fmt: skip
def test_update_takes_unknown_arguments_and_is_traced_once(name):
    tx, params = make(name, 1e-2), network()
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(gradient(params), state, params, nobody_knows_this=1)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert len(traces) == 1
    assert int(dl.get_state(state).count) == 3


def test_map_params_reaches_v_and_gamma_and_nothing_else_of_ours(name):
    tx, params = make(name, 1e-2), network()
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    marked = dl.get_state(
        optax.tree.map_params(tx, lambda x: "p", state, transform_non_params=lambda x: "other")
    )
    assert set(jax.tree.leaves((marked.v, marked.gamma))) == {"p"}
    assert (marked.count, marked.lam, marked.skipped) == ("other",) * 3
    assert set(jax.tree.leaves(marked.auto)) <= {"other"}


@pytest.mark.slow
def test_every_leaf_keeps_its_dtype_and_the_state_its_types(name):
    with jax.enable_x64(True):
        dtypes = {kind: jnp.dtype(kind) for kind in ("float16", "bfloat16", "float32", "float64")}
        params = {kind: network(dtype)["fc"] for kind, dtype in dtypes.items()}
        tx = make(name, 1e-2)
        state = jax.eval_shape(tx.init, params)
        updates, new_state = jax.eval_shape(tx.update, params, state, params)
        inner = dl.get_state(state)
        for kind, dtype in dtypes.items():
            assert {leaf.dtype for leaf in jax.tree.leaves(updates[kind])} == {dtype}
            wide = jnp.promote_types(dtype, jnp.float32)
            for tree in (inner.v, inner.gamma or inner.v):
                assert {leaf.dtype for leaf in jax.tree.leaves(tree[kind])} == {
                    wide,
                    jnp.dtype(bool),
                }
        assert inner.lam.dtype == jnp.float32
        before, after = (
            [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(s)]
            for s in (state, new_state)
        )
        assert before == after


@pytest.mark.parametrize("name", [*OURS, "wrap-lion-lean"])  # optax.adam itself promotes
def test_float32_needs_no_implicit_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        tx, params = make(name, 1e-2), network()
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_v_of_narrow_parameters_does_not_stall(dtype):
    # A step of V is 1.5e-3 of a value near 1: half an ulp of bfloat16 there is 4e-3.
    params = {"kernel": jnp.full((2, 2), 1.5, dtype)}
    tx = dl.dessilbi(1e-2, nu=10.0, lam=1e6)
    state = tx.init(params)
    none = jax.tree.map(jnp.zeros_like, params)

    def step(state, _):
        return tx.update(none, state, params)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=1000))(state)
    np.testing.assert_allclose(dl.get_state(state).v["kernel"], 1.5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "paper-decay", "toolbox-nesterov-decay", "lam-schedule", "elastic-net", "auto-lean",
        "joint-auto-lean", "freeze",
    ],
)  # fmt: skip
def test_inject_hyperparams_gives_the_same(name):
    options = {**LASSO, **OURS[name], "learning_rate": 0.02, "nu": 0.2}
    if isinstance(options["lam"], dl.Auto):
        options |= {"lam": dl.auto(density=0.3, steps=20)}
    # structure stays what it is by default, dl.filters: it must not be taken for a schedule
    plain = trajectory(dl.dessilbi(**options), network(), 20)
    injected = trajectory(optax.inject_hyperparams(dl.dessilbi)(**options), network(), 20)
    assert_same_run(plain, injected)
    assert 0 < opened(dl.support(plain.last_state)) < 1


def test_inject_hyperparams_lets_numbers_be_changed_on_the_way():
    tx, params = optax.inject_hyperparams(dl.dessilbi)(0.1, nu=1.0, lam=0.15), network()
    state = tx.init(params)
    _, state = tx.update(gradient(params), state, params)
    state.hyperparams["lam"] = jnp.float32(1e-6)
    _, state = tx.update(gradient(params), state, params)
    assert float(dl.get_state(state).lam) == np.float32(1e-6)
    assert opened(dl.support(state)) == 1


def assert_same_run(one, other, rtol=1e-5):
    assert_trees_close(one.last_params, other.last_params, rtol)
    mine, its = dl.get_state(one.last_state), dl.get_state(other.last_state)
    assert_trees_close((mine.v, mine.gamma, mine.shrink), (its.v, its.gamma, its.shrink), rtol)
    assert_trees_close((mine.count, mine.skipped, mine.lam), (its.count, its.skipped, its.lam))
    for x, y in zip(jax.tree.leaves(one.support), jax.tree.leaves(other.support), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-momentum", "auto-lean", "chain-adam", "joint"])
def test_a_constant_schedule_is_a_constant(name):
    number = make(name, 0.02, nu=0.2)
    schedule = make(name, optax.constant_schedule(0.02), nu=0.2)
    assert_same_run(trajectory(number, network(), 12), trajectory(schedule, network(), 12))


def test_constant_lam_schedule_is_a_constant():
    number = dl.dessilbi(0.1, nu=2.0, lam=0.2)
    schedule = dl.dessilbi(0.1, nu=2.0, lam=optax.constant_schedule(0.2))
    one, other = (trajectory(tx, network(), 12) for tx in (number, schedule))
    assert_same_run(one, other, 1e-7)
    assert 0 < opened(one.support) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["toolbox-nesterov-decay", "auto-lean", "wrap-lion-lean", "joint", "freeze"]
)
def test_multi_steps_is_a_step_of_the_mean_gradient(name):
    tx, params = make(name, 0.02, nu=0.2), network()
    multi = optax.MultiSteps(tx, every_k_schedule=4)
    state, multi_state = tx.init(params), multi.init(params)
    update, multi_update = jax.jit(tx.update), jax.jit(multi.update)
    multi_params = params
    for _ in range(2):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        g = gradient(multi_params)
        for share in (0.4, 1.6, 2.0, 0.0):
            part = jax.tree.map(lambda x, share=share: share * x, g)
            updates, multi_state = multi_update(part, multi_state, multi_params)
            multi_params = optax.apply_updates(multi_params, updates)
    assert_trees_close(multi_params, params, 1e-5)
    mine, its = dl.get_state(multi_state), dl.get_state(state)
    assert int(mine.count) == 2
    assert_trees_close((mine.v, mine.gamma), (its.v, its.gamma), 1e-5)


def test_init_on_shapes_alone(name):
    tx, params = make(name, 1e-2), network()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)

    def form(state):
        return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state)

    assert form(tx.init(abstract)) == form(tx.init(params))
    assert form(jax.eval_shape(tx.init, abstract)) == form(tx.init(params))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda **k: dl.dessilbi(0.1, **k), optax.sgd(0.1)),
        (lambda **k: dl.dessilbi(0.1, momentum=0.9, variant="paper", **k), optax.sgd(0.1, 0.9)),
        (
            lambda **k: dl.dessilbi(0.1, momentum=0.9, nesterov=True, variant="toolbox", **k),
            optax.sgd(0.1, 0.9, nesterov=True),
        ),
        (lambda **k: dl.wrap(optax.adamw(0.1), 0.1, **k), optax.adamw(0.1)),
        (lambda **k: behind_adam(0.1, **k), optax.adam(0.1)),
    ],
    ids=["sgd", "momentum", "nesterov", "adamw", "adam"],
)
def test_with_a_huge_nu_it_is_the_inner_optimizer(ours, theirs):
    tx = ours(nu=1e20, lam=1.0, structure=[("", dl.weights)])
    params = network()
    state, other = tx.init(params), theirs.init(params)
    mine, its = jax.jit(tx.update), jax.jit(theirs.update)
    w = params
    for _ in range(10):
        updates, state = mine(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        updates, other = its(gradient(w), other, w)
        w = optax.apply_updates(w, updates)
    assert_trees_close(params, w, 1e-6)
    assert opened(dl.support(state)) == 0
