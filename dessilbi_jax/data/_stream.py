"""Batches made in the background by grain: threads of this process, or worker processes.

Every batch is a function of its number alone: the seed and the number say which rows it has and
what is drawn for them. The state of an iterator is therefore the number of the next batch, right
however many were prepared ahead, and a run may go on with other shards, workers or threads.
What grain prepares are chunks of a few rows, so that the threads share the work on the next
batch instead of each preparing one of its own.
"""

import dataclasses
import functools
import importlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from dessilbi_jax.data._source import Batch, padded, share
from dessilbi_jax.data.batches import epoch_order

CHUNK = 16
_MOST_THREADS = 16
_STATE_VERSION = 1
# More batches than any run takes; grain wants its data sets finite.
_ENDLESS = 2**40


class Fetch(Protocol):
    """Makes inputs and labels of some rows; called by many threads, and sent to workers."""

    def __call__(self, rows: np.ndarray, draw: tuple[int, int] | None) -> Batch:
        """`draw` is the seed and the epoch that random choices depend on, besides the row; None
        where nothing may be random."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the train batches of a source are, whoever gets which part of them."""

    name: str
    rows: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        epoch_order(self.seed, 0, self.rows, self.batch)  # raises where they do not fit

    def of(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a batch, from 0, and its rows [batch]."""
        epoch, place = divmod(step, self.rows // self.batch)
        return epoch, _order(self.seed, epoch, self.rows, self.batch)[place]


@functools.lru_cache(maxsize=2)  # the epoch that ends and the one that begins
def _order(seed: int, epoch: int, rows: int, batch: int) -> np.ndarray:
    """`epoch_order`, kept for the batches of an epoch."""
    return epoch_order(seed, epoch, rows, batch)


@dataclasses.dataclass(frozen=True)
class _TrainChunk:
    """Chunk `index` of a shard's train batches."""

    fetch: Fetch
    plan: Plan
    own: slice

    def __call__(self, index: int) -> Batch | Exception:
        step, part = divmod(index, chunks_of(self.own))
        epoch, rows = self.plan.of(step)
        rows = rows[self.own][part * CHUNK :][:CHUNK]
        return _fetched(self.fetch, rows, (self.plan.seed, epoch))


@dataclasses.dataclass(frozen=True)
class _PartChunk:
    """Chunk `index` of a shard's batches of a part, without padding, perhaps empty."""

    fetch: Fetch
    total: int
    size: int
    own: slice

    def __call__(self, index: int) -> Batch | Exception:
        step, part = divmod(index, chunks_of(self.own))
        start = step * self.size + self.own.start + part * CHUNK
        stop = min(start + CHUNK, step * self.size + self.own.stop)
        rows = np.arange(min(start, self.total), min(stop, self.total))
        return _fetched(self.fetch, rows, None)


def _fetched(fetch: Fetch, rows: np.ndarray, draw: tuple[int, int] | None) -> Batch | Exception:
    """The rows, or why there are none: an error that travels as a value reaches the caller as it
    is, while grain adds the traceback of the worker to the message of one that is raised."""
    try:
        return fetch(rows, draw)
    except Exception as error:
        return error


def chunks_of(own: slice) -> int:
    """Number of chunks of a shard's share of a batch."""
    return -(-(own.stop - own.start) // CHUNK)


class Endless:
    """See `Batches`; threads or processes start with the first batch that is asked for."""

    def __init__(self, fetch: Fetch, plan: Plan, own: slice, workers: int, threads: int | None):
        self._chunk, self._plan = _TrainChunk(fetch, plan, own), plan
        self._per_batch = chunks_of(own)
        self._workers, self._threads = check_parallel(workers, threads)
        self._step = 0
        self._chunks: Any = None

    def __iter__(self) -> "Endless":
        return self

    def __next__(self) -> Batch:
        if self._chunks is None:
            span = self._step * self._per_batch, _ENDLESS
            self._chunks = _prepared(
                self._chunk, span, self._per_batch, self._workers, self._threads
            )
        try:
            batch = _joined([next(self._chunks) for _ in range(self._per_batch)])
        except BaseException:  # some chunks of the batch are gone: it begins anew if asked again
            self.close()
            raise
        self._step += 1
        return batch

    def get_state(self) -> bytes:
        """See `Batches`."""
        state = {"version": _STATE_VERSION, "step": self._step, **dataclasses.asdict(self._plan)}
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        """See `Batches`."""
        expected = {"version": _STATE_VERSION, **dataclasses.asdict(self._plan)}
        try:
            given = json.loads(state)
            step = given.pop("step")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the state of train batches: {state[:80]!r}") from error
        differing = [key for key in expected if given.get(key) != expected[key]]
        if differing or type(step) is not int or step < 0:
            raise ValueError(
                "the state is that of other train batches: "
                + ", ".join(f"{k} {given.get(k)!r}, here {expected[k]!r}" for k in differing)
                if differing
                else f"the state has no valid step: {step!r}"
            )
        self.close()
        self._step = step

    def close(self) -> None:
        """See `Batches`."""
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None


def once(fetch: Fetch, total: int, size: int, shard: int, shards: int) -> Iterator[Batch]:
    """The batches of a part of `total` rows, as `Part.batches` has them."""
    own = share(size, shard, shards)
    steps, per_batch = -(-total // size), chunks_of(own)
    if not steps:
        return
    _, threads = check_parallel(0, None)
    chunk = _PartChunk(fetch, total, size, own)
    chunks = _prepared(chunk, (0, steps * per_batch), per_batch, 0, threads)
    try:
        for _ in range(steps):
            yield padded(*_joined([next(chunks) for _ in range(per_batch)]), size // shards)
    finally:
        chunks.close()


def _joined(chunks: list[Batch | Exception]) -> Batch:
    """One batch of several chunks."""
    arrays = []
    for chunk in chunks:
        if isinstance(chunk, Exception):
            raise chunk
        arrays.append(chunk)
    inputs, labels = zip(*arrays, strict=True)
    return np.concatenate(inputs), np.concatenate(labels)


def check_parallel(workers: int, threads: int | None) -> tuple[int, int]:
    """The numbers of workers and of threads, the latter by default one a core, at most 16.

    Raises:
        ValueError: fewer than 0 workers or 1 thread.
    """
    if workers < 0 or (threads is not None and threads < 1):
        raise ValueError(
            f"workers must be at least 0 and threads at least 1, got {workers} and {threads}"
        )
    return workers, threads or min(_MOST_THREADS, os.cpu_count() or 1)


def import_grain() -> Any:
    """grain.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("grain")
    except ImportError as error:
        raise ImportError(
            f"data that streams needs {error.name or 'grain'}: install it with "
            "`pip install 'dessilbi_jax[train]'`"
        ) from error


def _prepared(
    chunk: Callable[[int], Batch | Exception],
    span: tuple[int, int],
    ahead: int,
    workers: int,
    threads: int,
) -> Any:
    """An iterator of `chunk(i)` for i in `span`, two batches of `ahead` chunks prepared ahead."""
    grain = import_grain()
    buffer = max(2 * ahead, threads)
    each = -(-buffer // workers) if workers else buffer
    chunks = grain.MapDataset.range(*span).map(chunk).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(each, threads))
    )  # fmt: skip
    if workers:
        flags = importlib.import_module("absl.flags").FLAGS
        if not flags.is_parsed():  # grain reads its own, which only programs of absl have parsed
            flags.mark_as_parsed()
        chunks = chunks.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each)
        )
    return iter(chunks)
