"""Benchmarks by name: `python -m benchmarks NAME`."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import step_time

ROOT = Path(__file__).parents[2]


def test_every_benchmark_is_listed_with_its_question_and_its_cost(capsys):
    assert benchmarks.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    questions = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    files = {f.stem for f in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in f.read_text()}
    assert questions.keys() == files - {"__main__"}
    assert questions["kill"].startswith("Does a run that is killed again and again end as one")
    at = next(i for i, line in enumerate(lines) if line.startswith("tickets "))
    assert [line.split(":")[0].strip() for line in lines[at + 1 : at + 4]] == [
        "smoke", "cpu", "lenet5",
    ]  # fmt: skip
    assert all(each.cost for each in benchmarks.benchmarks().values())


def test_a_benchmark_sees_its_own_options_and_name(monkeypatch):
    seen = []
    module = types.SimpleNamespace(main=lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setitem(sys.modules, "benchmarks.kill", module)
    assert benchmarks.main(["kill", "--times", "3"]) == 0
    assert seen == [[str(ROOT / "benchmarks" / "kill.py"), "--times", "3"]]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("kil", "did you mean kill?"), ("qqqq", "--list names them all"), ("common", "names them")],
)
def test_a_name_that_is_unknown_is_told_with_one_that_is_near(capsys, name, hint):
    assert benchmarks.main([name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"benchmarks: error: there is no benchmark {name!r}: ")
    assert hint in captured.err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0)])
def test_without_a_name_it_says_how_it_is_used(capsys, words, code):
    assert benchmarks.main(words) == code
    assert "python -m benchmarks NAME [options]" in capsys.readouterr().out


@pytest.mark.process
def test_as_a_command():
    words = [sys.executable, "-m", "benchmarks", "kill", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert "--times TIMES" in done.stdout


@pytest.mark.parametrize("kind", ["sgd", "xla"])
def test_the_steps_of_jax_are_those_that_are_timed(kind):
    step = step_time.make(kind, "lenet5", batch=4, threads=1)
    assert step() is None
    assert {kind for kind, _ in step_time.RIVALS.values()} >= {kind, "torch", "dessilbi"}
