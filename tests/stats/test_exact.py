"""`iss_path`: knots, optimality, and the limit of LBI."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from dessilbi_jax.stats import iss_path, lbi_path

# R's Libra 1.7. Its copy of the data has s5 unrounded, which moves late knots in the fourth digit.
GOLD = [
    0.02214348, 0.02364041, 0.04642029, 0.06651541, 0.16155889, 0.23680131, 0.30484635, 1.05217597,
    3.83822910, 4.16524348, 10.25144304,
]  # fmt: skip


def test_knots_of_diabetes(diabetes, knots):
    np.testing.assert_allclose(knots.ts, GOLD, rtol=3e-4)
    np.testing.assert_allclose(knots.ts[:3], GOLD[:3], rtol=2e-5)
    ols = LinearRegression().fit(*diabetes)
    np.testing.assert_allclose(knots.coefs[:, -1], ols.coef_, rtol=1e-9)
    assert knots.kappa == np.inf
    assert knots.alpha == 0


def test_each_knot_is_optimal(diabetes, knots):
    """ρ is within its bounds, and β is the least squares fit over {|ρ| = 1} of those signs."""
    X, y = diabetes
    X = (X - X.mean(0)) / X.std(0)
    beta = knots.coefs * diabetes[0].std(0)[:, None]
    assert abs(knots.dual).max() <= 1
    assert (beta * knots.dual == abs(beta)).all()
    slopes = X.T @ ((y - y.mean())[:, None] - X @ beta) / len(y)
    assert abs(slopes[beta != 0]).max() < 1e-9
    steps = np.diff(knots.ts) * slopes[:, :-1]
    np.testing.assert_allclose(np.diff(knots.dual), steps, atol=1e-9)


def test_lbi_tends_to_it_as_kappa_grows(diabetes, knots):
    X, y = diabetes
    t = 1.5  # between two knots that are far apart
    apart = [
        abs(lbi_path(X, y, kappa=k, standardize_y=False, t_max=t).at(t) - knots.at(t)).max()
        for k in (200.0, 800.0, 3200.0)
    ]
    assert apart[0] > 2 * apart[1] > 4 * apart[2]
    assert apart[2] < 1.0 < abs(knots.at(t)).max() / 100


def test_it_is_constant_between_knots(knots):
    assert (knots.at(2.0) == knots.coefs[:, 7]).all()
    assert knots.intercept_at(2.0) == knots.intercepts[7]
    assert (knots.at(knots.ts[3]) == knots.coefs[:, 3]).all()
    assert not knots.at(0.01).any()
    assert knots.intercept_at(0.01) == pytest.approx(152.1335, rel=1e-6)


def test_more_columns_than_samples_end_with_an_interpolation():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 30))
    y = 3 * X[:, 0] + 0.1 * rng.standard_normal(12)
    path = iss_path(X, y)
    assert path.order[0] == 0
    np.testing.assert_allclose(X @ path.coefs[:, -1] + path.intercepts[-1], y, atol=1e-8)
    assert np.count_nonzero(path.coefs[:, -1]) <= 11


def test_stops(diabetes):
    assert np.count_nonzero(iss_path(*diabetes, max_support=3).coefs[:, -1]) == 3
    ended = iss_path(*diabetes, standardize_y=False, t_max=0.5)
    assert ended.ts[-1] == 0.5
    assert len(iss_path(*diabetes, max_iter=4).ts) == 4
    with pytest.raises(ValueError, match=r"before the first entry at t=0\.0221"):
        iss_path(*diabetes, standardize_y=False, t_max=0.01)
