"""The table of κ and ν."""

import dataclasses
import json
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import kappa_nu
from benchmarks.harness import work
from benchmarks.report import figures, tables
from benchmarks.rivals import papers


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
        (case.setting.network, *pair) for case in kappa_nu.BUDGETS["smoke"] for pair in case.pairs
    ]
    for line in lines:
        assert [p["step"] for p in line["points"]] == [16, 32]
        for point in line["points"]:
            assert 0 <= point["density_percent"]["mean"] <= 100
            assert 0 <= point["projected"]["mean"] <= 100
            assert len(point["dense"]["values"]) == line["seeds"] == 1


def test_its_section_of_the_page(smoke, tmp_path):
    text = tables.kappa_nu(smoke)
    for line in smoke["table"]:
        assert f"| κ = {line['kappa']:g}, ν = {line['nu']:g} |" in text
        assert f"| {line['points'][-1]['density_percent']['mean']:.2f} |" in text
    assert figures.kappa_nu(smoke, tmp_path / "picture.svg").stat().st_size > 1000


def test_the_density_that_lam_was_chosen_for_is_met_and_falls_with_kappa(smoke):
    one, two = (line["points"][-1]["density_percent"]["mean"] for line in smoke["table"][:2])
    assert smoke["table"][0]["lam"] == smoke["table"][1]["lam"]
    assert 30 < one < 60
    assert two < one
    mixed = smoke["table"][2]  # filters and single weights: λ has a factor for each kind
    assert 30 < mixed["points"][-1]["density_percent"]["mean"] < 60
    plain, filters = (case["chosen"]["factors"] for case in smoke["config"]["cases"])
    assert plain == []
    assert filters
    assert all("fc" in path for path, _ in filters)


def test_kappa_at_a_fixed_rate_does_what_a_larger_lam_would_do():
    case = kappa_nu.BUDGETS["smoke"][0]
    twice = kappa_nu.measure(case, 2.0, 50.0, kappa_nu.Lam(0.0005), 0, None)
    once = kappa_nu.measure(case, 1.0, 50.0, kappa_nu.Lam(0.001), 0, None)
    assert twice["points"] == once["points"]
    assert 0 < once["points"][-1]["density"] < 1


def test_every_budget_has_a_cost_and_covers_the_ranges():
    assert kappa_nu.COST.keys() == kappa_nu.BUDGETS.keys()
    for name in ("cpu", "gpu"):
        for case in kappa_nu.BUDGETS[name]:
            assert {kappa for kappa, _ in case.pairs} == set(kappa_nu.KAPPAS)
            assert {nu for _, nu in case.pairs} == set(kappa_nu.NUS)
    keys = [case.key for cases in kappa_nu.BUDGETS.values() for case in cases]
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(kappa_nu.BUDGETS["gpu"][0], published=False).key not in keys


def test_density_is_told_in_percent_for_every_seed():
    case = dataclasses.replace(kappa_nu.BUDGETS["smoke"][1], seeds=2)
    (kappa, nu), *_ = case.pairs
    rows = [
        {"kappa": kappa, "nu": nu,
         "points": [{"step": 1, "density": d, "dense": 50.0, "projected": 40.0}]}
        for d in (0.00012, 0.00034)
    ]  # fmt: skip
    (line,) = kappa_nu.table(case, kappa_nu.Lam(0.1), rows)
    assert line["points"][0]["density_percent"] == {
        "mean": 0.023, "std": 0.016, "values": [0.012, 0.034],
    }  # fmt: skip


def test_the_papers_settings_are_those_of_figure_5():
    told = {(run.setting.network, run.structure): (run.nu, run.lam) for run in papers.FIGURE_5}
    assert told == {
        ("vgg16", "filters"): (100.0, 0.1), ("resnet56", "filters"): (100.0, 0.05),
        ("vgg16", "weights"): (100.0, 0.05), ("resnet50", "weights"): (100.0, 0.03),
    }  # fmt: skip
    assert [(case.setting.network, case.lam) for case in kappa_nu.BUDGETS["gpu"]] == [
        ("vgg16", 0.1), ("resnet56", 0.05),
    ]  # fmt: skip
    case = kappa_nu.BUDGETS["gpu"][0]
    rate = work.schedule("steps", 0.1, 10)
    assert kappa_nu.optimizer(case, rate, 1.0, 100.0, kappa_nu.Lam(0.1), 10) is papers.optimizer(
        rate, 0.9, "filters", 1.0, 100.0, 0.1
    )
