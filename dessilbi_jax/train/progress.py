"""What a run says while it goes: a live line and one line an epoch, on a terminal only."""

import contextlib
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
        self._width = 0

    def begin(self, step: int) -> None:
        """Says that the run goes on from `step`: the step rate counts from here."""
        self._mark = step, time.monotonic()

    def due(self) -> bool:
        """Returns whether the live line should be drawn anew."""
        return self._lines and self._terminal and time.monotonic() - self._drawn > _REDRAW

    def live(self, step: int, steps: int, loss: float) -> None:
        """Draws the live line."""
        self._drawn = time.monotonic()
        self._write(f"step {step}/{steps}  {self._rate(step):.0f} steps/s  loss {loss:.4f}", "")

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Prints the line of an epoch, from its record; one of retraining has no projection."""
        if self._lines:
            loss = math.nan if line["loss"] is None else line["loss"]
            text = (
                f"epoch {line['epoch']:.0f}/{epochs}  {self._rate(line['step']):.0f} steps/s  "
                f"loss {loss:.4f}  "
            )
            if "projected_accuracy" in line:
                text += (
                    f"dense {line['accuracy']:.1%}  projected {line['projected_accuracy']:.1%}  "
                    f"density {line['density']:.2%}"
                )
            else:
                text += f"held-out {line['accuracy']:.1%}"
            self._write(text, "\n")
        self.begin(line["step"])

    def note(self, text: str) -> None:
        """Prints a line that is worth knowing wherever the output goes."""
        self._write(f"note: {text}", "\n")

    def _rate(self, step: int) -> float:
        first, began = self._mark
        return (step - first) / max(time.monotonic() - began, 1e-9)

    def _write(self, text: str, end: str) -> None:
        """Writes over the live line, if there is one."""
        over = f"\r{' ' * self._width}\r" if self._width else ""
        self._width = 0 if end else len(text)
        # A terminal that was closed takes nothing more, and the run goes on to its checkpoint.
        with contextlib.suppress(OSError):
            self._stream.write(over + text + end)
            self._stream.flush()
