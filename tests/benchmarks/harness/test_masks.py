"""Masks of exact sizes."""

import jax
import numpy as np
import pytest

from benchmarks.harness import masks

SHAPES = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "fc": {"kernel": (40, 10), "bias": (10,)}}


def drawn(seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: draw.normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_only_kernels_are_pruned_and_counted():
    params = drawn(0)
    assert masks.size(params) == 72 + 400
    mask = masks.magnitude(params, 0.25)
    assert mask["conv"]["bias"].all()
    assert mask["fc"]["bias"].all()
    assert masks.density(mask) == pytest.approx(0.25)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3333, 1.0])
def test_the_largest_of_all_kernels_together(share):
    params = drawn(1)
    flat = np.sort(np.concatenate([np.abs(w).ravel() for w in masks.kernels(params)]))[::-1]
    count = round(share * flat.size)
    kept = masks.magnitude(params, share)
    chosen = np.concatenate(
        [
            np.abs(w)[np.asarray(m)]
            for w, m in zip(masks.kernels(params), masks.kernels(kept), strict=True)
        ]
    )
    np.testing.assert_array_equal(np.sort(chosen)[::-1], flat[:count])


def test_within_a_mask_nothing_outside_is_chosen():
    params = drawn(2)
    first = masks.magnitude(params, 0.5)
    second = masks.magnitude(jax.tree.map(lambda w: -w[::-1], params), 0.25, first)
    both = zip(masks.kernels(first), masks.kernels(second), strict=True)
    assert all(not np.any(~np.asarray(a) & np.asarray(b)) for a, b in both)
    assert masks.density(second) == pytest.approx(0.25)
    # more than there is: all that there is
    assert masks.density(masks.magnitude(params, 0.9, first)) == pytest.approx(0.5)


def test_each_kernel_by_its_own_share():
    params = drawn(3)
    scores = [np.abs(w) for w in masks.kernels(params)]
    assert masks.by_layer(masks.top_each(params, scores, [0.5, 0.1])) == [0.5, 0.1]


def test_random_keeps_as_many_in_every_kernel():
    mask = masks.magnitude(drawn(4), 0.2)
    other = masks.random_like(mask, seed=0)
    assert masks.by_layer(other) == masks.by_layer(mask)
    kernel = mask["fc"]["kernel"]
    assert np.any(np.asarray(other["fc"]["kernel"]) != np.asarray(kernel))


@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 1.0])
def test_a_random_mask_of_given_layers_has_its_exact_size(share):
    params = drawn(6)
    mask = masks.random(params, masks.erdos_renyi(params, share) if share else [0, 0], share, 1)
    assert round(masks.density(mask) * 472) == round(share * 472)


def test_shares_are_apportioned_by_the_largest_remainders_within_the_room():
    assert masks.apportioned([1.6, 1.7, 0.7], [5, 5, 5], 4) == [1, 2, 1]
    assert masks.apportioned([3.9, 0.1], [3, 5], 4) == [3, 1]


def test_erdos_renyi_follows_the_sums_of_axes_until_a_kernel_is_full():
    params = drawn(5)
    conv, fc = masks.erdos_renyi(params, 0.1)
    assert 72 * conv + 400 * fc == pytest.approx(0.1 * 472)
    assert conv / fc == pytest.approx((12 / 72) / (50 / 400))
    conv, fc = masks.erdos_renyi(params, 0.9)
    assert conv == 1.0
    assert 72 + 400 * fc == pytest.approx(0.9 * 472)
    assert masks.erdos_renyi(params, 1.0) == [1.0, 1.0]
