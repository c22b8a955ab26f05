"""Markdown from numbers."""

from collections.abc import Sequence
from typing import Any

SIGNIFICANT = 0.05


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; the first column is text."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(content: Any) -> str:
    return str(content).replace("|", r"\|")


def mean(value: dict[str, Any] | None, digits: int = 2) -> str:
    """Mean and standard deviation of `results.spread`, or a dash."""
    if value is None:
        return "–"
    std = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{std}"


def gap(value: dict[str, Any], digits: int = 2) -> str:
    """A paired difference with its p."""
    p = "" if value.get("p") is None else f", p = {value['p']:.2g}"
    std = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    return f"{value['mean']:+.{digits}f}{std}{p}"


def percent(share: float) -> str:
    """A density."""
    return f"{100 * share:g} %"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def made_by(result: dict[str, Any], name: str) -> str:
    """The line under a table: command, machine, versions, result file."""
    machine = result["machine"]
    device = machine["cpu"] if machine["backend"] == "cpu" else machine["device"]
    cores = f", {machine['cores']} cores" if machine["backend"] == "cpu" else ""
    others = len(result.get("config", {}).get("machines", [machine])) - 1
    more = f" (rows were made on {others + 1} machines or versions)" if others > 0 else ""
    return (
        f"`{result['command']}` → `results/{name}.json`; {device}{cores}, jax {machine['jax']}, "
        f"Python {machine['python']}{more}."
    )
