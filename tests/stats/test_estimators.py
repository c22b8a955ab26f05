"""The estimators: scikit-learn's own checks, choice of t, frames, pipelines, searches."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from dessilbi_jax import stats
from dessilbi_jax.stats import (
    EXPECTED_FAILED_CHECKS,
    LBIClassifier,
    LBIClassifierCV,
    LBIRegressor,
    LBIRegressorCV,
    OutlierRegressor,
    RobustRanker,
    SplitLBIClassifier,
    SplitLBIRegressor,
)

ESTIMATORS = [
    LBIRegressor, LBIRegressorCV, SplitLBIRegressor, OutlierRegressor, RobustRanker,
    LBIClassifier, LBIClassifierCV, SplitLBIClassifier,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)
def test_passes_the_checks_of_scikit_learn(kind):
    expected = EXPECTED_FAILED_CHECKS.get(kind.__name__, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = check_estimator(kind(), on_fail=None, expected_failed_checks=expected)
    failed = {each["check_name"]: each["exception"] for each in done if each["status"] == "failed"}
    assert not failed
    assert {each["check_name"] for each in done if each["status"] == "xfail"} == expected.keys()
    assert sum(each["status"] == "passed" for each in done) > 50


def test_every_estimator_is_public():
    assert set(EXPECTED_FAILED_CHECKS) <= {kind.__name__ for kind in ESTIMATORS} | set(dir(stats))


def test_a_time_a_criterion_or_the_end_is_taken(diabetes, path):
    X, y = diabetes
    model = LBIRegressor(kappa=30.0, t=4.0, ratio=100).fit(X, y)
    np.testing.assert_allclose(model.coef_, path.at(4.0), rtol=0.02, atol=2)
    assert model.t_ == 4.0
    assert model.get_support(indices=True).tolist() == [2, 3, 8]
    np.testing.assert_allclose(model.predict(X), X @ model.coef_ + model.intercept_)
    early = LBIRegressor(t=0.01).fit(X, y)
    assert not early.coef_.any()
    assert early.intercept_ == pytest.approx(y.mean())
    end, bic, aic = (LBIRegressor(t=t).fit(X, y) for t in ("end", "bic", "aic"))
    assert end.t_ == end.path_.ts[-1] > aic.t_ >= bic.t_
    # By hand: n log RSS + log n · df.
    coefs, ts = bic.path_.coefs, bic.path_.ts
    rss = ((y[:, None] - X @ coefs - bic.path_.intercepts) ** 2).mean(0)
    score = len(y) * np.log(rss) + np.log(len(y)) * (coefs != 0).sum(0)
    assert bic.t_ == ts[(score < score.min() + 1e-6).argmax()]


def test_a_support_of_a_given_size(diabetes):
    model = LBIRegressor(t="end", max_support=3).fit(*diabetes)
    assert model.get_support().sum() == 3


def test_cross_validation_is_that_of_the_single_folds(diabetes):
    X, y = diabetes
    weights = np.where(np.arange(len(y)) % 5 == 0, 2.0, 1.0)
    cv = KFold(3, shuffle=True, random_state=0)
    model = LBIRegressorCV(kappa=5.0, cv=cv, nt=20).fit(X, y, sample_weight=weights)
    assert model.cv_loss_.shape == (3, 20)
    train, test = next(cv.split(X))
    from dessilbi_jax.stats import lbi_path

    # The folds follow y in the units of all samples; their own κ and t are those over the ratio.
    w = weights / weights.sum()
    unit = np.sqrt(w @ (y - w @ y) ** 2)
    v = weights[train] / weights[train].sum()
    own = np.sqrt(v @ (y[train] - v @ y[train]) ** 2) / unit
    fold = lbi_path(
        X[train], y[train], kappa=5.0 / own, sample_weight=weights[train], ts=model.cv_ts_ * own
    )
    residual = y[test][:, None] - X[test] @ fold.coefs - fold.intercepts
    expected = np.average(residual**2, axis=0, weights=weights[test])
    np.testing.assert_allclose(model.cv_loss_[0], expected, rtol=1e-6)
    mean = model.cv_loss_.mean(0)
    best = mean.argmin()
    bound = mean[best] + model.cv_loss_[:, best].std(ddof=1) / np.sqrt(3)
    assert model.t_ == model.cv_ts_[(mean <= bound).argmax()]
    least = LBIRegressorCV(kappa=5.0, cv=cv, nt=20, one_standard_error=False)
    assert least.fit(X, y, sample_weight=weights).t_ == model.cv_ts_[best]


def test_cross_validation_of_the_direct_form_shares_one_product(diabetes, monkeypatch):
    """The Gram form and the direct one give the same losses."""
    from dessilbi_jax.stats import folds

    X, y = diabetes
    by_gram = LBIRegressorCV(kappa=5.0, cv=3, nt=20).fit(X, y)
    monkeypatch.setattr(folds, "_GRAM_UP_TO", 0)
    direct = LBIRegressorCV(kappa=5.0, cv=3, nt=20).fit(X, y)
    np.testing.assert_allclose(direct.cv_loss_, by_gram.cv_loss_, rtol=1e-9)


def test_classes_by_cross_validation(classes):
    X, y = classes
    names = np.array(["low", "middle", "high"])[y]
    model = LBIClassifierCV(kappa=10.0, groups="columns", cv=3, ratio=20).fit(X, names)
    assert set(model.get_support(indices=True)) >= {0, 4}
    assert model.coef_.shape == (3, 6)
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    np.testing.assert_allclose(np.log(proba), model.predict_log_proba(X))
    assert (model.classes_[proba.argmax(1)] == model.predict(X)).all()
    assert model.score(X, names) > 0.55
    with pytest.raises(ValueError, match="no sample of class 'high'"):
        LBIClassifierCV(cv=[(np.flatnonzero(y < 2), np.arange(80))]).fit(X, names)


def test_two_classes(classes):
    X, y = classes
    model = LBIClassifier(kappa=20.0).fit(X, y > 0)
    assert model.coef_.shape == (1, 6)
    assert model.intercept_.shape == (1,)
    np.testing.assert_allclose(
        model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-model.decision_function(X)))
    )
    assert (model.predict(X) == (model.predict_proba(X)[:, 1] > 0.5)).all()
    apart = X[:, 1] > 0
    with pytest.warns(ConvergenceWarning, match="separated perfectly"):
        LBIClassifier(kappa=5.0, t="end", ratio=5).fit(X, apart)


def test_the_split_estimator_predicts_densely_and_selects_sparsely(diabetes):
    X, y = diabetes
    dense = SplitLBIRegressor(ratio=20, t=12.0).fit(X, y)
    thin = clone(dense).set_params(dense=False).fit(X, y)
    np.testing.assert_array_equal(thin.coef_, dense.sparse_coef_)
    np.testing.assert_allclose(dense.coef_, dense.strong_ + dense.weak_ + dense.noise_)
    assert 0 < dense.get_support().sum() < 10 == np.count_nonzero(dense.coef_)
    assert (dense.get_support() == (thin.coef_ != 0)).all()
    assert dense.score(X, y) > thin.score(X, y) > 0.2


def test_frames_pipelines_searches_and_copies(diabetes):
    X, y = diabetes
    frame = pd.DataFrame(X, columns=[f"c{j}" for j in range(10)])
    model = LBIRegressor(kappa=5.0).fit(frame, y)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert model.n_features_in_ == 10
    assert list(frame.columns[model.get_support()])
    with pytest.warns(UserWarning, match="valid feature names"):
        model.predict(X)
    same = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(same.predict(frame), model.predict(frame))
    assert clone(model).get_params() == model.get_params()
    chain = make_pipeline(StandardScaler(), LBIRegressor(kappa=5.0)).fit(X, y)
    np.testing.assert_allclose(chain.predict(X), model.predict(frame), rtol=1e-6)
    search = GridSearchCV(LBIRegressor(kappa=5.0), {"t": [0.1, 5.0, 50.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"t": 50.0}


def test_a_sparse_x_is_the_same_as_a_dense_one(diabetes):
    X, y = np.where(abs(diabetes[0]) > 0.03, diabetes[0], 0), diabetes[1]
    dense, thin = (
        LBIRegressorCV(kappa=5.0, cv=3, nt=20).fit(A, y) for A in (X, sparse.csr_array(X))
    )
    np.testing.assert_allclose(thin.coef_, dense.coef_, atol=1e-6)
    np.testing.assert_allclose(thin.predict(sparse.csc_array(X)), dense.predict(X))


def test_enough_shrinkage_removed_it_ends_like_least_squares(diabetes):
    X, y = diabetes[0][:, [2, 8]], diabetes[1]
    model = LBIRegressor(t="end").fit(X, y)
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_, rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, -1.0, np.nan, np.inf, "best", None])
def test_a_t_that_is_none_is_told(diabetes, t):
    with pytest.raises(ValueError, match="t must be a positive number or one of bic, aic, end"):
        LBIRegressor(t=t).fit(*diabetes)


def test_width_is_that_of_the_fit(diabetes):
    X, y = diabetes
    with pytest.raises(ValueError, match="X has 9 features, but LBIRegressor is expecting 10"):
        LBIRegressor(kappa=5.0).fit(X, y).predict(X[:, :9])
