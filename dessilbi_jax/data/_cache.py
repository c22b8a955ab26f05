"""Decoded arrays in one file that is either whole and up to date, or not used.

Layout: 8 bytes of magic, CRC-32 (4 bytes) and length (8 bytes) of all that follows, length of
the header (4 bytes), the header as JSON padded with spaces to a multiple of 64 bytes from the
start of the file, then the arrays one after another, labels first so that their integers are
aligned. All integers are little-endian. The CRC is checked before anything is parsed.
"""

import hashlib
import json
import logging
import os
import pathlib
import struct
import sys
import zlib

import numpy as np

from dessilbi_jax import files
from dessilbi_jax.data._dataset import Dataset

_MAGIC = b"DSLBDAT1"
_PREFIX = struct.Struct("<8sIQ")
_HEADER_LENGTH = struct.Struct("<I")
_ARRAYS = ("train_labels", "test_labels", "train_images", "test_images")
_TYPES = {"images": "|u1", "labels": "<i4"}

_log = logging.getLogger("dessilbi_jax.data")


def default_folder() -> pathlib.Path:
    """DESSILBI_CACHE if set, else `dessilbi_jax` in the platform's folder for caches."""
    if chosen := os.environ.get("DESSILBI_CACHE"):
        return pathlib.Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "dessilbi_jax"


def file_for(folder: pathlib.Path, name: str, source: pathlib.Path) -> pathlib.Path:
    """The cache file of the data set prepared in `source`.

    One file a source folder: a changed source replaces its file instead of adding another, and
    two copies of a data set do not evict each other.
    """
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
    stem = name.replace("/", "-").replace(":", "-")
    return folder / f"{stem}-{source.name}-{place}.cache"


def read(file: pathlib.Path, fingerprint: str) -> Dataset | None:
    """The data set in `file`; None if it is absent, damaged or made from another source."""
    try:
        content = np.fromfile(file, np.uint8)
    except OSError:
        return None
    if content.size < _PREFIX.size + _HEADER_LENGTH.size:
        return None
    magic, checksum, length = _PREFIX.unpack(content[: _PREFIX.size].tobytes())
    body = content[_PREFIX.size :]
    if magic != _MAGIC or length != body.size or checksum != zlib.crc32(body.data):
        return None
    (header_length,) = _HEADER_LENGTH.unpack(body[: _HEADER_LENGTH.size].tobytes())
    start = _HEADER_LENGTH.size + header_length
    header = json.loads(body[_HEADER_LENGTH.size : start].tobytes())
    if header["fingerprint"] != fingerprint:
        return None
    arrays = {}
    for key in _ARRAYS:
        dtype, shape = np.dtype(_TYPES[key.split("_")[1]]), header[key]
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[key] = body[start : start + size].view(dtype).reshape(shape)
        start += size
    return Dataset(
        name=header["name"],
        classes=tuple(header["classes"]),
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        **arrays,
    )


def write(file: pathlib.Path, fingerprint: str, dataset: Dataset) -> None:
    """Stores `dataset`; a reader sees the old file or the new one, never a part.

    A cache that cannot be written is logged as a warning and otherwise ignored: the data set is
    in memory all the same.
    """
    arrays = [
        np.ascontiguousarray(getattr(dataset, key), _TYPES[key.split("_")[1]]) for key in _ARRAYS
    ]
    header = json.dumps(
        {
            "fingerprint": fingerprint,
            "name": dataset.name,
            "classes": dataset.classes,
            "mean": dataset.mean,
            "std": dataset.std,
        }
        | {key: array.shape for key, array in zip(_ARRAYS, arrays, strict=True)}
    ).encode()
    header += b" " * (-(_PREFIX.size + _HEADER_LENGTH.size + len(header)) % 64)
    pieces: list[bytes | memoryview] = [_HEADER_LENGTH.pack(len(header)), header]
    pieces += [array.data for array in arrays]
    checksum, length = 0, 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        length += memoryview(piece).nbytes
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(file) as stream:
            stream.write(_PREFIX.pack(_MAGIC, checksum, length))
            for piece in pieces:
                stream.write(piece)
    except OSError as error:
        _log.warning("cannot keep the decoded %s in %s: %s", dataset.name, file, error)
