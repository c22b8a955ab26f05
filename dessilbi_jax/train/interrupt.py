"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal) end a run between two steps, checkpointed."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal and can be resumed.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Signals:
    """Context in which the first SIGINT, SIGTERM or SIGHUP only sets `received`; a second one acts.

    Outside the main thread, where Python allows no handlers, nothing is changed; a signal that is
    ignored, as nohup and a shell's `&` have it, stays so.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._put_back()

    def _put_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._put_back()
