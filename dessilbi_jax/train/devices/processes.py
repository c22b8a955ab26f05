"""Runs of several processes: starting them, and what they have to agree upon."""

import re
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

WAIT_SECONDS = 300  # for the others, at the start


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> None:
    """Joins this process with the others of its run; to be called before JAX is used.

    On Cloud TPU, under SLURM and Open MPI everything is found by JAX itself; elsewhere all three
    arguments are needed.

    Args:
        coordinator: "host:port" of process 0, reachable from all.
        processes: how many there are.
        process: which this is, from 0.
        told: gets the text that says for what and how long it waits.

    Raises:
        ValueError: some of the three are given and not all; or none, where JAX finds nothing; or
            the others were not found.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(
            f"--{missing[0]} is missing: give --coordinator HOST:PORT, --processes N and "
            "--process K together, or none of them on a cluster that JAX knows"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ValueError(
            f"--coordinator must be HOST:PORT of process 0, such as 10.0.0.1:1234, got "
            f"{coordinator!r}"
        )
    if processes is not None and processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process must be from 0 to {processes - 1}, got {process}")
    where = f" at {coordinator}" if coordinator else ""
    told(f"waiting for the other processes{where}, up to {WAIT_SECONDS} s")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=WAIT_SECONDS
        )
    except (ValueError, RuntimeError, LookupError, OSError) as error:
        what = "this is no cluster that JAX knows" if missing else f"no run at {coordinator}"
        raise ValueError(
            f"cannot join the other processes, {what} ({_first_line(error)}): give "
            "--coordinator HOST:PORT (of process 0), --processes N and --process K"
        ) from error


def _first_line(error: Exception) -> str:
    """What an error says in one line; of one that only names a key, that it was not found."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{text} is not set" if isinstance(error, KeyError) else text


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def any_process(flag: int) -> int:
    """Returns the largest of the numbers that the processes give; all have to call this."""
    if jax.process_count() == 1:
        return flag
    return int(np.max(multihost_utils.process_allgather(np.int32(flag))))


def from_first(number: int) -> int:
    """Returns the number that process 0 gives; all have to call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def meet(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(text: bytes) -> list[bytes]:
    """Returns what each process gives, in their order; all have to call this."""
    if jax.process_count() == 1:
        return [text]
    longest = any_process(len(text))
    padded = np.zeros(longest + 4, np.uint8)
    padded[:4] = np.frombuffer(np.uint32(len(text)).tobytes(), np.uint8)
    padded[4 : 4 + len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[4 : 4 + int(np.frombuffer(row[:4].tobytes(), np.uint32)[0])].tobytes() for row in rows
    ]
