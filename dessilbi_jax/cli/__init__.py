"""The command `dessilbi`.

Every error of the user is one line on standard error and exit code 2; a run that failed for
another reason ends with 1, one stopped by a signal with 128 and the signal's number.
"""

import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from dessilbi_jax.cli import finished as tickets
from dessilbi_jax.cli import train as commands
from dessilbi_jax.cli.parser import COMMANDS, as_typed, make_parser
from dessilbi_jax.text import near_miss, until_reader_leaves
from dessilbi_jax.train.devices.allocator import keep_memory
from dessilbi_jax.train.presets import PRESETS

_EXTRA = "dessilbi_jax[train]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the words after `dessilbi`; those of the process by default.

    Returns:
        The exit code: 0; 2 for an error of the user; 1 for another; 128 + n after signal n.

    Example:
        >>> main(["train", "lenet30-mnist"])
        2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process is the command's own
        keep_memory()
        from dessilbi_jax.train.devices.backend import wrong_flags

        if wrong := wrong_flags():
            _say(f"error: {wrong}")
            return 2
    _take_any_text(sys.stdout, sys.stderr)
    debug = "--debug" in words
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return until_reader_leaves(lambda: _run(words))
        except KeyboardInterrupt as stop:
            if debug:
                raise
            _say(str(stop) or "interrupted")
            return 128 + getattr(stop, "signum", signal.SIGINT)
        except FloatingPointError as error:
            if debug:
                raise
            _say(f"error: {error}")
            return 1
        except (ValueError, TypeError, OSError) as error:
            if debug:
                raise
            _say(f"error: {as_typed(str(error))}")
            return 2
        except ImportError as error:
            if debug:
                raise
            how = "" if "pip install" in str(error) else f": install it by pip install '{_EXTRA}'"
            _say(f"error: {error}{how}")
            return 2
        except Exception as error:
            if debug:
                raise
            if words[:1] != ["presets"] and (none := _no_device(error)):
                _say(f"error: {none}")
                return 2
            _say(f"error: {type(error).__name__}: {error} (--debug shows where)")
            return 1


def _run(words: list[str]) -> int:
    """Runs the command; errors are raised."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        hint = near_miss(words[0], COMMANDS) or "."
        raise ValueError(f"no command {words[0]!r}{hint} There are: {', '.join(COMMANDS)}")
    parser = make_parser()
    try:
        args = parser.parse_args(words)
    except SystemExit:  # --help has been printed
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    if args.command == "demo":
        args.preset = "demo"
    match args.command:
        case "train" | "demo":
            commands.train(args, words)
        case "data":
            commands.prepare(args)
        case "ticket":
            tickets.ticket(args, words)
        case "retrain":
            tickets.retrain(args, words)
        case "slim":
            tickets.slim(args, words)
        case "sweep":
            tickets.sweep(args, words)
        case "compare":
            tickets.compare(args)
        case "evaluate":
            tickets.evaluate(args)
        case "interpret":
            tickets.interpret(args, words)
        case "report":
            from dessilbi_jax import report

            print(report.write(args.run))
            if args.figures:
                written = report.write_figures(args.run, args.figures, overwrite=args.overwrite)
                print("\n".join(map(str, written)))
        case "presets":
            print("\n\n".join(map(str, PRESETS.values())))
        case "describe":
            commands.describe(args)
        case "info":
            commands.info()
    return 0


def _no_device(error: Exception) -> str | None:
    """Returns why JAX has no device, where that may be what an error is about."""
    if not isinstance(error, RuntimeError | AssertionError):
        return None
    from dessilbi_jax.train.devices.backend import problem

    return problem()


def _take_any_text(*streams: TextIO) -> None:
    """Has streams that cannot show a letter, such as λ in ASCII, show a question mark for it."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _say(text: str) -> None:
    """Prints a message on standard error, as one line; nothing where the terminal is closed."""
    with contextlib.suppress(OSError):
        print(f"dessilbi: {' '.join(text.split())}", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning as one line; where it was raised is of no interest here."""
    _say(f"note: {message}")
