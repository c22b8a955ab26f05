"""From a source of data to what the compiled steps are given, on whatever mesh."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from dessilbi_jax import data
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.devices.mesh import by_rows, everywhere, place, process_rows, row_shards
from dessilbi_jax.train.step import Batch

_IMAGES_A_BATCH = 500  # in evaluation, of small images
_SMALL = 64 * 64


class Feed(Protocol):
    """Training data in the order of a run."""

    def at(self, step: int) -> Any:
        """What the compiled step is given after `step` updates; called for each in turn."""

    def pick(self, given: Any, step: jax.Array) -> Batch:
        """Inputs and labels, from what `at` gave; inside the compiled step."""

    def get_state(self) -> bytes:
        """The position behind the last batch."""

    def set_state(self, state: bytes) -> None:
        """Goes on from a position."""

    def close(self) -> None:
        """Ends what runs in the background."""


def make_feed(source: data.Source, config: TrainConfig, mesh: Mesh) -> Feed:
    """Returns the batches of a run: from the devices' memory where the source fits, else streamed.

    Args:
        source: the training part.
        config: its `batch_size`, `seed` and `augment` are used; streamed images are cropped and
            mirrored by their source.
        mesh: where the run lies.

    Raises:
        ValueError: a batch that cannot be divided among the devices.
    """
    check_batch(config, mesh)
    if not source.resident:
        return _Streamed(source, config, mesh)
    return Resident(
        tuple(place(x, everywhere(mesh)) for x in source.arrays()),
        source.pick,
        rows=source.train_size,
        batch=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        mesh=mesh,
    )


def check_batch(config: TrainConfig, mesh: Mesh) -> None:
    """Raises unless the rows of a batch can be divided evenly.

    Raises:
        ValueError: they cannot.
    """
    parts = row_shards(mesh)
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be divided among the {parts} parts of the mesh "
            f"(data times fsdp): give a multiple of {parts}"
        )


def pick_rows(
    given: Any, step: jax.Array, *, rows_of: Callable[[Any, jax.Array], Batch], augment: bool
) -> Batch:
    """Inputs and labels of a step, of what `Resident.at` gives; inside the compiled step.

    Augmentation depends on (seed, step) alone, so that a resumed run sees the same images. The
    seed is given with the data: one compiled step serves all seeds.
    """
    arrays, order, seed = given
    x, y = rows_of(arrays, order[step % order.shape[0]])
    if augment:
        x = data.augment(jax.random.fold_in(jax.random.wrap_key_data(seed), step), x)
    return x, y


class Resident:
    """All training data on every device; a step is given the order of its epoch.

    Args:
        arrays: the data, on the devices.
        rows_of: of the arrays and the numbers of rows, inputs and labels.
        rows: how many there are.
        batch: rows of a step; an incomplete last batch of an epoch is dropped.
        seed: of the order of the rows, and of the augmentation.
        augment: whether images are moved and mirrored.
        mesh: where it lies.
    """

    def __init__(
        self,
        arrays: tuple[jax.Array, ...],
        rows_of: Callable[[Any, jax.Array], Batch],
        *,
        rows: int,
        batch: int,
        seed: int,
        augment: bool,
        mesh: Mesh,
    ) -> None:
        self._arrays, self._rows_of, self._augment = arrays, rows_of, augment
        self._rows, self._batch, self._seed, self._mesh = rows, batch, seed, mesh
        self._key = place(jax.random.key_data(jax.random.key(seed)), everywhere(mesh))
        self._epoch = -1
        self._order: jax.Array | None = None

    def at(self, step: int) -> Any:
        """The data, the order of the step's epoch, and what augmentation draws from."""
        epoch = step // (self._rows // self._batch)
        if epoch != self._epoch:
            self._epoch = epoch
            order = data.epoch_order(self._seed, epoch, self._rows, self._batch)
            self._order = place(order, by_rows(self._mesh, axis=1))
        return self._arrays, self._order, self._key

    def pick(self, given: Any, step: jax.Array) -> Batch:
        """Inputs and labels of a step: `pick_rows`."""
        return pick_rows(given, step, rows_of=self._rows_of, augment=self._augment)

    def get_state(self) -> bytes:
        """Nothing: the step alone says which batch is next."""
        return b""

    def set_state(self, state: bytes) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _Streamed:
    """Batches decoded on the host while the devices compute."""

    def __init__(self, source: data.Source, config: TrainConfig, mesh: Mesh) -> None:
        shard, shards = process_rows(mesh)
        self._mesh = mesh
        self._batches = source.train_batches(
            config.batch_size, seed=config.seed, shard=shard, shards=shards
        )

    def at(self, step: int) -> Any:
        return put_rows(next(self._batches), self._mesh)

    def pick(self, given: Any, step: jax.Array) -> Batch:
        return given

    def get_state(self) -> bytes:
        return self._batches.get_state()

    def set_state(self, state: bytes) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()


class Rows:
    """The rows of a part as device batches, to be gone through any number of times.

    Args:
        part: what is evaluated.
        size: rows of a batch, rounded up so that it can be divided among the devices.
        mesh: where the network lies.
        keep: whether the batches stay on the devices, for parts that are used often.

    Example:
        >>> from dessilbi_jax.train.devices.mesh import make_mesh
        >>> rows = Rows(data.load("digits").test_part(), 200, make_mesh("one"))
        >>> [x.shape for x, _ in rows], [int((y >= 0).sum()) for _, y in rows]
        ([(200, 8, 8, 1), (200, 8, 8, 1)], [200, 160])
    """

    def __init__(self, part: data.Part, size: int, mesh: Mesh, *, keep: bool = False) -> None:
        parts = row_shards(mesh)
        self._part, self._mesh = part, mesh
        self._size = -(-size // parts) * parts
        self._kept: list[Batch] | None = list(self._fresh()) if keep else None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._part)

    def __iter__(self) -> Iterator[Batch]:
        return self._fresh() if self._kept is None else iter(self._kept)

    def _fresh(self) -> Iterator[Batch]:
        shard, shards = process_rows(self._mesh)
        for batch in self._part.batches(self._size, shard=shard, shards=shards):
            yield put_rows(batch, self._mesh)


def evaluation_size(source: data.Source, config: TrainConfig) -> int:
    """Returns the rows of an evaluation batch: 500 small images, else as many as a training batch.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
        >>> evaluation_size(data.load("digits"), config)
        500
    """
    small = source.kind == "images" and math.prod(source.input_shape[:2]) <= _SMALL
    return _IMAGES_A_BATCH if small else config.batch_size


def put_rows(batch: tuple[np.ndarray, np.ndarray], mesh: Mesh) -> Batch:
    """Returns a batch on the devices, of which this process has its share of the rows."""
    x, y = (jax.make_array_from_process_local_data(by_rows(mesh), part) for part in batch)
    return x, y
