"""Runs a benchmark by name.

python -m benchmarks NAME [options]
python -m benchmarks --list
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dessilbi_jax.text import until_reader_leaves

HERE = Path(__file__).parent


class Benchmark(NamedTuple):
    """What `--list` shows of a file: its question, and its cost by budget (`COST` in the file)."""

    question: str
    cost: dict[str, str]


def _constant(tree: ast.Module, name: str) -> Any:
    """The value of a literal that a file assigns to a name, None if it does not."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return ast.literal_eval(node.value)
    return None


def benchmarks() -> dict[str, Benchmark]:
    """Each file here that has a `main`, by name; none of them is imported."""
    found = {}
    for file in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            question = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[file.stem] = Benchmark(question, _constant(tree, "COST") or {})
    return found


def main(words: Sequence[str]) -> int:
    """Runs what the words say; returns the exit code."""
    known = benchmarks()
    if list(words) == ["--list"]:
        width = max(map(len, known))
        for name, each in known.items():
            print(f"{name:{width}}  {each.question}")
            for budget, cost in each.cost.items():
                print(f"{'':{width}}    {budget + ':':12} {cost}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if words else 2
    name = words[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        then = f"did you mean {near[0]}?" if near else "python -m benchmarks --list names them all"
        print(f"benchmarks: error: there is no benchmark {name!r}: {then}", file=sys.stderr)
        return 2
    # What a benchmark reads as its options, and writes down as the command that ran it.
    sys.argv = [str(HERE / f"{name}.py"), *words[1:]]
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(until_reader_leaves(lambda: main(sys.argv[1:])))
