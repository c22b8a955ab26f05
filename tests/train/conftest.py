"""The run that several tests look at."""

from pathlib import Path

import pytest
from train_runs import TINY, Quiet

from dessilbi_jax import train


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, dict, str]:
    """A run that was never stopped: its folder, its result, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    progress = Quiet()
    result = train.fit(TINY, run, command="dessilbi train tiny", progress=progress)
    return run, result, progress.out.getvalue()
