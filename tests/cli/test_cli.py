import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import pytest

from dessilbi_jax import cli
from dessilbi_jax.cli import train as commands
from dessilbi_jax.train import PRESETS

SHORT = ["--no-settle", "--epochs", "1", "--density", "0.3", "--batch-size", "32"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_in_haste):
    """The folder of a finished run of the command, and what it printed."""
    out = tmp_path_factory.mktemp("cli") / "demo"
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        assert cli.main(["demo", *SHORT, "--out", str(out)]) == 0
    return out, printed.getvalue(), errors.getvalue()


def error_of(capsys, *words):
    """Runs a command that must fail as a user's error does; returns its line."""
    assert cli.main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dessilbi: error: ")
    return lines[0]


def test_a_run_prints_a_start_a_line_an_epoch_and_its_outcome_without_a_terminal(finished):
    out, printed, errors = finished
    lines = printed.splitlines()
    result = json.loads((out / "result.json").read_text())
    start, epoch = errors.splitlines()
    assert start.startswith(
        "training lenet300 on digits: 1,293 rows, 40 steps an epoch, 1 epochs, "
    )
    assert start.endswith(f"into {out}")
    assert epoch.startswith("epoch 1/1  ")
    assert "0:00:00 left" in epoch
    assert len(lines) == 7
    assert lines[0] == f"The run in {out} is finished."
    assert f"{result['test_accuracy']:.1%}".replace("%", " % dense") in lines[1]
    assert lines[2].split()[:2] == ["loss", f"{result['test_loss']:.4f}"]
    assert "30.0 % asked for" in lines[3]
    assert "of 49,600 structured weights" in lines[3]
    assert lines[4].strip().startswith("training   40 steps in ")
    assert "projected: with all but the selected weights at zero, not retrained" in lines[1]
    assert lines[5].split() == ["report", str(out / "report.html")]
    assert lines[6].split() == ["next", "dessilbi", "ticket", str(out)]


def test_the_command_is_kept_and_the_preset_named(finished):
    out = finished[0]
    config = json.loads((out / "config.json").read_text())
    assert config["preset"] == "demo"
    assert config["command"] == f"dessilbi demo {' '.join(SHORT)} --out {out}"
    assert config["config"]["epochs"] == 1


def test_a_run_goes_on_with_its_folder_alone(finished, tmp_path, capsys):
    out = finished[0]
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert "is finished already, there is nothing to resume." in capsys.readouterr().out
    assert "nothing to resume: there is no run in" in error_of(
        capsys, "train", "--resume", "--out", str(tmp_path / "none")
    )
    line = error_of(capsys, "train", "--resume", "--out", str(out), "--nu", "3")
    assert "another configuration: nu: 100.0, now 3.0" in line
    # Of one that was stopped, everything that it was called with.
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "result.json").unlink()
    assert cli.main(["train", "--resume", "--out", str(copy)]) == 0
    before, after = (json.loads((d / "result.json").read_text()) for d in (out, copy))
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.parametrize("option", ["--resume", "--auto-resume"])
def test_resuming_a_finished_run_says_so(finished, capsys, option):
    out = finished[0]
    assert cli.main(["train", "demo", *SHORT, "--out", str(out), option]) == 0
    captured = capsys.readouterr()
    assert "is finished already, there is nothing to resume." in captured.out
    assert "30.0 % asked for" in captured.out


def test_another_run_in_the_folder_is_left_intact(finished, capsys):
    out = finished[0]
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    words = ["train", "demo", "--out", str(out)]
    assert "holds another run: continue it with --resume" in error_of(capsys, *words)
    line = error_of(capsys, *words, *SHORT, "--resume", "--nu", "3")
    assert "another configuration: nu: 100.0, now 3.0" in line
    assert "give one of the two" in error_of(capsys, *words, "--resume", "--overwrite")
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before


def test_report_is_written_anew(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "report.html").unlink()
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "<html" in (run / "report.html").read_text()


def test_report_falls_back_to_the_previous_path_and_says_so(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    shutil.copy(run / "path.npz", run / "path.npz.previous")
    (run / "path.npz").write_bytes((run / "path.npz").read_bytes()[:500])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["report", str(run)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(run / "report.html")
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dessilbi: note: ")
    assert "path.npz is damaged" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "lenet-300-mnist"], "did you mean lenet300-mnist? There are: demo,"),
        (["train", "zzz"], "no preset is named 'zzz'. There are: demo, lenet300-mnist"),
        (["describe", "dem"], "did you mean demo?"),
        (["trian", "demo"], "no command 'trian'; did you mean train?"),
        (["train"], "the following arguments are required: PRESET (see dessilbi train --help)"),
        (["train", "demo", "--nu", "-1"], "nu must be a finite number above 0, got -1.0"),
        (["train", "demo", "--nu", "0"], "nu must be a finite number above 0, got 0.0"),
        (["train", "demo", "--kappa", "0"], "kappa must be a finite number above 0, got 0.0"),
        (["train", "demo", "--lam", "-0.5"], "lam must be a finite number above 0, got -0.5"),
        (["train", "demo", "--lam", "much"], "expected a number or 'auto', got 'much'"),
        (["train", "demo", "--lam", "1", "--density", "0.1"], "give one of the two"),
        (["train", "demo", "--learning-rate", "nan"], "--learning-rate must be a finite"),
        (["train", "demo", "--density", "1.5"], "density must be a finite number above 0 and at"),
        (["train", "demo", "--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
        (["train", "demo", "--epochs", "1.5"], "invalid int value: '1.5'"),
        (["train", "demo", "--variant", "tolbox"], "got 'tolbox'; did you mean toolbox?"),
        (["train", "demo", "--structure", "filter"], "got 'filter'; did you mean filters?"),
        (["train", "demo", "--optimizer", "lion"], "optimizer must be one of sgd, adam"),
        (["train", "demo", "--batch-size", "2000"], "--batch-size 2000 is larger than the 1293"),
        (["train", "demo", "--lam", "1e308"], "--lam must be a number that float32 holds"),
        (["train", "demo", "--kappa", "1e-40"], "--kappa must be a number that float32 holds"),
        (["train", "demo", "--density", "1e-9"], "less than one group of 1: give at least 2e-05"),
        (["train", "demo", "--seed", "9" * 30], "--seed must be an integer of at least 0 and at"),
        (["train", "demo", "--epochs", "100000000"], "100,000,000 records, of which a run can"),
        (["train", "demo", "--epochs", "200000000"], "updates, of which a run can have at most"),
        (["train", "demo", "--records-per-epoch", "9" * 20], "--records-per-epoch must be an"),
        (
            [
                "demo",
                "--distributed",
                "--coordinator",
                "here",
                "--processes",
                "2",
                "--process",
                "0",
            ],
            "--coordinator must be HOST:PORT of process 0, such as 10.0.0.1:1234, got 'here'",
        ),
        (["train", "demo", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["train", "demo", "--resume"], "nothing to resume: there is no run in runs/demo"),
        (["train", "lenet5-mnist", "--data-dir", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere is not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_error_is_one_line_and_leaves_nothing(words, message, capsys, tmp_path):
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert message in error_of(capsys, *words)
    finally:
        os.chdir(here)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_half_there_is_one_line(capsys, tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    line = error_of(
        capsys, "train", "lenet300-mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "o")
    )
    assert "mnist" in line
    assert not (tmp_path / "o").exists()


def test_a_folder_of_other_things_is_never_written_to(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for extra in ([], ["--overwrite"]):
        line = error_of(capsys, "demo", "--out", str(tmp_path), *extra)
        assert "not of a run (thesis.tex)" in line
    (tmp_path / "thesis.tex").rename(tmp_path / "config.json")
    error_of(capsys, "demo", "--out", str(tmp_path), "--overwrite")
    assert [f.read_text() for f in tmp_path.iterdir()] == ["mine"]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="nu must be a finite number"):
        cli.main(["train", "demo", "--nu", "0", "--debug"])
    with pytest.raises(ValueError, match="no preset is named"):
        cli.main(["--debug", "train", "zzz"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FloatingPointError("the loss is not\nfinite"), 1, "error: the loss is not finite"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd (--debug shows where)"),
        (PermissionError(13, "Permission denied", "/x"), 2, "Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "error: MemoryError"),
        (ModuleNotFoundError("No module named 'flax'"), 2, "pip install 'dessilbi_jax[train]'"),
        (ImportError("needs Pillow: pip install pillow"), 2, "error: needs Pillow: pip install pi"),
    ],
)
def test_exit_codes(error, code, line, monkeypatch, capsys):
    def fail(args, words):
        raise error

    monkeypatch.setattr(commands, "train", fail)
    assert cli.main(["demo"]) == code
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_warnings_are_one_line_and_the_handler_comes_back(monkeypatch, capsys):
    def warn(args, words):
        warnings.simplefilter("always")
        warnings.warn("path.npz is\ndamaged", stacklevel=1)

    monkeypatch.setattr(commands, "train", warn)
    before = warnings.showwarning
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().err == "dessilbi: note: path.npz is damaged\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_without_greek_is_written_all_the_same(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["describe", "demo"]) == 0
    stream.flush()
    assert b"\n  lam " in stream.buffer.getvalue()


def test_a_platform_that_is_not_there_is_named(monkeypatch, capsys):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(commands, "train", fail)
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert cli.main(["demo"]) == 2
    assert "error: JAX_PLATFORMS=cuda finds no device here: unset" in capsys.readouterr().err


@pytest.mark.process
def test_wrong_flags_of_xla_and_an_early_ctrl_c_are_one_line():
    words = [sys.executable, "-c", "import dessilbi_command as c; raise SystemExit(c.main())"]
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_flag_that_is_none=1"}
    done = subprocess.run([*words, "info"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: XLA_FLAGS=--xla_cpu_flag_that_is_none=1 cannot be used (Unknown" in done.stderr
    # As if the signal had come while the package is loaded.
    early = (
        "import sys, builtins, signal, dessilbi_command as c\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'jax': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Late())\n"
        "raise SystemExit(c.main())"
    )
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "dessilbi: interrupted\n")


def test_presets_lists_all_with_their_commands(capsys):
    assert cli.main(["presets"]) == 0
    out = capsys.readouterr().out
    assert all(preset.command in out and preset.about in out for preset in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_describe_shows_configuration_and_groups(name, capsys):
    assert cli.main(["describe", name, "--nu", "33"]) == 0
    out = capsys.readouterr().out
    assert "nu                33.0" in out
    assert "kernel" in out


def test_info_names_versions_and_devices(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "jax" in out
    assert "devices" in out


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_help(words, capsys):
    assert cli.main(words) == 0
    assert "usage: dessilbi" in capsys.readouterr().out


@pytest.mark.process
def test_help_and_presets_import_nothing_heavy():
    code = (
        "import sys, dessilbi_jax.cli as c\n"
        "assert c.main(['train', '--help']) == c.main(['presets']) == 0\n"
        "heavy = {'flax', 'orbax', 'matplotlib', 'tensorflow_datasets', 'array_record', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "[]", process.stderr


@pytest.mark.slow
@pytest.mark.process
def test_sigterm_leaves_a_run_that_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    words = ["demo", "--quiet", "--epochs", "100000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dessilbi_jax", *words], stderr=subprocess.PIPE, text=True
    )
    checkpoints = out / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("*/checksums.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    step = max(int(d.name) for d in checkpoints.iterdir())
    assert err == (
        f"dessilbi: stopped at step {step} of 2000000; go on with: "
        f"dessilbi train --resume --out {out}\n"
    )
    assert (checkpoints / str(step) / "checksums.json").exists()
    last = (out / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] <= step
