"""Outliers as a mean shift: Huber's equality, selection, leverage, weights, bad input."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import HuberRegressor, LinearRegression

from dessilbi_jax.stats import OutlierRegressor
from dessilbi_jax.stats.mean_shift import (
    MODEL,
    Rows,
    criterion,
    least_squares,
    mad,
    mean_shift_path,
    profile,
    settled,
    trimmed,
)

N, P = 120, 4


def data(kind, seed):
    rng = np.random.default_rng(seed)
    X, beta = rng.standard_normal((N, P)), rng.standard_normal(P)
    y = 1 + X @ beta + rng.standard_normal(N)
    outliers = np.arange(N) < {"vertical": 24, "one-sided": 36, "leverage": 12, "none": 0}[kind]
    k = int(outliers.sum())
    if kind == "leverage":
        X[outliers] = 0.5 * rng.standard_normal((k, P)) + [10, 0, 0, 0]
        y[outliers] = 1 + X[outliers] @ beta - 20
    else:
        sign = rng.choice([-1, 1], k) if kind == "vertical" else 1
        y[outliers] += sign * rng.uniform(5, 15, k)
    return X, y, np.append(beta, 1), outliers


def f1(found, true):
    return 2 * (found & true).sum() / max(found.sum() + true.sum(), 1)


def error(model, beta):
    return np.linalg.norm(np.append(model.coef_, model.intercept_) - beta)


@pytest.fixture(scope="module")
def one_sided():
    return data("one-sided", 1)


def test_the_penalised_mean_shift_is_hubers_regression_to_1e_10(one_sided):
    X, y, _, _ = one_sided
    A = np.column_stack([X, np.ones(N)])
    huber = HuberRegressor(alpha=0, tol=1e-8, max_iter=10_000).fit(X, y)
    lam = huber.epsilon * huber.scale_
    coefs = np.append(huber.coef_, huber.intercept_)
    for _ in range(50):  # Newton's steps: scikit-learn stops at about 1e-6
        r = y - A @ coefs
        inside = np.abs(r) <= lam
        coefs = coefs + np.linalg.solve(A[inside].T @ A[inside], A.T @ np.clip(r, -lam, lam))
    np.testing.assert_allclose(coefs[:P], huber.coef_, atol=1e-4)
    r = y - A @ coefs
    gamma = r - np.clip(r, -lam, lam)
    loss = np.where(np.abs(r) <= lam, r**2 / 2, lam * np.abs(r) - lam**2 / 2).sum()
    left, right = profile(A, np.ones(N))
    _, slope = MODEL.gradients(Rows(y, left, right), (), gamma)
    # Where γ is not 0 the slope is −λ·sgn γ, elsewhere within λ: γ minimises ½‖P(y − γ)‖² + λ‖γ‖₁.
    shifted = gamma != 0
    assert 10 < shifted.sum() < N
    np.testing.assert_allclose(slope[shifted], -lam * np.sign(gamma[shifted]), atol=1e-10)
    assert (np.abs(slope[~shifted]) <= lam + 1e-10).all()
    rest = y - gamma - left @ (right.T @ (y - gamma))
    assert rest @ rest / 2 + lam * np.abs(gamma).sum() == pytest.approx(loss, rel=1e-10)


def test_rows_without_weight_have_residuals_and_do_not_pull():
    X, y, _, outliers = data("leverage", 0)
    w = np.where(outliers, 0.0, 2.0)
    left, right = profile(X, w)
    r = y - X @ LinearRegression(fit_intercept=False).fit(X[~outliers], y[~outliers]).coef_
    np.testing.assert_allclose(y - left @ (right.T @ y), r, atol=1e-10)
    doubled = np.column_stack([X, X[:, :1]])  # of the same rank
    again = profile(doubled, w)
    np.testing.assert_allclose(y - again[0] @ (again[1].T @ y), r, atol=1e-10)


def test_the_path_of_a_mean_is_the_closed_form():
    """Without columns P = I: entries are at 1/|y|."""
    y = np.array([4.0, -2.0, 1.0, 0.5, -1.0])
    shifts = mean_shift_path(np.zeros((5, 1)), y, kappa=10.0)
    unit = mad(y, np.ones(5))
    assert shifts.unit == pytest.approx(unit)
    assert shifts.order.tolist()[:2] == [0, 1]
    np.testing.assert_allclose(shifts.entry_times[:2], unit / np.abs(y[:2]), rtol=1e-9)
    assert shifts.entry_signs.tolist()[:2] == [1, -1]


@pytest.mark.parametrize("t", ["threshold", "bic", "aic", "cv"])
def test_a_third_of_the_samples_on_one_side_is_found_by_every_criterion(one_sided, t):
    X, y, beta, outliers = one_sided
    model = OutlierRegressor(t=t).fit(X, y)
    assert f1(model.outliers_, outliers) > 0.9
    huber = HuberRegressor().fit(X, y)
    assert error(model, beta) < error(huber, beta) / 2
    assert model.scale_ == pytest.approx(1, rel=0.4)
    np.testing.assert_array_equal(model.gamma_, model.path_.at(model.t_))


def test_outliers_of_y_do_not_matter_and_without_any_it_is_about_least_squares():
    X, y, beta, outliers = data("vertical", 2)
    model = OutlierRegressor().fit(X, y)
    assert f1(model.outliers_, outliers) > 0.9
    clean = LinearRegression().fit(X[~outliers], y[~outliers])
    assert error(model, beta) < 1.3 * error(clean, beta)
    X, y, beta, _ = data("none", 3)
    model = OutlierRegressor().fit(X, y)
    assert model.outliers_.mean() < 0.06
    kept = LinearRegression().fit(X[~model.outliers_], y[~model.outliers_])
    np.testing.assert_allclose(model.coef_, kept.coef_, atol=1e-10)
    np.testing.assert_allclose(model.predict(X), X @ model.coef_ + model.intercept_)


def test_leverage_needs_a_start():
    X, y, beta, outliers = data("leverage", 4)
    assert f1(OutlierRegressor().fit(X, y).outliers_, outliers) < 0.3
    for start in ("lts", "ransac"):
        model = OutlierRegressor(start=start).fit(X, y)
        assert f1(model.outliers_, outliers) > 0.85
        assert error(model, beta) < 0.6
        first = np.isin(model.path_.order[:12], np.flatnonzero(outliers))
        assert first.all(), "along the path, outliers have residuals from the start"
        again = clone(model).fit(X, y)
        np.testing.assert_array_equal(again.coef_, model.coef_)


def test_scale_shift_and_sign_of_y_and_the_order_of_samples_change_nothing_else(one_sided):
    X, y, _, _ = one_sided
    model = OutlierRegressor().fit(X, y)
    other = OutlierRegressor().fit(X, 5 - 1000 * y)
    np.testing.assert_allclose(other.coef_, -1000 * model.coef_, rtol=1e-8)
    np.testing.assert_array_equal(other.outliers_, model.outliers_)
    np.testing.assert_allclose(other.entry_times_, model.entry_times_, rtol=1e-6)
    turn = np.random.default_rng(0).permutation(N)
    other = OutlierRegressor().fit(X[turn], y[turn])
    np.testing.assert_array_equal(other.outliers_, model.outliers_[turn])


def test_weights_count_samples(one_sided):
    X, y, _, _ = one_sided
    w = np.where(np.arange(N) % 3 == 0, 2, np.where(np.arange(N) % 3 == 1, 1, 0))
    weighted = OutlierRegressor().fit(X, y, sample_weight=w)
    repeated = OutlierRegressor().fit(np.repeat(X, w, axis=0), np.repeat(y, w))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-8)
    np.testing.assert_array_equal(np.repeat(weighted.outliers_, w), repeated.outliers_)
    assert np.isinf(weighted.entry_times_[w == 0]).all()


def test_the_criterion_is_bic_with_a_log_for_each_outlier(one_sided):
    X, y, _, _ = one_sided
    shifts = mean_shift_path(X, y, kappa=20.0)
    found = criterion(X, y, np.ones(N), shifts, "bic")
    k = 30
    left_out = shifts.coefs[:, k] != 0
    rss = np.linalg.lstsq(X[~left_out], y[~left_out], rcond=None)[1][0]
    m = N - P
    expected = m * np.log(rss / m) + left_out.sum() * (np.log(m) + 1)
    assert found[k] == pytest.approx(expected)
    assert found.min() < found[0]


def test_trimmed_squares_are_those_of_the_better_half_by_weight():
    r = np.array([3.0, -1.0, 2.0, 100.0])
    assert trimmed(r, np.ones(4)) == pytest.approx((1 + 4) / 2)
    assert trimmed(r, np.array([1.0, 3, 1, 1])) == pytest.approx(1)


def test_what_is_fitted_exactly_is_no_outlier():
    X = np.arange(20.0)[:, None]
    y = 2 * X[:, 0] + 1
    y[3] = 40
    model = OutlierRegressor().fit(X, y)
    assert model.outliers_.nonzero()[0].tolist() == [3]
    np.testing.assert_allclose([model.coef_[0], model.intercept_], [2, 1])
    fit = settled(X, np.zeros(20), np.ones(20), np.ones(20, bool), 2.5)
    assert fit.inliers.all()
    assert least_squares(X, y, np.zeros(20)).tolist() == [0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"t": "best"}, "t must be a positive number or one of threshold, bic, aic, cv; got"),
        ({"t": -1.0}, "t must be a positive number"),
        ({"start": "mm"}, "start must be one of None, 'lts', 'ransac'; got 'mm'"),
        ({"threshold": 0.0}, "threshold must be a positive finite number, got 0"),
        ({"kappa": 0.0}, "kappa must be a positive finite number"),
        ({"alpha": 1.0}, "too long a step"),
        ({"ratio": 1.0}, "ratio must be a finite number above 1"),
    ],
)
def test_arguments_out_of_range_are_told(one_sided, given, said):
    with pytest.raises(ValueError, match=said):
        OutlierRegressor(**given).fit(*one_sided[:2])


def test_bad_data_are_told(one_sided):
    X, y = one_sided[:2]
    with pytest.raises(ValueError, match="NaN"):
        OutlierRegressor().fit(X, np.where(np.arange(N) == 3, np.nan, y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        OutlierRegressor().fit(X, y[1:])
    with pytest.raises(ValueError, match="minimum of 2"):
        OutlierRegressor().fit(X[:1], y[:1])
    with pytest.raises(ValueError, match="positive for at least 2"):
        OutlierRegressor().fit(X, y, sample_weight=np.arange(N) == 0)
