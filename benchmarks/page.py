"""Writes benchmarks/README.md and its pictures from the JSON results; nothing on it is by hand.

    python -m benchmarks page

A table without a result is shown as the command that makes it.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import results
from benchmarks.report import figures, tables

COST = {"cpu": "5 s"}
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        title: its heading.
        command: what makes its result.
        name: of the result.
        words: Markdown from the result.
        picture: draws it; None for none.
    """

    title: str
    command: str
    name: str
    words: Callable[[dict[str, Any]], str]
    picture: Callable[[dict[str, Any], Path], Path] | None = None


def _commands(name: str, *budgets: str) -> str:
    return ", ".join(f"`{name} --budget {budget} --data-dir DIR`" for budget in budgets)


SECTIONS = (
    Section("1. Classification", "classification", "classification", tables.classification,
            figures.classification),
    Section("3. Winning tickets: LeNet-300-100", "tickets", "tickets", tables.tickets,
            figures.tickets),
    Section("3. Winning tickets: LeNet-5", "tickets --budget lenet5", "tickets_lenet5",
            tables.tickets, figures.tickets),
    Section("4. Cost to a ticket", "ticket_cost", "ticket_cost", tables.ticket_cost,
            figures.ticket_cost),
    Section("6. Computational cost", "computational_cost", "computational_cost",
            tables.computational_cost),
)  # fmt: skip

TOP = """\
# Benchmarks

The papers' tables and every rival, under one budget. This page is written by
`python -m benchmarks page` from the files in `results/`, each of which holds its command,
configuration, seeds, versions and machine. `python -m benchmarks --list` shows all benchmarks with
what they cost; a table that was stopped goes on where it was. DIR is a folder of prepared MNIST
and CIFAR-10, or of `mnist.npz` and `cifar10.npz`.
"""


def page(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown, from results by name."""
    parts = [TOP]
    for section in SECTIONS:
        parts.append(f"## {section.title}")
        result = found.get(section.name)
        if result is None:
            parts.append(f"Not measured yet: `python -m benchmarks {section.command}`.")
            continue
        parts.append(tables.footed(section.words(result), result, section.name))
        if section.picture is not None:
            parts.append(f"![{section.title}](figures/{section.name}.svg)")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    args = parser.parse_args()
    files = {section.name: args.results / f"{section.name}.json" for section in SECTIONS}
    found = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    for section in SECTIONS:
        if section.picture is not None and section.name in found:
            section.picture(found[section.name], args.out / "figures" / f"{section.name}.svg")
    file = args.out / "README.md"
    part = file.with_suffix(".part")
    part.write_text(page(found), encoding="utf-8")
    part.replace(file)
    print(file)


if __name__ == "__main__":
    main()
