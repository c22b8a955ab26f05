"""The tokens of a text file: its bytes, or what a tokenizer file makes of it."""

import hashlib
import importlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dessilbi_jax import files

_PIECE = 2**20


def tokens(
    file: pathlib.Path, cache: pathlib.Path, tokenizer: str | os.PathLike[str] | None
) -> tuple[np.ndarray, int]:
    """The tokens of a file, mapped from it or from the cache, and the size of the vocabulary.

    Raises:
        FileNotFoundError: the text or the tokenizer file is not there.
        ValueError: an empty text, one that is not UTF-8 (with a tokenizer), or a tokenizer file
            that cannot be read.
        ImportError: the package `tokenizers` is needed and not installed.
    """
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise FileNotFoundError(f"text {file} {what}; give a text file")
    if file.stat().st_size == 0:
        raise ValueError(f"text {file} is empty")
    if tokenizer is None:
        return np.memmap(file, np.uint8, mode="r"), 256
    return _tokenized(file, cache, pathlib.Path(tokenizer).expanduser())


def _tokenized(
    file: pathlib.Path, cache: pathlib.Path, description: pathlib.Path
) -> tuple[np.ndarray, int]:
    """`tokens` with a tokenizer."""
    if not description.is_file():
        raise FileNotFoundError(
            f"tokenizer {description} does not exist; give a tokenizer.json, or none to use bytes"
        )
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise ImportError(
            f"reading {description} needs tokenizers: install it with `pip install tokenizers`, "
            "or give no tokenizer to use bytes"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(description))
    except Exception as error:  # whatever it is, the file is no tokenizer
        raise ValueError(f"{description} is not a tokenizer file: {error}") from error
    vocabulary = tokenizer.get_vocab_size()
    dtype = np.min_scalar_type(vocabulary - 1)
    status = file.stat()
    digest = hashlib.sha256(description.read_bytes())
    digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    kept = cache / f"{file.stem}-{digest.hexdigest()[:16]}.tokens"
    if not kept.is_file():
        _store(kept, _encoded(tokenizer, file, dtype))
    return np.memmap(kept, dtype, mode="r"), vocabulary


def _encoded(tokenizer: Any, file: pathlib.Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tokens of the file, by pieces that end with a line."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            while piece := "".join(lines.readlines(_PIECE)):
                yield np.asarray(tokenizer.encode(piece, add_special_tokens=False).ids, dtype)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text {file} is not UTF-8 ({error.reason} at byte {error.start} of a piece of it), "
            "which a tokenizer needs; give no tokenizer to use bytes"
        ) from error


def _store(file: pathlib.Path, pieces: Iterator[np.ndarray]) -> None:
    """Writes pieces one after another, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.new_file(file) as stream:
        for piece in pieces:
            stream.write(piece.tobytes())
