"""The table of κ and ν."""

import dataclasses
import json
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import kappa_nu


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kappa_nu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["before"])
        assert benchmarks.main(["kappa_nu", "--budget", "smoke", "--work", str(folder)]) == 0
    return json.loads((folder / "smoke" / "kappa_nu.json").read_text())


def test_a_smoke_run_makes_the_whole_table(smoke):
    lines = smoke["table"]
    pairs = [(line["network"], line["kappa"], line["nu"]) for line in lines]
    assert pairs == [
        (case.setting.network, *pair)
        for case in kappa_nu.BUDGETS["smoke"].cases
        for pair in case.pairs
    ]
    for line in lines:
        assert [p["step"] for p in line["points"]] == [16, 32]
        for point in line["points"]:
            assert 0 <= point["density"] <= 1
            assert 0 <= point["projected"]["mean"] <= 100
            assert len(point["dense"]["values"]) == line["seeds"] == 1


def test_the_density_that_lam_was_chosen_for_is_met_and_falls_with_kappa(smoke):
    one, two = (line["points"][-1]["density"] for line in smoke["table"][:2])
    assert smoke["table"][0]["lam"] == smoke["table"][1]["lam"]
    assert 0.3 < one < 0.6
    assert two < one


def test_kappa_at_a_fixed_rate_does_what_a_larger_lam_would_do():
    case = kappa_nu.BUDGETS["smoke"].cases[0]
    twice = kappa_nu.measure(case, 2.0, 50.0, 0.0005, 0, None)
    once = kappa_nu.measure(case, 1.0, 50.0, 0.001, 0, None)
    assert twice["points"] == once["points"]
    assert 0 < once["points"][-1]["density"] < 1


def test_every_budget_has_a_cost_and_covers_the_ranges():
    assert kappa_nu.COST.keys() == kappa_nu.BUDGETS.keys()
    for name in ("cpu", "gpu"):
        for case in kappa_nu.BUDGETS[name].cases:
            assert {kappa for kappa, _ in case.pairs} == set(kappa_nu.KAPPAS)
            assert {nu for _, nu in case.pairs} == set(kappa_nu.NUS)
    keys = [case.key for budget in kappa_nu.BUDGETS.values() for case in budget.cases]
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(kappa_nu.BUDGETS["gpu"].cases[0], decay=0.0).key not in keys
