"""Leaves that `optax.partition` and its like hide, and states that lost their types."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import dessilbi_jax as dl

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

P = {
    "body": {"kernel": jax.random.normal(jax.random.key(0), (16, 32))},
    "head": {"kernel": jax.random.normal(jax.random.key(1), (32, 8)), "bias": jnp.ones(8)},
}
STILL = jax.tree.map(jnp.zeros_like, P)
LABELS = {
    "leaf by leaf": {
        "body": {"kernel": "frozen"}, "head": {"kernel": "train", "bias": "train"},
    },
    "branches": {"body": "frozen", "head": "train"},
}  # fmt: skip
MASKS = {
    name: jax.tree.map(lambda label: label == "train", labels) for name, labels in LABELS.items()
}


def ours(**options):
    return dl.dessilbi(
        0.05, nu=20.0, lam=dl.auto(density=0.1, steps=40), structure=dl.weights, **options
    )


WRAPS = {
    **{
        f"partition, {name}": lambda tx, labels=labels: optax.partition(
            {"train": tx, "frozen": optax.set_to_zero()}, labels
        )
        for name, labels in LABELS.items()
    },
    **{
        f"masked, {name}": lambda tx, mask=mask: optax.masked(tx, mask)
        for name, mask in MASKS.items()
    },
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask=jax.tree.map(lambda kept: not kept, MASKS["leaf by leaf"])
    ),
}


@pytest.fixture(scope="module", params=WRAPS)
def run(request):
    """(state after 20 updates, path recorded without W, path recorded with it)."""
    tx = WRAPS[request.param](ours(lean="branches" in request.param))
    state = tx.init(P)
    update = jax.jit(lambda s: tx.update(STILL, s, P)[1])
    for _ in range(20):
        state = update(state)
    blind, told = dl.SolutionPath(), dl.SolutionPath()
    blind.record(20, state)
    told.record(20, state, P)
    return state, blind, told


def test_support_gamma_and_tickets_keep_what_is_hidden(run, tmp_path):
    state, blind, told = run
    ticket = told.ticket(density=0.1)
    blind.save(tmp_path / "path.npz")
    for path in (blind, dl.SolutionPath.load(tmp_path / "path.npz")):
        own = path.ticket(density=0.1)
        own.save(tmp_path / "ticket.npz")
        for each in (own, dl.Ticket.load(tmp_path / "ticket.npz")):
            jax.tree.map(np.testing.assert_array_equal, each.mask(P), ticket.mask(P))
            dl.keep_support(each.mask(P)).init(P)
        supports = path.support(20, P), told.support(20, P), dl.support(state, P)
        for support in supports:
            assert support["body"]["kernel"].all()
            jax.tree.map(np.testing.assert_array_equal, support, supports[0])
    mask = ticket.mask(P)
    assert mask["body"]["kernel"].all()
    assert int(mask["head"]["kernel"].sum()) == 25
    assert dl.gamma(state, P)["body"]["kernel"] is P["body"]["kernel"]
    assert ticket.transfer(P).mask(P)["body"]["kernel"].all()


def test_another_network_still_does_not_fit(run):
    _, blind, told = run
    other = {**P, "neck": {"kernel": jnp.ones((2, 2))}}
    for path in (blind, told):
        with pytest.raises(ValueError, match="does not fit neck/kernel"):
            path.ticket(density=0.1).mask(other)


def test_diagnose_and_calibrate_look_at_what_they_see(run):
    state, _, _ = run

    def loss(p):
        return jnp.sum(p["head"]["kernel"] ** 2)

    seen = dl.diagnose(loss, P, state, state, learning_rate=0.05, nu=20.0, steps=40)
    alone = ours()
    head = {"head": P["head"]}
    plain = alone.init(head)
    for _ in range(20):
        plain = jax.jit(alone.update)({"head": STILL["head"]}, plain, head)[1]
    expected = dl.diagnose(loss, head, plain, plain, learning_rate=0.05, nu=20.0, steps=40)
    assert str(seen) == str(expected)
    options = {"nu": 20.0, "density": 0.1}
    lam = dl.calibrate(P, dl.weights, 0.05, 40, probe=state, **options)
    assert lam == dl.calibrate(head, dl.weights, 0.05, 40, probe=plain, **options)


def test_parameters_are_counted_where_they_are_known(run):
    _, blind, told = run
    with pytest.raises(ValueError, match=r"params= counts all.* body.* is hidden .*record\(step"):
        blind.ticket(params=600)
    with pytest.raises(ValueError, match=r"params=200 .*520 of which stay as they are"):
        told.ticket(params=200)
    assert told.ticket(params=600).card["params"] == [600, 776]

    def apply(p, x):
        return jax.nn.relu(x @ p["body"]["kernel"]) @ p["head"]["kernel"] + p["head"]["bias"]

    groups = dl.channel_groups(apply, P, jnp.ones((2, 16)))
    ticket = blind.ticket(params=600, network=groups)
    assert ticket.card["weights"] == told.ticket(params=600).card["weights"]
    assert ticket.card["live"] == ticket.card["weights"][0], "the hidden layer is there"


def test_keep_support_says_to_stand_outside():
    mask = jax.tree.map(lambda x: x > 0, P)
    for wrap in WRAPS.values():
        inside = wrap(optax.chain(optax.adam(0.1), dl.keep_support(mask)))
        with pytest.raises(ValueError, match=r"hidden from keep_support here.*stand outside"):
            inside.init(P)
        outside = optax.chain(wrap(optax.adam(0.1)), dl.keep_support(mask))
        updates, _ = outside.update(STILL, outside.init(P), P)
        new = optax.apply_updates(P, updates)
        assert not any(
            bool((x[~m] != 0).any())
            for x, m in zip(jax.tree.leaves(new), jax.tree.leaves(mask), strict=True)
        )
        # Of a mask over what is seen it may stand inside.
        shown = {"head": mask["head"], "body": {"kernel": optax.MaskedNode()}}
        if wrap is WRAPS["masked, leaf by leaf"]:
            wrap(dl.keep_support(shown)).init(P)


# --- trees that can be called ------------------------------------------------------------------


def test_a_mask_that_can_be_called_is_a_tree():
    net = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    p = eqx.filter(net, eqx.is_inexact_array)
    mask = jax.tree.map(lambda x: x > 0, p)
    tx = optax.chain(optax.sgd(0.1), dl.keep_support(mask))
    updates, _ = tx.update(p, tx.init(p), p)
    new = optax.apply_updates(p, updates)
    for x, m in zip(jax.tree.leaves(new), jax.tree.leaves(mask), strict=True):
        np.testing.assert_array_equal(x == 0, ~np.asarray(m))
    by_function = dl.keep_support(lambda q: jax.tree.map(lambda x: x > 0, q)).init(p)
    jax.tree.map(np.testing.assert_array_equal, by_function.mask, mask)
    decay = jax.tree.map(lambda x: x.ndim > 1, p)
    tx = dl.dessilbi(0.1, lam=1.0, weight_decay=0.1, weight_decay_mask=decay)
    tx.update(p, tx.init(p), p)


def test_a_structure_that_can_be_called_but_is_a_tree_is_no_function():
    specs = jax.tree.map(lambda _: "kernel", eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    with pytest.raises(TypeError, match=r"wrap a fixed tree as `lambda params: tree`"):
        dl.dessilbi(0.1, lam=0.1, structure=specs).init({"kernel": jnp.ones((2, 2))})


# --- averages ----------------------------------------------------------------------------------


def test_inside_schedule_free_what_is_evaluated_is_sparse():
    w, mask = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}
    tx = optax.contrib.schedule_free(optax.chain(optax.adam(0.1), dl.keep_support(mask)), 0.1)
    p = dl.project(w, mask)
    state = tx.init(p)
    for _ in range(5):
        updates, state = tx.update({"w": jnp.ones(2)}, state, p)
        p = optax.apply_updates(p, updates)
    evaluated = optax.contrib.schedule_free_eval_params(state, p)
    assert float(p["w"][1]) == float(evaluated["w"][1]) == 0
    assert float(evaluated["w"][0]) != 1


def test_an_average_that_was_begun_before_is_projected():
    w, mask = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}
    average = dl.project(optax.incremental_update(dl.project(w, mask), w, 0.01), mask)
    assert average["w"].tolist() == [1.0, 0.0]


# --- states that lost their types --------------------------------------------------------------

MAKERS = {
    "dessilbi": lambda: dl.dessilbi(0.1, lam=0.1, momentum=0.9),
    "auto": lambda: dl.wrap(optax.adam(0.1), 0.1, lam=dl.auto(density=0.1, steps=40)),
    "add_split_lbi": lambda: dl.add_split_lbi(0.1, lam=0.1),
    "keep_support": lambda: dl.keep_support(jax.tree.map(lambda x: x > 0, P)),
}
RESTORE = r"restore onto jax\.eval_shape\(tx\.init, params\)"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_state_restored_without_a_target_says_how_to_restore_it(kind, tmp_path):
    tx = MAKERS[kind]()
    state = tx.update(STILL, tx.init(P), P)[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        bare = checkpointer.restore(tmp_path / "state")
        target = jax.eval_shape(tx.init, P)
        whole = checkpointer.restore(tmp_path / "state", target)
    jax.tree.map(np.testing.assert_array_equal, whole, state)
    tx.update(STILL, whole, P)
    for wrong in (bare, optax.adam(0.1).init(P), optax.EmptyState()):
        with pytest.raises(TypeError, match=RESTORE):
            tx.update(STILL, wrong, P)
        if kind != "keep_support":
            for use in (
                dl.get_state,
                dl.gamma,
                dl.support,
                lambda s: dl.SolutionPath().record(1, s),
            ):
                with pytest.raises(ValueError, match=rf"no SplitLBIState.*A state.*{RESTORE}"):
                    use(wrong)


# --- where a state lies ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_init_lays_v_where_the_parameters_lie(kind):
    """As the docstring of `SplitLBIState` says: compiled, on Explicit axes only."""
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(kind,))
    where = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
    p = jax.device_put({"kernel": jnp.ones((8, 8))}, where)
    tx = dl.dessilbi(0.1, lam=0.1)
    explicit = kind == jax.sharding.AxisType.Explicit
    for init in (tx.init, *([jax.jit(tx.init)] if explicit else [])):
        with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
            split = init(p).split
        for leaf in (split.v["kernel"], split.gamma["kernel"]):
            assert leaf.sharding.is_equivalent_to(where, 2)
    shardings = jax.tree.map(
        lambda x: where if x.shape == (8, 8) else jax.sharding.NamedSharding(mesh, jax.P()),
        jax.eval_shape(tx.init, p),
    )
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        split = jax.jit(tx.init, out_shardings=shardings)(p).split
    assert split.v["kernel"].sharding.is_equivalent_to(where, 2)
