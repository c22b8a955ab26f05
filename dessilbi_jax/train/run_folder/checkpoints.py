"""Checkpoints of a run, by Orbax: the state of training and the records up to it, together.

They are written in the background while training goes on, and appear under their name at once or
not at all. Beside the training state a checkpoint holds metrics.jsonl, path.npz and norms.npz, so
that a resumed run continues them exactly, whatever happened to the files since, and the position
of the data. Checksums of all its files decide whether a checkpoint is good; a damaged one is
passed over for the one before. They are compared before Orbax sees the files, as its readers fail
noisily.

With several processes all of them take part; the first one writes what is not divided, and the
folder has to be one that all of them see.
"""

import contextlib
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

import dessilbi_jax as dl
from dessilbi_jax import files, run_files
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.run_folder import disk_errors as storage
from dessilbi_jax.train.step import TrainState

KEPT = 2
_STATE, _META, _CHECKSUMS = "state", "meta.json", "checksums.json"
_NONE, _BAD = -1, -2  # instead of a step
_NO_ACCURACY = -1.0
# Orbax writes these once more after all else, and nothing of ours reads them.
_UNCHECKED = {_CHECKSUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the training state.
        records: by file name, the bytes of the files of the records.
        seconds: time the run had taken.
        data: the position of the data, as the source gives it.
        plan: what was kept of the network that the run began with, where it has been cut.
        growth: what `Growth.to_json` says, where it grows.
    """

    state: TrainState
    records: dict[str, bytes]
    seconds: float
    data: bytes = b""
    plan: dl.Plan | None = None
    growth: Any = None


class _Best(policies.PreservationPolicy):
    """Keeps the checkpoint with the highest accuracy, the last of several."""

    def __init__(self, accuracies: dict[int, float]) -> None:
        self._accuracies = accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says of each checkpoint whether it is the best."""
        found = [(self._accuracies.get(c.step, _NO_ACCURACY), c.step) for c in checkpoints]
        best = max(found, default=(_NO_ACCURACY, 0))
        return [each == best and best[0] > _NO_ACCURACY for each in found]


class Checkpoints:
    """Writes the checkpoints of a run; the last ones are kept, and the best.

    Use it as a context manager; at its end all is written.

    Args:
        directory: where they go, one folder a step.
        keep: how many of the last ones are kept.
    """

    def __init__(self, directory: Path, keep: int = KEPT) -> None:
        self._directory, self._stack = directory, contextlib.ExitStack()
        # Before 3.13 Python takes a thread for ended once a join of it is interrupted, and Orbax
        # would close, and clear away, beside a save that goes on; this one is never interrupted.
        self._waiter = futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: tuple[int, dict[str, bytes], dict[str, Any]] | None = None
        # Of a run that was resumed too, which Orbax's own policy would not know.
        self._accuracies = {step: _accuracy(directory / str(step)) for step in _steps(directory)}
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), _Best(self._accuracies)])
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        self._stack.enter_context(storage.quiet())
        self._stack.enter_context(self._waiter)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            try:
                self.wait()
                failed = error
            except OSError as late:
                failed = error or late
            if failed is None:
                self._manager.close()
                return
            with contextlib.suppress(Exception):  # what went wrong first is what is told
                self._manager.close()
            if processes.is_first():
                for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                    # A thread of the writer may still add to what is being cleared away.
                    for _ in range(40):
                        shutil.rmtree(unfinished, ignore_errors=True)
                        if not unfinished.exists():
                            break
                        time.sleep(0.05)
            storage.forget()
            if error is None:
                raise failed

    def save(self, snapshot: Snapshot, accuracy: float | None = None) -> None:
        """Begins to write a checkpoint, named by the step of its state; waits for the one before.

        Args:
            snapshot: what it holds. The state may be donated at once.
            accuracy: by which the best one is kept; one without is never the best.

        Raises:
            OSError: this checkpoint or the one before could not be written.
        """
        self.wait()
        step = int(snapshot.state.step)
        # Not the state itself, which may be donated before all is written.
        meta = {
            "seconds": snapshot.seconds,
            "records": sorted(snapshot.records),
            "data": snapshot.data.decode(),
            "accuracy": accuracy,
            "plan": None if snapshot.plan is None else snapshot.plan.to_json(),
            "growth": snapshot.growth,
        }
        self._pending = step, snapshot.records, meta
        self._accuracies[step] = _NO_ACCURACY if accuracy is None else accuracy
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(snapshot.state)),
                force=True,
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            OSError: it could not be.
        """
        with self._explained():
            self._waiter.submit(self._manager.wait_until_finished).result()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
            return
        except Exception as error:  # Orbax and TensorStore raise of many kinds
            why = storage.reason(error)
        # Not while the error is handled: its traceback would keep alive all calls it ended.
        step = "" if self._pending is None else f" of step {self._pending[0]}"
        raise OSError(
            f"the checkpoint{step} could not be written ({why}); last good checkpoint: "
            f"{newest(self._directory) or 'none yet'}. Make room or give write permission, then "
            "go on with --resume"
        )

    def _complete(self) -> None:
        """Adds the records and the checksums, before the folder gets its name."""
        if self._pending is None or not processes.is_first():
            return
        step, records, meta = self._pending
        unnamed = [d for d in self._directory.glob(f"{step}.*") if d.is_dir()]
        checkpoint = unnamed[0] if unnamed else self._directory / str(step)
        for name, content in records.items():
            (checkpoint / name).write_bytes(content)
        files.write_json(checkpoint / _META, meta)
        files.write_json(checkpoint / _CHECKSUMS, _checksums(checkpoint))


@storage.quiet()
def restore_latest(
    directory: Path,
    like: TrainState,
    other: Callable[[Any, dl.Plan | None], TrainState] | None = None,
) -> tuple[Snapshot | None, list[str]]:
    """Reads the newest good checkpoint.

    Args:
        directory: where the checkpoints are.
        like: a state of the run's structure, shapes and dtypes, divided among the devices as the
            one read is to be.
        other: the same for a network that has grown, or of which a plan leaves less.

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
    checkpoint = directory / str(found)
    meta = files.read_json(checkpoint / _META)
    plan = None if meta.get("plan") is None else dl.Plan.from_json(meta["plan"])
    growth = meta.get("growth")
    if other is not None:
        like = other(growth, plan)
    named, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {_name(keys): (tuple(leaf.shape), leaf.dtype) for keys, leaf in named}
    got = _shapes(checkpoint)
    if odd := sorted(k for k in expected | got if expected.get(k) != got.get(k)):
        raise ValueError(
            f"checkpoint {checkpoint} is of another network or optimizer: {odd[0]} is "
            f"{got.get(odd[0], 'missing')}, expected {expected.get(odd[0], 'no such array')}"
        )
    processes.meet("checkpoint chosen")
    if processes.is_first():
        for damaged in (s for s in _steps(directory) if s > found):
            shutil.rmtree(directory / str(damaged))
    processes.meet("damaged checkpoints removed")
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    arguments = ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = reader.restore(checkpoint.absolute() / _STATE, arguments)
    # Copies: JAX may not donate memory that NumPy owns.
    state = jax.tree.unflatten(treedef, [jnp.copy(x) for x in jax.tree.leaves(state)])
    records = {name: (checkpoint / name).read_bytes() for name in meta["records"]}
    return Snapshot(
        state, records, float(meta["seconds"]), meta["data"].encode(), plan, growth
    ), notes


@storage.quiet()
def load_params(
    run: str | Path, which: Literal["newest", "best"] = "newest"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters and batch statistics of a good checkpoint of a run.

    Args:
        run: the folder of a run, finished or not.
        which: the newest, or the best: of those kept the one with the highest held-out accuracy
            of the dense network.

    Returns:
        Two nested dicts of NumPy arrays; the second is empty without batch normalisation. Where
        the run has cut its network they are in the shapes it began with, zero in what was cut.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: none of its checkpoints is good, or another word than those.
    """
    if which not in ("newest", "best"):
        raise ValueError(f"which must be 'newest' or 'best', got {which!r}")
    directory = Path(run) / run_files.CHECKPOINTS
    step, _ = _newest(directory, by_accuracy=which == "best")
    if step is None:
        raise FileNotFoundError(f"there is no checkpoint in {directory}")
    place = (directory / str(step)).absolute() / _STATE
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(reader, place)
        )
        saved = reader.restore(place, ocp.args.PyTreeRestore(restore_args=as_numpy))
    plan = files.read_json(directory / str(step) / _META).get("plan")
    if plan is None:
        return saved["params"], saved["stats"]
    kept = dl.Plan.from_json(plan)
    return kept.spread(saved["params"]), kept.spread(saved["stats"])


def newest(directory: Path) -> Path | None:
    """Returns the newest checkpoint there is, good or not; None without any."""
    steps = _steps(directory)
    return directory / str(steps[0]) if steps else None


def _steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints there are, newest first."""
    return sorted((int(d.name) for d in directory.glob("*") if d.name.isdecimal()), reverse=True)


def _newest(directory: Path, *, by_accuracy: bool = False) -> tuple[int | None, list[str]]:
    """Returns the step of the newest (or best) good checkpoint, and what was passed over.

    With several processes it is the one that the first process finds.

    Raises:
        ValueError: there are checkpoints and none of them is good.
    """
    notes: list[str] = []
    steps = _steps(directory)
    if by_accuracy:
        steps.sort(key=lambda step: _accuracy(directory / str(step)), reverse=True)
    chosen = None
    for step in steps if processes.is_first() else []:
        odd = _damage(directory / str(step))
        if odd is None:
            chosen = step
            break
        notes.append(f"checkpoint {directory / str(step)} is damaged ({odd})")
    none = _BAD if notes else _NONE
    code = processes.from_first(none if chosen is None else chosen)
    if code == _BAD:
        told = "; ".join(notes) or f"no checkpoint in {directory} is good"
        raise ValueError(f"{told}; no good one is left: start again with --overwrite")
    if code == _NONE:
        return None, []
    return code, [f"{note}; that of step {code} is used" for note in notes]


def _accuracy(checkpoint: Path) -> float:
    """Returns the accuracy that a checkpoint was saved with, `_NO_ACCURACY` without any."""
    try:
        return float(files.read_json(checkpoint / _META)["accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return _NO_ACCURACY


def _damage(checkpoint: Path) -> str | None:
    """Returns what is not as it was written, None if all is."""
    try:
        if not (checkpoint / _CHECKSUMS).exists():
            return f"it has no {_CHECKSUMS}"
        expected, found = files.read_json(checkpoint / _CHECKSUMS), _checksums(checkpoint)
    except (OSError, ValueError) as error:
        return str(error)
    odd = sorted(f for f in expected | found if expected.get(f) != found.get(f))
    return f"{odd[0]} is not as it was written" if odd else None


def _shapes(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns shape and dtype of each array of a checkpoint, by name."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = _metadata(reader, checkpoint.absolute() / _STATE)
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(keys): (tuple(leaf.shape), leaf.dtype) for keys, leaf in named}


def _metadata(reader: ocp.Checkpointer, place: Path) -> Any:
    """Returns what Orbax knows of the arrays in a folder, as a nested dict."""
    return reader.metadata(place).item_metadata.tree


def _name(keys: Any) -> str:
    """Returns the name of a leaf, the same for a named tuple and for the dict Orbax makes of it."""
    return str(jax.tree_util.keystr(keys, simple=True, separator="/"))


def _checksums(checkpoint: Path) -> dict[str, int]:
    """Returns the CRC-32 of each file of a checkpoint."""
    return {
        file.relative_to(checkpoint).as_posix(): zlib.crc32(file.read_bytes())
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name not in _UNCHECKED
    }
