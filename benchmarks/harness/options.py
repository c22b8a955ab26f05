"""The words that every table understands."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness.results import RESULTS

WORK = Path("runs/benchmarks")


def _share(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a share such as 1/2: the first of two processes"
        )
    return int(k), int(n)


def parser(
    question: str, budgets: tuple[str, ...], needs_data: bool = True
) -> argparse.ArgumentParser:
    """A parser with what all tables share.

    Args:
        question: the table's docstring.
        budgets: what it can be run with; "smoke" among them, for which no data are needed.
        needs_data: whether the others need data; if not, there are no cells to share either.
    """
    out = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--budget", choices=budgets, default="cpu")
    out.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help=f"where runs that several cells use are kept; {WORK} by default",
    )  # fmt: skip
    if not needs_data:
        return out
    out.add_argument("--data-dir", help="folder of prepared data sets, or of NAME.npz files")
    out.add_argument(
        "--share", type=_share, default=(1, 1), metavar="K/N",
        help="make every N-th cell from the K-th on; start N processes to share a table",
    )  # fmt: skip
    return out


def parsed(known: argparse.ArgumentParser, words: list[str] | None = None) -> Any:
    """The options; tables on real data need to be told where the data are."""
    args = known.parse_args(words)
    if "data_dir" not in args:
        return args
    if args.budget != "smoke" and not args.data_dir:
        known.error(f"--budget {args.budget} needs --data-dir DIR; --budget smoke needs no data")
    if args.budget == "smoke":
        args.data_dir = None
    return args


def name(args: Any, table: str) -> str:
    """A table's name among the results; that of a budget for other machines has its budget in it.

    >>> name(argparse.Namespace(budget="gpu"), "kappa_nu")
    'kappa_nu_gpu'
    >>> name(argparse.Namespace(budget="cpu"), "kappa_nu")
    'kappa_nu'
    """
    return table if args.budget in ("smoke", "cpu") else f"{table}_{args.budget}"


def folder(args: Any) -> Path:
    """Where a table's rows and result go: among the results, or under `--work` for a smoke run."""
    return args.work / "smoke" if args.budget == "smoke" else RESULTS


def place(args: Any, name: str) -> Path:
    """The file of a table's rows."""
    return folder(args) / f"{name}.jsonl"
