"""The benchmarks of the statistics: their measures, and each once on few data."""

import json
import sys

import numpy as np
import pytest

from benchmarks import lesion, page, sparse_regression, split_support, statistics_pictures
from benchmarks.harness import results
from benchmarks.harness.selection import auc, early, interval, least_relative_error, summary
from benchmarks.report.statistics import cell, statistics


def test_measures_by_hand():
    truth = np.array([True, True, False, False])
    assert auc(np.array([4.0, 1.0, 3.0, 2.0]), truth) == 0.5
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), truth) == 0.5
    times, order = np.array([2.0, np.inf, 1.0]), np.array([2, 0, 1])
    assert early(times, order).tolist() == [1.0, 0.0, 2.0]
    coefs = np.array([[0.0, 3.0], [0.0, 4.0]])
    assert least_relative_error(coefs, np.array([3.0, 0.0])) == 1.0
    told = interval([1.0, 2.0, 3.0])
    assert told["mean"] == 2
    assert told["half"] == pytest.approx(4.303 / np.sqrt(3), abs=1e-3)
    rows = summary({"ours": {"AUC": [0.9, 0.8]}, "bar": {"AUC": [0.8, 0.7]}}, "bar")
    assert rows[0]["AUC"]["minus bar"]["mean"] == pytest.approx(0.1)
    assert cell(rows[0]["AUC"]).endswith("(+0.1)")
    assert cell(None) == "–"


def test_rivals_and_ours_on_few_seeds():
    rows = sparse_regression.least_squares(80, seeds=1, kappas=(16.0,))
    assert rows["relaxed lasso"]["error"][0] < rows["lasso_path"]["error"][0] < 0.4
    assert rows["LBI κ = 16"]["error"][0] < 0.3
    assert rows["ISS"]["AUC"][0] > 0.7
    rows = split_support.identity(1)
    assert 0.8 < rows["Split LBI"]["AUC"][0] <= 1


def test_the_generalised_lasso_is_the_lasso_for_the_identity():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6))
    y = X @ [3.0, 0, -2, 0, 1, 0] + 0.1 * rng.standard_normal(40)
    D = split_support.difference_matrix(None, 6)
    scores = split_support.generalised_lasso(X, y, D, steps=200)
    assert set(np.argsort(-scores)[:3]) == {0, 2, 4}


def test_the_lesion_lies_in_the_mask_apart_from_the_edge():
    mask, inside, edge = lesion.space()
    assert mask.sum() == len(inside) == len(edge)
    assert 40 < inside.sum() < 200
    X, y = lesion.images(40, np.random.default_rng(0))
    assert X.shape == (40, mask.sum())
    assert (X[y == 1][:, inside].mean() - X[y == 0][:, inside].mean()) < -0.2
    assert lesion.best_f1(inside.astype(float), inside) == 1


def test_the_committed_results_are_whole_and_on_the_page():
    for name in page.STATISTICS:
        result = json.loads((results.RESULTS / f"{name}.json").read_text())
        assert result["name"] == name
        words = statistics(result)
        for table in result["tables"]:
            assert table["says"] in words


def test_the_picture_shows_what_entered(monkeypatch, tmp_path):
    out = tmp_path / "paths.svg"
    monkeypatch.setattr(sys, "argv", ["statistics_pictures.py", "--out", str(out)])
    statistics_pictures.main()
    assert out.stat().st_size > 10_000
