"""Sections of a benchmark within one time limit: none takes the others down."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Clock:
    """The moment by which work has to end, in seconds of `time.monotonic`."""

    end: float

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.end - time.monotonic()

    def part(self, share: float) -> "Clock":
        """The clock of a section that may take a share of what is left."""
        return Clock(time.monotonic() + share * max(self.left, 0.0))


@dataclasses.dataclass(frozen=True)
class Section:
    """One question.

    Attributes:
        run: from its clock to what was measured; it looks at the clock between programs.
        share: of the time left that it may take.
        least: seconds without which it is not begun.
    """

    run: Callable[[Clock], Any]
    share: float
    least: float


def run_sections(
    sections: Mapping[str, Section], clock: Clock, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What each section measured; an error in one is noted, and the next goes on.

    Args:
        sections: in their order.
        clock: of all of them.
        keep: is given all results so far after every section, to write them down.
    """
    results: dict[str, Any] = {}
    for name, section in sections.items():
        began = time.monotonic()
        if clock.left < section.least:
            left = max(clock.left, 0.0)
            results[name] = {"left_out": f"{left:.0f} s were left, {section.least:.0f} are needed"}
        else:
            try:
                found = section.run(clock.part(section.share))
            except Exception as error:  # whatever a device, its compiler or its memory has
                lines = traceback.format_exc().strip().splitlines()
                found = {"error": f"{type(error).__name__}: {error}"[:2000], "at": lines[-8:]}
            results[name] = {**found, "seconds": round(time.monotonic() - began, 1)}
        keep(results)
    return results
