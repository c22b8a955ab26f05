"""Writes benchmarks/README.md and its pictures from the JSON results; nothing on it is by hand.

    python -m benchmarks page

A table without a result is listed with the command that makes it.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import results
from benchmarks.report import figures, statistics, tables, tickets
from dessilbi_jax.files import write_atomically

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

    @property
    def data(self) -> str:
        """What the command needs besides."""
        without = ("ticket_cost", "computational_cost", "robust_statistics", *STATISTICS)
        return "" if self.command.startswith(without) else " --data-dir DIR"


def _section(title: str, command: str, name: str, kind: Any, picture: bool = True) -> Section:
    words = getattr(tickets if kind.startswith(("ticket", "tuning")) else tables, kind)
    return Section(title, command, name, words, getattr(figures, kind) if picture else None)


# The tables of the statistics, and their headings.
STATISTICS = {
    "sparse_regression": "7. Statistics: linear models",
    "split_support": "7. Statistics: split models",
    "lesion": "7. Statistics: a lesion in space",
    "path_speed": "7. Statistics: seconds",
}

SECTIONS = (
    _section("1. Classification: LeNet-5, MNIST", "classification", "classification",
             "classification"),
    _section("1. Classification: two of the rows, three times as long",
             "classification --budget long", "classification_long", "classification",
             picture=False),
    _section("1. Classification: ResNet-20, CIFAR-10", "classification --budget gpu",
             "classification_gpu", "classification"),
    _section("2. κ and ν: MNIST", "kappa_nu", "kappa_nu", "kappa_nu"),
    _section("2. κ and ν: VGG-16 and ResNet-56, CIFAR-10", "kappa_nu --budget gpu",
             "kappa_nu_gpu", "kappa_nu"),
    _section("3. Winning tickets: LeNet-300-100, MNIST", "tickets", "tickets", "tickets"),
    _section("3. Winning tickets: LeNet-5, MNIST", "tickets --budget lenet5", "tickets_lenet5",
             "tickets"),
    _section("3. Winning tickets: LeNet-300-100, Fashion-MNIST", "tickets --budget fashion",
             "tickets_fashion", "tickets"),
    _section("3. Winning tickets: Conv-2, CIFAR-10", "tickets --budget conv2", "tickets_conv2",
             "tickets"),
    _section("3. Winning tickets: Conv-4, CIFAR-10", "tickets --budget conv4", "tickets_conv4",
             "tickets"),
    _section("4. Cost to a ticket: LeNet-300-100, MNIST", "ticket_cost", "ticket_cost",
             "ticket_cost"),
    _section("5. Structured: small networks, CIFAR-10", "structured", "structured", "structured"),
    _section("5. Structured: VGG-16 and ResNet-56, CIFAR-10; the papers' Fig. 5",
             "structured --budget gpu", "structured_gpu", "structured"),
    _section("6. Computational cost", "computational_cost", "computational_cost",
             "computational_cost", picture=False),
    _section("6. Computational cost: accelerator", "computational_cost --budget gpu",
             "computational_cost_gpu", "computational_cost", picture=False),
    _section("How the ways to sparse weights were tuned", "tuning", "tuning", "tuning",
             picture=False),
    *(Section(title, name, name, statistics.statistics) for name, title in STATISTICS.items()),
    Section("7. Statistics: outliers and wrong comparisons", "robust_statistics",
            "robust_statistics", statistics.robust),
)  # fmt: skip

TOP = """\
# Benchmarks

The papers' tables and every rival, under one budget. This page is written by
`python -m benchmarks page` from the files in `results/`, each of which holds its command,
configuration, seeds, versions and machine. `python -m benchmarks --list` shows all benchmarks with
what they cost. A table that was stopped goes on where it was, and `--share 1/2` and `--share 2/2`
make it in two processes. `python` is that of the project's environment, `.venv/bin/python`; DIR is
a folder of prepared MNIST and CIFAR-10, or of `mnist.npz`, `fashion_mnist.npz` and `cifar10.npz`
(arrays train_images, train_labels, test_images and test_labels).
"""


def page(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown, from results by name."""
    parts = [TOP]
    for section in SECTIONS:
        if (result := found.get(section.name)) is None:
            continue
        parts.append(f"## {section.title}")
        parts.append(tables.footed(section.words(result), result, section.name))
        if section.picture is not None:
            parts.append(f"![{section.title}](figures/{section.name}.svg)")
    missing = [section for section in SECTIONS if section.name not in found]
    if missing:
        parts.append("## Not measured")
        parts.append("Presets that have no numbers yet, and the commands that make them:")
        parts.append(
            "\n".join(
                f"- {section.title}: `python -m benchmarks {section.command}{section.data}`"
                for section in missing
            )
            + "\n- 1. Classification: ImageNet, on a pod: `dessilbi train resnet18-imagenet "
            "--distributed --data-dir DIR --out DIR --dtype bfloat16`"
        )
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
    write_atomically(file, page(found))
    print(file)


if __name__ == "__main__":
    main()
