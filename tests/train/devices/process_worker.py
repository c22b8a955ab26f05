"""One of several processes that train together; `test_processes` starts them.

python process_worker.py PORT PROCESSES PROCESS SCENARIO FOLDER MESH

What each process has to say goes to FOLDER/said.PROCESS.json.
"""

import json
import shutil
import signal
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from dessilbi_jax import data, train
from dessilbi_jax.train import loop
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.devices.mesh import make_mesh, process_rows
from dessilbi_jax.train.feeds import Rows, put_rows
from dessilbi_jax.train.interrupt import Interrupted
from dessilbi_jax.train.progress import Progress

# Hidden units over kernels and biases, cut where settling ends, in the second epoch; a batch of 60
# leaves an uneven last one.
CONFIG = train.TrainConfig(
    network="lenet300",
    dataset="digits",
    widths=(16, 8),
    epochs=2,
    batch_size=60,
    learning_rate=0.1,
    nu=50.0,
    density=0.5,
    settle=(0.1, 0.6),
    structure="channels",
)
IMAGES = 8  # side of the streamed images


class Signalling(Progress):
    """Sends the second of two processes a signal after 13 steps."""

    calls = 0

    def due(self):
        self.calls += 1
        if self.calls == 13 and not processes.is_first():
            signal.raise_signal(signal.SIGTERM)
        return super().due()


def two(folder, mesh):
    """A run; a run that one process is asked to stop, resumed; what must not happen."""
    said = {"rows": streamed(folder, mesh), "evaluated": evaluated(mesh)}
    said["result"] = train.fit(CONFIG, folder / "whole", mesh=mesh)
    said["again"] = train.fit(CONFIG, folder / "whole", mesh=mesh, resume=True)
    try:
        train.fit(CONFIG, folder / "whole", mesh=mesh)
    except FileExistsError as error:
        said["refused"] = str(error)
    stopped = folder / "stopped"
    with mock.patch.object(loop, "Progress", Signalling):
        try:
            train.fit(CONFIG, stopped, mesh=mesh)
        except Interrupted as stop:
            said["signum"], said["stopped"] = stop.signum, str(stop)
    if processes.is_first():
        shutil.copytree(stopped, folder / "for one")
    processes.meet("copied")
    said["resumed"] = train.fit(CONFIG, stopped, mesh=mesh, resume=True)
    return said


def four(folder, mesh):
    """A run on a mesh whose tensor axis goes across processes."""
    said = {"rows": streamed(folder, mesh), "evaluated": evaluated(mesh)}
    said["result"] = train.fit(CONFIG, folder / "whole", mesh=mesh)
    return said


def streamed(folder, mesh):
    """This process's rows of two batches, and whether all processes' are the whole batches."""
    devices = make_mesh(mesh)
    source = data.load("folder", folder / "images", image_size=IMAGES)
    shard, shards = process_rows(devices)
    mine = source.train_batches(12, seed=3, shard=shard, shards=shards)
    whole = source.train_batches(12, seed=3)
    rows = []
    for _ in range(2):
        local, expected = next(mine), next(whole)
        placed = put_rows(local, devices)
        for array, all_rows in zip(placed, expected, strict=True):
            assert array.shape == all_rows.shape
            for part in array.addressable_shards:
                np.testing.assert_array_equal(part.data, all_rows[part.index])
        rows.append([int(n) for n in local[1]])
    mine.close()
    whole.close()
    return {"shard": shard, "shards": shards, "labels": rows, "global": rows_of(expected)}


def rows_of(batch):
    return [int(n) for n in batch[1]]


def evaluated(mesh):
    """How many rows of the test part all processes see together, and the sum of their labels."""
    rows = Rows(data.load("digits").test_part(), 50, make_mesh(mesh))

    @jax.jit
    def count(y):
        return (y >= 0).sum(), jax.numpy.maximum(y, 0).sum()

    counts = np.array([jax.device_get(count(y)) for _, y in rows])
    return counts.sum(0).tolist()


def main():
    port, count, process, scenario, folder, mesh = sys.argv[1:]
    processes.start(f"127.0.0.1:{port}", int(count), int(process))
    with mock.patch("dessilbi_jax.report.style.svg", return_value=b"<svg/>"):  # not looked at
        said = {"two": two, "four": four}[scenario](Path(folder), mesh)
    said["processes"] = jax.process_count()
    said["gathered"] = [x.decode() for x in processes.gather(f"from {process}".encode())]
    said["first"] = processes.from_first(int(process) + 7)
    Path(folder, f"said.{process}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
