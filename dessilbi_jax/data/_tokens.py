"""Text as windows of tokens: bytes, or what a local tokenizer file makes of them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.data import _stream, _text
from dessilbi_jax.data._source import (
    Batch,
    Batches,
    Part,
    check_set_aside,
    not_resident,
    padded,
    share,
    stretches,
)

RESIDENT_BYTES = 2**30
_TEST_SHARE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """A text as windows of `context` tokens and the tokens that follow them: a `Source`.

    Window i of a part has the tokens i·context … (i + 1)·context - 1 as its input and those one
    place further as its labels; tokens behind the last whole window are left out. A train part
    of at most 1 GiB is resident, a larger one streams and is read from its file as needed.

    Attributes:
        name: of the set.
        train_tokens: unsigned integers [N], perhaps mapped from a file.
        test_tokens: likewise.
        vocabulary: number of different tokens.
        context: length of a window.
        windows: numbers of the train windows, int32; those set aside are not among them.

    Examples:
        >>> tokens = Tokens.from_arrays("count", np.arange(33), np.arange(9), 40, context=8)
        >>> tokens.train_size, tokens.test_size
        (4, 1)
        >>> x, y = tokens.pick(tokens.arrays(), np.array([3]))
        >>> x.tolist(), y.tolist()
        ([[24, 25, 26, 27, 28, 29, 30, 31]], [[25, 26, 27, 28, 29, 30, 31, 32]])
    """

    name: str
    train_tokens: np.ndarray
    test_tokens: np.ndarray
    vocabulary: int
    context: int
    windows: np.ndarray

    kind: ClassVar[Literal["tokens"]] = "tokens"
    mean: ClassVar[tuple[float, ...]] = ()
    std: ClassVar[tuple[float, ...]] = ()

    @classmethod
    def from_arrays(
        cls, name: str, train: np.ndarray, test: np.ndarray, vocabulary: int, context: int
    ) -> "Tokens":
        """A source from the tokens of both parts.

        Args:
            name: what to call it.
            train: integers [N], from 0 to vocabulary - 1.
            test: likewise.
            vocabulary: number of different tokens.
            context: length of a window.

        Raises:
            ValueError: a context below 1, arrays that are not one row of integers, or parts too
                short for one window.
        """
        if context < 1:
            raise ValueError(f"context must be at least 1, got {context}")
        for part, tokens in (("train", train), ("test", test)):
            if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
                raise ValueError(
                    f"{name}: {part} tokens must be integers [N], "
                    f"got {tokens.dtype} {list(tokens.shape)}"
                )
            if len(tokens) < context + 1:
                raise ValueError(
                    f"{name}: the {part} part has {len(tokens)} tokens, a window of context "
                    f"{context} needs {context + 1}; give a longer text or a smaller context"
                )
        windows = np.arange((len(train) - 1) // context, dtype=np.int32)
        return cls(name, train, test, vocabulary, context, windows)

    @property
    def resident(self) -> bool:
        """Whether the train tokens take at most 1 GiB."""
        return self.train_tokens.nbytes <= RESIDENT_BYTES

    @property
    def input_shape(self) -> tuple[int]:
        """(context,)."""
        return (self.context,)

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary."""
        return self.vocabulary

    @property
    def train_size(self) -> int:
        """Number of train windows."""
        return len(self.windows)

    @property
    def test_size(self) -> int:
        """Number of test windows."""
        return (len(self.test_tokens) - 1) // self.context

    def test_part(self) -> Part:
        """The windows of the test tokens, in order."""
        windows = np.arange(self.test_size, dtype=np.int32)
        return _WindowsPart(_Windows(self.test_tokens, windows, self.context))

    def set_aside(self, n: int, seed: int = 0) -> tuple["Tokens", Part]:
        """The source without `n` train windows drawn from all over the text, and those windows.

        Raises:
            ValueError: `n` below 1 or not less than the number of train windows.

        Examples:
            >>> tokens = Tokens.from_arrays("count", np.arange(33), np.arange(9), 40, context=8)
            >>> rest, part = tokens.set_aside(1)
            >>> rest.train_size, len(part)
            (3, 1)
        """
        check_set_aside(self.name, self.train_size, n)
        out = np.zeros(self.train_size, bool)
        out[np.random.default_rng(seed).choice(self.train_size, n, replace=False)] = True
        rest = dataclasses.replace(self, windows=self.windows[~out])
        return rest, _WindowsPart(_Windows(self.train_tokens, self.windows[out], self.context))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The train tokens [N], and the place int32 [rows] where each window begins.

        Raises:
            ValueError: the train tokens take more than 1 GiB.
        """
        if not self.resident:
            not_resident(self.name)
        return np.asarray(self.train_tokens), self.windows * np.int32(self.context)

    def pick(self, arrays: tuple[jax.Array, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens int32 [batch, context] of some windows, and the next tokens of the same shape."""
        tokens, starts = arrays
        places = jnp.asarray(starts)[rows][:, None] + jnp.arange(self.context + 1)
        window = jnp.asarray(tokens)[places].astype(jnp.int32)
        return window[:, :-1], window[:, 1:]

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
        """See `Source.train_batches`; a resident source can stream as well.

        Raises:
            ValueError: sizes that do not fit together.
            ImportError: grain is not installed.
        """
        plan = _stream.Plan(self.name, self.train_size, batch, seed)
        windows = _Windows(self.train_tokens, self.windows, self.context)
        # Cutting out a window costs nothing: one thread of this process does it.
        _stream.check_parallel(workers, threads)
        return _stream.Endless(windows, plan, share(batch, shard, shards), workers=0, threads=1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Windows:
    """Some windows of a row of tokens."""

    tokens: np.ndarray
    windows: np.ndarray
    context: int

    def __call__(self, rows: np.ndarray, draw: tuple[int, int] | None = None) -> Batch:
        """Inputs and labels int32 [rows, context]; nothing is random."""
        starts = self.windows[rows].astype(np.int64) * self.context
        window = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)
        return window[:, :-1], window[:, 1:]


@dataclasses.dataclass(frozen=True, eq=False)
class _WindowsPart:
    """Windows to be evaluated, a `Part`."""

    windows: _Windows

    def __len__(self) -> int:
        return len(self.windows.windows)

    def batches(self, size: int, *, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        """See `Part.batches`."""
        for rows in stretches(len(self), size, shard, shards):
            yield padded(*self.windows(np.asarray(rows, np.int64)), size // shards)


def read(
    text: str | os.PathLike[str],
    cache: pathlib.Path,
    *,
    context: int,
    tokenizer: str | os.PathLike[str] | None,
) -> Tokens:
    """See `load`."""
    file = pathlib.Path(text).expanduser()
    tokens, vocabulary = _text.tokens(file, cache, tokenizer)
    cut = len(tokens) - int(len(tokens) * _TEST_SHARE)
    return Tokens.from_arrays("text", tokens[:cut], tokens[cut:], vocabulary, context)
