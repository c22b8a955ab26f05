"""Parameters and batch statistics as safetensors files, and those a run keeps to rewind to."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import dessilbi_jax as dl
from dessilbi_jax import files, run_files
from dessilbi_jax.train.devices import processes
from dessilbi_jax.tree import leaf_paths, to_host

NAME = "weights.safetensors"
_ROOTS = ("params", "stats")


def write_weights(file: Path, params: Any, stats: Any) -> None:
    """Writes parameters and batch statistics into one file, at once or not at all.

    Of several processes all have to call it, and the first writes.
    """
    trees = dict(zip(_ROOTS, to_host((params, stats)), strict=True))
    if not processes.is_first():
        return
    arrays = {
        f"{root}/{path}": np.ascontiguousarray(leaf)
        for root, tree in trees.items()
        for path, leaf in leaf_paths(tree)
    }
    files.write_atomically(file, safetensors.numpy.save(arrays))


def read_weights(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns parameters and batch statistics as nested dicts of NumPy arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    try:
        arrays = safetensors.numpy.load(file.read_bytes())
        trees: dict[str, Any] = {root: {} for root in _ROOTS}
        for name, array in arrays.items():
            root, *path = name.split("/")
            node = trees[root]
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = array
    except (safetensors.SafetensorError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): train it again") from None
    return _sorted(trees["params"]), _sorted(trees["stats"])


def save_weights(run: Path, step: int, params: Any, stats: Any) -> None:
    """Keeps a run's parameters and batch statistics of a step."""
    if processes.is_first():
        (run / run_files.WEIGHTS).mkdir(exist_ok=True)
    write_weights(_file(run, step), params, stats)


class RunCheckpoints(Mapping[int, dict[str, Any]]):
    """The parameters of a run by step, each read when it is asked for.

    `self[step]` is a nested dict of NumPy arrays; `load` gives the batch statistics too. Of a run
    that grows they are those of the network it ends with, from when it last grew.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        found = (run / run_files.WEIGHTS).glob("*.safetensors")
        since = _since(run)
        steps = (int(file.stem) for file in found if file.stem.isdecimal())
        self._steps = sorted(step for step in steps if step >= since)

    def file(self, step: int) -> Path:
        """The file with the parameters of a step."""
        return _file(self.run, step)

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns parameters and batch statistics of a step.

        Raises:
            KeyError: none are kept of that step.
            ValueError: the file is damaged.
        """
        if step not in self._steps:
            raise KeyError(step)
        return read_weights(_file(self.run, step))

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.load(step)[0]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def checkpoints(run: str | Path) -> RunCheckpoints:
    """Returns the parameters that a run keeps, by step, to go with `dl.rewind`.

    Step 0 is the initialisation; then the ends of epochs as the configuration's `keep_every` has
    it, and the end of the run.

    Args:
        run: the folder of a run, finished or not.

    Raises:
        FileNotFoundError: the folder keeps none.

    Example:
        >>> import tempfile
        >>> import dessilbi_jax as dl
        >>> from dessilbi_jax import train
        >>> config = train.TrainConfig(network="lenet300", dataset="digits", epochs=2, widths=(8,))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = train.fit(config, out)
        ...     kept = train.checkpoints(out)
        ...     list(kept), dl.rewind(kept, "init")["fc1"]["kernel"].shape
        ([0, 10, 20], (64, 8))
    """
    kept = RunCheckpoints(Path(run))
    if not kept:
        raise FileNotFoundError(f"{run} keeps no parameters: it is no run, or of another version")
    return kept


def step_of(run: Path, start: str, steps_per_epoch: int) -> int:
    """Returns the step that "init", "end" or the number of an epoch stands for.

    Raises:
        ValueError: another word, or an epoch of which nothing is kept, with those that are.
    """
    kept = checkpoints(run)
    by_step = {step: step for step in kept}
    if start == "end" and not (run / run_files.RESULT).exists():
        raise ValueError(f"the run in {run} has not finished, so it has no end: resume it first")
    if start in ("init", "end"):
        return dl.rewind(by_step, start)
    if start.isdecimal() and int(start) * steps_per_epoch in by_step:
        return int(start) * steps_per_epoch
    epochs = [str(step // steps_per_epoch) for step in kept if step]
    raise ValueError(
        f"--from must be init, end or an epoch whose parameters are kept, got {start!r}; {run} "
        f"keeps those of {', '.join(epochs) or 'no epoch'}"
    )


def _since(run: Path) -> int:
    """The step from which on the network of a run has been as wide as it is."""
    file = run / run_files.GROWTH
    growths = files.read_json(file)["growths"] if file.exists() else []
    return int(growths[-1]["step"]) if growths else 0


def _file(run: Path, step: int) -> Path:
    return run / run_files.WEIGHTS / f"{step}.safetensors"


def _sorted(tree: dict[str, Any]) -> dict[str, Any]:
    """The nested dict with its keys in order, as JAX has them."""
    return {k: _sorted(v) if isinstance(v, dict) else v for k, v in sorted(tree.items())}
