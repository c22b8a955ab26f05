"""Every notebook runs from top to bottom as in a checkout, and leaves the numbers it claims."""

import ast
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import dessilbi_jax as dl

REPO = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
QUICKSTART = "01_quickstart"
NUMBERS = {
    "01_quickstart": """
outside = jax.tree.map(lambda w, m: jnp.where(m, 0, w), from_ticket, mask)
{
    "asked_density": 0.05,
    "density_of_gamma": float(path.density()[-1]),
    "ticket_density": ticket.density,
    "accuracy": float(accuracy(params)),
    "projected_accuracy": float(path.metrics["projected_accuracy"][-1]),
    "ticket_accuracy": float(accuracy(from_ticket)),
    "random_accuracy": float(accuracy(from_random)),
    "nonzero_outside_ticket": int(sum(jnp.count_nonzero(w) for w in jax.tree.leaves(outside))),
    "whole_run": (result["density"], result["test_accuracy"], Path(
        "quickstart_run/report.html").exists()),
}
""",
    "02_tickets_and_slimming": """
{
    "accuracy_dense": accuracy(net),
    "accuracy_slim": accuracy(small.model),
    "accuracy_tuned": accuracy(tuned),
    "difference": small.difference,
    "share_of_flops": small.flops[1] / small.flops[0],
    "share_of_numbers": small.params[1] / small.params[0],
    "same_ticket": bool(dl.Ticket.load("ticket.npz").density == ticket.density),
    "flax_difference": flax_small.difference,
}
""",
    "03_scaling": """
{
    "devices": jax.device_count(),
    "largest_difference_of_loss": difference,
    "same_support": same,
    "share_of_v": on_first_device(here.v) / in_all(here.v),
    "share_of_gamma": on_first_device(here.gamma) / in_all(here.gamma),
    "share_of_w": on_first_device(params) / in_all(params),
    "steps_of_the_resumed_run": result["steps"],
}
""",
    "04_growing_and_looking": """
{
    "widths": list(widths.values()),
    "done": done,
    "largest_difference": max(differences),
    "accuracy_grown": accuracy(params),
    "accuracy_tuned": accuracy(tuned),
    "share_of_flops": small.flops[1] / small.flops[0],
    "smallest_activation": float(found.activations[:, 0].min()),
    "filters": len(filters),
}
""",
    "05_sparse_statistics": """
{
    "diabetes": model.get_support(indices=True).tolist(),
    "gap_to_the_limit": float(gap),
    "breast_cancer": float(held_out),
    "measurements": int(logistic.get_support().sum()),
    "digits": float(regions.score(D[1::2], label[1::2])),
    "values": len(np.unique(regions.sparse_coef_)),
}
""",
}


def read(name):
    return nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    return [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == kind]


def lines_of_core(notebook):
    """The lines a user writes: those of cells tagged `core`, without blanks and comments."""
    tagged = [c for c in code_cells(notebook) if "core" in c.metadata.get("tags", [])]
    lines = [line.strip() for cell in tagged for line in cell.source.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Runs a notebook once, in a folder beside the package as in a checkout: (notebook, folder)."""
    done = {}

    def execute(name):
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            folder = root / "notebooks"
            folder.mkdir()
            # As in a checkout, so that the first cell has to find the package by itself.
            (root / "dessilbi_jax").symlink_to(Path(dl.__file__).parent, target_is_directory=True)
            # Eight virtual devices are of no use here; figures are to be shown; nothing may be
            # installed, nor files be left in the home folder.
            unwanted = {"XLA_FLAGS", "MPLBACKEND", "PYTHONPATH"}
            env = {key: value for key, value in os.environ.items() if key not in unwanted}
            env |= {"PIP_NO_INDEX": "1", "IPYTHONDIR": str(root / "ipython")}
            env |= {"JAX_PLATFORMS": "cpu", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
            # Without folders to look in, only the running interpreter's own kernel is left.
            specs = KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)
            manager = AsyncKernelManager(
                kernel_spec_manager=specs, connection_file=str(root / "kernel.json")
            )
            notebook = read(name)
            # What its text speaks of, as numbers for the tests below.
            notebook.cells.append(nbformat.v4.new_code_cell(NUMBERS[name]))
            client = NotebookClient(
                notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}
            )
            client.execute(env=env, cleanup_kc=True)  # nbclient leaves a manager it is given open
            done[name] = notebook, folder
        return done[name]

    return execute


@pytest.mark.parametrize("name", [file.stem for file in NOTEBOOKS])
def test_is_committed_with_its_outputs_and_says_when_it_was_run(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )
    assert not outputs(notebook, "error")
    assert any("image/png" in o.data for o in outputs(notebook, "display_data"))
    (said,) = code_cells(notebook)[-1].outputs
    assert re.fullmatch(r"Run on \d\d \w+ \d{4} with jax [0-9.]+, on .*CPU\.\n", said.text)
    text = "".join(cell.source for cell in notebook.cells)
    assert str(Path.home()) not in json.dumps(notebook)
    assert "/tmp/" not in json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert not code_cells(notebook)[-1].source.lstrip().startswith("{"), text


@pytest.mark.parametrize("name", [file.stem for file in NOTEBOOKS])
def test_installs_from_the_checkout_and_only_what_is_missing(name):
    first, *rest = (cell.source for cell in code_cells(read(name)))
    (line,) = (line for line in first.splitlines() if "%pip" in line)
    assert re.search(r'%pip install --quiet "\.\.\[(train|train,stats)\]"', line)
    assert line.startswith("    "), "must stand under a condition"
    assert not any("%pip" in source for source in rest)


@pytest.mark.parametrize("name", [file.stem for file in NOTEBOOKS])
def test_runs_without_error_or_warning(executed, name):
    notebook, _ = executed(name)
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert not outputs(notebook, "error")
    streams = outputs(notebook, "stream")
    assert not [o.text for o in streams if "Warning" in o.text or "Traceback" in o.text]


def test_quickstart_takes_fewer_than_twenty_lines():
    lines = lines_of_core(read(QUICKSTART))
    text = "\n".join(lines)
    assert len(lines) < 20, text
    # Those lines do go all the way: a network, the optimizer, the path and the ticket.
    for needed in ("nnx.Linear", "def loss", "dl.dessilbi(", "path.record(", "path.ticket("):
        assert needed in text


def test_quickstart_leaves_the_numbers_it_speaks_of(executed):
    notebook, _ = executed(QUICKSTART)
    (result,) = outputs(notebook, "execute_result")
    numbers = ast.literal_eval(result.data["text/plain"])
    assert abs(numbers["ticket_density"] - numbers["asked_density"]) <= 1e-3
    assert 0.8 <= numbers["density_of_gamma"] / numbers["asked_density"] <= 1.2
    assert numbers["nonzero_outside_ticket"] == 0
    assert numbers["accuracy"] >= 0.93
    assert numbers["projected_accuracy"] >= 0.85
    assert numbers["ticket_accuracy"] >= 0.93
    assert numbers["ticket_accuracy"] >= numbers["random_accuracy"] + 0.02
    density, accuracy, reported = numbers["whole_run"]
    assert density == pytest.approx(0.05, abs=1e-3)
    assert accuracy >= 0.93
    assert reported


def test_quickstart_shows_one_picture_and_saves_a_path_that_gives_the_same_ticket(executed):
    notebook, folder = executed(QUICKSTART)
    pictures = [o for o in outputs(notebook, "display_data") if "image/png" in o.data]
    assert len(pictures) == 1
    path = dl.SolutionPath.load(folder / "quickstart_path.npz")
    assert len(path) == 40
    assert path.density()[0] == 0
    masks = path.ticket(density=0.05).masks
    kept = {name: int(mask.sum()) for name, mask in masks.items() if name in path.groups}
    assert sum(kept.values()) == int(0.05 * (64 * 300 + 300 * 10))
    assert np.isfinite(path.metrics["projected_accuracy"]).all()


def test_slimming_leaves_the_numbers_it_speaks_of(executed):
    notebook, folder = executed("02_tickets_and_slimming")
    (result,) = outputs(notebook, "execute_result")
    numbers = ast.literal_eval(result.data["text/plain"])
    assert numbers["difference"] < 1e-5
    assert numbers["flax_difference"] < 1e-5
    assert 0.2 < numbers["share_of_flops"] <= 0.25
    assert numbers["share_of_numbers"] < 0.5
    assert numbers["accuracy_dense"] >= 0.93
    assert numbers["accuracy_tuned"] >= 0.93
    assert numbers["same_ticket"]
    files = {"params.safetensors", "plan.json", "card.json", "forward.jaxexport"}
    assert {file.name for file in (folder / "small").iterdir()} == files


def test_scaling_leaves_the_numbers_it_speaks_of(executed):
    notebook, folder = executed("03_scaling")
    (result,) = outputs(notebook, "execute_result")
    numbers = ast.literal_eval(result.data["text/plain"])
    assert numbers["devices"] == 8
    assert numbers["same_support"]
    assert numbers["largest_difference_of_loss"] < 1e-5
    # An eighth of each, but for small leaves that are on every device.
    for tree in ("w", "v", "gamma"):
        assert 0.125 <= numbers[f"share_of_{tree}"] < 0.15
    lines = (folder / "scaled" / "metrics.jsonl").read_text().splitlines()
    assert numbers["steps_of_the_resumed_run"] == json.loads(lines[-1])["step"] == 60


def test_growing_and_looking_leaves_the_numbers_it_speaks_of(executed):
    notebook, _ = executed("04_growing_and_looking")
    (result,) = outputs(notebook, "execute_result")
    numbers = ast.literal_eval(result.data["text/plain"])
    # It grew, and stopped by itself.
    assert numbers["widths"][0] == (4, 4)
    assert min(numbers["widths"][-1]) > 4
    assert numbers["widths"] == sorted(numbers["widths"])
    assert max(numbers["widths"][-1]) < 32
    assert numbers["done"]
    assert numbers["largest_difference"] < 1e-5
    assert numbers["accuracy_grown"] >= 0.93
    assert numbers["accuracy_tuned"] >= 0.93
    assert 0.5 < numbers["share_of_flops"] <= 0.75
    assert len([o for o in outputs(notebook, "display_data") if "image/png" in o.data]) == 2


def test_statistics_leave_the_numbers_they_speak_of(executed):
    notebook, _ = executed("05_sparse_statistics")
    result = outputs(notebook, "execute_result")[-1]
    numbers = ast.literal_eval(result.data["text/plain"])
    assert {2, 3, 8} <= set(numbers["diabetes"])
    assert numbers["gap_to_the_limit"] < 0.01
    assert numbers["breast_cancer"] > 0.94
    assert 1 <= numbers["measurements"] <= 12
    assert numbers["digits"] > 0.95
    assert 2 <= numbers["values"] < 40
