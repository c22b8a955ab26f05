"""DessiLBI as one method among the others: what its one run gives."""

import jax
import numpy as np
import pytest

from benchmarks.harness import masks
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import dessilbi

NARROW = Setting("lenet300", "mnist", 2, 0.01, batch=16, widths=(16, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def work(folder):
    return Work(NARROW, 0, folder=folder)


def inside(small, large):
    both = zip(masks.kernels(small), masks.kernels(large), strict=True)
    return all(not np.any(np.asarray(a) & ~np.asarray(b)) for a, b in both)


@pytest.mark.parametrize("rank", ["entry", "strength"])
def test_one_run_gives_nested_tickets_of_all_sizes(work, rank):
    small = dessilbi.once(work, 0.05, rank=rank)
    large = dessilbi.once(work, 0.3, rank=rank)
    size = masks.size(work.params)
    for found, share in ((small, 0.05), (large, 0.3)):
        assert masks.density(found.mask) * size == pytest.approx(round(share * size))
        assert found.cost.steps == work.steps()
        kept = jax.tree.map(lambda w, m: bool(np.all((np.asarray(w) == 0) | m)),
                            found.params, found.mask)  # fmt: skip
        assert all(jax.tree.leaves(kept))
    assert inside(small.mask, large.mask)


def test_a_moment_costs_its_part_of_the_run_and_has_no_network(work):
    early = dessilbi.once(work, 0.1, moment=0.25)
    assert early.cost.steps == round(0.25 * work.steps())
    assert early.params is None


def test_the_second_run_stays_within_a_ticket_of_the_first(work):
    found = dessilbi.twice(work, 0.1)
    assert inside(found.mask, dessilbi.once(work, dessilbi.WIDER * 0.1).mask)
    assert masks.density(found.mask) == pytest.approx(0.1, abs=1e-3)
    assert found.cost.steps == 2 * work.steps()


def test_the_weights_after_some_epochs_are_those_of_the_run(work):
    first, _ = dessilbi.weights_after(work, 0, nu=20.0, opened=0.02)
    np.testing.assert_array_equal(first["fc1"]["kernel"], work.params["fc1"]["kernel"])
    after, _ = dessilbi.weights_after(work, 2, nu=20.0, opened=0.02)
    whole = dessilbi.once(work, 1.0)
    np.testing.assert_array_equal(after["fc1"]["kernel"], whole.params["fc1"]["kernel"])
    between, _ = dessilbi.weights_after(work, 1, nu=20.0, opened=0.02)
    assert np.any(between["fc1"]["kernel"] != after["fc1"]["kernel"])
