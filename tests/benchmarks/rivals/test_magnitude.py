"""Pruning by magnitude: what defines each way, exact sizes, zeros outside, and what it cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.harness import masks
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import magnitude
from benchmarks.rivals.rival import exact

SMALL = Setting("lenet300", "mnist", epochs=2, rate=0.05, batch=16, widths=(16, 8))
STEPS = 32


class Spied(Work):
    """Notes what each training starts from and ends with."""

    def __init__(self, *args):
        super().__init__(*args)
        self.runs = []

    def train(self, tx, params=None, stats=None, state=None, **words):
        before = jax.tree.map(np.asarray, (params, state))
        out = super().train(tx, params, stats, state, **words)
        self.runs.append((*before, jax.tree.map(np.asarray, out.params), words))
        return out


@pytest.fixture(scope="module")
def spied():
    return Spied(SMALL, 0)


@pytest.fixture
def work(spied):
    spied.runs, spied.cost, spied.folder = [], Cost(), None
    return spied


def flat(tree):
    return np.concatenate([np.ravel(k) for k in masks.kernels(tree)])


def zero_outside(params, mask):
    return bool(np.all(flat(params)[~flat(mask)] == 0))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("decoupled", [False, True])
def test_decay_is_of_kernels_before_or_after_the_momentum(decoupled):
    tau, rate, decay = 0.9, 0.1, 0.05
    tx = magnitude.optimizer(optax.constant_schedule(rate), tau, decay, decoupled)
    params = {"bias": jnp.array([1.0]), "kernel": jnp.array([[2.0]])}
    state, m, w, m0, b = tx.init(params), 0.0, 2.0, 0.0, 1.0
    for g in (0.3, -0.2, 0.7):
        updates, state = tx.update(jax.tree.map(lambda p, g=g: p * 0 + g, params), state, params)
        params = optax.apply_updates(params, updates)
        m = tau * m + g + (0 if decoupled else decay * w)
        w -= rate * (m + (decay * w if decoupled else 0))
        m0 = tau * m0 + g
        b -= rate * m0
    np.testing.assert_allclose(params["kernel"].item(), w, rtol=1e-6)
    np.testing.assert_allclose(params["bias"].item(), b, rtol=1e-6)


@pytest.mark.parametrize(
    ("find", "setting"),
    [
        (magnitude.one_shot, {}),
        (magnitude.one_shot, {"decay": 5e-4, "layerwise": True}),
        (magnitude.matched_decay, {}),
    ],
)
def test_one_run_gives_the_largest_weights(work, find, setting):
    found = find(work, 0.1, **setting)
    assert exact(found, 0.1)
    [(_, _, end, _)] = work.runs
    assert found.cost.steps == work.cost.steps == STEPS
    for w, m in zip(masks.kernels(end), masks.kernels(found.mask), strict=True):
        m = np.asarray(m)
        if setting:  # each kernel alike
            assert m.sum() == pytest.approx(0.1 * m.size, abs=1)
            assert np.abs(w[m]).min() >= np.abs(w[~m]).max()
    w, m = np.abs(flat(end)), flat(found.mask)
    assert setting or w[m].min() >= w[~m].max()
    assert zero_outside(found.params, found.mask)
    assert np.array_equal(flat(found.params)[m], flat(end)[m])


def test_nu_is_the_inverse_of_the_decay(work):
    strong, weak = (magnitude.matched_decay(work, 1.0, nu=nu).params for nu in (5.0, 500.0))
    plain = magnitude.one_shot(work, 1.0).params
    assert np.linalg.norm(flat(strong)) < np.linalg.norm(flat(weak)) < np.linalg.norm(flat(plain))


def test_rounds_meet_the_anchors_and_leave_from_the_nearest_one_above():
    rounds = {d: len(magnitude.chain(d, 0.8)) for d in (0.5, 0.2, 0.05, 0.02, 0.01)}
    assert list(rounds.values()) == [3, 7, 13, 18, 21]
    longest = magnitude.chain(0.01, 0.8)
    for d in (0.5, 0.2, 0.05, 0.02):
        assert longest[: rounds[d]] == magnitude.chain(d, 0.8)
    kept = np.divide(longest, [1.0, *longest[:-1]])
    assert kept.min() > 0.79
    assert kept.max() < 0.84
    own = magnitude.chain(0.06, 0.8)
    assert own[:7] == longest[:7]
    assert own[-1] == 0.06
    assert len(own) == 13
    assert magnitude.chain(0.01, 0.5)[:2] == [0.5, 0.2]


@pytest.mark.parametrize("setting", [{}, {"decay": 0.05, "layerwise": True}])
def test_each_round_of_a_lottery_ticket_starts_from_the_very_initial_weights(work, setting):
    found = magnitude.lottery(work, 0.2, **setting)
    path = magnitude.chain(0.2, 0.8)
    assert len(work.runs) == len(path) == found.told["rounds"]
    assert found.cost.steps == len(path) * STEPS
    assert exact(found, 0.2)
    size = masks.size(work.params)
    whole = masks.everything(work.params)  # the first round may be the run of all others
    kept = [state[-1].mask if state else whole for _, state, _, _ in work.runs] + [found.mask]
    assert all(m.all() for m in masks.kernels(kept[0]))
    for i, (start, state, end, _) in enumerate(work.runs):
        initial = jax.tree.map(lambda p, m: np.where(m, p, 0), work.params, kept[i])
        assert same(start or work.params, initial)
        assert not any(np.any(t) for t in jax.tree.leaves(state and state[0]))  # no momentum
        assert zero_outside(end, kept[i])
        now, then = flat(kept[i]), flat(kept[i + 1])
        assert then.sum() == round(path[i] * size)
        assert not np.any(then & ~now)
        for w, a, b in zip(*map(masks.kernels, (end, *kept[i : i + 2])), strict=True):
            gone, stays = np.asarray(a) & ~np.asarray(b), np.asarray(b)
            if setting:
                assert np.abs(w[stays]).min() >= np.abs(w[gone]).max(initial=0)
        w = np.abs(flat(end))
        assert setting or w[then].min() >= w[now & ~then].max()
    if setting:  # the output layer loses half as much
        lost = 1 - np.divide(masks.by_layer(kept[1]), masks.by_layer(kept[0]))
        np.testing.assert_allclose(lost[2], lost[0] / 2, atol=0.02)
        np.testing.assert_allclose(lost[1], lost[0], atol=0.01)


def test_late_rewinding_goes_back_to_the_weights_of_the_dense_run(work):
    tx = magnitude.optimizer(work.rate(), 0.9, 0.0, False)
    after = Work.train(work, tx, steps=STEPS // 2).params
    found = magnitude.lottery(work, 0.5, rewind=1)
    assert found.cost.steps == STEPS + 2 * STEPS // 2
    for start, state, _, words in work.runs[1:]:
        at = jax.tree.map(lambda p, m: np.where(m, p, 0), after, state[-1].mask)
        assert same(start, at)
        assert words["first"] == STEPS // 2
        assert optax.tree_utils.tree_get(state, "count") == STEPS // 2


def test_rounds_are_shared_between_densities_and_counted_each_time(work, tmp_path):
    work.folder = tmp_path
    magnitude.lottery(work, 0.5)
    assert len(work.runs) == 3
    found = magnitude.lottery(work, 0.2)
    assert len(work.runs) == 7
    assert found.cost.steps == 7 * STEPS
    again = magnitude.lottery(work, 0.2)
    assert same(again.mask, found.mask)
    assert len(work.runs) == 7
    assert again.cost == found.cost


def test_iterative_pruning_goes_on_from_the_remaining_weights(work):
    found = magnitude.iterative(work, 0.05)
    path = magnitude.chain(0.05, 0.5)
    assert path[:2] == [0.5, 0.2]
    assert found.cost.steps == STEPS + len(path) * STEPS // 4
    assert exact(found, 0.05)
    assert same(found.params, work.runs[-1][2])
    assert zero_outside(found.params, found.mask)
    size = masks.size(work.params)
    for i, density in enumerate(path):
        last, (start, state, end, _) = work.runs[i][2], work.runs[i + 1]
        mask = state[-1].mask
        assert flat(mask).sum() == round(density * size)
        assert same(start, jax.tree.map(lambda p, m: np.where(m, p, 0), last, mask))
        assert not same(start, end)
    # One quality parameter: in standard deviations of its layer, all that stays is above.
    _, state, _, _ = work.runs[1]
    scaled = [np.abs(w) / np.std(w) for w in masks.kernels(work.runs[0][2])]
    scaled, stays = np.concatenate([np.ravel(s) for s in scaled]), flat(state[-1].mask)
    assert scaled[stays].min() >= scaled[~stays].max()


def test_fine_tuning_has_its_own_schedule(work):
    magnitude.iterative(work, 0.5, peak=0.0001, decay=0.0)
    start, _, end, words = work.runs[1]
    assert (words["first"], words["steps"]) == (STEPS, STEPS + STEPS // 4)
    assert 0 < np.abs(flat(end) - flat(start)).max() < 1e-3


@pytest.mark.parametrize("layerwise", [True, False])
def test_gradual_pruning_follows_the_cubic_formula(work, layerwise):
    found = magnitude.gradual(work, 0.1, layerwise, begin=0.25, end=0.75, times=4)
    assert exact(found, 0.1)
    assert zero_outside(found.params, found.mask)
    assert found.cost.steps == STEPS
    assert [(w["first"], w.get("steps")) for *_, w in work.runs] == [
        (0, 12), (12, 16), (16, 20), (20, 24), (24, None),
    ]  # fmt: skip
    size = masks.size(work.params)
    kept = [state[-1].mask for _, state, _, _ in work.runs]
    for k, mask in enumerate(kept):
        wanted = 1 - 0.9 * (1 - (1 - k / 4) ** 3)
        assert flat(mask).sum() == round(wanted * size)
        if layerwise:
            np.testing.assert_allclose(masks.by_layer(mask), wanted, atol=0.01)
    for (_, _, end, _), (start, _, after, _), a, b in zip(
        work.runs, work.runs[1:], kept, kept[1:], strict=False
    ):
        assert not np.any(flat(b) & ~flat(a))
        assert zero_outside(after, b)
        assert np.array_equal(flat(start)[flat(b)], flat(end)[flat(b)])  # the run goes on
        if not layerwise:
            w, gone = np.abs(flat(end)), flat(a) & ~flat(b)
            assert w[flat(b)].min() >= w[gone].max()


def test_a_gradual_run_that_prunes_nothing_is_the_dense_run(work):
    found = magnitude.gradual(work, 1.0)
    assert same(found.params, magnitude.dense(work)["params"])


def test_a_random_mask_has_the_layers_of_a_ticket(work):
    ticket = masks.magnitude(work.params, 0.1)
    layers = tuple(masks.by_layer(ticket))
    found = magnitude.random(work, 0.1, layers)
    assert exact(found, 0.1)
    assert found.cost.steps == 0
    assert found.params is None
    counts = [[int(m.sum()) for m in masks.kernels(t)] for t in (found.mask, ticket)]
    np.testing.assert_allclose(*counts, atol=1)
    assert not same(found.mask, ticket)
    assert not same(found.mask, magnitude.random(Work(SMALL, 1), 0.1, layers).mask)
    assert same(found.mask, magnitude.random(work, 0.1, layers).mask)
    alone = magnitude.random(work, 0.1)
    assert exact(alone, 0.1)
    wanted = masks.erdos_renyi(work.params, 0.1)
    np.testing.assert_allclose(masks.by_layer(alone.mask), wanted, atol=0.01)


def test_whole_numbers_add_up():
    assert masks.apportioned([1.6, 1.6, 0.8], [9, 9, 9], 4) == [2, 1, 1]
    assert masks.apportioned([5.0, 1.0], [2, 9], 6) == [2, 4]
    assert masks.apportioned([3.0, 1.9], [9, 9], 3) == [2, 1]
    assert masks.apportioned([9.0], [2], 5) == [2]


def test_convolutions(tmp_path):
    work = Work(
        Setting("lenet5", "mnist", epochs=1, rate=0.05, widths=(4, 4, 16)), 0, None, tmp_path
    )
    for find, setting in (
        (magnitude.one_shot, {"layerwise": True}),
        (magnitude.gradual, {}),
        (magnitude.lottery, {"layerwise": True}),
        (magnitude.random, {}),
    ):
        found = find(work, 0.5, **setting)
        assert exact(found, 0.5)
        assert [m.ndim for m in masks.kernels(found.mask)] == [4, 4, 2, 2]


def test_trials():
    for rival in magnitude.RIVALS:
        assert len(rival.trials) == (1 if rival.name == "random" else 8)
        assert len({str(t) for t in rival.trials}) == len(rival.trials)
