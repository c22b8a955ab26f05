import multiprocessing
import os

import pytest

from dessilbi_jax.train.run_folder.lock import alone, locked


def hold(run, held, release):
    with locked(run):
        held.set()
        release.wait(30)


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(60)
    with (
        pytest.raises(FileExistsError, match=f"process {other.pid} on .* is writing the run in"),
        alone(tmp_path),
    ):
        pass
    other.kill()  # without any chance to clean up
    other.join()
    with alone(tmp_path):
        assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    with locked(tmp_path):
        pass
