"""What the command `dessilbi` takes: commands, arguments and options."""

import argparse
import re
from typing import Any, Literal

from dessilbi_jax.cli.parse_finished import Parser, add_finished, size
from dessilbi_jax.train.config import (
    DTYPES,
    NONFINITE,
    OPTIMIZERS,
    SCHEDULES,
    STRUCTURES,
    VARIANTS,
)
from dessilbi_jax.train.presets import GROW_EVERY, PRESETS

COMMANDS = (
    "train", "demo", "data", "ticket", "retrain", "slim", "sweep", "compare", "evaluate",
    "interpret", "report", "presets",
    "describe", "info",
)  # fmt: skip
# Options that are fields of TrainConfig: how they are read, and what they are.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "--density": (float, "selected share of the structured weights that λ is set for"),
    "--epochs": (int, "passes over the training data"),
    "--batch-size": (int, "images or windows of text a step, on all devices together"),
    "--image-size": (int, "side of streamed images, in pixels"),
    "--context": (int, "tokens of a window of text"),
    "--learning-rate": (float, "step of the weights at the start"),
    "--schedule": (str, f"of the learning rate: {', '.join(SCHEDULES)}"),
    "--warmup": (float, "share of the run in which the learning rate rises"),
    "--clip": (float, "largest norm of the gradient"),
    "--optimizer": (str, f"one of {', '.join(OPTIMIZERS)}"),
    "--momentum": (float, "of sgd"),
    "--weight-decay": (float, "0 for none"),
    "--variant": (str, f"where the coupling stands with sgd: {', '.join(VARIANTS)}"),
    "--nu": (float, "coupling ν between W and Γ; larger is looser"),
    "--kappa": (float, "damping κ of Γ"),
    "--structure": (str, f"what a group is: {', '.join(STRUCTURES)}"),
    "--seed": (int, "of all random choices"),
    "--dtype": (str, f"what the network computes in: {', '.join(DTYPES)}"),
    "--nonfinite": (str, f"what a loss that is not finite does: {', '.join(NONFINITE)}"),
    "--holdout": (float, "share of the training data held out"),
    "--records-per-epoch": (int, "records of the path in an epoch"),
    "--keep-every": (int, "epochs between the weights kept to rewind to"),
    "--grow-until": (float, "share of the run in which it may grow (default: 0.5)"),
    "--grow-add": (int, "fewest channels that a layer grows by (default: 8)"),
    "--grow-limit": (int, "most channels of a layer"),
}
# What a run ends with, as a share of the dense network (above 0 and below 1) or a number.
_BUDGETS = {
    "--weights": "structured weights that the run ends with, a share or a number",
    "--channels": "channels, or other groups, that it ends with",
    "--params": "parameters that it ends with, of the network that is cut out",
    "--flops": "operations for one image that it ends with (--structure channels)",
}


def _lam(text: str) -> float | Literal["auto"]:
    """Reads the value of --lam."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'auto', got {text!r}") from None


class _Budget(argparse.Action):
    """--flops 0.25: what a run ends with."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        name = {"--channels": "groups"}.get(option, option.removeprefix("--"))
        if getattr(namespace, "budget", None) is not None:
            parser.error(f"{option} beside {namespace.budget[0]}: a run ends with one budget")
        namespace.budget = (name, values)


def _settle(text: str) -> tuple[float, float]:
    """Reads the value of --settle."""
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected two fractions of the run such as 0.1:0.75, got {text!r}"
        ) from None


def _widths(text: str) -> tuple[int, ...]:
    """Reads the value of --widths."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between them, such as 16,16,32, got {text!r}"
        ) from None


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    options = Parser(add_help=False)
    fields = options.add_argument_group("options of the run (default: those of the preset)")
    for flag, (kind, text) in _OPTIONS.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        fields.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    for flag, text in _BUDGETS.items():
        fields.add_argument(
            flag, type=size, action=_Budget, default=argparse.SUPPRESS, metavar="X", help=text
        )
    fields.add_argument(
        "--lam", type=_lam, default=argparse.SUPPRESS, metavar="auto|X", help="λ, or auto"
    )
    fields.add_argument(
        "--settle", type=_settle, default=argparse.SUPPRESS, metavar="BEGIN:END",
        help="moments, as fractions of the run, between which the support of W shrinks to exactly "
        "the density",
    )  # fmt: skip
    fields.add_argument(
        "--no-settle", dest="settle", action="store_const", const=None, default=argparse.SUPPRESS,
        help="keep W dense: the path of Γ is what the run ends with",
    )  # fmt: skip
    fields.add_argument(
        "--widths", type=_widths, default=argparse.SUPPRESS, metavar="N,N,…",
        help="channels or units of each layer, instead of those of the network's paper",
    )  # fmt: skip
    fields.add_argument(
        "--grow", type=int, nargs="?", const=GROW_EVERY, default=argparse.SUPPRESS,
        metavar="EPOCHS",
        help="begin narrow (--widths, by default 16 a layer) and let layers grow of which Γ has "
        f"selected nearly all, looked at every so many epochs (default: {GROW_EVERY})",
    )  # fmt: skip
    fields.add_argument(
        "--no-cut", dest="cut", action="store_false", default=argparse.SUPPRESS,
        help="do not cut channels inside the run: only mask them until its end",
    )  # fmt: skip
    fields.add_argument(
        "--lean", action="store_true", default=argparse.SUPPRESS, help="keep no Γ in the state"
    )

    fields.add_argument(
        "--sqrt-size", action="store_true", default=argparse.SUPPRESS,
        help="weigh groups by the square root of their size",
    )  # fmt: skip
    fields.add_argument(
        "--remat", action="store_true", default=argparse.SUPPRESS, help="save memory for time"
    )

    running = Parser(add_help=False)
    running.add_argument(
        "--data-dir", metavar="DIR", help="folder of prepared tfds data sets, or of images"
    )
    running.add_argument("--text", metavar="FILE", help="the text to train on")
    running.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json (default: bytes)")
    running.add_argument(
        "--init", metavar="FILE",
        help="weights to start from: a run, one of its weights/, or a state dict of PyTorch",
    )  # fmt: skip
    running.add_argument("--csv", metavar="FILE", help="write each record into a CSV file too")
    running.add_argument(
        "--tensorboard", metavar="DIR", help="write each record for TensorBoard too"
    )
    running.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/PRESET)")
    running.add_argument(
        "--overwrite", action="store_true", help="delete the run that is in the folder first"
    )
    running.add_argument(
        "--resume", action="store_true", help="go on with the run that is in the folder"
    )
    running.add_argument(
        "--auto-resume", action="store_const", const="auto", dest="resume",
        help="--resume where there is a run, for commands that are started again by a machine",
    )  # fmt: skip
    running.add_argument(
        "--checkpoint-steps", type=int, metavar="N",
        help="steps between checkpoints, besides those at the ends of epochs",
    )  # fmt: skip
    running.add_argument(
        "--keep", type=int, default=2, metavar="N", help="checkpoints kept, besides the best"
    )
    _add_devices(running)
    running.add_argument(
        "--quiet", action="store_true", help="print no progress, only how it ended"
    )

    parser = Parser(
        prog="dessilbi",
        description="Train a network and a sparse one inside it, in the same run.",
        parents=[common],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str, *parents: Parser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, parents=[*parents, common], allow_abbrev=False
        )

    names = ", ".join(PRESETS)
    train = add("train", "train a preset and write its report", options, running)
    train.add_argument(
        "preset", metavar="PRESET", nargs="?",
        help=f"one of {names}; with --resume --out DIR the run's own",
    )  # fmt: skip
    add("demo", "the same as `train demo`: seconds, and no download", options, running)
    made = add("data", "prepare a data set from the files in which it is published")
    made.add_argument("name", metavar="NAME", help="mnist, fashion_mnist or cifar10")
    made.add_argument(
        "--data-dir", metavar="DIR", help="where to (default: where `train` looks for it)"
    )
    made.add_argument(
        "--from", dest="source", metavar="PATH",
        help="folder or file of the published files (default: they are downloaded)",
    )  # fmt: skip
    report = add("report", "write the report of a run anew")
    report.add_argument("run", metavar="RUN", help="folder of the run")
    report.add_argument("--figures", metavar="DIR", help="write its pictures as SVG files too")
    report.add_argument("--overwrite", action="store_true", help="replace pictures there")
    add_finished(add)
    add("presets", "list the presets")
    describe = add("describe", "show a preset's configuration and its groups", options)
    describe.add_argument("preset", metavar="PRESET", help=f"one of {names}")
    add("info", "show versions and devices")
    return parser


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of TrainConfig that were given as options."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in _OPTIONS]
    names += ["lam", "lean", "remat", "sqrt_size", "settle", "budget", "cut", "widths", "grow"]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def as_typed(message: str) -> str:
    """Returns an error's text with fields of the configuration as the flags that they are here.

    Example:
        >>> as_typed("learning_rate must be above 0; lam=1.0 goes with density=None")
        '--learning-rate must be above 0; --lam 1.0 goes with --density None'
    """
    flags = [*_OPTIONS, "--lam", "--settle", "--sqrt-size", "--lean", "--checkpoint-steps"]
    flags += ["--keep", "--round-to", "--minimum", "--per-layer", "--rank"]
    fields = "|".join(flag.removeprefix("--").replace("-", "_") for flag in flags)

    def flag(found: re.Match[str]) -> str:
        name, value = found["first"] or found["name"], found["text"] or ""
        return f"--{name.replace('_', '-')}" + ("" if found["first"] else f" {value}")

    # Where a name stands for a value: first of all, or before `=`.
    given = rf"(?<![\w-])(?P<name>{fields})=(?:'(?P<text>[^']*)'|)"
    return re.sub(rf"^(?P<first>{fields})(?= )|{given}", flag, message)


def _add_devices(running: Parser) -> None:
    """Adds the options that say what a run lies on."""
    devices = running.add_argument_group("devices")
    devices.add_argument(
        "--mesh", metavar="AXES",
        help="auto, one, or axes of data, fsdp and tensor with their sizes, such as data=2,fsdp=4 "
        "(default: the preset's, usually auto: all accelerators along data)",
    )  # fmt: skip
    devices.add_argument(
        "--distributed", action="store_true",
        help="this is one of several processes; on Cloud TPU, under SLURM and Open MPI the others "
        "are found",
    )  # fmt: skip
    devices.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: of process 0")
    devices.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many")
    devices.add_argument("--process", type=int, metavar="K", help="elsewhere: which this is")
