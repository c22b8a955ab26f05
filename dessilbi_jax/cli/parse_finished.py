"""What the commands about finished runs and tickets take, and what all commands share."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

# Sizes of a ticket, alike: option, what it is.
_SIZES = {
    "--density": "share of the structured weights to keep",
    "--weights": "structured weights to keep, a share or a number",
    "--groups": "groups to keep",
    "--channels": "the same",
    "--params": "parameters left, after the cut where channels can be cut out",
    "--flops": "operations left for one image, after the cut",
    "--at": "the support at this recorded step",
}
SIZES = ("density", "weights", "groups", "params", "flops", "at")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of leaving."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def size(text: str) -> float:
    """Reads a budget: a share of the whole, above 0 and below 1, or a whole number.

    Example:
        >>> size("0.25"), size("20000"), size("2e4")
        (0.25, 20000, 20000)
    """
    try:
        number = float(text)
        if 0 < number < 1:
            return number
        if number >= 1 and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"expected a share of the whole, above 0 and below 1, or a whole number, got {text!r}"
    )


def add_finished(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands about tickets."""
    made = Parser(add_help=False)
    made.add_argument("--overwrite", action="store_true", help="replace what is there")
    images = Parser(add_help=False)
    images.add_argument(
        "--data-dir", metavar="DIR", help="folder of prepared tfds data sets (default: the run's)"
    )
    of_ticket = Parser(add_help=False)
    of_ticket.add_argument("ticket", metavar="TICKET", help="file that `dessilbi ticket` wrote")
    of_ticket.add_argument("--run", metavar="RUN", help="folder of the run, where it has moved")

    ticket = add("ticket", "take a ticket from a run: what to keep of it", made, images)
    ticket.add_argument("run", metavar="RUN", help="folder of the run")
    sizes = ticket.add_argument_group(
        "size, one of them (default: the density that the run aimed at)"
    ).add_mutually_exclusive_group()
    for flag, text in _SIZES.items():
        kind: Any = {"--density": float, "--at": int}.get(flag, size)
        sizes.add_argument(
            flag, type=kind, metavar="N" if kind is int else "X", help=text,
            dest={"--channels": "groups"}.get(flag, flag.removeprefix("--")),
        )  # fmt: skip
    ticket.add_argument("--per-layer", action="store_true", help="the same share in every layer")
    ticket.add_argument(
        "--rank",
        choices=("entry", "strength"),
        help="the order groups are kept in: by their entry into Γ (default), or by the strength of "
        "their V at the end",
    )
    ticket.add_argument(
        "--minimum", type=int, metavar="N", help="groups kept in each layer at least (default: 1)"
    )
    ticket.add_argument("--out", metavar="FILE", help="the file (default: RUN/ticket.npz)")
    ticket.add_argument("--test", action="store_true", help="measure on the test images too")

    retrain = add(
        "retrain", "train a ticket's network from earlier weights", of_ticket, made, images
    )
    _add_retraining(retrain)
    retrain.add_argument(
        "--dataset", metavar="NAME", help="another data set; the layer of the outputs starts anew"
    )
    retrain.add_argument("--out", metavar="DIR", help="default: `retrained` beside the ticket")
    retrain.add_argument(
        "--resume", action="store_true", help="go on with the retraining that was stopped"
    )

    slim = add("slim", "cut a ticket out: a smaller network, same outputs", of_ticket, made, images)
    slim.add_argument(
        "--params-from", metavar="DIR", help="a run, or what `dessilbi retrain` wrote (default: "
        "the ticket's run)",
    )  # fmt: skip
    slim.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="widths become multiples of N"
    )
    slim.add_argument(
        "--batch", type=int, nargs="+", default=[1, 128], metavar="N",
        help="batch sizes to time (default: 1 128)",
    )  # fmt: skip
    slim.add_argument("--out", metavar="DIR", help="default: `slim` beside the ticket")

    look = add("interpret", "show what the filters of a run respond to, in its report", images)
    look.add_argument("run", metavar="RUN", help="folder of the run")
    look.add_argument(
        "--layer", metavar="PATH",
        help="kernel whose filters' images are made (default: the last convolution's)",
    )  # fmt: skip
    look.add_argument(
        "--beside", metavar="RUN2", help="another run of the same network, such as one by SGD"
    )
    look.add_argument(
        "--image", type=int, nargs="+", default=[0, 1, 2], metavar="N",
        help="held-out images for guided gradients (default: 0 1 2)",
    )  # fmt: skip
    look.add_argument(
        "--epochs", type=int, nargs="+", metavar="N",
        help="epochs whose weights are shown (default: the first, the middle and the last kept)",
    )  # fmt: skip
    look.add_argument(
        "--filters", type=int, default=12, metavar="N", help="images made at most (default: 12)"
    )
    look.add_argument(
        "--steps", type=int, default=128, metavar="N", help="of the ascent (default: 128)"
    )
    look.add_argument("--seed", type=int, default=0, metavar="N", help="of the starts (default: 0)")
    sweep = add("sweep", "retrain tickets of several sizes: accuracy against density", images)
    sweep.add_argument("run", metavar="RUN", help="folder of the run")
    sweep.add_argument(
        "--density", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1], metavar="X",
        help="shares of the structured weights to keep (default: 0.01 0.02 0.05 0.1)",
    )  # fmt: skip
    _add_retraining(sweep)
    sweep.add_argument("--overwrite", action="store_true", help="do those anew that are there")

    compare = add("compare", "show runs side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of two runs or more")
    compare.add_argument("--out", metavar="FILE.html", help="write a page too")
    compare.add_argument("--overwrite", action="store_true", help="replace the page")

    evaluate = add("evaluate", "accuracy and loss of a run, a retrained or a slim network", images)
    evaluate.add_argument("network", metavar="DIR", help="folder that train, retrain or slim wrote")
    evaluate.add_argument("--ticket", metavar="TICKET", help="mask it by this ticket first")
    evaluate.add_argument(
        "--split", choices=("test", "held-out"), default="test", help="default: test"
    )


def _add_retraining(command: argparse.ArgumentParser) -> None:
    """Adds how a ticket is retrained."""
    command.add_argument(
        "--from", dest="start", default="init", metavar="WHEN",
        help="weights to start from: init, end, or the number of an epoch (default: init)",
    )  # fmt: skip
    command.add_argument("--epochs", type=int, metavar="N", help="default: those of the run")
    command.add_argument("--learning-rate", type=float, metavar="X", help="default: the run's")
    command.add_argument(
        "--seed", type=int, metavar="N", help="of the batches (default: the run's)"
    )
    command.add_argument("--quiet", action="store_true", help="print no progress")
