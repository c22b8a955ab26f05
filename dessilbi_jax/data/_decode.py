"""Reading a prepared set through tensorflow-datasets; imported only when one must be decoded."""

import importlib
import importlib.util
import io
import itertools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dessilbi_jax.data import _prepared, _records
from dessilbi_jax.data._dataset import Dataset

_CHUNK = 1024
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_UNLABELLED_TEST = ("imagenet2012",)
_PREPARING = ("tensorflow", "importlib_resources")
_INSTALL = "install it with `pip install 'dessilbi_jax[train]'`"

_log = logging.getLogger("dessilbi_jax.data")


def decode(folder: pathlib.Path, spec: _prepared.Spec) -> Dataset:
    """All images and labels of the set prepared in `folder`.

    The test part is the split `test`, or `validation` where there is no `test`.

    Raises:
        ImportError: tensorflow-datasets, array_record or Pillow is not installed.
        FileNotFoundError: files of records are missing.
        ValueError: a damaged file of records, no train or test split, or a set that is not
            image classification with images of one size.
    """
    builder = open_prepared(folder, spec)
    _log.info("decoding %s from %s", spec.text, folder)
    names, test = _described(builder, spec.text)
    parts = [_read(builder, spec, part) for part in ("train", test)]
    return Dataset.from_arrays(spec.text, parts[0], parts[1], names)


def open_prepared(folder: pathlib.Path, spec: _prepared.Spec) -> Any:
    """The tensorflow-datasets builder of the set prepared in `folder`."""
    tfds = import_tfds()
    try:
        builder = tfds.builder_from_directory(str(folder), file_format="array_record")
        dict(builder.info.features), dict(builder.info.splits)
    except Exception as error:  # whatever it is, the description of the set cannot be read
        raise ValueError(
            f"the description of {spec.text} in {folder} cannot be read ({_first_line(error)}); "
            "copy or prepare it again"
        ) from error
    return builder


def streamed(
    builder: Any, name: str | None
) -> tuple[str, tuple[str, ...], _records.TfdsRecords, _records.TfdsRecords]:
    """Name, classes, train records and test records of a builder; see `StreamedImages`."""
    tfds = import_tfds()
    name = builder.info.full_name if name is None else name
    classes, test = _described(builder, name)
    records = [
        _records.TfdsRecords(
            # Encoded, so that workers decode, and a JPEG no larger than its crop needs
            builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}),
            name,
            split,
            str(builder.data_dir),
            len(classes),
        )
        for split in ("train", test)
    ]
    return name, classes, records[0], records[1]


def _described(builder: Any, name: str) -> tuple[tuple[str, ...], str]:
    """The classes and the test split of an image classification set whose files are there."""
    tfds = import_tfds()
    features, splits = dict(builder.info.features), dict(builder.info.splits)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(
            f"{name} is not an image classification set: features `image` and `label` are "
            f"needed, it has {', '.join(sorted(features))}"
        )
    test = "test" if "test" in splits and builder.name not in _UNLABELLED_TEST else "validation"
    # A mocked builder does not know its splits; it has any.
    if splits and not {"train", test} <= splits.keys():
        raise ValueError(
            f"{name} must have a train split and a test or validation split, "
            f"it has {', '.join(splits)}"
        )
    paths = [path for part in ("train", test) if splits for path in splits[part].filepaths]
    _check_files(name, paths)
    return tuple(label.int2str(i) for i in range(label.num_classes)), test


def download(root: pathlib.Path, spec: _prepared.Spec) -> Any:
    """Has tensorflow-datasets download the set and prepare it under `root` as array_record.

    Returns:
        Its builder; tensorflow-datasets may have found the set prepared elsewhere.

    Raises:
        ImportError: a package that preparing needs is not installed.
        ValueError: tensorflow-datasets knows no set of this name.
        FileNotFoundError: the download or the preparation failed.
    """
    tfds = import_tfds()
    command = _prepared.command(root, spec)
    try:
        builder = tfds.builder(spec.text, data_dir=str(root), file_format="array_record")
        # asked before hundreds of megabytes are downloaded, not after
        missing = [name for name in _PREPARING if importlib.util.find_spec(name) is None]
        if missing:
            way = f"`pip install {' '.join(missing)}`, then this again or `{command}`"
            if command.startswith("dessilbi"):  # which needs none of them
                way = f"`{command}` does without"
            raise ImportError(
                f"{spec.text} is not in {root}, and preparing it needs {' and '.join(missing)} "
                f"(reading it afterwards does not): {way}; or give the data_dir of a prepared copy"
            )
        builder.download_and_prepare()
        return builder
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"tensorflow-datasets knows no data set {spec.text!r}" + _prepared.suggestion(spec.path)
        ) from error
    except ImportError:
        raise
    except Exception as error:  # network, disk, checksum: tfds raises of many kinds
        raise FileNotFoundError(
            f"{spec.text} is not in {root} and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}); give the data_dir of a prepared "
            f"copy, or run `{command}` on a machine with a network"
        ) from error


def import_tfds() -> Any:
    """tensorflow-datasets, after checking that what it needs to read a set is there.

    Raises:
        ImportError: a package is missing; the message says how to install it.
    """
    try:
        for needed in ("array_record.python.array_record_data_source", "PIL.Image"):
            importlib.import_module(needed)
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"reading a prepared data set needs {error.name or 'a package'}: {_INSTALL}"
        ) from error


def _check_files(name: str, paths: list[Any]) -> None:
    """Raises unless every file of records is there."""
    missing = [str(path) for path in paths if not pathlib.Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name} is half there, {len(missing)} of its {len(paths)} files of records "
            f"are missing, the first is {missing[0]}; copy or prepare it again"
        )


def _read(builder: Any, spec: _prepared.Spec, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [N, height, width, channels] and int32 labels [N] of one split."""
    tfds = import_tfds()
    count = builder.info.splits[split].num_examples
    files = ", ".join(str(path) for path in builder.info.splits[split].filepaths)
    images: np.ndarray | None = None
    labels = np.empty(count, np.int32)
    try:
        with _records.quiet_array_record():
            # Pillow always, whatever else is installed: JPEG decoders differ by a few levels
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            channels = builder.info.features["image"].shape[-1]
            for i, row in enumerate(_rows(source, count)):
                pixels = _pixels(row["image"], channels)
                if images is None:
                    _check_shape(pixels.shape, builder.info.features["image"].shape, spec, files)
                    images = np.empty((count, *pixels.shape), np.uint8)
                if pixels.shape != images.shape[1:]:
                    raise _SizesDiffer(pixels.shape, images.shape[1:])
                images[i], labels[i] = pixels, row["label"]
    except _OfAnother:
        raise
    except _SizesDiffer as error:
        first, other = error.args
        raise ValueError(
            f"the images of {spec.text} differ in size ({first} and {other}); sets with images "
            "of one size can be read"
        ) from None
    except Exception as error:  # the readers raise of many kinds
        raise ValueError(
            f"the {split} records of {spec.text} are damaged or cut short "
            f"({_first_line(error)}); copy or prepare again: {files}"
        ) from error
    if images is None:
        raise ValueError(f"the {split} split of {spec.text} has no images")
    return images, labels


class _OfAnother(ValueError):
    """Images that are not as the set describes them."""


def _check_shape(
    found: tuple[int, ...], told: Sequence[int | None], spec: _prepared.Spec, files: str
) -> None:
    """Raises unless an image has the shape that the set's features.json tells."""
    if len(told) != len(found) or any(n not in (None, m) for n, m in zip(told, found, strict=True)):
        raise _OfAnother(
            f"the images of {spec.text} have shape {found}, its features.json tells "
            f"{tuple(told)}: these are records of another set: {files}"
        )


class _SizesDiffer(Exception):
    """Two images of a set differ in shape."""


def _rows(source: Any, count: int) -> Iterator[dict[str, Any]]:
    """Every row in order, fetched in chunks."""
    starts = range(0, count, _CHUNK)
    return itertools.chain.from_iterable(
        source.__getitems__(range(start, min(start + _CHUNK, count))) for start in starts
    )


def _pixels(encoded: bytes, channels: int) -> np.ndarray:
    """A PNG or JPEG file as uint8 [height, width, channels]."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES.get(channels, image.mode)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
