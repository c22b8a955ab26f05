"""Ranking: least squares on graphs, wrong comparisons, users who differ, bad input."""

import numpy as np
import pytest
from scipy import stats as sp

from dessilbi_jax.stats import RobustRanker
from dessilbi_jax.stats.ranking import incidence, log_likelihood

ITEMS = 8


@pytest.fixture(scope="module")
def votes():
    """100 comparisons of 8 items, 12 of them reversed."""
    rng = np.random.default_rng(0)
    scores = np.arange(ITEMS) - 3.5
    first = rng.integers(ITEMS, size=100)
    second = (first + 1 + rng.integers(ITEMS - 1, size=100)) % ITEMS
    y = scores[first] - scores[second] + 0.2 * rng.standard_normal(100)
    wrong = np.arange(100) < 12
    return np.column_stack([first, second]), np.where(wrong, -3 * y, y), scores, wrong


def test_without_pruning_it_is_least_squares_of_mean_zero(votes):
    pairs, y, _, _ = votes
    model = RobustRanker(prune=0).fit(pairs, y)
    expected = np.linalg.lstsq(incidence(pairs, ITEMS), y, rcond=None)[0]
    np.testing.assert_allclose(model.scores_, expected, atol=1e-10)
    assert model.scores_.sum() == pytest.approx(0, abs=1e-10)
    assert not model.outliers_.any()
    np.testing.assert_allclose(
        model.predict(pairs), model.scores_[pairs[:, 0]] - model.scores_[pairs[:, 1]]
    )


def test_reversed_comparisons_are_found_and_the_scores_are_right(votes):
    pairs, y, scores, wrong = votes
    model = RobustRanker().fit(pairs, y)
    assert (model.outliers_ == wrong).mean() > 0.95
    np.testing.assert_allclose(model.scores_, scores, atol=0.2)
    given = RobustRanker(prune=12).fit(pairs, y)
    assert given.outliers_.sum() == 12
    share = RobustRanker(prune=0.12).fit(pairs, y)
    np.testing.assert_array_equal(share.outliers_, given.outliers_)
    assert given.t_ == pytest.approx(np.sort(given.entry_times_)[11])


def test_features_differences_and_names_are_other_words_for_the_same(votes):
    pairs, y, _, _ = votes
    own = RobustRanker().fit(pairs, y)
    by_features = RobustRanker(features=np.eye(ITEMS)).fit(pairs, y)
    np.testing.assert_allclose(by_features.scores_, own.scores_, atol=1e-10)
    by_rows = RobustRanker(comparisons="differences").fit(incidence(pairs, ITEMS), y)
    np.testing.assert_allclose(by_rows.coef_, own.scores_, atol=1e-10)
    names = np.array(list("hgfedcba"))
    named = RobustRanker().fit(names[pairs], y)
    np.testing.assert_allclose(named.scores_[::-1], own.scores_, atol=1e-8)
    assert named.items_.tolist() == list("abcdefgh")
    line = RobustRanker(features=np.arange(ITEMS)[:, None]).fit(pairs, y)
    assert line.coef_[0] == pytest.approx(1, abs=0.05)


def test_an_advantage_of_the_first_place(votes):
    pairs, y, scores, _ = votes
    model = RobustRanker(position_bias=True).fit(pairs, y + 0.7)
    assert model.position_bias_ == pytest.approx(0.7, abs=0.1)
    np.testing.assert_allclose(model.scores_, scores, atol=0.2)
    np.testing.assert_allclose(
        model.predict(pairs[:, ::-1]) + model.predict(pairs), 2 * model.position_bias_
    )


def test_components_have_scores_of_their_own_and_it_is_said(votes):
    pairs, y, *_ = votes
    apart = (pairs[:, 0] < 4) == (pairs[:, 1] < 4)
    with pytest.warns(UserWarning, match="falls into 2 components"):
        model = RobustRanker().fit(pairs[apart], y[apart])
    assert model.components_.tolist() == [0] * 4 + [1] * 4
    for k in (0, 1):
        here = model.components_ == k
        assert model.scores_[here].sum() == pytest.approx(0, abs=1e-10)
        np.testing.assert_allclose(model.scores_[here], [-1.5, -0.5, 0.5, 1.5], atol=0.3)


def test_probabilities_of_votes_are_those_of_a_normal():
    delta = np.array([0.3, -2.0, 9.0, 40.0])
    tie = 0.8
    log_p = np.stack([log_likelihood(delta, tie, np.full(4, y)) for y in (-1, 0, 1)])
    np.testing.assert_allclose(np.exp(log_p).sum(0), 1)
    np.testing.assert_allclose(np.exp(log_p[2]), 1 - sp.norm.cdf(tie - delta), rtol=1e-9)
    expected = sp.norm.cdf(tie - delta[:2]) - sp.norm.cdf(-tie - delta[:2])
    np.testing.assert_allclose(np.exp(log_p[1][:2]), expected, rtol=1e-9)
    assert np.isfinite(log_p).all()


@pytest.fixture(scope="module")
def crowd():
    """Six users, 40 votes each; the first turns all around."""
    rng = np.random.default_rng(1)
    scores = np.array([-1.5, -0.5, 0.5, 1.5])
    user = np.repeat(np.arange(6), 40)
    first = rng.integers(4, size=240)
    second = (first + 1 + rng.integers(3, size=240)) % 4
    z = (scores[first] - scores[second]) * np.where(user == 0, -1, 1) + rng.standard_normal(240)
    y = np.where(np.abs(z) < 0.8, 0, np.sign(z))
    pairs = np.column_stack([first, second])
    names = np.array(list("abcdef"))[user]
    model = RobustRanker(kappa=3.0, cv=2, nt=8, ratio=4.0).fit(pairs, y, names)
    return pairs, y, names, scores, model


def test_the_user_who_differs_enters_first(crowd):
    *_, scores, model = crowd
    assert model.entry_times_.argmin() == 0
    assert model.abnormal_users_[0]
    assert model.users_.tolist() == list("abcdef")
    assert np.corrcoef(model.scores_, scores)[0, 1] > 0.95
    own = model.scores_ + model.user_coef_[0]
    assert np.corrcoef(own, scores)[0, 1] < -0.5
    assert (model.user_tie_ > 0).all()
    assert 0.4 < model.tie_ < 1.4
    assert model.cv_loss_.shape == (2, 8)
    assert model.t_ == model.path_.ts[model.cv_loss_.mean(0).argmin()]


def test_votes_are_predicted_by_the_users_own_scores(crowd):
    pairs, y, names, _, model = crowd
    proba = model.predict_proba(pairs, names)
    np.testing.assert_allclose(proba.sum(1), 1)
    found = model.predict(pairs, names)
    assert ((found == y).mean()) > (model.predict(pairs) == y).mean() + 0.05
    np.testing.assert_array_equal(found, proba.argmax(1) - 1)
    assert not hasattr(RobustRanker(prune=0).fit(pairs, y), "predict_proba")
    stranger = model.predict_proba(pairs, np.full(len(y), "z"))
    np.testing.assert_array_equal(stranger, model.predict_proba(pairs))


def test_the_path_starts_where_nothing_wants_to_move(crowd):
    """Until the first entry p stays at its ridge solution, so it ends the first stretch there."""
    model = crowd[-1]
    path = model.path_
    assert not path.gammas[0].any()
    # ∇_γ = (γ − p)/ν there, and the first user enters where t‖p‖/ν = 1.
    norms = np.linalg.norm(path.own[0], axis=1)
    assert path.ts[0] == pytest.approx(1 / norms.max(), rel=1e-3)
    assert path.entry_times.min() == pytest.approx(path.ts[0], rel=1e-6)


def test_bad_comparisons_are_told(votes):
    pairs, y, _, _ = votes
    same = np.where(np.arange(100)[:, None] == 5, 3, pairs)
    with pytest.raises(ValueError, match="comparison 5 is of item 3 with itself"):
        RobustRanker().fit(same, y)
    with pytest.raises(ValueError, match="with itself"):
        RobustRanker().fit(np.zeros((4, 2), int), np.ones(4))
    with pytest.raises(ValueError, match="NaN"):
        RobustRanker().fit(pairs, np.where(y > 0, np.nan, y))
    with pytest.raises(ValueError, match="inconsistent numbers"):
        RobustRanker().fit(pairs, y[1:])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        RobustRanker().fit(pairs, np.sign(y), np.zeros(3))
    with pytest.raises(ValueError, match="two columns"):
        RobustRanker(comparisons="pairs").fit(incidence(pairs, ITEMS), y)
    with pytest.raises(ValueError, match="y must be 1, 0"):
        RobustRanker().fit(pairs, y, np.zeros(100))
    with pytest.raises(ValueError, match="item 8 was not among"):
        RobustRanker(prune=0).fit(pairs, y).predict([[0, 8]])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"comparisons": "triples"}, "comparisons must be one of auto, pairs, differences"),
        ({"prune": 100}, "prune must be a share below 1 or a number below the 100"),
        ({"t": "end"}, "t must be a positive number or one of"),
        ({"features": [[0.0], [np.nan]]}, "features must be a finite matrix"),
    ],
)
def test_arguments_out_of_range_are_told(votes, given, said):
    with pytest.raises(ValueError, match=said):
        RobustRanker(**given).fit(*votes[:2])
    pairs, y = votes[:2]
    with pytest.raises(ValueError, match="nu must be"):
        RobustRanker(nu=0.0).fit(pairs, np.sign(y), np.zeros(100))
    with pytest.raises(ValueError, match="prune is for comparisons"):
        RobustRanker(prune=3).fit(pairs, np.sign(y), np.zeros(100))
