"""Outliers and wrong comparisons: the small table, and the data it is made of."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import robust_statistics


def test_a_smoke_run_has_every_method_of_both_tables(tmp_path, capsys):
    words = ["robust_statistics", "--budget", "smoke", "--work", str(tmp_path)]
    assert benchmarks.main(words) == 0
    told = json.loads((tmp_path / "smoke" / "robust_statistics.json").read_text())
    assert told["command"] == "python -m benchmarks robust_statistics --budget smoke"
    kinds, methods = robust_statistics.KINDS, robust_statistics.REGRESSION
    lines = {(line["outliers"], line["method"]): line for line in told["regression"]}
    assert lines.keys() == {(kind, method) for kind in kinds for method in methods}
    leverage = lines["leverage 10 %", "mean shift, LTS start"]
    assert leverage["f1"]["mean"] > lines["leverage 10 %", "Huber + MAD"]["f1"]["mean"]
    assert {line["method"] for line in told["ranking"]} == {
        "LS", "LS-prune", "LAD", "BT", "mean shift",
    }  # fmt: skip
    assert all(-1 <= v <= 1 for line in told["ranking"] for v in line["tau"]["values"])
    assert "one-sided 40 %" in capsys.readouterr().out


@pytest.mark.parametrize("kind", robust_statistics.KINDS)
def test_outliers_are_as_many_as_they_are_called(kind):
    X, y, beta, outliers = robust_statistics.regression_data(kind, 0, 200)
    assert outliers.mean() == pytest.approx(float(kind.split()[1]) / 100)
    r = y - X @ beta[:-1] - beta[-1]
    assert np.abs(r[outliers]).min() > 1.5
    assert r[~outliers].std() == pytest.approx(1, rel=0.2)


def test_a_share_of_the_comparisons_is_flipped():
    pairs, y, scores, wrong = robust_statistics.ranking_data(0.2, 0, 300)
    right = np.sign(scores[pairs[:, 0]] - scores[pairs[:, 1]])
    np.testing.assert_array_equal(y != right, wrong)
    assert wrong.sum() == 60
    assert robust_statistics.COST.keys() == robust_statistics.BUDGETS.keys()
