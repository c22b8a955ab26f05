"""`lbi_path`: gold values, limits, equivariances, forms that agree, bad input."""

import pickle
import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, lars_path

from dessilbi_jax.stats import lbi_path
from dessilbi_jax.stats.linear import ROWS_OF_GRAM, WHOLE_GRAM, Moments

# R's Libra 1.7 on the diabetes data: κ = 100, α = 0.001, in the units of y.
GOLD = {
    "bmi": 0.02214, "s5": 0.02295, "bp": 0.03279, "s3": 0.04595, "s6": 0.15704, "sex": 0.16395,
    "s2": 0.31949, "s1": 0.32655, "s4": 1.00535,
}  # fmt: skip
NAMES = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]


@pytest.fixture(scope="module")
def gold(diabetes):
    return lbi_path(*diabetes, kappa=100.0, alpha=1e-3, standardize_y=False)


def test_crossings_of_diabetes(gold):
    expected = [GOLD.get(name, np.inf) for name in NAMES]
    np.testing.assert_allclose(gold.entry_times, expected, atol=5e-6)
    assert gold.ts[0] == pytest.approx(0.02214348, rel=1e-6)
    assert gold.intercepts[0] == pytest.approx(152.1335, rel=1e-6)
    assert [NAMES[j] for j in gold.order] == [*GOLD, "age"]
    assert gold.kappa, gold.alpha == (100.0, 1e-3)
    assert gold.n_iter == 2192


def test_the_default_step_is_that_of_the_largest_eigenvalue(diabetes):
    X, y = diabetes
    path = lbi_path(X, y, kappa=100.0, standardize_y=False, max_support=1)
    assert path.alpha == pytest.approx(0.002484957, rel=1e-6)


def test_the_end_is_least_squares(diabetes):
    X, y = diabetes[0][:, [1, 2, 3, 8]], diabetes[1]
    path = lbi_path(X, y, kappa=30.0)
    ols = LinearRegression().fit(X, y)
    np.testing.assert_allclose(path.coefs[:, -1], ols.coef_, rtol=1e-6)
    assert path.intercepts[-1] == pytest.approx(ols.intercept_, rel=1e-9)


def test_the_first_entry_is_the_lassos(diabetes, path):
    X, y = diabetes
    X = (X - X.mean(0)) / X.std(0)
    alphas, active, _ = lars_path(X, (y - y.mean()) / y.std(), method="lasso")
    assert path.ts[0] == pytest.approx(1 / alphas[0], rel=1e-9)
    assert path.order[:3].tolist() == list(active[:3])


@pytest.mark.parametrize("form", ["direct", "sparse", "sparse direct", "rows of the Gram matrix"])
def test_all_forms_compute_the_same(diabetes, path, form):
    X, y = diabetes
    if form == "rows of the Gram matrix":
        rng = np.random.default_rng(0)
        A = rng.standard_normal((64, 64))
        gamma = np.where(np.arange(64) % 9 == 0, 1.5, 0.0)
        data = Moments(jnp.asarray(A @ A.T), jnp.asarray(A[0]))
        for there in (gamma, np.zeros(64), np.ones(64)):
            rows, whole = (
                m.gradients(data, (), jnp.asarray(there))[1] for m in (ROWS_OF_GRAM, WHOLE_GRAM)
            )
            np.testing.assert_allclose(rows, whole, rtol=1e-4, atol=1e-3)
        return
    other = lbi_path(
        sparse.csr_array(X) if "sparse" in form else X, y, kappa=30.0,
        gram=False if "direct" in form else "auto",
    )  # fmt: skip
    np.testing.assert_allclose(other.coefs, path.coefs, atol=1e-8)
    np.testing.assert_allclose(other.entry_times, path.entry_times, rtol=1e-9)


def test_float32_is_float32_and_agrees(diabetes, path):
    X, y = diabetes
    single = lbi_path(X.astype(np.float32), y, kappa=30.0)
    arrays = (single.coefs, single.dual, single.ts, single.intercepts, single.at(3.0))
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    np.testing.assert_allclose(single.coefs[:, :60], path.coefs[:, :60], atol=1.0)  # of up to 600
    assert single.order[:5].tolist() == path.order[:5].tolist()


def test_the_scale_of_y_and_of_the_columns_does_not_matter(diabetes, path):
    X, y = diabetes
    other = lbi_path(X * np.linspace(1, 5, 10) - 3, -7 * y + 11, kappa=30.0)
    np.testing.assert_allclose(
        other.coefs, -7 * path.coefs / np.linspace(1, 5, 10)[:, None], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(other.ts, path.ts)
    np.testing.assert_array_equal(other.entry_signs, -path.entry_signs)


def test_in_the_units_of_y_kappa_and_alpha_scale_with_it(diabetes, gold):
    X, y = diabetes
    other = lbi_path(X, 2 * y, kappa=200.0, alpha=5e-4, standardize_y=False)
    np.testing.assert_allclose(other.ts, gold.ts / 2)
    np.testing.assert_allclose(other.coefs, 2 * gold.coefs, atol=1e-8)


def test_the_order_of_columns_does_not_matter(diabetes, path):
    X, y = diabetes
    shuffled = np.random.default_rng(0).permutation(10)
    other = lbi_path(X[:, shuffled], y, kappa=30.0)
    np.testing.assert_allclose(other.coefs, path.coefs[shuffled], atol=1e-7)
    assert shuffled[other.order].tolist() == path.order.tolist()


def test_weights_are_repetitions(diabetes):
    X, y = diabetes[0][:100], diabetes[1][:100]
    times = np.arange(100) % 3
    weighted = lbi_path(X, y, kappa=10.0, sample_weight=times, ratio=20)
    repeated = lbi_path(np.repeat(X, times, 0), np.repeat(y, times), kappa=10.0, ratio=20)
    np.testing.assert_allclose(weighted.coefs, repeated.coefs, atol=1e-7)
    np.testing.assert_allclose(weighted.intercepts, repeated.intercepts)


def test_constant_columns_never_enter_and_duplicates_share(diabetes):
    X, y = diabetes
    X = np.column_stack([X[:, [2, 8, 2]], np.full(len(y), 1e6)])
    path = lbi_path(X, y, kappa=10.0)
    assert np.isinf(path.entry_times[3])
    assert not path.coefs[3].any()
    np.testing.assert_allclose(path.coefs[0], path.coefs[2], rtol=1e-9)


def test_a_constant_y_has_an_empty_path(diabetes):
    path = lbi_path(diabetes[0], np.full(442, 0.1), kappa=10.0)
    assert not path.coefs.any()
    np.testing.assert_allclose(path.intercepts, 0.1)
    assert np.isinf(path.entry_times).all()


def test_labels_make_columns_enter_together(diabetes):
    labels = np.array(list("bbccaaaaab"))
    path = lbi_path(*diabetes, kappa=30.0, groups=labels)
    assert path.entry_times.shape == (3,)
    assert path.order.tolist() == [0, 2, 1]  # a has s5, c has bmi and bp
    early = path.support(path.entry_times[[0, 2]].mean())
    assert early.tolist() == (labels == "a").tolist()
    for t in (2.0, 10.0):
        assert {len(set(path.support(t)[labels == g])) for g in "abc"} == {1}


def test_without_an_intercept_nothing_is_centred(diabetes):
    X, y = diabetes
    X, y = X[:, [2, 8]] + 0.01, y - 100
    path = lbi_path(X, y, kappa=30.0, fit_intercept=False, ratio=1e3)
    assert not path.intercepts.any()
    ols = LinearRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(path.coefs[:, -1], ols.coef_, rtol=1e-5)


# ---------------------------------------------------------------- classes


@pytest.fixture(scope="module")
def logistic(classes):
    X, y = classes
    return lbi_path(X, y > 0, kappa=20.0, family="binomial")


@pytest.fixture(scope="module")
def softmax(classes):
    return lbi_path(*classes, kappa=20.0, family="multinomial")


def test_the_logistic_path_ends_at_the_maximum_of_likelihood(classes, logistic):
    X, y = classes
    best = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y > 0)
    np.testing.assert_allclose(logistic.coefs[:, -1], best.coef_[0], atol=1e-3)
    assert logistic.intercepts[-1] == pytest.approx(best.intercept_[0], abs=1e-3)
    share = np.mean(y > 0)
    assert logistic.intercepts[0] == pytest.approx(np.log(share / (1 - share)))


def test_two_classes_of_the_softmax_are_the_logistic_path_of_half_the_kappa(classes):
    """β₂ − β₁ moves by twice the gradient: with V₂ = −V₁, κ counts double."""
    X, y = classes
    both = lbi_path(X, y > 0, kappa=10.0, family="multinomial", alpha=1e-3, ratio=10)
    one = lbi_path(X, y > 0, kappa=20.0, family="binomial", alpha=1e-3, ratio=10)
    np.testing.assert_allclose(both.entry_times[1], one.entry_times, rtol=1e-3)
    np.testing.assert_allclose(both.coefs[1] - both.coefs[0], one.coefs, atol=5e-3)


def test_the_softmax_path_ends_at_the_maximum_of_likelihood(classes, softmax):
    X, y = classes
    best = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    centred = softmax.coefs[..., -1] - softmax.coefs[..., -1].mean(0)
    np.testing.assert_allclose(centred, best.coef_ - best.coef_.mean(0), atol=2e-3)
    assert softmax.entry_times.shape == (3, 6)
    assert sorted(softmax.order) == list(range(18))


def test_columns_of_the_softmax_enter_for_all_classes_at_once(classes):
    path = lbi_path(*classes, kappa=20.0, family="multinomial", groups="columns")
    assert path.entry_times.shape == (6,)
    assert set(path.order[:2]) == {0, 4}
    support = path.support(path.ts[30])
    assert support.any()
    assert (support.all(axis=0) | ~support.any(axis=0)).all()


def test_classes_that_a_plane_separates_are_said(classes):
    X, y = classes
    y = (X[:, 1] > 0).astype(int)
    with pytest.warns(ConvergenceWarning, match="separated perfectly from t=.* capped at t="):
        lbi_path(X, y, kappa=5.0, family="binomial", ratio=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lbi_path(X, y, kappa=5.0, family="binomial", t_max=10.0)


# ---------------------------------------------------------------- the result


def test_at_interpolates_the_dual_and_meets_the_snapshots(path):
    for k in (0, 40, 99):
        np.testing.assert_allclose(path.at(path.ts[k]), path.coefs[:, k], rtol=1e-9, atol=1e-9)
        assert path.intercept_at(path.ts[k]) == pytest.approx(path.intercepts[k])
    between = np.sqrt(path.ts[40] * path.ts[41])
    share = (between - path.ts[40]) / (path.ts[41] - path.ts[40])
    v = (1 - share) * path.dual[:, 40] + share * path.dual[:, 41]
    expected = path.kappa * (v - np.clip(v, -1, 1)) * path._factor
    np.testing.assert_allclose(path.at(between), expected)
    assert path.support(between).tolist() == (expected != 0).tolist()
    assert not path.at(path.ts[0] / 2).any()
    for t in (0.0, -1.0, np.nan, 2 * path.ts[-1]):
        with pytest.raises(ValueError, match=re.escape("t must lie in (0, ")):
            path.at(t)


def test_a_path_is_kept_by_pickle_and_drawn(path):
    again = pickle.loads(pickle.dumps(path))
    np.testing.assert_array_equal(again.at(3.0), path.at(3.0))
    assert repr(again) == repr(path)
    axes = path.plot()
    assert axes.get_xscale() == "log"
    assert len(axes.lines) == 1 + path.coefs.any(axis=1).sum()


# ---------------------------------------------------------------- any data


@settings(max_examples=25, deadline=None)
@given(
    X=hnp.arrays(np.float64, (9, 3), elements=st.floats(-5, 5, width=16)),
    y=hnp.arrays(np.float64, (9,), elements=st.floats(-5, 5, width=16)),
)
def test_whatever_the_data_signs_and_times_belong_together(X, y):
    path = lbi_path(X, y, kappa=5.0, ratio=5)
    assert np.isfinite(path.coefs).all()
    assert np.isfinite(path.intercepts).all()
    there = np.isfinite(path.entry_times)
    assert (there == (path.entry_signs != 0)).all()
    assert (path.coefs[~there] == 0).all()
    assert (path.entry_times[there] >= path.ts[0] * (1 - 1e-9)).all()
    assert sorted(path.order) == [0, 1, 2]
    assert (np.diff(path.entry_times[path.order][: there.sum()]) >= 0).all()
    # Squared error on the path never exceeds that of the mean.
    mean = ((y[:, None] - X @ path.coefs - path.intercepts) ** 2).mean(0)
    assert (mean <= y.var() + 1e-9 * (1 + y.var())).all()


# ---------------------------------------------------------------- bad input

BAD = {
    "NaN": ({"X": np.where(np.eye(442, 10), np.nan, 1.0)}, "Input X contains NaN"),
    "length": ({"y": np.zeros(3)}, "inconsistent numbers of samples"),
    "one sample": ({"X": np.ones((1, 2)), "y": [1.0]}, "at least 2 samples"),
    "kappa": ({"kappa": 0.0}, "kappa must be a positive finite number, got 0.0"),
    "infinite kappa": ({"kappa": np.inf}, "kappa must be"),
    "alpha": ({"alpha": 1.0}, "too long a step.*is the default"),
    "family": ({"family": "poisson"}, "must be one of gaussian, binomial, multinomial"),
    "groups": ({"groups": [0, 1]}, "one label for each of the 10 columns"),
    "named groups": ({"groups": "columns"}, "with family='multinomial'"),
    "weights": ({"sample_weight": np.zeros(442)}, "zero|positive"),
    "t_max": ({"t_max": 0.001}, "before the first entry at t=1.7"),
    "both ends": ({"t_max": 3.0, "ts": [1.0]}, "ts or t_max, not both"),
    "ts": ({"ts": [2.0, 1.0]}, "in increasing order"),
    "ratio": ({"ratio": 1.0}, "above 1"),
    "nt": ({"nt": 1}, "nt must be at least 2"),
    "gram": ({"gram": "yes"}, "gram must be"),
    "one class": ({"family": "binomial", "y": np.ones(442)}, "only one class"),
    "three classes": ({"family": "binomial", "y": np.arange(442) % 3}, "use family='multinomial'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(diabetes, case):
    wrong, said = BAD[case]
    arguments = {"X": diabetes[0], "y": diabetes[1], "kappa": 10.0} | wrong
    with pytest.raises(ValueError, match=said):
        lbi_path(arguments.pop("X"), arguments.pop("y"), **arguments)


def test_too_few_steps_are_told(diabetes):
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter=50 steps, at t="):
        path = lbi_path(*diabetes, kappa=30.0, max_iter=50)
    assert path.n_iter == 50
