"""One process at a time writes a run's folder."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dessilbi_jax import run_files
from dessilbi_jax.train.devices import processes


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """`locked`, for runs of one or more processes: the first one has the lock.

    Raises:
        FileExistsError: another run has it; raised in all processes.
        OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        problem: OSError | None = None
        if processes.is_first():
            try:
                stack.enter_context(locked(run))
            except OSError as error:
                problem = error
        if processes.any_process(int(problem is not None)):
            raise problem or FileExistsError(f"process 0 cannot write the run in {run}")
        yield


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Context in which this process alone writes the folder of a run.

    The lock is the system's, on the file run.lock: it ends with the process, however that ends.

    Raises:
        FileExistsError: another process has it; the message says which.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run, locked(Path(run)):
        ...     with locked(Path(run)):
        ...         pass
        Traceback (most recent call last):
        ...
        FileExistsError: process ... is writing the run in ...
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / run_files.LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise FileExistsError(
                f"{holder} is writing the run in {run}: wait for it or give another folder with "
                "--out"
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        yield
