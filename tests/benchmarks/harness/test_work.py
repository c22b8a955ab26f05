"""Training with its cost counted, on a few digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.harness import masks
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Setting, Work, schedule

NARROW = Setting("lenet300", "mnist", 8, 0.01, batch=32, widths=(24, 12))

VGG = Setting("vgg-small", "cifar10", 1, 0.05, batch=32, augment=True, images=64, widths=(2,) * 6)


@pytest.fixture(scope="module")
def trained():
    work = Work(NARROW, 0)
    return work, work.train(work.sgd())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_learns_and_costs_what_it_computes(trained):
    work, result = trained
    assert work.cost.steps == work.steps() == 8 * (256 // 32)
    forward = 2 * (784 * 24 + 24 * 12 + 12 * 10)
    assert work.forward_flops == forward
    assert work.cost.flops == 3 * forward * 32 * 64
    assert work.in_runs(work.cost) == 1.0
    assert work.cost.seconds > 0
    assert work.accuracy(result.params) > work.accuracy(work.params) + 10


def test_a_run_in_two_parts_is_the_same_run(trained):
    _, whole = trained
    again = Work(NARROW, 0)
    half = again.train(again.sgd(), steps=11)
    rest = again.train(again.sgd(), *half, first=11)
    same(rest.params, whole.params)
    assert again.cost.steps == 64


def test_seeds_differ_and_nothing_given_is_used_up(trained):
    work, _ = trained
    before = jax.tree.map(np.array, work.params)
    other = Work(NARROW, 1)
    assert np.any(other.params["fc1"]["kernel"] != work.params["fc1"]["kernel"])
    work.train(work.sgd(), steps=1)
    same(work.params, before)


def test_what_is_watched_are_the_updates_asked_for():
    seen = []
    work = Work(NARROW, 0)
    work.train(work.sgd(), steps=10, every=4, watch=lambda step, *_: seen.append(step))
    assert seen == [4, 8, 10]


def test_retraining_keeps_zeros_and_starts_at_the_initialisation(trained):
    work, whole = trained
    mask = masks.magnitude(whole.params, 0.1)
    start = jax.tree.map(np.array, work.params)
    after = work.retrained(mask)
    inside = jax.tree.map(lambda w, m: bool(np.all((np.asarray(w) == 0) | m)), after.params, mask)
    assert all(jax.tree.leaves(inside))
    again = Work(NARROW, 0).retrained(mask, start)
    same(again.params, after.params)
    everything = work.retrained(masks.everything(work.params))  # another program: not bit for bit
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), everything.params, whole.params
    )


def test_retraining_from_later_weights_ends_the_same_schedule(trained):
    work, whole = trained
    early = work.train(work.sgd(), steps=8)
    before = work.cost
    late = work.retrained(masks.everything(work.params), early.params, first=8)
    assert (work.cost - before).steps == 56
    # only the momentum is not what it was
    assert 0 < np.abs(late.params["fc3"]["kernel"] - whole.params["fc3"]["kernel"]).max() < 1


def test_a_view_and_a_penalty():
    work = Work(NARROW, 0)

    def view(tree):
        return jax.tree.map(lambda w: tree["scale"] * w, tree["params"])

    def penalty(tree):
        return 1e3 * (tree["scale"] - 0.5) ** 2

    start = {"params": work.params, "scale": jnp.float32(1.0)}
    end = work.train(work.sgd(), start, steps=1, view=view, penalty=penalty)
    # d penalty / d scale = 1000 at scale 1; the rate is 0.01
    assert float(end.params["scale"]) == pytest.approx(1 - 0.01 * 1e3, rel=0.05)


def test_batch_statistics_are_trained_and_used():
    work = Work(VGG, 0)
    end = work.train(work.sgd())
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), end.stats, work.stats)
    assert all(jax.tree.leaves(moved))
    assert work.accuracy(end.params, end.stats) >= 0


def test_what_is_kept_is_found_by_another_process_with_its_cost(tmp_path):
    first, second = Work(NARROW, 0, folder=tmp_path), Work(NARROW, 0, folder=tmp_path)

    def make():
        params, stats, _ = first.train(first.sgd(), steps=2)
        return {"params": params, "stats": stats}

    made = first.kept("two", make)
    found = second.kept("two", lambda: pytest.fail("made again"))
    same(found, made)
    assert found["stats"] == {}
    assert second.cost == first.cost
    assert Work(NARROW, 1, folder=tmp_path).kept("two", make)["stats"] == {}
    assert len(list(tmp_path.iterdir())) == 2


def test_held_out_images_are_not_trained_with():
    work = Work(dataclasses.replace(NARROW, held_out=50), 0)
    assert len(work.arrays["held_out_y"]) == 50
    assert len(work.arrays["train_y"]) == 206


def test_the_key_of_a_setting_names_what_is_not_the_default():
    assert NARROW.key == "lenet300 mnist epochs=8 rate=0.01 batch=32 widths=(24, 12)"


def test_the_time_of_a_run_is_the_sum_of_its_rates():
    work = Work(NARROW, 0)
    rates = [float(work.rate()(step)) for step in range(work.steps())]
    assert work.time() == pytest.approx(sum(rates))
    assert work.time(3) == pytest.approx(sum(rates[:3]))


def test_schedules():
    half = schedule("half", 0.1, 100)
    assert [float(half(i)) for i in (0, 49)] == pytest.approx([0.1, 0.1])
    assert float(half(75)) == pytest.approx(0.05)
    steps = schedule("steps", 0.1, 100)
    found = [float(steps(i)) for i in (29, 31, 61, 91)]
    assert found == pytest.approx([0.1, 0.01, 1e-3, 1e-4])
    assert float(schedule("cosine", 0.1, 100)(50)) == pytest.approx(0.05)


def test_costs_add_up():
    cost = Cost(10, 100.0, 2.0, 1.0)
    assert cost + cost - cost == cost
    assert 0.5 * cost == Cost(5, 50.0, 1.0, 0.5)
