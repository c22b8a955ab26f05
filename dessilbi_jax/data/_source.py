"""What every source of data offers the training loop, and what its parts have in common."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np

Batch = tuple[np.ndarray, np.ndarray]

PADDING = -1
"""The label of rows that only fill up a batch; for tokens that of every place in such a row."""


class Part(Protocol):
    """Rows to be evaluated: the test part, or what was set aside from the train part."""

    def __len__(self) -> int:
        """Number of rows, images or windows of tokens."""

    def batches(self, size: int, *, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        """All rows in order, each in the batch of exactly one shard.

        Every shard gets the same number of batches, ceil(rows / size), each of size // shards
        rows: of batch i rows i·size … (i + 1)·size - 1, of these the shard's consecutive share,
        so that the shards' batches one after another are the batch of one shard. Where no rows
        are left, inputs are 0 and labels are -1.

        Args:
            size: rows of a batch of all shards together, a multiple of `shards`.
            shard: which of the shards, from 0.
            shards: how many there are, usually one a process.

        Returns:
            An iterator of inputs and int32 labels: images uint8 [rows, height, width, channels]
            and labels [rows], or tokens int32 [rows, context] and next tokens [rows, context].

        Raises:
            ValueError: sizes that do not fit together, or records that cannot be read.
        """


class Batches(Iterator[Batch], Protocol):
    """Endless train batches whose position can be kept."""

    def get_state(self) -> bytes:
        """The position behind the last batch that was handed out, a few dozen bytes of JSON."""

    def set_state(self, state: bytes) -> None:
        """Goes on behind the batch after which `state` was taken, with the same batches, bit
        for bit; the number of shards, workers and threads may differ from then.

        Raises:
            ValueError: the state of other batches, or no state.
        """

    def close(self) -> None:
        """Ends threads and worker processes; harmless when repeated."""


@runtime_checkable
class Source(Protocol):
    """Rows to train on and rows to test with.

    A resident source is small enough to lie on the device as a whole: it has `arrays` and
    `pick`. Any other has `train_batches`. Which it is, `resident` says.

    Attributes:
        name: of the data set.
        kind: "images" or "tokens".
        resident: whether the train part is to be put on the device as a whole.
        input_shape: of one row: (height, width, channels), or (context,).
        num_classes: number of classes; for tokens the size of the vocabulary.
        mean: of each channel, pixels scaled to [0, 1]; () for tokens.
        std: likewise the standard deviation.
        train_size: number of train rows: images, or windows of `context` tokens.
        test_size: number of test rows.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Literal["images", "tokens"]: ...
    @property
    def resident(self) -> bool: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def train_size(self) -> int: ...
    @property
    def test_size(self) -> int: ...

    def set_aside(self, n: int, seed: int = 0) -> tuple["Source", Part]:
        """The source with `n` fewer train rows, and those rows; `seed` says which.

        Raises:
            ValueError: `n` below 1 or not less than the number of train rows.
        """

    def test_part(self) -> Part:
        """The rows to test with."""

    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the device needs to hold for `pick`, if the source is resident.

        Raises:
            ValueError: the source is not resident.
        """

    def pick(self, arrays: tuple[jax.Array, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs and labels of train rows, from `arrays`; may be called under jit.

        Args:
            arrays: those of `arrays`, on the device.
            rows: int32 [batch], from 0 to train_size - 1.
        """

    def train_batches(
        self,
        batch: int,
        *,
        seed: int,
        shard: int = 0,
        shards: int = 1,
        workers: int = 0,
        threads: int | None = None,
    ) -> Batches:
        """Endless epochs of train batches, if the source is not resident.

        An epoch has train_size // batch batches, whatever the number of shards; the rows that do
        not fill a last batch are left out of it. The order depends on the seed and the epoch
        alone. Each batch is divided among the shards as by `Part.batches`: theirs one after
        another are the batch of one shard, bit for bit.

        Args:
            batch: rows of a batch of all shards together, a multiple of `shards`.
            seed: of the order and of the augmentation.
            shard: which of the shards, from 0.
            shards: how many there are, usually one a process.
            workers: processes that decode. 0: threads of this process do.
            threads: threads that decode, in each worker. Default: one a core, at most 16.

        Returns:
            An iterator of `batch // shards` rows a turn, as those of `Part.batches`.

        Raises:
            ValueError: sizes that do not fit together, or a resident source.
        """


def share(size: int, shard: int, shards: int) -> slice:
    """The places in a batch of all shards that belong to one of them.

    Raises:
        ValueError: a batch that cannot be divided among the shards, or no such shard.

    Examples:
        >>> share(12, shard=1, shards=3)
        slice(4, 8, None)
    """
    if shards < 1 or not 0 <= shard < shards:
        raise ValueError(f"shard must lie in 0…shards - 1, got shard {shard} of {shards}")
    if size < 1 or size % shards:
        raise ValueError(
            f"a batch must be a positive multiple of the {shards} shards it is divided among, "
            f"got {size}"
        )
    each = size // shards
    return slice(shard * each, (shard + 1) * each)


def padded(inputs: np.ndarray, labels: np.ndarray, rows: int) -> Batch:
    """Inputs and labels filled up to `rows` rows: inputs with 0, labels with -1.

    Examples:
        >>> padded(np.ones((1, 2), np.int32), np.array([7]), rows=3)[1]
        array([ 7, -1, -1])
    """
    missing = rows - len(labels)

    def filled(x: np.ndarray, value: int) -> np.ndarray:
        return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=value)

    return (filled(inputs, 0), filled(labels, PADDING)) if missing else (inputs, labels)


def stretches(total: int, size: int, shard: int, shards: int) -> list[range]:
    """The rows of each batch of one shard, when `total` rows are divided as by `Part.batches`.

    Examples:
        >>> stretches(10, size=8, shard=0, shards=2), stretches(10, size=8, shard=1, shards=2)
        ([range(0, 4), range(8, 10)], [range(4, 8), range(10, 10)])
    """
    own = share(size, shard, shards)
    return [
        range(min(start + own.start, total), min(start + own.stop, total))
        for start in range(0, total, size)
    ]


class ArrayPart:
    """A `Part` whose rows are arrays in memory.

    Examples:
        >>> part = ArrayPart(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5, dtype=np.int32))
        >>> [y.tolist() for _, y in part.batches(4)]
        [[0, 1, 2, 3], [4, -1, -1, -1]]
    """

    def __init__(self, inputs: np.ndarray, labels: np.ndarray):
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, *, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        """See `Part.batches`."""
        for rows in stretches(len(self), size, shard, shards):
            own = slice(rows.start, rows.stop)
            yield padded(self.inputs[own], self.labels[own], size // shards)


def check_set_aside(name: str, total: int, n: int) -> None:
    """Raises unless 1 ≤ n < total."""
    if not 1 <= n < total:
        raise ValueError(
            f"holdout must be at least 1 and less than the {total} train rows of {name}, got {n}"
        )


def not_resident(name: str) -> Any:
    """Raises for `arrays` and `pick` of a source that is not resident."""
    raise ValueError(f"{name} is too large for a device; it streams, use `train_batches`")
