import jax
import numpy as np
import pytest

from dessilbi_jax import data
from dessilbi_jax.data import _source


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_a_data_set_is_a_resident_source(digits):
    assert isinstance(digits, data.Source)
    assert (digits.kind, digits.resident, digits.num_classes) == ("images", True, 10)
    assert (digits.train_size, digits.test_size) == (1437, 360)
    rows = np.array([3, 1436, 0], np.int32)
    images, labels = jax.jit(digits.pick)(jax.device_put(digits.arrays()), rows)
    np.testing.assert_array_equal(images, digits.train_images[rows])
    np.testing.assert_array_equal(labels, digits.train_labels[rows])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    with pytest.raises(ValueError, match="digits is in memory and does not stream"):
        digits.train_batches(8, seed=0)


def test_set_aside_is_holdout(digits):
    rest, images, labels = digits.holdout(100, seed=4)
    other, part = digits.set_aside(100, seed=4)
    np.testing.assert_array_equal(rest.train_images, other.train_images)
    ((x, y),) = part.batches(100)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize(
    ("rows", "size", "count"), [(360, 64, 6), (64, 64, 1), (65, 64, 2), (3, 64, 1)]
)
def test_every_row_is_in_one_batch_of_one_shard(digits, rows, size, count, shards):
    part = data.ArrayPart(digits.test_images[:rows], digits.test_labels[:rows])
    assert len(part) == rows
    split = [list(part.batches(size, shard=k, shards=shards)) for k in range(shards)]
    for batches in split:
        assert len(batches) == count
        assert all(x.shape == (size // shards, 8, 8, 1) for x, _ in batches)
        assert all(y.shape == (size // shards,) and y.dtype == np.int32 for _, y in batches)
    joined = [
        tuple(map(np.concatenate, zip(*each, strict=True))) for each in zip(*split, strict=True)
    ]
    x, y = map(np.concatenate, zip(*joined, strict=True))
    np.testing.assert_array_equal(x[:rows], digits.test_images[:rows])
    np.testing.assert_array_equal(y[:rows], digits.test_labels[:rows])
    assert (y[rows:] == -1).all()
    assert not x[rows:].any()


@pytest.mark.parametrize(
    ("size", "shard", "shards", "message"),
    [
        (10, 0, 4, "positive multiple of the 4 shards .* got 10"),
        (0, 0, 1, "got 0"),
        (8, 4, 4, "shard 4 of 4"),
        (8, -1, 4, "shard -1 of 4"),
        (8, 0, 0, "shard 0 of 0"),
    ],
)
def test_batches_that_cannot_be_divided(digits, size, shard, shards, message):
    with pytest.raises(ValueError, match=message):
        next(digits.test_part().batches(size, shard=shard, shards=shards))


def test_stretches_cover_every_row_once():
    for total in range(40):
        for shards in (1, 3):
            rows = [
                r for k in range(shards) for s in _source.stretches(total, 6, k, shards) for r in s
            ]
            assert sorted(rows) == list(range(total))
