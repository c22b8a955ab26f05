"""What the tests of the statistics share: few data of few shapes, and their paths, made once."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from dessilbi_jax.stats import iss_path, lbi_path


@pytest.fixture(scope="session")
def diabetes():
    return load_diabetes(return_X_y=True)


@pytest.fixture(scope="session")
def path(diabetes):
    """In standard units, well into least squares."""
    return lbi_path(*diabetes, kappa=30.0)


@pytest.fixture(scope="session")
def knots(diabetes):
    return iss_path(*diabetes, standardize_y=False)


@pytest.fixture(scope="session")
def classes():
    """80 samples of 6 columns in three classes, not separable."""
    rng = np.random.default_rng(3)
    y = np.arange(80) % 3
    X = rng.standard_normal((80, 6))
    X[:, 0] += 0.8 * y
    X[:, 4] -= 1.2 * (y == 1)
    return X, y
