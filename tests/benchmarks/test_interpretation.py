"""The benchmark of the paper's reading keeps what was found, and shows it."""

import argparse

import pytest

from benchmarks import interpretation

ROW = {"measure": "saturation", "rho": -0.5, "low": -0.7, "high": -0.2, "pairs": 48}
FOUND = {
    "first": "conv1/kernel", "filters": 48, "entered": 7, "layer": "conv3/kernel", "shown": 12,
    "silent": {"w": 3, "gamma": 4},
    "correlations": [
        {**ROW, "run": "a", "own": True, "against": "norm"},
        {**ROW, "run": "a", "own": True, "against": "entry", "rho": None},
        {**ROW, "run": "a", "own": True, "against": "norm", "pairs": 0},
        {**ROW, "run": "b", "own": False, "against": "norm"},
    ],
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """What was asked of training and of looking, neither of which is done."""
    asked = []

    def fit(config, out, **options):
        asked.append((config, out))
        return {"test_accuracy": 0.43, "density": 0.5}

    def look(out, **options):
        asked.append(options)
        return FOUND

    monkeypatch.setattr(interpretation.train, "fit", fit)
    monkeypatch.setattr(interpretation.train, "interpret", look)
    monkeypatch.setattr(interpretation.report, "write", lambda out: out)
    return asked


@pytest.mark.parametrize("way", list(interpretation.WAYS))
def test_each_way_is_trained_and_put_beside_sgd(way, trained, tmp_path, capsys):
    args = argparse.Namespace(work=tmp_path, data_dir="there", budget="cpu")
    row = interpretation.measure(interpretation.BUDGETS["cpu"][1][0], way, args)
    (config, out), options = trained
    assert (config.nu == 1e9) == (way == "sgd")
    assert config.kappa == (10.0 if way == "kappa=10" else 1.0)
    beside = None if way == "sgd" else out.with_name("vgg-small-sgd")
    assert options == {"data_dir": "there", "beside": beside, "steps": 128}
    assert [each["against"] for each in row["correlations"]] == ["norm", "entry"]
    interpretation.show([row])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "7 of 48 filters of conv1/kernel entered, 3 of 12 of conv3/kernel silent"
    )
    assert lines[1].split() == ["saturation", "norm", "-0.50", "-0.70…-0.20", "n=48"]
    assert len(lines) == 2
