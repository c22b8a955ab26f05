import io

import pytest

from dessilbi_jax.train import progress as module
from dessilbi_jax.train.progress import Progress

LINE = {
    "step": 30, "epoch": 3.0, "loss": 0.5, "accuracy": 0.975, "projected_accuracy": 0.9,
    "density": 0.051,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def shown(text):
    """What a terminal shows in the end: a carriage return goes back, spaces erase."""
    lines = [""]
    for char in text:
        if char == "\n":
            lines.append("")
        elif char == "\r":
            lines[-1] = lines[-1].rstrip(" ") and "\r" + lines[-1].lstrip("\r")
        elif lines[-1].startswith("\r"):
            lines[-1] = char
        else:
            lines[-1] += char
    return [line.strip() for line in lines]


def test_the_live_line_is_drawn_twice_a_second_and_gives_way(clock):
    out = Terminal()
    progress = Progress(out)
    progress.begin(10)
    assert progress.due()
    clock[0] += 2
    progress.live(20, 60, 0.75)
    assert out.getvalue() == "step 20/60  5 steps/s  0:00:08 left  loss 0.7500"
    assert not progress.due()
    clock[0] += 0.6
    assert progress.due()
    clock[0] += 1.4
    progress.epoch(LINE, 6)
    assert shown(out.getvalue()) == [
        "epoch 3/6  5 steps/s  0:00:06 left  loss 0.5000  dense 97.5%  projected 90.0%  "
        "density 5.10%",
        "",
    ]
    clock[0] += 1
    progress.live(32, 60, 0.5)  # the rate counts from the last epoch's line
    assert shown(out.getvalue())[-1] == "step 32/60  2 steps/s  0:00:06 left  loss 0.5000"


@pytest.mark.parametrize(("lines", "expected"), [(None, 1), (True, 2)])
def test_without_a_terminal_notes_and_what_was_asked_for(clock, lines, expected):
    out = io.StringIO()
    progress = Progress(out, lines)
    clock[0] += 10
    assert not progress.due()
    progress.epoch(LINE, 6)
    progress.note("odd")
    assert len(out.getvalue().splitlines()) == expected
    assert out.getvalue().endswith("note: odd\n")
    assert "\r" not in out.getvalue()


def test_a_slow_step_is_told_in_seconds(clock):
    out = Terminal()
    progress = Progress(out)
    progress.begin(0)
    progress.live(0, 60, 0.75)
    assert shown(out.getvalue())[-1] == "step 0/60  0 steps/s  ? left  loss 0.7500"
    clock[0] += 75
    progress.live(30, 5000, 0.75)
    assert shown(out.getvalue())[-1] == "step 30/5000  2.5 s/step  3:27:05 left  loss 0.7500"


def test_a_closed_terminal_does_not_end_the_run(clock):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    Progress(Closed(), True).line("training")
