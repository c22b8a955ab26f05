"""Settling: exactly the budget, zeros that stay in every state, the same run wherever it goes."""

import functools
import pickle

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dessilbi_jax as dl
from dessilbi_jax.optimizer.largest import largest
from dessilbi_jax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

STEPS = 40
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


W = {"a": {"kernel": draw(12, 16), "bias": draw(16)}, "b": {"kernel": draw(16, 8)}}
X, Y = draw(32, 12), draw(32, 8)
KERNELS = ("a/kernel", "b/kernel")
TOTAL = 12 * 16 + 16 * 8


def loss(p):
    h = jax.nn.relu(X.astype(p["a"]["kernel"].dtype) @ p["a"]["kernel"] + p["a"]["bias"])
    return jnp.mean((h @ p["b"]["kernel"] - Y) ** 2)


def auto(**share):
    return dl.auto(steps=STEPS, **(share or {"density": 0.1}))


def sgd(settle=True, **more):
    more = {"momentum": 0.9, "structure": dl.weights, "lam": auto(), **more}
    return dl.dessilbi(0.05, settle=settle, **more)


def wrapped(tx, settle=True, **more):
    return dl.wrap(tx, 1e-2, lam=auto(), structure=dl.weights, settle=settle, **more)


def run(tx, params=W, state=None, steps=STEPS, each=None):
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        if each is not None:
            each(params, state)
    return params, state


def left(params):
    named = dict(leaf_paths(params))
    return {path: np.asarray(named[path] != 0) for path in KERNELS}


def arrays_of(state, path):
    """All arrays of numbers in a state that belong to a leaf."""
    return [
        np.asarray(leaf)
        for name, leaf in leaf_paths(state)
        if name.endswith(path)
        and leaf.shape == dict(leaf_paths(W))[path].shape
        and leaf.dtype != bool
    ]


INNER = {
    "momentum": lambda: sgd(),
    "nesterov": lambda: sgd(nesterov=True),
    "the paper's placement": lambda: sgd(variant="paper", weight_decay=1e-3),
    "lean": lambda: sgd(lean=True),
    "lean, the paper's": lambda: sgd(lean=True, variant="paper"),
    "adamw": lambda: wrapped(optax.adamw(1e-2)),
    "lion": lambda: wrapped(optax.lion(1e-2)),
    "adafactor": lambda: wrapped(optax.adafactor(1e-2, min_dim_size_to_factor=4)),
    "clipped": lambda: wrapped(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))),
    "accumulating": lambda: wrapped(optax.MultiSteps(optax.sgd(1e-2, 0.9), 2)),
    "numbers for lam": lambda: sgd(dl.settle(density=0.1, steps=STEPS), lam=0.01),
    "a schedule for lam": lambda: sgd(dl.settle(weights=32, steps=STEPS), lam=lambda n: 0.01),
}


@pytest.mark.parametrize("name", INNER)
def test_exactly_the_budget_is_left_and_nothing_comes_back(name):
    tx, seen = INNER[name](), []

    def each(params, state):
        masks, settled = left(params), dl.get_state(state).settled
        now = sum(m.sum() for m in masks.values())
        assert now <= int(settled.budget)
        allowed = dict(leaf_paths(settled.allowed))
        for path in KERNELS:
            assert not (masks[path] & ~np.asarray(allowed[path])).any()
            for array in arrays_of(state, path):
                assert not array[~np.asarray(allowed[path])].any(), "zeros came back in a state"
        if seen:
            assert all(not (masks[path] & ~seen[-1][1][path]).any() for path in KERNELS)
        seen.append((int(settled.budget), allowed | {p: np.asarray(allowed[p]) for p in KERNELS}))

    params, state = run(tx, each=each)
    budget = round(0.1 * TOTAL)
    settled = dl.get_state(state).settled
    assert bool(settled.done)
    assert int(settled.budget) == budget
    support = dict(leaf_paths(dl.support(state)))
    assert sum(int(support[path].sum()) for path in KERNELS) == budget
    assert all(not (left(params)[path] & ~np.asarray(support[path])).any() for path in KERNELS)
    budgets = [b for b, _ in seen]
    assert budgets[:3] == [TOTAL] * 3  # `begin` is at 4
    assert budgets[3] < TOTAL
    assert budgets[28] > budget == budgets[29]  # `end` is at 30
    assert budgets == sorted(budgets, reverse=True)
    # Weights that are left go on training, and are hardly ever zero by themselves.
    assert sum(m.sum() for m in left(params).values()) >= budget - 1


def test_the_cubic_schedule():
    settings = sgd(dl.settle(density=0.1, begin=0.25, end=0.75, cuts=6))
    seen = []
    run(settings, each=lambda p, s: seen.append(int(dl.get_state(s).settled.budget)))
    target = round(0.1 * TOTAL)
    for k in range(1, 7):
        count = round(10 + (k - 1) * 20 / 5)
        wanted = target + np.ceil((TOTAL - target) * (1 - k / 6) ** 3)
        assert seen[count - 1] == wanted
        assert seen[count - 2] > wanted


def test_one_cut_is_made_at_the_end():
    seen = []
    tx = sgd(dl.settle(density=0.1, begin=0.0, end=0.5, cuts=1))
    run(tx, each=lambda p, s: seen.append(int(dl.get_state(s).settled.budget)))
    assert seen == [TOTAL] * 19 + [32] * 21


def test_dense_leaves_and_the_run_before_the_first_cut_are_as_without():
    plain, settled = sgd(settle=False), sgd()
    one, _ = run(plain, steps=3)
    two, _ = run(settled, steps=3)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    params, state = run(settled)
    assert (params["a"]["bias"] != 0).all()
    assert bool(dl.support(state)["a"]["bias"].all())


def test_the_least_go_first():
    """Without gradients the order is that of |W|."""
    params = {"kernel": jnp.arange(1.0, 33.0).reshape(4, 8)[::-1] * jnp.where(
        jnp.arange(8) % 2, 1, -1)}  # fmt: skip
    tx = dl.dessilbi(
        0.1, nu=1e6, lam=1.0, structure=dl.weights, settle=dl.settle(weights=8, steps=20)
    )
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update({"kernel": jnp.zeros((4, 8))}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["kernel"] != 0, np.arange(4)[:, None] < [1] * 8)


# --- which are the largest -----------------------------------------------------------------------


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_counts_are_exact_with_ties_and_minima(data):
    sizes = data.draw(st.lists(st.sampled_from([1, 3, 6]), min_size=1, max_size=3))
    costs = [data.draw(st.sampled_from([1, 2])) for _ in sizes]
    minimum = data.draw(st.integers(0, 2))
    scores = [
        np.array(data.draw(st.lists(st.integers(-1, 4), min_size=n, max_size=n)), np.int32)
        for n in sizes
    ]
    least = [min(minimum, int((s >= 0).sum())) for s in scores]
    if any(n < min(minimum, len(s)) for n, s in zip(least, scores, strict=True)):
        scores = [np.abs(s) for s in scores]  # what is allowed always holds the minimum
        least = [min(minimum, len(s)) for s in scores]
    floor = sum(n * c for n, c in zip(least, costs, strict=True))
    all_of = sum(int((s >= 0).sum()) * c for s, c in zip(scores, costs, strict=True))
    wanted = data.draw(st.integers(floor, max(all_of, floor)))
    got = largest(list(map(jnp.asarray, scores)), costs, jnp.int32(wanted), minimum)
    got = [np.asarray(mask) for mask in got]
    cost = sum(int(m.sum()) * c for m, c in zip(got, costs, strict=True))
    assert cost <= wanted
    if set(costs) == {1}:
        assert cost == min(wanted, all_of)
    forced = 0
    for mask, s, low in zip(got, scores, least, strict=True):
        assert not (mask & (s < 0)).any()
        assert mask.sum() >= low
        if mask.any() and not mask.all():  # the largest, and the first among equals
            lowest = s[mask].min()
            assert not (s[~mask] > lowest).any()
            tied = np.flatnonzero(s == lowest)
            assert (np.diff(mask[tied].astype(int)) <= 0).all()
        forced += mask.sum() == low
    if not forced and set(costs) == {1}:  # no minimum at work: one threshold for all layers
        kept = np.concatenate([s[m] for s, m in zip(scores, got, strict=True)])
        gone = np.concatenate([s[~m] for s, m in zip(scores, got, strict=True)])
        assert not len(kept) or not len(gone) or kept.min() >= gone.max()


def test_ties_are_kept_by_leaf_and_index():
    params = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((2, 4))}}
    tx = dl.dessilbi(
        0.1, nu=1e6, lam=1.0, structure=dl.weights,
        settle=dl.settle(weights=7, steps=20, cuts=1),
    )  # fmt: skip
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert np.flatnonzero(np.ravel(params["a"]["w"])).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(np.ravel(params["b"]["w"])).tolist() == [0]  # the minimum of its layer


def test_weights_that_are_not_finite_stay_and_count():
    params = {"kernel": jnp.array([[jnp.nan, 1.0, 2.0, jnp.inf]])}
    tx = dl.dessilbi(
        0.1, nu=1e6, lam=1.0, structure=dl.weights, settle=dl.settle(weights=2, steps=20)
    )
    state = tx.init(params)
    for _ in range(20):
        _, state = tx.update({"kernel": jnp.zeros((1, 4))}, state, params)
    assert dl.support(state)["kernel"].tolist() == [[True, False, False, True]]


# --- groups --------------------------------------------------------------------------------------


def test_whole_groups_leave():
    tx = sgd(dl.settle(groups=9), structure=dl.neurons, lam=auto(group_density=0.5))
    params, state = run(tx)
    masks = left(params)
    for path in KERNELS:
        by_unit = masks[path].any(0)
        np.testing.assert_array_equal(masks[path], np.broadcast_to(by_unit, masks[path].shape))
        for array in arrays_of(state, path):
            assert not array[~masks[path]].any()
    assert sum(masks[path].any(0).sum() for path in KERNELS) == 9
    assert dl.get_state(state).settled.allowed["a"]["kernel"].shape == (1, 16)


def test_a_budget_of_weights_in_groups_is_met_as_far_as_they_fit():
    params, _ = run(sgd(dl.settle(weights=100), structure=dl.neurons))
    size = sum(m.sum() for m in left(params).values())
    assert 100 - 16 < size <= 100


def test_joint_groups_leave_from_all_their_leaves():
    groups = dl.channel_groups(
        lambda p, x: jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"], W, X
    )
    tx = sgd(dl.settle(groups=5), structure=dl.channels(groups), lam=auto(group_density=0.5))
    params, state = run(tx)
    alive = np.asarray(params["a"]["kernel"] != 0).any(0)
    assert alive.sum() == 5
    np.testing.assert_array_equal(np.asarray(params["a"]["bias"] != 0), alive)
    assert dl.slim(
        params, jax.tree.map(np.asarray, dl.support(state)), X,
        fn=lambda p, x: jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"],
    ).model["b"]["kernel"].shape == (5, 8)  # fmt: skip


def test_every_layer_keeps_its_minimum():
    small = {**W, "b": {"kernel": W["b"]["kernel"] * 1e-4}}
    params, _ = run(sgd(dl.settle(weights=20, minimum=3, begin=0.1, end=0.2)), small, steps=9)
    assert sum(m.sum() for m in left(params).values()) == 20
    assert left(params)["b/kernel"].sum() >= 3


def test_lam_is_not_estimated_from_what_has_settled():
    lams = []
    tx = sgd(dl.settle(end=0.4), lam=auto(density=0.1))
    run(tx, each=lambda p, s: lams.append(float(dl.get_state(s).lam)))
    assert len(set(lams[15:])) == 1  # `end` is at 16, estimates would go on to 32
    assert 1e-6 < lams[-1] < 1e6


# --- wherever it runs ----------------------------------------------------------------------------


def test_a_run_that_goes_on_is_the_same_bit_for_bit():
    tx = sgd()
    whole, state = run(tx)
    for stop in (2, 12, 33):
        params, half = run(tx, steps=stop)
        half = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.tree.map(np.asarray, half))))
        params, half = run(tx, params, half, steps=STEPS - stop)
        jax.tree.map(np.testing.assert_array_equal, whole, params)
        jax.tree.map(np.testing.assert_array_equal, state, half)


def test_eager_compiled_scanned_and_mapped_agree():
    tx = sgd()
    want, _ = run(tx)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (scanned, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, STEPS))((W, tx.init(W)))
    both = jax.tree.map(lambda x: jnp.stack([x, x]), (W, tx.init(W)))
    (mapped, _), _ = jax.jit(
        lambda c: jax.lax.scan(lambda c, n: (jax.vmap(lambda c: step(c, n)[0])(c), None), c, None,
                               STEPS))(both)  # fmt: skip
    for other in (scanned, jax.tree.map(lambda x: x[1], mapped)):
        for path, mask in left(want).items():
            np.testing.assert_array_equal(left(other)[path], mask)
    params, eager = W, tx.init(W)
    for _ in range(6):
        (params, eager), _ = step((params, eager), None)
    np.testing.assert_array_equal(left(params)["a/kernel"], left(run(tx, steps=6)[0])["a/kernel"])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_eight_devices(kind):
    tx = dl.dessilbi(
        0.05, momentum=0.9, structure=dl.weights, lam=0.01,
        settle=dl.settle(density=0.1, steps=STEPS),
    )  # fmt: skip
    mesh = jax.make_mesh((8,), ("d",), (kind,))
    where = {"kernel": NamedSharding(mesh, P(None, "d"))}
    start = {"kernel": W["a"]["kernel"]}
    grads = {"kernel": W["a"]["kernel"] / 7}

    def go(params, place):
        state = tx.init(params)
        step = jax.jit(lambda p, s, g: tx.update(g, s, p))
        for _ in range(STEPS):
            updates, state = step(params, state, place(grads))
            params = jax.tree.map(jnp.add, params, updates)
        return params, state

    want, _ = go(start, lambda g: g)
    with jax.set_mesh(mesh):
        params, state = go(jax.device_put(start, where), lambda g: jax.device_put(g, where))
        allowed = dl.get_state(state).settled.allowed["kernel"]
        assert allowed.sharding.spec == P(None, "d")
        assert params["kernel"].sharding.spec == P(None, "d")
    np.testing.assert_array_equal(np.asarray(params["kernel"] != 0), want["kernel"] != 0)
    assert (want["kernel"] != 0).sum() == round(0.1 * 192)


def test_low_precision_and_its_ties():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), W)
    params, state = run(sgd(), params)
    support = dl.support(state)
    assert sum(int(support[k]["kernel"].sum()) for k in "ab") == round(0.1 * TOTAL)
    assert all(not (left(params)[f"{k}/kernel"] & ~np.asarray(support[k]["kernel"])).any()
               for k in "ab")  # fmt: skip


def test_hidden_leaves_and_several_optimizers():
    labels = {"a": {"kernel": "sparse", "bias": "plain"}, "b": {"kernel": "sparse"}}
    tx = optax.partition({"sparse": sgd(), "plain": optax.sgd(0.05)}, labels)
    params, state = run(tx)
    support = dl.support(state, params)
    assert sum(int(support[k]["kernel"].sum()) for k in "ab") == round(0.1 * TOTAL)
    assert sum(m.sum() for m in left(params).values()) == round(0.1 * TOTAL)


def test_nothing_is_compiled_anew_and_donation_keeps_the_memory():
    tx = sgd()
    step = jax.jit(
        lambda p, s: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(
            tx.update(jax.grad(loss)(p), s, p)
        ),
        donate_argnums=(0, 1),
    )
    params = jax.tree.map(jnp.copy, W)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert step._cache_size() == 1
    assert sum(m.sum() for m in left(params).values()) == round(0.1 * TOTAL)


def test_the_path_ends_with_the_network():
    path = dl.SolutionPath()
    count = iter(range(1, STEPS + 1))
    tx = sgd(dl.settle(weights=50), lam=auto(density=0.02))  # Γ holds fewer than W
    params, _ = run(tx, each=lambda p, s: path.record(next(count), s))
    assert path.density()[-1] == 50 / TOTAL
    assert sum(m.sum() for m in left(params).values()) == 50
    last = path.support(STEPS)
    for name, mask in left(params).items():
        np.testing.assert_array_equal(last[name], mask)
    for name, mask in path.ticket(at=STEPS).mask(params)["a"].items():
        assert name == "bias" or (np.asarray(mask) == left(params)["a/kernel"]).all()


# --- what cannot be ------------------------------------------------------------------------------

BAD = {
    "two budgets": (lambda: dl.settle(density=0.1, weights=3), TypeError, "density and weights"),
    "no share": (lambda: dl.settle(density=0.0), ValueError, r"density must lie in \(0, 1\]"),
    "percent": (lambda: dl.settle(density=5), ValueError, "density must lie in"),
    "half a weight": (lambda: dl.settle(weights=0.5), TypeError, "weights must be an integer"),
    "no group": (lambda: dl.settle(groups=0), ValueError, "groups must be at least 1"),
    "backwards": (lambda: dl.settle(begin=0.5, end=0.5), ValueError, "0 <= begin < end <= 1"),
    "no cut": (lambda: dl.settle(cuts=0), ValueError, "cuts must be at least 1"),
    "true cuts": (lambda: dl.settle(cuts=True), TypeError, "cuts must be an integer"),
    "no budget": (lambda: sgd(True, lam=0.1), TypeError, "settle has no budget"),
    "no steps": (lambda: sgd(dl.settle(density=0.1), lam=0.1), TypeError, "how long the run is"),
    "a word": (lambda: sgd("yes"), TypeError, r"settle must be True, False or dl\.settle"),
    "frozen": (lambda: sgd(freeze=True), ValueError, "settle and freeze exclude each other"),
    "too little": (lambda: sgd(dl.settle(weights=1)).init(W), ValueError, "from 2 to 320"),
    "too much": (lambda: sgd(dl.settle(weights=321)).init(W), ValueError, "321 of 320 weights"),
    "another state": (
        lambda: sgd().update(W, sgd(False).init(W), W), ValueError, "made with settle=False",
    ),
    "another state, too": (
        lambda: sgd(False).update(W, sgd().init(W), W), ValueError, "made with settle=True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_said_at_once(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_settle_is_a_plain_value():
    one, two = dl.settle(density=0.1), dl.settle(density=0.1)
    assert one == two
    assert hash(one) == hash(two)
    assert not callable(one)
    with pytest.raises(AttributeError):
        one.density = 0.2
    tx = optax.inject_hyperparams(functools.partial(dl.dessilbi, settle=one))(
        learning_rate=0.05, lam=dl.auto(density=0.1, steps=STEPS), structure=dl.weights
    )
    params, state = run(tx)
    assert bool(dl.get_state(state).settled.done)
    assert sum(m.sum() for m in left(params).values()) == round(0.1 * TOTAL)
