"""SNIP: its saliency is how the loss answers to the mask."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.harness import masks
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import foresight
from benchmarks.rivals.rival import exact

SMALL = Setting("lenet300", "mnist", epochs=1, rate=0.05, widths=(16, 8))


@pytest.fixture(scope="module")
def made():
    return Work(SMALL, 0)


@pytest.fixture
def work(made):
    made.cost = Cost()
    return made


def test_saliency_is_the_derivative_of_the_loss_in_the_mask(work):
    scores = foresight.saliency(work, 100)
    rows = foresight.balanced(np.asarray(work.arrays["train_y"]), 100, 0)
    x, y = work.arrays["train_x"][rows], work.arrays["train_y"][rows]

    @jax.jit
    def loss(params):
        logits = nnx.merge(work.network.evaluating, params, work.stats)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    leaves, tree = jax.tree.flatten(work.params)
    places = [i for i, leaf in enumerate(leaves) if leaf.ndim >= 2]
    wanted, got = [], []
    for place, score in zip(places, scores, strict=True):
        order = np.argsort(-score, axis=None)
        for j in order[[0, 1, 2, score.size // 10]]:
            ends = []
            for c in (0.98, 1.02):
                moved = np.array(leaves[place])
                moved.flat[j] *= c
                changed = [moved if i == place else leaf for i, leaf in enumerate(leaves)]
                ends.append(float(loss(tree.unflatten(changed))))
            wanted.append(abs(ends[1] - ends[0]) / 0.04)
            got.append(score.flat[j])
    wanted, got = np.array(wanted), np.array(got)
    scale = wanted.sum() / got.sum()  # the sum over all weights, which is divided out
    np.testing.assert_allclose(got * scale, wanted, rtol=0.03, atol=2e-5)
    assert sum(float(s.sum()) for s in scores) == pytest.approx(1, abs=1e-5)


def test_the_most_salient_connections_of_all_layers_stay(work):
    found = foresight.snip(work, 0.1, images=64)
    assert exact(found, 0.1)
    assert found.params is None
    flat = np.concatenate([s.ravel() for s in foresight.saliency(work, 64)])
    mask = np.concatenate([np.ravel(m) for m in masks.kernels(found.mask)])
    assert flat[mask].min() >= flat[~mask].max()
    assert all(np.all(m) for m in jax.tree.leaves(found.mask) if m.ndim < 2)


def test_a_pass_over_the_images_is_all_it_costs(work):
    found = foresight.snip(work, 0.1, images=64)
    assert found.cost.flops == work.cost.flops == 3 * work.forward_flops * 64
    assert found.cost.seconds > 0
    few = foresight.snip(work, 0.1, images=8192)  # only 256 are there
    assert few.cost.flops == 3 * work.forward_flops * 256


def test_gradients_in_pieces_are_the_gradient_of_all(work, monkeypatch):
    whole = foresight.saliency(work, 100)
    monkeypatch.setattr(foresight, "CHUNK", 40)
    for a, b in zip(whole, foresight.saliency(work, 100), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_classes_are_drawn_alike():
    labels = np.repeat(np.arange(10), 30)
    rows = foresight.balanced(labels, 103, seed=0)
    assert len(set(rows.tolist())) == 103
    counts = np.bincount(labels[rows])
    assert counts.min() == 10
    assert counts.max() == 11
    assert not np.array_equal(rows, foresight.balanced(labels, 103, seed=1))
    few = foresight.balanced(np.array([0, 0, 0, 1]), 4, seed=0)
    assert sorted(few.tolist()) == [0, 1, 2, 3]


def test_trials():
    [snip] = foresight.RIVALS
    assert len({t["images"] for t in snip.trials}) == 8
