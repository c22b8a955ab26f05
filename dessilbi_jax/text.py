"""Text for people: tables in columns, the name that was probably meant, and readers that leave."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


def columns(rows: Sequence[Sequence[str]], right: Collection[int], *, rule: bool = False) -> str:
    """Returns cells in columns of equal width, two spaces apart.

    Args:
        rows: rows of equally many cells.
        right: numbers of the columns whose cells stand at the right, from 0.
        rule: whether a line is drawn under the first row.

    Raises:
        ValueError: rows of unequal length.

    Example:
        >>> print(columns([("layer", "kept"), ("fc1/kernel", "7")], right={1}, rule=True))
        layer       kept
        ----------------
        fc1/kernel     7
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Returns the known name most like `name`, None where none is alike.

    Args:
        name: what was given.
        known: what there is.
        cutoff: how alike they must be, from 0 (anything) to 1 (equal).

    Example:
        >>> nearest("mnits", ["cifar10", "mnist"])
        'mnist'
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def near_miss(name: str, known: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the known name nearest to `name`, or ''.

    Example:
        >>> near_miss("lenet30-mnist", ["demo", "lenet300-mnist"])
        '; did you mean lenet300-mnist?'
    """
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def check_pattern(pattern: str, argument: str) -> None:
    """Raises unless a pattern that was given as `argument` is a regular expression.

    Raises:
        TypeError: it is no string.
        ValueError: it is none.

    Example:
        >>> check_pattern("fc(", "drop")
        Traceback (most recent call last):
        ...
        ValueError: drop: 'fc(' is no regular expression (missing ), unterminated subpattern at
        position 2); a literal bracket or dot has a backslash before it
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{argument}: a pattern must be a string, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{argument}: {pattern!r} is no regular expression ({error}); a literal bracket or dot "
            "has a backslash before it"
        ) from None


def until_reader_leaves(run: Callable[[], int]) -> int:
    """Runs a command whose output may be read by one that ends first, as `head` does.

    Args:
        run: the command; it prints to standard output and returns its exit code.

    Returns:
        The exit code of the command, or 1 if the reader of its output has left.

    Raises:
        Exception: whatever `run` raises, except `BrokenPipeError`.

    Example:
        >>> until_reader_leaves(lambda: print("a table") or 0)
        a table
        0
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # here, since the interpreter's own at its exit cannot be caught
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what is still in the buffer
        os.close(nowhere)
        return 1


def changes(sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A line for each size, with what it was, what it is and the share.

    Example:
        >>> changes({"numbers": (1000, 250)})
        ['numbers               1,000 ->             250  (25.0%)']
    """
    return [
        f"{name:10}  {a:>15,} -> {b:>15,}  ({b / max(a, 1):.1%})" for name, (a, b) in sizes.items()
    ]
