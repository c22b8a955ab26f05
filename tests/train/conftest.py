"""The run that several tests look at."""

import functools
from pathlib import Path

import pytest
from train_runs import CHANNELS, TINY, Quiet, StopAt, in_haste

from dessilbi_jax import train
from dessilbi_jax.train.finished import latency


@pytest.fixture(scope="session", autouse=True)
def quick_latencies():
    """Latencies are measured with the least number of samples."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(latency.measure, seconds=0.0)
        patch.setattr("dessilbi_jax.train.finished.make_slim.measure", quick)
        yield


@pytest.fixture(scope="module", autouse=True)
def haste():
    """The tests compile as the runs below do, which may be made before or within a module."""
    with in_haste():
        yield


@pytest.fixture(scope="module", autouse=True)
def blank_pictures():
    """Reports are written without drawing: what is in the pictures is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dessilbi_jax.report.style.svg", lambda figure, background="none": b"<svg/>")
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, dict, str]:
    """A run that was never stopped: its folder, its result, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    progress = Quiet()
    with in_haste():
        result = train.fit(TINY, run, command="dessilbi train tiny", progress=progress)
    return run, result, progress.out.getvalue()


@pytest.fixture(scope="session")
def channel_run(tmp_path_factory) -> Path:
    """A run that selects hidden units, was stopped and resumed; tests must not change it."""
    run = tmp_path_factory.mktemp("channels") / "run"
    with in_haste():
        with pytest.raises(KeyboardInterrupt):
            train.fit(CHANNELS, run, preset="small", progress=StopAt(2))
        train.fit(CHANNELS, run, resume=True, progress=Quiet())
    return run


@pytest.fixture(scope="session")
def ticket_file(channel_run, tmp_path_factory) -> Path:
    """A ticket of 9 of its 28 units, in a folder of its own; tests must not change it."""
    file = tmp_path_factory.mktemp("ticket") / "ticket.npz"
    with in_haste():
        train.take_ticket(channel_run, size={"groups": 9}, out=file)
    return file


@pytest.fixture(scope="session")
def retrained(ticket_file) -> Path:
    """That ticket retrained from the second epoch; tests must not change it."""
    with in_haste():
        train.retrain(ticket_file, start="2", epochs=2, seed=5, progress=Quiet())
    return ticket_file.with_name("retrained")


@pytest.fixture(scope="session")
def slimmed(ticket_file, retrained) -> Path:
    """The retrained network cut out; tests must not change it."""
    with in_haste():
        train.make_slim(ticket_file, params_from=retrained, batches=(1, 3))
    return ticket_file.with_name("slim")
