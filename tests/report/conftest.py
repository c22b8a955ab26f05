"""Run folders as `dessilbi train` writes them, small, with a real solution path."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dessilbi_jax as dl
from dessilbi_jax import report
from dessilbi_jax.report import style

CONFIG = {
    "preset": "lenet-small",
    "config": {
        "network": "lenet5",
        "epochs": 4,
        "learning_rate": 0.05,
        "kappa": 1.0,
        "nu": 300.0,
        "lam": "auto",
        "density": 0.3,
        "structure": "filters",
        "widths": [6, 40],
        "lean": False,
        "seed": 7,
    },
    "command": "dessilbi train lenet-small --density 0.3 --out runs/small",
    "versions": {"python": "3.11.9", "jax": "0.9.1", "dessilbi_jax": "0.1.0"},
    "machine": {"cpu": "A Processor", "cores": 2, "platform": "Linux-6.1"},
    "started": "2026-01-05T10:11:12+00:00",
}
LAM = [[20, 0.0123456], [40, 0.0210987]]


def parameters(leaves=None):
    """A convolution of 6 filters and a dense layer of 800 weights, with unequal groups."""
    rng = np.random.default_rng(3)
    shapes = leaves or {"conv1": (3, 3, 1, 6), "fc1": (20, 40)}
    tree = {}
    for name, shape in shapes.items():
        scale = np.linspace(0.2, 2.0, shape[-1])
        kernel = jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
        tree[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return tree


def solution_path(tree, steps, lam):
    """Records the path of constant weights: V grows by W/100 a step until a group enters."""
    tx = dl.dessilbi(1.0, nu=100.0, lam=lam)
    state, update = tx.init(tree), jax.jit(tx.update)
    zero, path, gammas, done = jax.tree.map(jnp.zeros_like, tree), dl.SolutionPath(), [], 0
    for step in steps:
        for _ in range(step - done):
            _, state = update(zero, state, tree)
        done = step
        path.record(step, state, epoch=step / 20)
        gammas.append(jax.device_get(dl.gamma(state, tree)))
    return path, gammas


def group_norms(leaf, groups):
    axes = tuple(i for i, n in enumerate(groups) if n == 1)
    return np.sqrt(np.square(leaf).sum(axis=axes)).ravel()


def norm_arrays(path, tree, gammas, steps):
    arrays = {"steps": np.array(steps)}
    for i, (name, groups) in enumerate(path.groups.items()):
        layer = name.split("/")[0]
        index = np.arange(min(12, math.prod(groups)))
        w = group_norms(np.asarray(tree[layer]["kernel"]), groups)[index]
        arrays[f"leaf_{i}_name"] = np.array(name)
        arrays[f"leaf_{i}_index"] = index
        arrays[f"leaf_{i}_w"] = np.stack([w] * len(steps))
        arrays[f"leaf_{i}_gamma"] = np.stack(
            [group_norms(np.asarray(g[layer]["kernel"]), groups)[index] for g in gammas]
        )
    return arrays


def write_run(folder, steps=(1, 3, 9, 20, 40, 60, 80), *, lam=0.8, leaves=None):
    """Writes all files of a finished run into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = parameters(leaves)
    path, gammas = solution_path(tree, steps, lam)
    path.save(folder / "path.npz")
    np.savez(folder / "norms.npz", **norm_arrays(path, tree, gammas, steps))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    records = [
        {
            "step": step,
            "epoch": step / 20,
            "loss": 2.3 / (1 + step),
            "learning_rate": 0.05,
            "lam": None if step < 20 else LAM[0][1] if step < 40 else LAM[1][1],
            "accuracy": 0.9713 - 0.5 / step,
            "projected_accuracy": 0.9421 - 0.6 / step,
            "density": float(density),
            "seconds": 0.5 * step,
        }
        for step, density in zip(steps, path.density(), strict=True)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "result.json").write_text(json.dumps(result(path, tree, steps[-1])))


def result(path, tree, steps):
    layers = [
        {
            "name": name,
            "shape": list(path.shapes[name]),
            "groups": math.prod(groups),
            "selected_groups": round(float(path.layer_density()[name][-1]) * math.prod(groups)),
            "density": float(path.layer_density()[name][-1]),
        }
        for name, groups in path.groups.items()
    ]
    return {
        "test_accuracy": 0.96789,
        "test_projected_accuracy": 0.93456,
        "density": float(path.density()[-1]),
        "asked_density": 0.3,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(tree)),
        "steps": steps,
        "seconds": 75.4,
        "layers": layers,
        "lam": LAM,
    }


@pytest.fixture(scope="session")
def drawn_once(finished_run):
    """The page of that run, with its pictures drawn."""
    return report.render(finished_run)


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
    """Pages are written without drawing, which takes long, unless a test asks for it."""
    if "drawn" not in request.keywords and "drawn_once" not in request.fixturenames:
        monkeypatch.setattr(style, "data_uri", lambda figure: "data:image/svg+xml;base64,PHN2Zy8+")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Returns a function that gives a folder of that run, made once; tests must not change it."""
    made = {}

    def give(**options):
        key = repr(options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("template") / "run"
            write_run(made[key], **options)
        return made[key]

    return give


@pytest.fixture(scope="session")
def finished_run(template):
    """A finished run; tests must not change it."""
    return template()


@pytest.fixture
def make_run(template, tmp_path):
    """Returns a function that gives a run to change: options as `write_run` takes them."""

    def make(name="run", *, finished=True, **options) -> Path:
        shutil.copytree(template(**options), tmp_path / name)
        if not finished:
            (tmp_path / name / "result.json").unlink()
        return tmp_path / name

    return make
