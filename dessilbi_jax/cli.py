"""The command `dessilbi`.

Every error of the user is one line on standard error and exit code 2; a run that failed for
another reason ends with 1, one stopped by a signal with 128 and the signal's number.
"""

import argparse
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

from dessilbi_jax.train.config import OPTIMIZERS, SCHEDULES, STRUCTURES, VARIANTS, near_miss
from dessilbi_jax.train.presets import PRESETS, get_preset, with_options

_EXTRA = "dessilbi_jax[train]"
_COMMANDS = ("train", "demo", "report", "presets", "describe", "info")
# Options that are fields of TrainConfig: how they are read, and what they are.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "--density": (float, "selected share of the structured weights that λ is set for"),
    "--epochs": (int, "passes over the training images"),
    "--batch-size": (int, "images a step"),
    "--learning-rate": (float, "step of the weights at the start"),
    "--schedule": (str, f"of the learning rate: {', '.join(SCHEDULES)}"),
    "--optimizer": (str, f"one of {', '.join(OPTIMIZERS)}"),
    "--momentum": (float, "of sgd"),
    "--weight-decay": (float, "0 for none"),
    "--variant": (str, f"where the coupling stands with sgd: {', '.join(VARIANTS)}"),
    "--nu": (float, "coupling ν between W and Γ; larger is looser"),
    "--kappa": (float, "damping κ of Γ"),
    "--structure": (str, f"what a group is: {', '.join(STRUCTURES)}"),
    "--seed": (int, "of all random choices"),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _lam(text: str) -> float | Literal["auto"]:
    """Reads the value of --lam."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'auto', got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    options = _Parser(add_help=False)
    fields = options.add_argument_group("options of the run (default: those of the preset)")
    for flag, (kind, text) in _OPTIONS.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        fields.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    fields.add_argument(
        "--lam", type=_lam, default=argparse.SUPPRESS, metavar="auto|X", help="λ, or auto"
    )
    fields.add_argument(
        "--lean", action="store_true", default=argparse.SUPPRESS, help="keep no Γ in the state"
    )

    running = _Parser(add_help=False)
    running.add_argument("--data-dir", metavar="DIR", help="folder of prepared tfds data sets")
    running.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/PRESET)")
    running.add_argument(
        "--overwrite", action="store_true", help="delete the run that is in the folder first"
    )
    running.add_argument(
        "--resume", action="store_true", help="go on with the run that is in the folder"
    )
    running.add_argument(
        "--verbose", action="store_true", help="a line an epoch also where there is no terminal"
    )

    parser = _Parser(
        prog="dessilbi",
        description="Train a network and a sparse one inside it, in the same run.",
        parents=[common],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str, *parents: _Parser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, parents=[*parents, common], allow_abbrev=False
        )

    names = ", ".join(PRESETS)
    train = add("train", "train a preset and write its report", options, running)
    train.add_argument("preset", metavar="PRESET", help=f"one of {names}")
    add("demo", "the same as `train demo`: seconds, and no download", options, running)
    report = add("report", "write the report of a run anew")
    report.add_argument("run", metavar="RUN", help="folder of the run")
    add("presets", "list the presets")
    describe = add("describe", "show a preset's configuration and its groups", options)
    describe.add_argument("preset", metavar="PRESET", help=f"one of {names}")
    add("info", "show versions and devices")
    return parser


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
    debug = "--debug" in words
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _run(words)
        except KeyboardInterrupt as stop:
            if debug:
                raise
            _say(str(stop) or "interrupted")
            return 128 + getattr(stop, "signum", signal.SIGINT)
        except BrokenPipeError:  # the reader of the output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except FloatingPointError as error:
            if debug:
                raise
            _say(f"error: {error}")
            return 1
        except (ValueError, TypeError, OSError) as error:
            if debug:
                raise
            _say(f"error: {error}")
            return 2
        except ModuleNotFoundError as error:
            if debug:
                raise
            _say(f"error: {error}: install what the command needs by pip install '{_EXTRA}'")
            return 2
        except Exception as error:
            if debug:
                raise
            _say(f"error: {type(error).__name__}: {error} (--debug shows where)")
            return 1


def _run(words: list[str]) -> int:
    """Runs the command; errors are raised."""
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        hint = near_miss(words[0], _COMMANDS) or "."
        raise ValueError(f"no command {words[0]!r}{hint} There are: {', '.join(_COMMANDS)}")
    parser = _parser()
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
            _train(args, words)
        case "report":
            from dessilbi_jax import report

            print(report.write(args.run))
        case "presets":
            print("\n\n".join(map(str, PRESETS.values())))
        case "describe":
            _describe(args)
        case "info":
            _info()
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of TrainConfig that were given as options."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in _OPTIONS]
    return {name: getattr(args, name) for name in (*names, "lam", "lean") if hasattr(args, name)}


def _train(args: argparse.Namespace, words: list[str]) -> None:
    """Trains, and prints a summary."""
    config = with_options(get_preset(args.preset).config, _given(args))
    out = Path(args.out or f"runs/{args.preset}")
    command = shlex.join(["dessilbi", *words])

    from dessilbi_jax.train.folder import RESULT
    from dessilbi_jax.train.loop import fit
    from dessilbi_jax.train.progress import Progress

    if args.resume and (out / RESULT).exists():
        state = "is finished already, there is nothing to resume"
    else:
        state = "is finished"
    result = fit(
        config,
        out,
        preset=args.preset,
        command=command,
        data_dir=args.data_dir,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=Progress(lines=True if args.verbose else None),
    )
    print(f"The run in {out} {state}.")
    print(summary(result))
    print(f"  report     {out / 'report.html'}")


def summary(result: dict[str, Any]) -> str:
    """Returns the outcome of a run in a few lines, from what result.json holds.

    Example:
        >>> print(summary({"test_accuracy": 0.98, "test_projected_accuracy": 0.97,
        ...     "density": 0.048, "asked_density": 0.05, "steps": 100, "seconds": 2.5,
        ...     "layers": [{"shape": [10, 100]}]}))
          accuracy   98.0 % dense, 97.0 % projected on the selected weights (test images)
          density    4.8 % of 1,000 structured weights, 5.0 % asked for
          training   100 steps in 2.5 s
    """
    sizes = [math.prod(layer["shape"]) for layer in result["layers"]]
    asked = result["asked_density"]
    wanted = "λ given" if asked is None else f"{_percent(asked)} asked for"
    return "\n".join(
        [
            f"  accuracy   {_percent(result['test_accuracy'])} dense, "
            f"{_percent(result['test_projected_accuracy'])} projected on the selected weights "
            "(test images)",
            f"  density    {_percent(result['density'])} of {sum(sizes):,} structured weights, "
            f"{wanted}",
            f"  training   {result['steps']:,} steps in {result['seconds']:.1f} s",
        ]
    )


def _describe(args: argparse.Namespace) -> None:
    """Prints a preset, its configuration, and the groups of its network."""
    preset = get_preset(args.preset)
    config = with_options(preset.config, _given(args))

    import dessilbi_jax as dl
    from dessilbi_jax import models
    from dessilbi_jax.train.step import split_network

    model = models.build(
        config.network, input_shape=preset.input_shape, seed=config.seed, widths=config.widths
    )
    _, params, _ = split_network(model, [0.0], [1.0])
    print(preset, end="\n\n")
    for name, value in config.to_json().items():
        print(f"  {name:18}{value}")
    print()
    lam = None if config.lam == "auto" else config.lam
    print(dl.describe(params, getattr(dl, config.structure), lam))


def _info() -> None:
    """Prints versions and devices."""
    import jax

    from dessilbi_jax.train.folder import versions

    for package, version in versions().items():
        print(f"{package:14}{version}")
    print(f"{'devices':14}{', '.join(map(str, jax.devices()))}")
    print(f"{'cores':14}{os.cpu_count()}")


def _percent(share: float) -> str:
    """Returns a share as a percentage, with enough digits for a small one."""
    return f"{share:.1%}".replace("%", " %") if share >= 0.01 else f"{share:.2%}".replace("%", " %")


def _say(text: str) -> None:
    """Prints a message on standard error, as one line."""
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
