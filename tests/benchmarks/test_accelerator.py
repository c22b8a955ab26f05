"""The script for an accelerator: all of it on a CPU, and sections that fail or find no time."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.on_device.clock import Clock, Section, run_sections

ROOT = Path(__file__).parents[2]
# Where it is to run there are no data libraries.
WITHOUT = """
import sys
for name in ("tensorflow_datasets", "grain", "array_record", "tensorflow", "PIL"):
    sys.modules[name] = None
sys.argv = ["accelerator.py", "--budget", "smoke", "--out", {out!r}]
from benchmarks.accelerator import main
main()
"""


def numbers(tree):
    """All numbers in nested JSON."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [x for part in tree for x in numbers(part)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.mark.slow
@pytest.mark.process
def test_the_smoke_form_measures_every_section_without_data_libraries(tmp_path):
    words = [sys.executable, "-c", WITHOUT.format(out=str(tmp_path))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "accelerator.json").read_text())
    found = result["sections"]
    assert list(found) == ["updates", "training_steps", "latency", "cifar10"]
    assert not any("error" in each or "left_out" in each for each in found.values())
    assert all(map(math.isfinite, numbers(found)))
    tables = found["updates"]["tables"]
    assert set(tables) == {
        f"{model}, {dtype}"
        for model in ("vgg16", "gpt2-small")
        for dtype in ("float32", "bfloat16")
    }
    for table in tables.values():
        assert set(table["pallas_over_xla"]) == {"toolbox, lean, filters", "toolbox, full, filters"}
        assert table["left_out"] == []
        assert table["rows"]["adam"]["over_adam"] == 1
    assert [set(t["rows"]) for t in found["training_steps"]["tables"]] == [
        {"sgd", "adam", "dessilbi", "dessilbi, lean"}
    ] * 2
    run = found["cifar10"]
    assert run["flops"][1] <= 0.3 * run["flops"][0]
    assert all(0 <= run[name] <= 100 for name in ("dense", "projected", "slim"))
    assert run["slim_minus_masked"] < 1e-2  # computed in bfloat16
    assert {"command", "machine", "seconds", "seed"} <= result.keys()


def test_a_section_that_fails_is_noted_and_the_next_goes_on():
    kept = []
    out = run_sections(
        {
            "bad": Section(lambda clock: 1 / 0, 0.5, 0.0),
            "good": Section(lambda clock: {"value": 3}, 0.5, 0.0),
            "late": Section(lambda clock: {"value": 4}, 0.5, 1e6),
        },
        Clock(time.monotonic() + 1000),
        lambda results: kept.append(dict(results)),
    )
    assert out["bad"]["error"].startswith("ZeroDivisionError")
    assert out["good"]["value"] == 3
    assert "are needed" in out["late"]["left_out"]
    assert [list(each) for each in kept] == [["bad"], ["bad", "good"], ["bad", "good", "late"]]


def test_a_section_is_given_a_share_of_the_time_that_is_left():
    seen = []
    clock = Clock(time.monotonic() + 1000)
    section = Section(lambda part: seen.append(part.left) or {}, 0.25, 0.0)
    run_sections({"only": section}, clock, lambda results: None)
    assert 200 < seen[0] <= 250
    assert Clock(time.monotonic() - 5).part(0.5).left <= 0


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no accelerator here"), (["--arrays", "nowhere.npz"], "there is no file nowhere.npz")],
)
def test_what_cannot_be_measured_is_said(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *words])
    with pytest.raises(SystemExit):
        accelerator.main()
    assert message in capsys.readouterr().err
