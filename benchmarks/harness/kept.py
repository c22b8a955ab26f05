"""Nested dicts of arrays in files, with what they cost to make."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from benchmarks.harness.cost import Cost
from dessilbi_jax.files import new_file


def write(file: Path, name: str, tree: dict[str, Any], cost: Cost) -> None:
    """A nested dict of arrays and what it cost, at once or not at all."""
    flat = traverse_util.flatten_dict(tree, keep_empty_nodes=True)
    empty = [path for path, leaf in flat.items() if leaf is traverse_util.empty_node]
    leaves = {
        json.dumps(path): np.asarray(leaf) for path, leaf in flat.items() if path not in empty
    }
    about = {"name": name, "cost": dataclasses.asdict(cost), "empty": empty}
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as out:
        np.savez_compressed(out, about=np.array(json.dumps(about)), **leaves)


def read(file: Path) -> tuple[dict[str, Any], Cost]:
    """What `write` wrote: the arrays and what they cost."""
    with np.load(file) as stored:
        about = json.loads(str(stored["about"]))
        flat = {tuple(json.loads(name)): stored[name] for name in stored.files if name != "about"}
    flat |= {tuple(path): {} for path in about["empty"]}
    return traverse_util.unflatten_dict(flat), Cost(**about["cost"])
