"""The table of methods that remove filters, made small."""

import json
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import structured
from benchmarks.report import figures, tables
from benchmarks.rivals import filters


def test_smoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])  # put back afterwards
    words = ["structured", "--budget", "smoke", "--work", str(tmp_path)]
    assert command.main(words) == 0
    told = json.loads((tmp_path / "smoke" / "structured.json").read_text())
    lines = {line["method"]: line for line in told["table"]}
    assert list(lines) == ["dense", *filters.RIVALS]
    for name in filters.RIVALS:
        line = lines[name]
        assert line["flops_share"]["mean"] <= 0.5
        assert line["params_share"]["mean"] < 1
        assert line["latency"]["mean"] > 0
        assert 0 < line["search"]["mean"] < line["training"]["mean"]
        gap = line["accuracy"]["mean"] - line["scratch_B"]["mean"]
        assert line["minus_scratch_B"]["mean"] == pytest.approx(gap, abs=0.002)
        assert line["minus_scratch_E"]["n"] == line["seeds"] == 1
    assert told["command"] == "python -m benchmarks structured --budget smoke"
    assert told["machine"]["backend"] == told["config"]["machines"][0]["backend"]
    (row,) = told["figure_5"]
    assert [ticket["epoch"] for ticket in row["tickets"]] == [1, 2]
    assert row["tickets"][-1]["density"] > 0
    text = tables.structured(told)
    for name in filters.RIVALS:
        assert f"| vgg-small | {name} |" in text
    assert "| tiny, group | 0 | 2 |" in text
    assert "With one seed nothing is tested." in text
    for i, name in enumerate(filters.RIVALS):
        gap = {"mean": 1.5 * (-1) ** i, "std": 0.5, "n": 3, "p": 0.001}
        lines[name] |= {"dessilbi_minus_this": gap, "minus_scratch_E": gap, "minus_scratch_B": gap}
    text = tables.structured(told)
    assert "of the FLOPs, minus L1-norm filters: +1.50 (p = 0.003)" in text
    assert "minus network slimming: -1.50 (p = 0.003)" in text
    assert "minus DessiLBI" not in text
    assert "DessiLBI on vgg-small (Scratch-E by 1.50)" in text
    assert figures.structured(told, tmp_path / "picture.svg").stat().st_size > 1000
    before = (tmp_path / "smoke" / "structured.jsonl").read_text()
    command.main(words)  # all is there
    assert (tmp_path / "smoke" / "structured.jsonl").read_text() == before
    shown = capsys.readouterr()
    assert "n = 1 seeds" in shown.out
    assert "Scratch" not in shown.err


def test_the_best_on_held_out_images_is_chosen():
    tried = [
        {"method": "a", "given": {"x": 1}, "held_out": 50.0},
        {"method": "a", "given": {"x": 2}, "held_out": 60.0},
        {"method": "a", "given": {"x": 3}, "held_out": 60.0},
        {"method": "b", "given": {}, "held_out": 0.0},
    ]
    assert structured.best(tried) == {"a": {"x": 2}, "b": {}}


def test_budgets_are_named_with_their_cost():
    assert structured.COST.keys() == structured.BUDGETS.keys()
