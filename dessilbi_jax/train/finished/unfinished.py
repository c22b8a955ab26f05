"""A retraining under way: what it keeps beside its target, so that it can be resumed."""

import json
import re
from pathlib import Path
from typing import Any

from dessilbi_jax import files, run_files
from dessilbi_jax.train.devices.processes import is_first
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder.checkpoints import Checkpoints, Snapshot, restore_latest
from dessilbi_jax.train.run_folder.owned import foreign, remove_own
from dessilbi_jax.train.step import TrainState

REQUEST, _EPOCHS = "request.json", "epochs.json"
_OWN = re.compile(run_files.UNFINISHED_FILES)


class Unfinished:
    """The folder `TARGET.unfinished`: what was asked for, and checkpoints.

    Args:
        target: where the network goes once it is trained.
    """

    def __init__(self, target: Path) -> None:
        self.place = target.with_name(target.name + run_files.UNFINISHED_ENDING)
        self._checkpoints = self.place / run_files.CHECKPOINTS

    def check(self, request: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
        """Says whether there is a retraining to go on with; changes nothing.

        Args:
            request: all that the weights hang on.
            resume: whether one that was stopped is to go on.
            overwrite: whether it may be deleted.

        Raises:
            FileExistsError: there is one and neither was said, or the folder holds other files.
            FileNotFoundError: `resume` and there is none.
            ValueError: `resume` and it was asked for something else.
        """
        if not (self.place / REQUEST).is_file():
            if self.place.exists() and foreign(self.place, _OWN):
                raise FileExistsError(f"{self.place} holds other files; move them or give --out")
            if resume:
                raise FileNotFoundError(f"nothing to resume: there is no {self.place}")
            return False
        if others := foreign(self.place, _OWN):
            raise FileExistsError(
                f"{self.place} holds files that are not of a retraining ({', '.join(others[:3])}); "
                "none is deleted: move them, or give --out"
            )
        if not resume and not overwrite:
            raise FileExistsError(
                f"{self.place} holds a retraining that was stopped: go on with --resume, or start "
                "it anew with --overwrite"
            )
        then = files.read_json(self.place / REQUEST)
        if resume and (odd := [name for name in request if then.get(name) != request[name]]):
            raise ValueError(
                f"the retraining in {self.place} had {odd[0]}={then.get(odd[0])!r}, now "
                f"{request[odd[0]]!r}: resume it with its own, or start it anew with --overwrite"
            )
        return resume

    def begin(self, request: dict[str, Any]) -> None:
        """Makes the folder of a new one, cleared of one that was stopped."""
        self.place.mkdir(parents=True, exist_ok=True)
        own = re.compile(rf"(?!{re.escape(run_files.LOCK)}$)({_OWN.pattern})")
        remove_own(self.place, own, last=[REQUEST])
        files.write_json(self.place / REQUEST, request)

    def keeping(self) -> Checkpoints:
        """Returns what writes its checkpoints, of which the last is kept."""
        return Checkpoints(self._checkpoints, keep=1)

    def restore(
        self, like: TrainState, progress: Progress
    ) -> tuple[Snapshot, list[dict[str, Any]]] | None:
        """Returns the last good checkpoint and the epochs up to it, None where none was written."""
        snapshot, notes = restore_latest(self._checkpoints, like)
        for note in notes:
            progress.note(note)
        if snapshot is None:
            progress.note(f"no checkpoint yet in {self.place}: starting at the beginning")
            return None
        return snapshot, json.loads(snapshot.records[_EPOCHS])["epochs"]

    def remove(self) -> None:
        """Deletes what was written here, and the folder if nothing else is in it."""
        if self.place.is_dir() and is_first():
            remove_own(self.place, _OWN, last=[REQUEST])
            if not any(self.place.iterdir()):
                self.place.rmdir()


def snapshot_of(
    state: TrainState, epochs: list[dict[str, Any]], seconds: float, position: bytes
) -> Snapshot:
    """Returns what a checkpoint of a retraining holds."""
    text = json.dumps({"epochs": epochs}, allow_nan=False).encode()
    return Snapshot(state, {_EPOCHS: text}, seconds, position)
