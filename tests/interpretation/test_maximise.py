"""Images that maximise an activation, and measures of filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dessilbi_jax.interpretation import (
    activation_maximisation,
    colour_saturation,
    rank_correlation,
    spectral_shape,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

KEY = jax.random.key(0)
# Two filters, of stripes down and across.
STRIPES = np.zeros((3, 3, 1, 2), np.float32)
STRIPES[:, :, 0, 0] = [[-1, 2, -1]] * 3
STRIPES[..., 1] = np.swapaxes(STRIPES[..., 0], 0, 1)
PARAMS = {"conv": jnp.asarray(STRIPES)}


def net(p, x):
    return jax.nn.relu(
        jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )


@pytest.fixture(scope="module")
def striped():
    return activation_maximisation(
        net, PARAMS, ("conv", [0, 1]), (1, 8, 8, 1), key=KEY, starts=3, steps=60, tv=0.0, jitter=1,
        bounds=(-1, 1), activated=True,
    )  # fmt: skip


def test_filters_of_stripes_ask_for_stripes(striped):
    images = np.asarray(striped.images)
    assert images.shape == (2, 3, 1, 8, 8, 1)
    assert np.abs(images).max() <= 1
    for unit, along in ((0, 0), (1, 1)):
        image = images[unit, 0, 0, :, :, 0]
        # Much changes across the stripes, little along them.
        across = np.abs(np.diff(image, axis=1 - along)).mean()
        assert across > 3 * np.abs(np.diff(image, axis=along)).mean()


def test_activations_are_those_of_the_images_and_the_best_comes_first(striped):
    activations = np.asarray(striped.activations)
    assert (np.diff(activations, axis=1) <= 0).all()
    for unit in (0, 1):
        maps = net(PARAMS, striped.images[unit].reshape(3, 8, 8, 1))[..., unit]
        np.testing.assert_allclose(activations[unit], maps.mean((1, 2)), rtol=1e-5)
        # More than any black and white noise: rows of the image differ by chance there.
        noise = np.random.default_rng(0).choice([-1, 1], (100, 8, 8, 1)).astype(np.float32)
        assert activations[unit, 0] > np.asarray(net(PARAMS, noise)[..., unit]).mean((1, 2)).max()


def test_it_is_deterministic_and_penalties_do_what_they_say():
    def found(key=KEY, **options):
        settings = {"starts": 1, "steps": 20, "bounds": (-1, 1), "activated": True, **options}
        image = activation_maximisation(net, PARAMS, ("conv", 0), (1, 8, 8, 1), key=key, **settings)
        return np.asarray(image.images)[0, 0, :, :, 0]

    first = found()
    np.testing.assert_array_equal(first, found())
    assert np.abs(first - found(jax.random.key(1))).max() > 0
    assert np.abs(np.diff(found(tv=1.0), axis=1)).sum() < 0.8 * np.abs(np.diff(first, axis=1)).sum()
    assert np.square(found(l2=2.0)).sum() < 0.8 * np.square(first).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 0}, "starts must be a whole number of at least 1, got 0"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"rate": 0.0}, "rate must be a finite number above 0"),
        ({"tv": -1.0}, "tv must be a finite number of at least 0"),
        ({"axes": (1, 4)}, "it has 4 axes"),
        ({"shape": (1, 8, 8, 3)}, r"on an input of shape \(1, 8, 8, 3\)"),
    ],
)
def test_bad_settings(options, message):
    settings = {"shape": (1, 8, 8, 1), **options}
    with pytest.raises(ValueError, match=message):
        activation_maximisation(net, PARAMS, ("conv", 0), key=KEY, **settings)


def test_rank_correlation_by_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 30), rng.normal(size=30)  # x has ties
    rank = [np.array([(v > u).sum() + ((v == u).sum() + 1) / 2 for u in v]) for v in (-x, -y)]
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(np.corrcoef(*rank)[0, 1])
    assert found.low < found.value < found.high
    assert rank_correlation(x, [*y[:29], np.nan]).pairs == 29
    assert np.isnan(rank_correlation(x, np.ones(30)).value)
    assert np.isnan(rank_correlation([1, 2, 3], [1, 2, 3]).low)
    assert rank_correlation(y, 3 * y) == (1.0, 1.0, 1.0, 30)
    with pytest.raises(ValueError, match="got 2 and 3"):
        rank_correlation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="level must be within"):
        rank_correlation(x, y, level=95)


def test_the_interval_holds_what_it_says():
    rng, rho, inside = np.random.default_rng(1), 0.5, 0
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of two normal variables
    for _ in range(400):
        x, z = rng.normal(size=(2, 40))
        found = rank_correlation(x, rho * x + np.sqrt(1 - rho**2) * z)
        inside += found.low <= true <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_measures_of_filters_of_zeros_and_of_one_colour():
    grey = np.ones((1, 3, 3, 1))
    assert np.isnan(colour_saturation(grey)).all()
    zero = np.zeros((1, 3, 3, 3))
    assert np.isnan(colour_saturation(zero)).all()
    assert np.isnan(spectral_shape(zero).frequency).all()
    # Colour does not turn with scale, and half of the energy is half.
    half = np.ones((1, 1, 1, 2)) * [1, 0]
    np.testing.assert_allclose(colour_saturation(np.concatenate([half, 7 * half])), 0.5)
    with pytest.raises(ValueError, match=r"got shape \(3, 3, 3\)"):
        spectral_shape(zero[0])
