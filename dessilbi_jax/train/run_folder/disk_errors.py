"""What Orbax and TensorStore have to say of trouble with a disk, as one line instead of many."""

import contextlib
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_LONGEST = 200  # characters of a message that names no error of the system
_LATE = r"Event loop is closed$|coroutine 'async_serialize.*' was never awaited"
_LOGGERS = ("absl", "asyncio")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which Orbax and TensorStore print nothing; what went wrong is raised anyway.

    Orbax logs each error of its threads with its traceback, and Python tells of each call that
    nobody waits for any more. Hundreds of lines would hide the one that counts. Calls of
    TensorStore may end after this does, so that these stay untold for good.
    """
    if not isinstance(sys.unraisablehook, _ButLateCalls):
        sys.unraisablehook = _ButLateCalls(sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_no_late_call)
    warnings.filterwarnings("ignore", _LATE, RuntimeWarning)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _ButLateCalls:
    """`sys.unraisablehook` that leaves out calls of an event loop that has ended."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if not re.match(_LATE, str(unraisable.exc_value)):
            self._before(unraisable)


def _no_late_call(record: logging.LogRecord) -> bool:
    """Returns whether a line of asyncio's log is of anything else than such a call's error."""
    return "OCDBT" not in (text := record.getMessage()) or "never retrieved" not in text


def forget() -> None:
    """Frees what a write that failed has left, while `quiet`, as each call tells of its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gc.collect()


def reason(error: BaseException) -> str:
    """Returns what went wrong: the system's error if there is one, else the first line told.

    Example:
        >>> reason(ValueError("OUT_OF_RANGE: cannot open [os_error_code='27'] [spec='{}']"))
        '[Errno 27] File too large'
        >>> reason(OSError(28, "No space left on device"))
        '[Errno 28] No space left on device'
    """
    text = str(error).strip()
    if code := re.search(r"os_error_code='(\d+)'", text):
        return f"[Errno {code[1]}] {os.strerror(int(code[1]))}"
    line = (text.splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
