"""Checkpoints of a run, by Orbax: the state of training and the records up to it, together.

A checkpoint holds the bytes of metrics.jsonl, path.npz and norms.npz beside the training state, so
that a resumed run continues them exactly, whatever happened to the files since. Checksums of all
its files, written last, decide whether a checkpoint is good; a damaged one is passed over for the
one before. They are compared before Orbax sees the files, as its readers fail noisily.
"""

import shutil
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dessilbi_jax.train import folder
from dessilbi_jax.train.step import TrainState

KEPT = 2
_CHECKSUMS = "checksums.json"


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        records: by file name, the bytes of the files of the records.
        seconds: time the run had taken.
    """

    state: TrainState
    records: dict[str, bytes]
    seconds: float


class Checkpoints:
    """Writes the checkpoints of a run, the last two kept, each at once or not at all.

    Use it as a context manager.

    Args:
        directory: where they go, one folder a step.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint, named by the step of its state."""
        # NumPy arrays carry no device, so that a checkpoint can be read on any machine.
        state = jax.device_get(snapshot.state)
        records = {k: np.frombuffer(v, np.uint8) for k, v in snapshot.records.items()}
        meta = {"seconds": snapshot.seconds, "records": sorted(records)}
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                records=ocp.args.StandardSave(records),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )
        self._manager.wait_until_finished()
        folder.write_json(
            self._directory / str(step) / _CHECKSUMS, _checksums(self._directory / str(step))
        )


def restore_latest(directory: Path, like: TrainState) -> tuple[Snapshot | None, list[str]]:
    """Reads the newest good checkpoint.

    Args:
        directory: where the checkpoints are.
        like: a state of the run's structure, shapes and dtypes.

    Returns:
        The checkpoint (None where none was ever written) and a line for each damaged one that was
        passed over. Those are deleted, as the run will write them anew.

    Raises:
        ValueError: there are checkpoints and none of them is good, or the good one is of another
            network or optimizer; nothing is deleted.
    """
    found, notes = _newest(directory)
    if found is None:
        return None, []
    step, arrays, meta = found
    named, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {_name("state", keys): (leaf.shape, leaf.dtype) for keys, leaf in named}
    got = {k: (a.shape, a.dtype) for k, a in arrays.items() if k.startswith("state/")}
    if odd := sorted(k for k in expected | got if expected.get(k) != got.get(k)):
        raise ValueError(
            f"checkpoint {directory / str(step)} is of another network or optimizer: {odd[0]} is "
            f"{got.get(odd[0], 'missing')}, expected {expected.get(odd[0], 'no such array')}"
        )
    for damaged in (s for s in _steps(directory) if s > step):
        shutil.rmtree(directory / str(damaged))
    # Copies: JAX may not donate memory that NumPy owns.
    state = jax.tree.unflatten(treedef, [jnp.array(arrays[name]) for name in expected])
    records = {name: arrays[f"records/{name}"].tobytes() for name in meta["records"]}
    return Snapshot(state, records, float(meta["seconds"])), notes


def load_params(run: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters and batch statistics of a run's newest good checkpoint.

    Args:
        run: the folder of a run, finished or not.

    Returns:
        Two nested dicts of NumPy arrays; the second is empty without batch normalisation.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: none of its checkpoints is good.
    """
    directory = Path(run) / folder.CHECKPOINTS
    found, _ = _newest(directory)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {directory}")
    nested: dict[str, Any] = {"params": {}, "stats": {}}
    for name, array in found[1].items():
        _, part, *inner = name.split("/")
        if part in nested:
            node = nested[part]
            for key in inner[:-1]:
                node = node.setdefault(key, {})
            node[inner[-1]] = array
    return nested["params"], nested["stats"]


def _steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints there are, newest first."""
    return sorted((int(d.name) for d in directory.glob("*") if d.name.isdecimal()), reverse=True)


def _newest(
    directory: Path,
) -> tuple[tuple[int, dict[str, np.ndarray], dict[str, Any]] | None, list[str]]:
    """Returns step, arrays and meta of the newest good checkpoint, and what was passed over.

    Raises:
        ValueError: there are checkpoints and none of them is good.
    """
    notes: list[str] = []
    for step in _steps(directory):
        try:
            arrays, meta = _read(directory / str(step))
        except (OSError, ValueError) as error:
            notes.append(f"checkpoint {directory / str(step)} is damaged ({error})")
            continue
        return (step, arrays, meta), [f"{note}; that of step {step} is used" for note in notes]
    if notes:
        raise ValueError(f"{'; '.join(notes)}; no good one is left: start again with --overwrite")
    return None, []


def _read(checkpoint: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of one checkpoint, by name, and its meta.

    Raises:
        ValueError: a file is not as it was written, or missing.
    """
    if not (checkpoint / _CHECKSUMS).exists():
        raise ValueError(f"it has no {_CHECKSUMS}")
    expected, found = folder.read_json(checkpoint / _CHECKSUMS), _checksums(checkpoint)
    if odd := sorted(f for f in expected | found if expected.get(f) != found.get(f)):
        raise ValueError(f"{odd[0]} is not as it was written")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        saved = reader.restore(
            checkpoint.absolute(),
            ocp.args.Composite(
                state=ocp.args.StandardRestore(),
                records=ocp.args.StandardRestore(),
                meta=ocp.args.JsonRestore(),
            ),
        )
    arrays = {
        _name(root, keys): np.asarray(leaf)
        for root, tree in (("state", saved.state), ("records", saved.records))
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    return arrays, saved.meta


def _name(root: str, keys: Any) -> str:
    """Returns the name of a leaf, the same for a named tuple and for the dict Orbax makes of it."""
    return f"{root}/{jax.tree_util.keystr(keys, simple=True, separator='/')}"


def _checksums(checkpoint: Path) -> dict[str, int]:
    """Returns the CRC-32 of each file of a checkpoint."""
    return {
        file.relative_to(checkpoint).as_posix(): zlib.crc32(file.read_bytes())
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != _CHECKSUMS
    }
