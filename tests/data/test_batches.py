import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dessilbi_jax import data


def test_epoch_order_is_a_permutation_cut_into_batches():
    order = data.epoch_order(seed=3, epoch=2, n=103, batch=10)
    assert order.shape == (10, 10)
    assert order.dtype == np.int32
    assert len(set(order.ravel().tolist())) == 100
    assert 0 <= order.min() <= order.max() < 103
    whole = data.epoch_order(seed=3, epoch=2, n=100, batch=10)
    assert sorted(whole.ravel().tolist()) == list(range(100))


def test_epoch_order_depends_on_seed_and_epoch_alone():
    base = data.epoch_order(0, 0, 50, 5)
    np.testing.assert_array_equal(base, data.epoch_order(0, 0, 50, 5))
    for seed, epoch in [(0, 1), (1, 0)]:
        assert (base != data.epoch_order(seed, epoch, 50, 5)).any()
    # seed and epoch do not merely add up
    assert (data.epoch_order(0, 1, 50, 5) != data.epoch_order(1, 0, 50, 5)).any()


def test_every_image_has_its_turn():
    seen = {i for epoch in range(12) for i in data.epoch_order(0, epoch, 13, 8).ravel().tolist()}
    assert seen == set(range(13))


@pytest.mark.parametrize("batch", [0, -3, 11])
def test_impossible_batches(batch):
    with pytest.raises(ValueError, match=f"between 1 and the number of images, 10; got {batch}"):
        data.epoch_order(0, 0, 10, batch)


def test_negative_seed():
    with pytest.raises(ValueError, match="must not be negative, got -1 and 0"):
        data.epoch_order(-1, 0, 10, 2)


@pytest.mark.parametrize(("shape", "pad"), [((12, 13), 4), ((7, 10), 2), ((5, 6), 4)])
def test_augmented_images_are_crops_of_the_padded_one(shape, pad):
    """Each result is one of all the shifts and flips there are, and all of them occur."""
    image = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    crops = {}
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            crop = padded[y : y + shape[0], x : x + shape[1]]
            crops[crop.tobytes()] = (y, x, False)
            crops[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (y, x, True)
    if min(shape) > 2 * pad:  # of smaller images some mirrored crops are equal to others
        assert len(crops) == 2 * (2 * pad + 1) ** 2
    batch = jnp.broadcast_to(image, (4000, *image.shape))
    result = np.asarray(jax.jit(lambda k, b: data.augment(k, b, pad=pad))(jax.random.key(1), batch))
    assert result.dtype == np.float32
    found = [crops[crop.tobytes()] for crop in result]  # a KeyError: not a crop
    assert len(set(found)) == len(crops)
    if min(shape) > 2 * pad:
        flips = np.mean([flip for *_, flip in found])
        assert abs(flips - 0.5) < 6 * 0.5 / np.sqrt(4000)


def test_augment_is_repeatable_and_keeps_images_apart():
    batch = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 9, 9, 2))
    np.testing.assert_array_equal(data.augment(jax.random.key(0), batch), batch)
    batch = jax.random.normal(jax.random.key(5), (6, 9, 9, 2))
    one, same, other = (data.augment(jax.random.key(seed), batch) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.float16])
def test_augment_keeps_the_type(dtype):
    assert data.augment(jax.random.key(0), jnp.ones((2, 8, 8, 1), dtype)).dtype == dtype


def test_augment_without_padding_only_flips():
    image = jnp.arange(12.0).reshape(1, 3, 4, 1)
    batch = jnp.broadcast_to(image, (64, 3, 4, 1))
    result = data.augment(jax.random.key(0), batch, pad=0)
    flipped = (result == batch[:, :, ::-1]).all((1, 2, 3))
    kept = (result == batch).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert 0 < flipped.sum() < 64


@pytest.mark.parametrize(
    ("shape", "pad", "message"),
    [
        ((8, 8, 3), 4, "must be .batch, height, width, channels."),
        ((1, 4, 8, 3), 4, "less than height and width, 4x8; got 4"),
        ((1, 8, 8, 3), -1, "got -1"),
    ],
)
def test_augment_refuses(shape, pad, message):
    with pytest.raises(ValueError, match=message):
        data.augment(jax.random.key(0), jnp.zeros(shape), pad=pad)
