"""Uncertainty, and what stands beside a number."""

import json
import sys

import pytest

from benchmarks.harness import results


def test_a_paired_difference_with_its_p():
    # t = mean / (std / √n) = 0.2 / (0.1 / √3) with two degrees of freedom
    found = results.paired([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert found["mean"] == pytest.approx(0.2)
    assert found["std"] == pytest.approx(0.1)
    assert found["n"] == 3
    assert found["p"] == pytest.approx(0.074, abs=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0])])
def test_without_spread_there_is_no_p(ours, theirs):
    assert results.paired(ours, theirs)["p"] is None


def test_one_seed_has_no_deviation():
    assert results.spread([1.0]) == {"mean": 1.0, "std": None, "values": [1.0]}


def test_a_result_holds_its_command_without_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    words = ["x/tickets.py", "--data-dir=/secret", "--budget", "cpu", "--work", "/other"]
    monkeypatch.setattr(sys, "argv", [*words, "--share", "2/2"])
    file = results.write("some", {"table": []}, started=0.0)
    stored = json.loads(file.read_text())
    assert stored["command"] == "python -m benchmarks tickets --data-dir DIR --budget cpu"
    assert stored["machine"]["backend"] == "cpu"
    assert [f.name for f in tmp_path.iterdir()] == ["some.json"]


def test_two_groups_that_are_not_paired_are_compared_by_welch():
    # t = (2 - 4) / √(1/3 + 4/3), ν = (5/3)² / ((1/3)²/2 + (4/3)²/2) = 2.94
    found = results.independent([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found["mean"] == -2
    assert found["p"] == pytest.approx(0.22, abs=0.01)
    assert results.independent([1.0], [2.0])["p"] is None


@pytest.mark.parametrize(
    ("gaps", "answer"),
    [
        ([0.0, 0.1, -0.1], "yes"), ([-1.0, -1.1, -0.9], "no"), ([-0.2, -0.1, -0.3], "undecided"),
        ([5.0], "undecided"), ([0.1, 0.1], "yes"),
    ],
)  # fmt: skip
def test_a_bound_is_kept_only_where_the_seeds_say_so(gaps, answer):
    assert results.above(gaps, -0.2) == answer


def test_holm_corrects_for_all_tests_together():
    found = results.holm([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert results.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert results.holm([]) == []
