"""The plan of the package, held against its source: who imports whom, names and sizes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dessilbi_jax

PACKAGE = Path(dessilbi_jax.__file__).parent

# Each imports only what stands before it. A new module has to be given its place here.
ORDER = [
    "structure", "_joint", "rules", "prox", "state", "_kernel_plan", "_kernel_call",
    "kernels", "_order", "_automatic",
    "_calibrate", "_split_lbi", "_around", "optimizer", "_diagnose",
    "_masks", "_archive", "_choose", "ticket", "_observe", "path", "_toolbox", "_monitor",
    "_plan", "_axes", "_follow", "_follow_shape", "_follow_product", "_groups", "_network",
    "_channels", "_slim", "_export", "__init__", "report", "train", "cli", "__main__",
]  # fmt: skip
# Packages of their own, which know nothing of ours.
APART = {"models", "data"}
CORE = ORDER[: ORDER.index("__init__") + 1]
THIRD_PARTIES_OF_THE_CORE = {"jax", "optax", "numpy"}
HEAVY = {
    "flax", "orbax", "tensorflow_datasets", "tensorflow", "matplotlib", "grain", "array_record",
    "PIL", "IPython", "sklearn",
}  # fmt: skip
LONGEST, LONGEST_OPTIMIZER = 400, 250


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(file):
    """The top-level module or package that a source file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(file):
    """Full dotted names of all that a file imports, wherever in it the import stands."""
    package = ["dessilbi_jax", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            # What is named may be a module too: `from dessilbi_jax import models`.
            yield from (".".join([*base, alias.name]) for alias in node.names)


def ours(file):
    """The parts of our package that a file imports; `__init__` for public names."""
    for name in imported_names(file):
        first, *rest = name.split(".")
        if first == "dessilbi_jax":
            is_part = rest and any((PACKAGE / f"{rest[0]}{end}").exists() for end in ("", ".py"))
            yield rest[0] if is_part else "__init__"


def test_every_module_has_its_place():
    assert {part_of(file) for file in sources()} <= set(ORDER) | APART


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = part_of(file)
    others = set(ours(file)) - {part}
    if part in APART:
        assert not others, f"{part} imports nothing of ours, but {file.name} imports {others}"
        return
    allowed = set(ORDER[: ORDER.index(part)])
    if ORDER.index(part) > ORDER.index("__init__"):
        allowed |= APART
    assert others <= allowed, f"{file.name} imports {others - allowed}, which stand after {part}"


def test_the_report_reads_files_and_knows_no_training():
    imported = {part for file in sources() if part_of(file) == "report" for part in ours(file)}
    assert imported <= {"report", "path", "ticket", "structure"}
    assert "path" in imported


def test_the_core_imports_three_packages():
    third_parties = {
        name.split(".")[0]
        for file in sources()
        if part_of(file) in CORE
        for name in imported_names(file)
    }
    third_parties -= set(sys.stdlib_module_names) | {"dessilbi_jax"}
    assert third_parties == THIRD_PARTIES_OF_THE_CORE


def test_importing_the_package_loads_nothing_heavier():
    script = """if True:
        import json, sys
        import jax, optax, numpy
        before = set(sys.modules)
        import dessilbi_jax
        print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=PACKAGE.parent,
    )  # fmt: skip
    new, loaded = json.loads(done.stdout)
    tops = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert tops <= THIRD_PARTIES_OF_THE_CORE | {"dessilbi_jax"}
    assert "dessilbi_jax.optimizer" in new
    assert {name.split(".")[0] for name in loaded}.isdisjoint(HEAVY)
    packages = {name.split(".")[1] for name in new if name.startswith("dessilbi_jax.")}
    assert packages <= set(CORE)


def test_no_public_name_is_that_of_a_module():
    modules = {part_of(file) for file in sources()}
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    public = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {"dessilbi", "SolutionPath", "project"} <= public
    assert public.isdisjoint(modules)
    for name in public:
        assert not isinstance(getattr(dessilbi_jax, name), type(sys)), name


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_are_short(file):
    limit = LONGEST_OPTIMIZER if file.name == "optimizer.py" else LONGEST
    lines = len(file.read_text().splitlines())
    assert lines <= limit, f"{file.name} has {lines} lines, more than {limit}"
