"""What a run says while it goes: a start line, a live line on a terminal, one line an epoch."""

import contextlib
import datetime
import math
import sys
import time
from typing import Any, TextIO

_REDRAW = 0.5  # seconds between two states of the live line


class Progress:
    """Prints the progress of a run.

    Args:
        stream: where to; standard error by default.
        lines: whether to print; by default only if `stream` is a terminal. Notes, which say that
            something is not as expected, are printed always.

    Example:
        >>> import io
        >>> out = io.StringIO()
        >>> Progress(out).note("path.npz is damaged")
        >>> out.getvalue()
        'note: path.npz is damaged\\n'
    """

    def __init__(self, stream: TextIO | None = None, lines: bool | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._lines = self._terminal if lines is None else lines
        self._drawn = 0.0
        self._mark = 0, time.monotonic()  # where the step rate counts from: the last line
        self._first = self._mark  # where the time left counts from
        self._width = 0

    def begin(self, step: int) -> None:
        """Says that the run goes on from `step`: rate and time left count from here."""
        self._mark = self._first = step, time.monotonic()

    def due(self) -> bool:
        """Returns whether the live line should be drawn anew."""
        return self._lines and self._terminal and time.monotonic() - self._drawn > _REDRAW

    def live(self, step: int, steps: int, loss: float) -> None:
        """Draws the live line."""
        self._drawn = time.monotonic()
        self._write(
            f"step {step}/{steps}  {self._rate(step)}  {self._left(step, steps)}  loss {loss:.4f}",
            "",
        )

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Prints the line of an epoch, from its record; one of retraining has no projection."""
        if self._lines:
            loss = math.nan if line["loss"] is None else line["loss"]
            step, epoch = line["step"], line["epoch"]
            text = (
                f"epoch {epoch:.0f}/{epochs}  {self._rate(step)}  "
                f"{self._left(step, round(step / epoch * epochs))}  loss {loss:.4f}  "
            )
            if "projected_accuracy" in line:
                text += (
                    f"dense {line['accuracy']:.1%}  projected {line['projected_accuracy']:.1%}  "
                    f"density {line['density']:.2%}"
                )
            else:
                text += f"held-out {line['accuracy']:.1%}"
            self._write(text, "\n")
        self._mark = line["step"], time.monotonic()

    def line(self, text: str) -> None:
        """Prints a line, where lines are printed."""
        if self._lines:
            self._write(text, "\n")

    def note(self, text: str) -> None:
        """Prints a line that is worth knowing wherever the output goes."""
        self._write(f"note: {text}", "\n")

    def _rate(self, step: int) -> str:
        """Returns the step rate since the last line; where it is below 1 a second, its inverse."""
        first, began = self._mark
        seconds = max(time.monotonic() - began, 1e-9)
        if 0 < step - first < seconds:
            return f"{seconds / (step - first):.3g} s/step"
        return f"{(step - first) / seconds:.0f} steps/s"

    def _left(self, step: int, steps: int) -> str:
        """Returns the time left, from the mean rate since the start."""
        first, began = self._first
        if step <= first:
            return "? left"
        seconds = (time.monotonic() - began) / (step - first) * (steps - step)
        return f"{datetime.timedelta(seconds=round(seconds))} left"

    def _write(self, text: str, end: str) -> None:
        """Writes over the live line, if there is one."""
        over = f"\r{' ' * self._width}\r" if self._width else ""
        self._width = 0 if end else len(text)
        # A terminal that was closed takes nothing more, and the run goes on to its checkpoint.
        with contextlib.suppress(OSError):
            self._stream.write(over + text + end)
            self._stream.flush()
