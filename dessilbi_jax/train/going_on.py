"""What a stopped run goes on with: its newest good checkpoint, and the network that it is of."""

from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

import dessilbi_jax as dl
from dessilbi_jax import files, run_files
from dessilbi_jax.provenance import versions
from dessilbi_jax.train import cutting
from dessilbi_jax.train import growth as growing
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.cutting import Stage
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.devices.mesh import describe
from dessilbi_jax.train.feeds import Feed
from dessilbi_jax.train.growth import Growth
from dessilbi_jax.train.prepare import Setup
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.checkpoints import restore_latest
from dessilbi_jax.train.run_folder.records import Records
from dessilbi_jax.train.step import TrainState


class Begun(NamedTuple):
    """Where a run is: its network, with all that has grown and been cut, and the state of training.

    Attributes:
        run: its parts.
        stage: the network that it trains.
        state: of training.
        growth: what has grown; None where nothing does.
    """

    run: Setup
    stage: Stage
    state: TrainState
    growth: Growth | None


def go_on(
    out: Path,
    first: Begun,
    config: TrainConfig,
    feed: Feed,
    records: Records,
    mesh: Mesh,
    progress: Progress,
) -> tuple[Begun, float]:
    """Returns where a stopped run is, and the time taken by then.

    Args:
        out: the folder of the run.
        first: where it began.
        config: of the run.
        feed: its data, which is put to where it was.
        records: its records, likewise.
        mesh: the devices.
        progress: is told what is not as it was.
    """
    then, now = files.read_json(out / run_files.CONFIG), versions()
    old = then.get("versions", {})
    if changed := [f"{k} {old.get(k)}, now {v}" for k, v in now.items() if old.get(k, v) != v]:
        progress.note(f"versions have changed ({'; '.join(changed)}): not the same bit for bit")
    if then.get("mesh", describe(mesh)) != describe(mesh):
        moved = f"{then['mesh']}, now {describe(mesh)}"
        progress.note(f"the mesh has changed ({moved}): not the same bit for bit")
    if processes.is_first():
        folder.tidy(out)
    damage = records.damage()
    found = [first]

    def other(grown: Any, plan: dl.Plan | None) -> TrainState:
        growth = first.growth if grown is None else Growth.from_json(grown)
        run = first.run
        if growth is not None and growth.widths is not None:
            run = growing.widened(run, config, growth.widths, mesh)
        stage = Stage.first(run)
        if plan is not None:
            stage = cutting.stage_of(run, config, plan, mesh)
        found.append(Begun(run, stage, stage.state, growth))
        return stage.state

    snapshot, notes = restore_latest(out / run_files.CHECKPOINTS, first.state, other)
    for note in notes:
        progress.note(note)
    if snapshot is None:
        if config.init is not None and not first.run.given:
            raise ValueError(
                f"the run in {out} has no checkpoint yet and began with given weights: give them "
                "again by --init"
            )
        progress.note(f"no checkpoint yet in {out}: starting at the beginning")
        records.restore({})
        return first, 0.0
    if damage:
        progress.note(f"{damage}; the one kept with step {int(snapshot.state.step)} is put back")
    records.restore(snapshot.records)
    feed.set_state(snapshot.data)
    return found[-1]._replace(state=snapshot.state), snapshot.seconds
