"""Several real processes that talk over loopback train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from made_images import write_folder
from process_worker import CONFIG
from same_run import assert_close, assert_same_run, lines
from train_runs import Quiet

import dessilbi_jax as dl
from dessilbi_jax import data, train
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.run_folder.checkpoints import newest

pytestmark = pytest.mark.process
PATIENCE = 300  # seconds, on a machine that does much else
WORKER = Path(__file__).with_name("process_worker.py")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder in which processes find what others have compiled."""
    return tmp_path_factory.mktemp("compiled")


def start(words, compiled, devices=1):
    """One more process, with so many virtual devices."""
    root = str(Path(dl.__file__).parents[1])
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilations take most of the time
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(started, code=0):
    """What the processes printed; all have to end with that code."""
    try:
        printed = [process.communicate(timeout=PATIENCE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [code] * len(started), "\n".join(printed)
    return printed


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(scenario, count, folder, mesh, compiled, devices=1):
    """What each of so many processes says at the end of a scenario."""
    port = free_port()
    words = [[WORKER, port, count, k, scenario, folder, mesh] for k in range(count)]
    ended([start(each, compiled, devices) for each in words])
    return [json.loads((folder / f"said.{k}.json").read_text()) for k in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on one device."""
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, train.fit(CONFIG, run, progress=Quiet())


@pytest.fixture(scope="module")
def two(tmp_path_factory, compiled):
    """The folder of two processes, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    write_folder(folder / "images")
    return folder, together("two", 2, folder, "fsdp", compiled)


def untimed(result):
    return {k: v for k, v in result.items() if k != "seconds"}


def assert_together(said, count):
    """Whether the processes agree, divide batches among them, and count each row once."""
    assert {each["processes"] for each in said} == {count}
    assert all(each["gathered"] == [f"from {k}" for k in range(count)] for each in said)
    assert [each["first"] for each in said] == [7] * count
    digits = data.load("digits")
    assert all(each["evaluated"] == [360, int(digits.test_labels.sum())] for each in said)
    rows = [each["rows"] for each in said]
    shards = {r["shard"]: r["labels"][-1] for r in rows}
    assert sorted(shards) == list(range(rows[0]["shards"]))
    assert [n for k in sorted(shards) for n in shards[k]] == rows[0]["global"]


@pytest.mark.slow
def test_two_processes_train_as_one(two, alone):
    folder, said = two
    assert_together(said, 2)
    run, expected = alone
    assert_same_run(folder / "whole", run)
    names = ("test_accuracy", "test_projected_accuracy", "test_loss", "density")
    for each in said:
        assert untimed(each["result"]) == untimed(said[0]["result"])
        assert_close(*({name: r[name] for name in names} for r in (each["result"], expected)))
    assert said[0]["result"]["mesh"] == "fsdp=2"
    assert expected["cut"] is not None
    assert said[0]["result"]["cut"] == expected["cut"]
    assert json.loads((folder / "whole" / "result.json").read_text()) == said[0]["result"]
    assert sorted(f.name for f in (folder / "whole").iterdir()) == sorted(
        f.name for f in run.iterdir()
    )


def test_a_finished_run_of_two_processes_is_left_alone(two):
    for each in two[1]:
        assert each["again"] == two[1][0]["result"]  # what process 0 wrote
        assert "holds another run" in each["refused"]


def test_one_process_is_asked_to_stop_and_all_do(two):
    folder, said = two
    for each in said:
        assert each["signum"] == signal.SIGTERM
        assert "stopped at step 20 of 42" in each["stopped"]
    whole, stopped = folder / "whole", folder / "stopped"
    assert lines(stopped) == lines(whole)  # bit for bit, no line missing or twice
    for a, b in zip(
        *(jax.tree.leaves(train.load_params(r)) for r in (stopped, whole)), strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_one_process_goes_on_where_two_stopped(two, alone):
    folder, _ = two
    progress = Quiet()
    train.fit(CONFIG, folder / "for one", resume=True, progress=progress)
    assert "the mesh has changed (fsdp=2, now data=1)" in progress.out.getvalue()
    assert_same_run(folder / "for one", alone[0])


@pytest.mark.slow
def test_four_processes_divide_kernels_and_rows(tmp_path, alone, compiled):
    write_folder(tmp_path / "images")
    said = together("four", 4, tmp_path, "fsdp=2,tensor=2", compiled)
    assert_together(said, 4)
    assert said[0]["rows"]["shards"] == 2  # two of them bring the same rows
    assert_same_run(tmp_path / "whole", alone[0])


@pytest.mark.slow
def test_sigterm_to_one_of_two_commands_ends_both_with_143(tmp_path, compiled):
    run = tmp_path / "run"
    words = ["-m", "dessilbi_jax", "demo", "--out", run, "--epochs", "1000", "--mesh", "data"]
    words += ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    started = [start([*words, "--process", k], compiled) for k in range(2)]
    deadline = time.monotonic() + PATIENCE
    while newest(run / "checkpoints") is None and time.monotonic() < deadline:
        assert all(process.poll() is None for process in started), ended(started)
        time.sleep(0.05)
    started[1].terminate()
    printed = ended(started, 128 + signal.SIGTERM)
    assert all("go on with: dessilbi demo" in text for text in printed)
    params, _ = train.load_params(run)  # of a checkpoint that is good
    assert params["fc1"]["kernel"].shape == (64, 300)
    assert json.loads((run / "config.json").read_text())["mesh"] == "data=2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", 2, None), "--process is missing: give --coordinator HOST:PORT"),
        ((None, 2, 0), "--coordinator is missing"),
        (("127.0.0.1:1", 2, 2), "--process must be from 0 to 1, got 2"),
        ((None, None, None), "this is no cluster that JAX knows"),
    ],
)
def test_processes_that_cannot_start(given, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*given)
