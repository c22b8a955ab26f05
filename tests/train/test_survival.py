"""What happens to long runs: kills, signals, full and read-only disks, data that is gone."""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from train_runs import TINY, Quiet, StopAt

from benchmarks import kill
from dessilbi_jax import cli, train
from dessilbi_jax.train import feeds
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder import checkpoints as checkpoint
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.checkpoints import Checkpoints, Snapshot
from dessilbi_jax.train.step import first_state

# 40 steps, a checkpoint each 3 of them, and kept are the last one and the best.
WORDS = ["demo", "--no-settle", "--epochs", "4", "--density", "0.3", "--batch-size", "128"]
WORDS += ["--checkpoint-steps", "3", "--keep", "1"]
BEST, STOPPED = 10, 13  # steps; accuracy is measured at the ends of epochs
RECORDS_FIT = 15_000  # bytes: path.npz and norms.npz are smaller, Orbax's list of arrays larger


class Killed(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the processes that it starts
        yield kill.Harness(tmp_path_factory.mktemp("harness"), seed=0)


@contextlib.contextmanager
def at_step(step, act):
    """Runs of the command do something after that many steps; signals are seen one step later."""
    left = step

    def due(self):
        nonlocal left
        left -= 1
        if left == 0:
            act()
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "due", due)
        yield


def command(out, *extra):
    return cli.main([*WORDS, "--quiet", "--out", str(out), *extra])


def error_of(capsys, out, *extra):
    """Runs a command that must fail with one line; returns it."""
    capsys.readouterr()
    assert command(out, *extra) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dessilbi: error: ")
    return captured.err


def contents(run):
    return {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the command that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command(out) == 0
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run stopped by SIGTERM, its checkpoint slow to be written."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    completed, complete = [], Checkpoints._complete

    def slowly(self):
        signal.sigtimedwait([signal.SIGUSR1], 0.3)  # a while in which this thread does nothing
        complete(self)
        completed.append(self._pending[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "_complete", slowly)
        with at_step(STOPPED - 1, lambda: signal.raise_signal(signal.SIGTERM)):
            assert command(out) == 128 + signal.SIGTERM
        assert completed == [3, 6, 9, BEST, 12, STOPPED]
    names = [f.name for f in (out / "checkpoints").iterdir()]
    assert sorted(names) == [str(BEST), str(STOPPED)]
    return out


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the run that was stopped."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.process
def test_a_run_killed_twice_ends_as_one_that_was_not(harness):
    outcome = harness.killed("streamed", ["training"] * 2)
    assert outcome["differences"] == []
    steps = [seen["checkpoint"] for seen in outcome["kills"]]
    assert len(steps) == 2
    assert steps == sorted(steps)


def test_the_harness_sees_what_differs(whole, tmp_path):
    assert kill.differences(whole, whole) == []
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    text = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join([*text, text[-1]]))
    (other / "norms.npz.part").touch()
    shutil.copytree(other / "checkpoints" / "40", other / "checkpoints" / "39")
    assert kill.differences(other, whole) == [
        "norms.npz.part is in one of them only",
        "metrics.jsonl differs",
        "checkpoints ['39', '40'], expected ['40']",
    ]


def test_a_stopped_run_goes_on_and_what_was_half_written_is_gone(run, whole):
    for name in ("path.npz.99.part", ".report.html.7.tmp", "weights/30.safetensors.part"):
        (run / name).write_bytes(b"half")
    (run / "checkpoints" / "14.orbax-checkpoint-tmp").mkdir()
    assert command(run, "--resume") == 0
    assert kill.differences(run, whole) == []
    (run / "report.html").unlink()  # as a kill just before the end leaves it
    assert command(run, "--resume") == 0
    assert kill.differences(run, whole) == []


def test_a_second_sigterm_acts_while_the_first_one_saves(whole, tmp_path):
    run, acted, complete = tmp_path / "run", threading.Event(), Checkpoints._complete

    def act(signum, frame):
        acted.set()
        raise Killed

    def signalled_again(self):
        if self._pending[0] == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
            assert acted.wait(300)
            raise OSError("the thread that saves ends too")
        complete(self)

    before = signal.signal(signal.SIGTERM, act)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "_complete", signalled_again)
            stop = at_step(STOPPED - 1, lambda: signal.raise_signal(signal.SIGTERM))
            with stop, pytest.raises(Killed):
                command(run)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == [str(BEST), "12"]
    assert command(run, "--resume") == 0
    assert kill.differences(run, whole) == []


@pytest.mark.parametrize(
    ("room", "what"),
    [(RECORDS_FIT, "the checkpoint of step 15 could"), (2_000, "the run can")],
    ids=["a checkpoint does not fit", "nothing fits"],
)
def test_a_full_disk_loses_nothing(run, whole, capsys, room, what):
    before = contents(run / "checkpoints")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        line = error_of(capsys, run, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"error: {what}not be written ([Errno 27] File too large" in line.replace(" not", "not")
    assert f"last good checkpoint: {run / 'checkpoints' / str(STOPPED)}. Make room" in line
    assert "go on with --resume" in line
    assert contents(run / "checkpoints") == before
    assert not list(run.rglob("*.part")) + list(run.rglob("*tmp*"))
    assert command(run, "--resume") == 0
    assert kill.differences(run, whole) == []


def test_sigterm_on_a_full_disk_does_not_promise_a_checkpoint(run, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (RECORDS_FIT, hard))
        signal.raise_signal(signal.SIGTERM)

    try:
        with at_step(1, fill):
            line = error_of(capsys, run, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"checkpoint of step {STOPPED + 2} could not be written" in line
    assert f"last good checkpoint: {run / 'checkpoints' / str(STOPPED)}." in line


@contextlib.contextmanager
def bound_by_permissions():
    """This thread may write no more than the permissions of files say, as root too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~0b10  # CAP_DAC_OVERRIDE, in the effective set
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="root is bound by capabilities on Linux only")
def test_a_read_only_folder_is_left_as_it_is(run, tmp_path, capsys):
    before, files = contents(run), [run, *run.rglob("*")]
    try:
        for file in files:
            file.chmod(0o555 if file.is_dir() else 0o444)
        with bound_by_permissions():
            line = error_of(capsys, run, "--resume")
            assert f"the run cannot be written ([Errno 13] Permission denied: '{run}/" in line
            assert f"last good checkpoint: {run / 'checkpoints' / str(STOPPED)}. Make" in line
            line = error_of(capsys, run, "--overwrite")
            assert "Permission denied" in line
            line = error_of(capsys, run / "weights" / "new")
            assert line.endswith("or give write permission, then start it again\n")
    finally:
        for file in files:
            file.chmod(0o755)
    assert contents(run) == before


def test_nobody_else_can_write_the_folder_of_a_run_that_goes_on(whole, tmp_path, capsys):
    run, codes, lines = tmp_path / "run", [], []

    def interfere():
        capsys.readouterr()
        # From the same process: the lock is that of an open file. test_lock.py has another one.
        codes.extend(command(run, word) for word in ("--overwrite", "--resume"))
        lines.extend(capsys.readouterr().err.splitlines())

    with at_step(STOPPED, interfere):
        assert command(run) == 0
    assert codes == [2, 2]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"dessilbi: error: process {os.getpid()} on ")
        assert f"is writing the run in {run}: wait for it" in line
    assert kill.differences(run, whole) == []


def test_another_preset_or_option_is_refused_and_nothing_changes(run, capsys):
    before = contents(run)
    for words, message in (
        (["demo", "--nu", "3"], "another configuration: nu: 100.0, now 3.0"),
        (["train", "lenet300-mnist"], "dataset: 'digits', now 'mnist'"),
    ):
        assert cli.main([*words, *WORDS[1:8], "--out", str(run), "--resume"]) == 2
        assert message in capsys.readouterr().err
    assert contents(run) == before


def test_data_that_is_gone_or_damaged_and_comes_back(tmp_path):
    run, images = tmp_path / "run", tmp_path / "images"
    kill.write_images(images)
    config = dataclasses.replace(kill.config("streamed"), network="lenet300", widths=(8,), epochs=4)

    def go_on(progress=None, resume=True, out=run):
        train.fit(config, out, data_dir=images, resume=resume, progress=progress or Quiet())

    go_on(resume=False, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go_on(StopAt(2), resume=False)
    before = contents(run)
    image = images / "train" / "light" / "001.jpg"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ValueError, match=r"the data is not what the run in .* began with \(.*now"):
        go_on()
    assert contents(run) == before
    image.write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"light/001\.jpg"):
        go_on()
    image.write_bytes(content)
    go_on()
    assert kill.differences(run, tmp_path / "whole") == []


def poison(monkeypatch, bad):
    """Images of steps that `bad` says are not numbers; steps count from 0."""
    pick = feeds.Resident.pick

    def poisoned(self, given, step):
        x, y = pick(self, given, step)
        return jnp.where(bad(step), jnp.nan, x.astype(jnp.float32)), y

    monkeypatch.setattr(feeds.Resident, "pick", poisoned)


def test_steps_that_are_not_finite_are_skipped_and_counted(monkeypatch, tmp_path):
    poison(monkeypatch, lambda step: (step == 0) | (step == 4))
    config = dataclasses.replace(TINY, network="lenet300", nonfinite="skip", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train.fit(config, tmp_path / "run", progress=StopAt(1))
    result = train.fit(config, tmp_path / "run", resume=True, progress=Quiet())
    assert (result["steps"], result["skipped"]) == (20, 2)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["step"], line["skipped"]) for line in lines] == [
        (1, 1), (3, 1), (9, 2), (10, 2), (20, 2),
    ]  # fmt: skip
    assert [line["loss"] is None for line in lines] == [True, False, False, False, False]
    assert "NaN" not in text + (tmp_path / "run" / "result.json").read_text()
    page = re.sub(r"base64,[^\"']*", "", (tmp_path / "run" / "report.html").read_text())
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_a_run_of_which_every_step_is_skipped_stops_without_a_report(monkeypatch, tmp_path):
    poison(monkeypatch, lambda step: step >= 10)
    config = dataclasses.replace(TINY, network="lenet300", nonfinite="skip")
    with pytest.raises(FloatingPointError) as caught:
        train.fit(config, tmp_path / "run", progress=Quiet())
    message = str(caught.value)
    assert "the loss of every step of an epoch is not finite at step 20 (epoch 2.00)" in message
    assert f"last good checkpoint: {tmp_path / 'run' / 'checkpoints' / '10'}." in message
    assert not (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("calls", range(9))
def test_overwriting_that_was_cut_off_can_be_done_again(run, monkeypatch, calls):
    (run / "result.json").write_text("{}")
    config, left = folder.read_config(run), calls

    def counted(act):
        def then(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return act(*args, **kwargs)

        return then

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(os, "replace", counted(os.replace))
        with pytest.raises(Killed):
            folder.start(run, config, preset="", command="", data={})
    if calls:
        assert not (run / "result.json").exists()
    assert folder.check(run, config, resume=False, overwrite=True) == "new"
    folder.start(run, config, preset="", command="", data={})
    assert sorted(f.name for f in run.iterdir()) == ["config.json", "run.lock"]


def test_half_a_config_json_is_a_new_run_and_files_of_others_stay(tmp_path):
    (tmp_path / "config.json.part").write_text("{")
    assert folder.check(tmp_path, TINY, resume=False, overwrite=False) == "new"
    folder.start(tmp_path, TINY, preset="", command="", data={})
    (tmp_path / "film.part").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not of a run \(film\.part\); none is deleted"):
        folder.check(tmp_path, TINY, resume=False, overwrite=True)


def test_the_best_checkpoint_of_a_run_that_was_resumed_is_kept(tmp_path):
    state = first_state({"w": jnp.ones(3)}, {}, optax.sgd(0.1))

    def save(*saved):
        with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
            for step, accuracy in saved:
                snapshot = Snapshot(state._replace(step=jnp.int32(step)), {}, 1.0)
                checkpoints.save(snapshot, accuracy)
        return sorted(int(d.name) for d in (tmp_path / "checkpoints").iterdir())

    assert save((10, 0.5), (20, 0.9), (30, 0.6)) == [20, 30]
    assert save((40, 0.7), (50, None)) == [20, 50]
    assert save((60, 0.9), (70, 0.1)) == [60, 70]
    assert checkpoint.newest(tmp_path / "checkpoints").name == "70"
