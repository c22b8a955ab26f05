"""Well-known image sets from their published files to records, without TensorFlow."""

import io
import json
import os
import pathlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dessilbi_jax import files
from dessilbi_jax.data import _prepared, _published

_FEATURE = "tensorflow_datasets.core.features."
_TIMEOUT = 30  # seconds without a byte


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    *,
    told: Callable[[str], None] = lambda text: None,
) -> pathlib.Path:
    """Prepares a well-known image set from the files in which it is published, once and for all.

    The set then lies in `data_dir` as tensorflow-datasets would have prepared it, its images
    without loss, and `load` finds it there.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        data_dir: where to; by default where `load` looks, TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        source: a folder or file with the published files: idx files, gzipped or not; CIFAR's
            binary or Python batches, or the archive of them; an .npz with x_train, y_train, x_test
            and y_test; images in train/CLASS/ and test/CLASS/. None: they are downloaded.
        told: gets a line now and then, of what is being done.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: a set of another name, or files that are damaged or not all of the set.
        FileNotFoundError: there are no such files, or they could not be downloaded.
        FileExistsError: the set is there already.
        ImportError: what is needed to write records is not installed.

    Examples:
        >>> from dessilbi_jax import data
        >>> data.prepare("mnits")
        Traceback (most recent call last):
            ...
        ValueError: 'mnits' cannot be prepared; did you mean 'mnist'? There are mnist,
        fashion_mnist, cifar10
    """
    known = _published.SETS.get(name)
    if known is None:
        raise ValueError(
            f"{name!r} cannot be prepared{_prepared.suggestion(name, tuple(_published.SETS))} "
            f"There are {', '.join(_published.SETS)}"
        )
    root = _prepared.default_root() if data_dir is None else pathlib.Path(data_dir).expanduser()
    folder = root / name / known.version
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: it is ready, or remove it first")
    if source is not None:
        told(f"reading {source}")
        parts = _published.read(pathlib.Path(source).expanduser(), known)
    else:
        with tempfile.TemporaryDirectory() as there:
            for url in known.urls:
                told(f"downloading {url}")
                _download(url, pathlib.Path(there))
            parts = _published.read(pathlib.Path(there), known)
    encode = _encoder()
    with files.new_folder(folder) as part:
        described = []
        for split, (images, labels) in zip(("train", "test"), parts, strict=True):
            told(f"writing {len(labels):,} {split} images")
            file = part / f"{name}-{split}.array_record-00000-of-00001"
            size = _write(file, encode(images, labels))
            described.append((split, len(labels), size))
        _describe(part, name, known, described)
    return folder


def _download(url: str, folder: pathlib.Path) -> None:
    """Puts the file at an address into a folder."""
    file = folder / url.rsplit("/", 1)[1]
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as stream, file.open("wb") as out:
            while piece := stream.read(2**20):
                out.write(piece)
    except (OSError, urllib.error.URLError) as error:
        why = getattr(error, "reason", None) or error
        raise FileNotFoundError(
            f"{url} could not be downloaded ({why}): get the files of the set elsewhere and give "
            "their folder by --from PATH"
        ) from None


def _encoder() -> Callable[[np.ndarray, np.ndarray], Iterable[bytes]]:
    """What makes records, an image and its label each, of arrays."""
    from dessilbi_jax.data import _decode

    _decode.import_tfds()
    import PIL.Image
    from tensorflow_datasets.proto import tf_example_generated_pb2 as protocol

    def records(images: np.ndarray, labels: np.ndarray) -> Iterable[bytes]:
        for image, label in zip(images, labels.tolist(), strict=True):
            stream = io.BytesIO()
            grey = image[..., 0] if image.shape[-1] == 1 else image
            PIL.Image.fromarray(np.ascontiguousarray(grey)).save(stream, "PNG", compress_level=1)
            example = protocol.Example()
            example.features.feature["image"].bytes_list.value.append(stream.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            yield example.SerializeToString()

    return records


def _write(file: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes records to a file; returns their bytes."""
    from array_record.python import array_record_module

    writer, size = array_record_module.ArrayRecordWriter(str(file), "group_size:1"), 0
    for record in records:
        writer.write(record)
        size += len(record)
    writer.close()
    return size


def _describe(
    folder: pathlib.Path,
    name: str,
    known: _published.Published,
    splits: list[tuple[str, int, int]],
) -> None:
    """Writes what tensorflow-datasets knows a set by."""
    info: dict[str, Any] = {
        "name": name,
        "version": known.version,
        "fileFormat": "array_record",
        "location": {"urls": list(known.urls)},
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(size),
                "shardLengths": [str(count)],
            }
            for split, count, size in splits
        ],
    }
    shape = {"dimensions": [str(n) for n in known.shape]}
    features = {
        "pythonClassName": f"{_FEATURE}features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {
                    "pythonClassName": f"{_FEATURE}image_feature.Image",
                    "image": {"dtype": "uint8", "shape": shape},
                },
                "label": {
                    "pythonClassName": f"{_FEATURE}class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": str(len(known.classes))},
                },
            }
        },
    }
    (folder / "features.json").write_text(json.dumps(features, indent=1), encoding="utf-8")
    text = "".join(f"{each}\n" for each in known.classes)
    (folder / "label.labels.txt").write_text(text, encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
