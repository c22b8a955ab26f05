"""A slimmed network on disk: parameters, plan, and a forward pass that needs JAX alone."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax import files
from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.frameworks import as_network
from dessilbi_jax.slimming.cut import Slim
from dessilbi_jax.tree import leaf_paths

PARAMS, PLAN, CARD, FORWARD = "params.safetensors", "plan.json", "card.json", "forward.jaxexport"
_PLATFORMS = ("cpu", "cuda", "tpu")


def save_slim(
    small: Slim,
    folder: str | os.PathLike[str],
    *example_inputs: Any,
    fn: Callable[..., Any] | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a slimmed network into a folder, at once or not at all.

    The folder gets `params.safetensors` (every array by its leaf path), `plan.json` (what was
    kept), `card.json` (sizes, the outputs' difference, and what `card` says) and
    `forward.jaxexport`: the compiled-to-StableHLO forward pass with the parameters inside, for
    CPU, CUDA and TPU. `jax.export.deserialize(bytes).call(*inputs)` runs it with JAX alone.

    Args:
        small: from `dl.slim`.
        folder: the folder to make.
        example_inputs: inputs of the network. Their first axes, where equal, become one batch
            axis of any length if the network allows that (`"batch"` on the card says so).
        fn: the smaller network's function, where its model cannot be called.
        card: what else is to be told about it, as JSON can hold it.
        overwrite: replace a folder that this wrote.

    Raises:
        FileExistsError: the folder is there and is not empty; with `overwrite`, it holds anything
            that this did not write.
        ModuleNotFoundError: safetensors or flatbuffers is not installed.
        ValueError: a card that JSON cannot hold.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, numpy as np
        >>> import dessilbi_jax as dl
        >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> mask = {"a": np.broadcast_to(np.arange(8) < 2, (4, 8)), "b": np.ones((8, 3), bool)}
        >>> small = dl.slim(params, mask, jnp.ones((2, 4)), fn=net)
        >>> with tempfile.TemporaryDirectory() as there:
        ...     dl.save_slim(small, f"{there}/small", jnp.ones((2, 4)), fn=net)
        ...     data = pathlib.Path(f"{there}/small/forward.jaxexport").read_bytes()
        >>> jax.export.deserialize(bytearray(data)).call(np.ones((7, 4), np.float32)).shape
        (7, 3)
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder")
    there = {file.name for file in folder.iterdir()} if folder.exists() else set()
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} is there already; give another folder, or overwrite=True to replace it"
        )
    if others := sorted(there - {PARAMS, PLAN, CARD, FORWARD}):
        raise FileExistsError(
            f"{folder} holds files that are not of a slimmed network ({', '.join(others[:3])}); "
            "none is deleted: give another folder"
        )
    tensors = _safetensors()
    network = as_network(small.model, fn)
    forward, batch = _forward(network.fn, network.tree, example_inputs)
    told = {
        "numbers": list(small.params), "flops": list(small.flops),
        "difference": small.difference, "batch": batch, "jax": jax.__version__, **(card or {}),
    }  # fmt: skip
    try:
        text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card cannot be written as JSON: {error}") from None
    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in leaf_paths(network.tree)
              if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)}  # fmt: skip
    with files.new_folder(folder) as part:
        # Not by its save_file, whose errors of the disk are no OSError.
        (part / PARAMS).write_bytes(tensors.save(arrays))
        small.plan.save(part / PLAN)
        (part / FORWARD).write_bytes(forward)
        (part / CARD).write_text(text + "\n", encoding="utf-8")


def load_slim(folder: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Plan, dict[str, Any]]:
    """What `save_slim` wrote: arrays by leaf path, plan, and card.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        ValueError: one of them is damaged.
    """
    folder = Path(folder)
    missing = [name for name in (PARAMS, PLAN, CARD) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} holds no slimmed network: {missing[0]} is not there")
    try:
        arrays = dict(_safetensors().load_file(folder / PARAMS))
        card = files.parse_json((folder / CARD).read_text(encoding="utf-8"))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever the readers make of damaged bytes
        raise ValueError(f"{folder} is damaged: {error}") from None
    return arrays, Plan.load(folder / PLAN), card


def _safetensors() -> Any:
    try:
        importlib.import_module("flatbuffers")  # jax.export serialises with it
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"networks are saved with {error.name}: pip install 'dessilbi_jax[train]'",
            name=error.name,
        ) from None


def _forward(fn: Callable[..., Any], tree: Any, inputs: Any) -> tuple[bytes, str]:
    """The serialised forward pass, for any batch length if that can be."""
    leaves, treedef = jax.tree.flatten(inputs)
    lengths = {np.shape(x)[:1] for x in leaves}

    def forward(*inputs: Any) -> Any:
        return fn(tree, *inputs)

    shape_of: Any = jax.ShapeDtypeStruct  # which JAX leaves without types
    export = jax.export.export(jax.jit(forward), platforms=_PLATFORMS)
    fixed = jax.eval_shape(lambda x: x, inputs)
    if len(lengths) == 1 and lengths != {()}:
        (b,) = jax.export.symbolic_shape("b")
        any_batch = [shape_of((b, *np.shape(x)[1:]), x.dtype) for x in leaves]
        try:
            return bytes(export(*jax.tree.unflatten(treedef, any_batch)).serialize()), "any"
        except Exception:  # shapes that the network's code wants as numbers
            pass
    return bytes(export(*fixed).serialize()), "as in the example"
