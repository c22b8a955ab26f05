import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dessilbi_jax import data
from dessilbi_jax.data import Dataset


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_are_the_published_ones(digits):
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    # 17 grey levels spread over 0…255; the count of each class as published with the set
    assert len(np.unique(images)) == 17
    assert (images.min(), images.max()) == (0, 255)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    levels = np.round(images[..., 0] * (16 / 255)).astype(np.uint8)
    # sums over all pixels and the first image of the original file, a nought
    assert levels.sum() == 561_718
    first = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    start = levels.reshape(-1, 64)[:, :16] == first
    assert labels[start.all(axis=1)].tolist() == [0]
    # the images are all different, so none is in both parts
    assert len(np.unique(levels.reshape(-1, 64), axis=0)) == 1797


def test_digits_split_is_fixed_and_stratified(digits):
    test = np.bincount(digits.test_labels)
    everything = np.bincount(digits.train_labels) + test
    assert (abs(test - everything * 360 / 1797) < 1).all()
    digest = hashlib.sha256(digits.test_images.tobytes() + digits.test_labels.tobytes())
    assert digest.hexdigest()[:16] == "336305750f1996eb"


def test_mean_and_standard_deviation(digits):
    pixels = digits.train_images / 255
    np.testing.assert_allclose(digits.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(digits.std, [pixels.std()], rtol=1e-12)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    images[..., 2] = 77
    labels = np.zeros(9, np.int64)
    colour = Dataset.from_arrays("colour", (images, labels), (images, labels), ["only"])
    np.testing.assert_allclose(colour.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(colour.std[:2], (images / 255).std((0, 1, 2))[:2], rtol=1e-12)
    assert colour.std[2] == 1.0


def test_normalize(digits):
    for images in (digits.test_images, jnp.asarray(digits.test_images)):
        got = jax.jit(digits.normalize)(images)
        assert got.dtype == jnp.float32
        expected = (digits.test_images / 255 - digits.mean) / digits.std
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_holdout_divides_the_train_part(digits):
    rest, images, labels = digits.holdout(200, seed=1)
    assert images.shape == (200, 8, 8, 1)
    assert labels.shape == (200,)
    assert len(rest.train_labels) == 1237
    together = np.concatenate([rest.train_images, images]).reshape(1437, -1)
    original = digits.train_images.reshape(1437, -1)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(original, axis=0))
    exact = np.bincount(digits.train_labels) * 200 / 1437
    assert (abs(np.bincount(labels) - exact) < 1).all()
    # every label stays with its image
    lookup = {x.tobytes(): y for x, y in zip(digits.train_images, digits.train_labels, strict=True)}
    assert [lookup[x.tobytes()] for x in images] == labels.tolist()
    assert [lookup[x.tobytes()] for x in rest.train_images] == rest.train_labels.tolist()
    assert rest.test_images is digits.test_images
    assert (rest.mean, rest.std, rest.classes) == (digits.mean, digits.std, digits.classes)


def test_holdout_depends_on_the_seed_alone(digits):
    one, same, other = (digits.holdout(50, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("n", [0, -1, 1437, 5000])
def test_holdout_out_of_range(digits, n):
    with pytest.raises(ValueError, match=rf"at least 1 and less than the 1437 .* got {n}"):
        digits.holdout(n)


@pytest.mark.parametrize("n", [1, 7, 1436])
def test_holdout_of_any_size(digits, n):
    rest, images, _ = digits.holdout(n)
    assert (len(rest.train_images), len(images)) == (1437 - n, n)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 4, 4, 1), np.float32), np.zeros(3, int), "must be uint8 .* got float32"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, int), r"got uint8 \[3, 4, 4\]"),
        (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int), "N > 0"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(2, int), r"must be integers \[3\]"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3), "got float64"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 2]), r"lie in 0…1 .* got 0…2"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, -1]), "got -1…1"),
        (np.zeros((3, 5, 4, 1), np.uint8), np.array([0, 1, 1]), "differ in shape"),
    ],
)
def test_arrays_that_are_no_data_set(images, labels, message):
    good = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 0])
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays("bad", good, (images, labels), ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.full((4, 2, 2, 1), np.nan)}, "train images must be uint8"),
        ({"test_images": [[1]]}, "test images must be a NumPy array"),
        ({"train_labels": np.zeros(3, np.int32)}, r"labels must be integers \[4\]"),
        ({"test_labels": np.full(4, 7, np.int32)}, r"labels must lie in 0…1 .*got 7…7"),
        ({"mean": (0.1, 0.2)}, "mean must be one finite number for each of the 1 channels"),
        ({"std": (float("nan"),)}, "std must be one finite number"),
        ({"std": (0.0,)}, "std must be above 0"),
    ],
    ids=str,
)
def test_a_data_set_made_directly_is_checked_as_well(change, message):
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int32)
    fields = {
        "name": "mine", "train_images": images, "train_labels": labels, "test_images": images,
        "test_labels": labels, "classes": ("a", "b"), "mean": (0.0,), "std": (1.0,),
    }  # fmt: skip
    Dataset(**fields)
    with pytest.raises((ValueError, TypeError), match=f"mine: .*{message}"):
        Dataset(**fields | change)
