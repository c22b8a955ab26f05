"""Weights that a run starts from instead of drawing them: of an earlier run, or from PyTorch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dessilbi_jax import models
from dessilbi_jax.dependency.reasons import Reason
from dessilbi_jax.models.pretrained import torch_classes
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts
from dessilbi_jax.train.optim import trace_channels
from dessilbi_jax.train.run_folder.weights import checkpoints, read_weights
from dessilbi_jax.tree import leaf_paths

_TORCH = (".pth", ".pt")
_NAMED = 3  # leaves that an error names


def digest(source: str | Path) -> str:
    """Returns 16 hexadecimal digits that stand for the weights in a file or a run.

    Raises:
        FileNotFoundError: there is no such file, or the run keeps no weights.
    """
    return hashlib.sha256(_file(source).read_bytes()).hexdigest()[:16]


def start_from(
    source: str | Path, model: models.Network, config: TrainConfig, facts: DataFacts
) -> tuple[models.Network, list[str]]:
    """Returns a network with the weights of a file, and the leaves of a head that has another size.

    Args:
        source: a run's folder (its last weights), one of its files in weights/, or a state dict
            of PyTorch, `.pth`, `.pt` or `.safetensors`, as `models.load_torch` reads it.
        model: the network, initialised; it is changed. The head stays as it is, drawn anew, where
            the file's is for another number of classes.
        config: of the run.
        facts: of its data.

    Raises:
        FileNotFoundError: as `digest`.
        ValueError: a damaged file, or weights of another network.
        TypeError: weights from PyTorch for a network whose names there are not known.
    """
    file = _file(source)
    theirs = _theirs(file, model, config, facts)
    ours = dict(leaf_paths(_pure(model)))
    odd = [
        path
        for path in ours.keys() | theirs.keys()
        if path not in theirs or path not in ours or np.shape(theirs[path]) != np.shape(ours[path])
    ]
    head: list[str] = []
    if odd and ours.keys() == theirs.keys():
        reasons = trace_channels(model).reasons.items()
        head = sorted({path for (path, _), why in reasons if why.reason is Reason.OUTPUT})
    if wrong := sorted(set(odd) - set(head)):
        told = [f"{p} is {_shape(theirs, p)} there, {_shape(ours, p)} here" for p in wrong]
        more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        raise ValueError(
            f"{file} holds the weights of another network than {config.network}: "
            f"{'; '.join(told[:_NAMED])}{more}"
        )
    fresh = sorted(set(odd))
    tree = _pure(model)
    leaves = [
        leaf if path in fresh else jnp.asarray(theirs[path], leaf.dtype)
        for path, leaf in leaf_paths(tree)
    ]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(tree), leaves))
    return model, fresh


def _file(source: str | Path) -> Path:
    source = Path(source)
    if source.is_dir():
        kept = checkpoints(source)
        return kept.file(max(kept))
    if not source.is_file():
        raise FileNotFoundError(f"there are no weights to start from at {source}: no such file")
    return source


def _theirs(
    file: Path, model: models.Network, config: TrainConfig, facts: DataFacts
) -> Mapping[str, Any]:
    """By path, the arrays of a file in our layout."""
    if file.suffix not in _TORCH:
        try:
            params, stats = read_weights(file)
            return dict(leaf_paths(params)) | dict(leaf_paths(stats))
        except ValueError:
            if file.suffix != ".safetensors":
                raise
    # PyTorch's, with as many classes as its head has.
    classes = torch_classes(file, model)
    assert config.network is not None  # one of one's own has its weights
    other = models.build(
        config.network, input_shape=facts.input_shape, classes=classes, widths=config.widths
    )
    return dict(leaf_paths(_pure(models.load_torch(file, other))))


def _pure(model: models.Network) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


def _shape(leaves: Mapping[str, Any], path: str) -> Any:
    return tuple(np.shape(leaves[path])) if path in leaves else "missing"
