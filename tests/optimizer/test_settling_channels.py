"""Settling to parameters or operations: what channels leave, counted by the groups themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from dessilbi_jax.optimizer.amounts import Amount
from dessilbi_jax.optimizer.largest import TOP, fitting

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

STEPS = 40
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


W = {
    "conv1": {"kernel": draw(3, 3, 2, 8), "bias": draw(8)},
    "conv2": {"kernel": draw(3, 3, 8, 12)},
    "fc1": {"kernel": draw(12 * 16, 10), "bias": draw(10)},
    "fc2": {"kernel": draw(10, 3), "bias": draw(3)},
}
X = draw(2, 4, 4, 2)


def network(p, x):
    def conv(x, w):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)

    x = jax.nn.relu(conv(x, p["conv1"]["kernel"]) + p["conv1"]["bias"])
    x = jax.nn.relu(conv(x, p["conv2"]["kernel"])).reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    return x @ p["fc2"]["kernel"] + p["fc2"]["bias"]


GROUPS = dl.channel_groups(network, W, X)
WHOLE = np.ones(GROUPS.count, bool)


def amount(unit, kept):
    return GROUPS.flops_of(kept) if unit == "flops" else GROUPS.params_of(kept)


def settled(structure=None, steps=STEPS, **budget):
    """W, the state and its settled field at each step of a run on noise."""
    tx = dl.dessilbi(
        0.05, momentum=0.9, lam=0.5, structure=structure or dl.channels(GROUPS),
        settle=dl.settle(steps=STEPS, **budget),
    )  # fmt: skip

    def step(carry, key):
        params, state = carry
        noise = jax.tree.map(lambda p: 0.1 * jax.random.normal(key, p.shape), params)
        updates, state = tx.update(noise, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, dl.get_state(state).settled)

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.jit(lambda: jax.lax.scan(step, (W, tx.init(W)), keys))()


@pytest.mark.parametrize("unit", ["flops", "params"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.62, 1.0])
def test_the_channels_that_are_left_fit_the_budget_and_one_more_would_not(unit, share):
    (params, state), (every, seen) = settled(**{unit: share})
    kept = GROUPS.kept(jax.tree.map(lambda p: np.asarray(p != 0), params))
    np.testing.assert_array_equal(kept, GROUPS.kept(dl.support(state)))
    most = round(share * amount(unit, WHOLE))
    assert amount(unit, kept) <= most * (1 + 1e-6)
    if share == 1:
        assert kept.all()
    # One more of those that left is too much, unless a larger one had its turn before it.
    more = [
        np.bincount([g], minlength=kept.size).astype(bool) | kept for g in np.flatnonzero(~kept)
    ]
    assert share == 1 or max(amount(unit, x) for x in more) > most
    assert all(kept[each.groups].any() for each in GROUPS.sets)
    budgets = np.asarray(seen.budget)
    assert (np.diff(budgets) <= 0).all()
    assert budgets[-1] == pytest.approx(most, rel=1e-6)
    # At every cut, not only at the last.
    for at in range(0, STEPS, 5):
        now = GROUPS.kept(jax.tree.map(lambda p, at=at: np.asarray(p[at] != 0), every))
        assert amount(unit, now) <= budgets[at] * (1 + 1e-6)


def test_a_number_is_the_same_as_its_share():
    whole = GROUPS.flops_of(WHOLE)
    one, other = (settled(flops=x)[0][0] for x in (0.5, round(0.5 * whole)))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_parameters_of_single_weights_count_those_of_dense_leaves():
    dense = 8 + 10 + 3
    (params, _), _ = settled(dl.weights, params=200)
    assert sum(int((x != 0).sum()) for x in jax.tree.leaves(params)) <= 200
    kernels = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    assert sum(int((x != 0).sum()) for x in kernels) == 200 - dense


def test_amounts_are_those_of_the_groups():
    for unit in ("flops", "params"):
        found = Amount.of(GROUPS, unit, list(GROUPS.shapes))
        for _ in range(20):
            kept = RNG.random(GROUPS.count) < 0.6
            assert found.exactly(kept) == amount(unit, kept)
            assert float(found.left(jnp.asarray(kept))) == pytest.approx(amount(unit, kept), 1e-6)


def test_the_first_among_equals_stay():
    scores = [jnp.array([5, 5, 5], jnp.int32), jnp.array([5, -1, TOP], jnp.int32)]

    def cost(stay):
        return 1.0 * stay[0].sum() + 10.0 * stay[1].sum()

    got = fitting(scores, cost, jnp.float32(12.5), 0)
    assert [x.tolist() for x in got] == [[True, True, False], [False, False, True]]
    got = fitting(scores, cost, jnp.float32(12.5), 1)  # one of each layer at least
    assert [x.tolist() for x in got] == [[True, True, False], [False, False, True]]
    got = fitting(scores, cost, jnp.float32(99), 1)
    assert [x.tolist() for x in got] == [[True, True, True], [True, False, True]]


ERRORS = {
    "two budgets": (lambda: dl.settle(flops=0.5, params=0.5), TypeError, "takes one budget"),
    "a share above 1": (lambda: dl.settle(flops=1.5), ValueError, "flops must be a share of the"),
    "nothing": (lambda: dl.settle(params=0), ValueError, "params must be a share of the whole"),
    "a word": (lambda: dl.settle(params="half"), TypeError, "a share or a whole number"),
    "too little": (lambda: settled(flops=10), ValueError, "it has to be from [0-9,]+ to"),
    "weights know no operations": (
        lambda: settled(dl.weights, flops=0.5), ValueError, "where the structure is dl.channels"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_budgets_that_cannot_be_are_refused(case):
    make, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        make()
