"""The plan of the package, held against its source: who imports whom, names and sizes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dessilbi_jax

PACKAGE = Path(dessilbi_jax.__file__).parent

# The rooms of the package. Each imports only what stands before it.
GROUND = ["tree", "files", "run_files", "text", "provenance", "frameworks"]
ORDER = [
    *GROUND, "structure", "prox", "dependency", "optimizer", "tickets", "slimming", "growing",
    "interpretation", "__init__", "report", "train", "cli", "__main__",
]  # fmt: skip
# Rooms beside the others, and what of ours they may import.
APART = {
    "models": set(),
    "data": set(GROUND),
    "stats": {*GROUND, "structure", "prox", "optimizer"},
}
CORE = ORDER[: ORDER.index("__init__") + 1]
THIRD_PARTIES_OF_THE_CORE = {"jax", "optax", "numpy"}
MOST_ROOMS = 22
HEAVY = {
    "flax", "orbax", "tensorflow_datasets", "tensorflow", "matplotlib", "grain", "array_record",
    "PIL", "IPython", "sklearn",
}  # fmt: skip
LONGEST, LONGEST_ALIAS = 400, 250


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


def test_every_module_has_its_room():
    rooms = {part_of(file) for file in sources()}
    assert rooms == set(ORDER) | set(APART)
    assert len(rooms) <= MOST_ROOMS


def test_every_room_says_why_it_exists():
    for folder in {file.parent for file in sources()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, f"{folder.name} does not say why it exists"


def modules(file):
    """Our modules that a file imports, as dotted names."""
    for name in imported_names(file):
        parts = name.split(".")
        while parts[0] == "dessilbi_jax" and len(parts) > 1:
            place = PACKAGE.joinpath(*parts[1:])
            if place.with_suffix(".py").exists() or (place / "__init__.py").exists():
                yield ".".join(parts[1:])
                break
            parts.pop()


def test_no_module_imports_itself_by_a_detour():
    """No circle, also within a room and of imports that stand inside functions."""
    graph = {}
    for file in sources():
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            graph[name] = set(modules(file)) - {name}
    done = {}

    def visit(name, above):
        assert name not in above, f"a circle of imports: {' → '.join([*above, name])}"
        if name not in done:
            done[name] = True
            for other in graph.get(name, ()):
                visit(other, [*above, name])

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = part_of(file)
    others = set(ours(file)) - {part}
    if part in APART:
        more = others - APART[part]
        assert not more, f"{part} stands apart from {more}, which {file.name} imports"
        return
    allowed = set(ORDER[: ORDER.index(part)])
    if ORDER.index(part) > ORDER.index("__init__"):
        allowed |= set(APART)
    assert others <= allowed, f"{file.name} imports {others - allowed}, which stand after {part}"


def test_the_report_reads_files_and_knows_no_training():
    imported = {part for file in sources() if part_of(file) == "report" for part in ours(file)}
    assert imported <= {"report", "tickets", "files", "run_files", "tree"}
    assert "tickets" in imported


def test_the_core_imports_three_packages():
    third_parties = {
        name.split(".")[0]
        for file in sources()
        if part_of(file) in CORE
        for name in imported_names(file)
    }
    third_parties -= set(sys.stdlib_module_names) | {"dessilbi_jax"}
    assert third_parties == THIRD_PARTIES_OF_THE_CORE


@pytest.mark.process
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
    assert "dessilbi_jax.optimizer.alias" in new
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
    assert dessilbi_jax.toolbox.__name__ == "dessilbi_jax.tickets.toolbox"  # a module on purpose
    for name in public - {"toolbox"}:
        assert not isinstance(getattr(dessilbi_jax, name), type(sys)), name


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_are_short(file):
    limit = LONGEST_ALIAS if file.name == "alias.py" else LONGEST
    lines = len(file.read_text().splitlines())
    assert lines <= limit, f"{file.name} has {lines} lines, more than {limit}"
