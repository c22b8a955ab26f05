"""Data sets by name: embedded, cached, prepared, or downloaded, in this order."""

import os
import pathlib

from dessilbi_jax.data import _cache, _prepared
from dessilbi_jax.data._dataset import Dataset, digits


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool | None = None,
) -> Dataset:
    """A data set by name.

    "digits" is part of the package. Any other name is an image classification set of
    tensorflow-datasets, such as "mnist", "fashion_mnist" or "cifar10" (also "emnist/letters",
    "mnist:3.0.1"), prepared in its array_record format. TensorFlow is not needed to read one.
    The first time all images are decoded, which takes seconds, and kept in a cache file; after
    that they load in a fraction of a second. A cache file that is damaged, half written or
    older than its source is decoded anew.

    Args:
        name: "digits", or the name of a set of tensorflow-datasets.
        data_dir: the folder that holds the set's own folder, so that the records lie in
            data_dir/mnist/3.0.1. Default: that of tensorflow-datasets, TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        cache_dir: folder for the cache file. Default: DESSILBI_CACHE if set, else
            `dessilbi_jax` in the platform's folder for caches, such as ~/.cache.
        download: whether to have tensorflow-datasets download and prepare a set that is not
            there. Default: only if `data_dir` was not given.

    Returns:
        A `Dataset`.

    Raises:
        FileNotFoundError: the folder is missing, does not hold the set or only a part of it, or
            the download failed.
        ValueError: a name that cannot be, records that are damaged, a set in another file
            format, or one that is not image classification with images of one size.
        ImportError: a package needed to read or to prepare the set is not installed.

    Examples:
        >>> from dessilbi_jax import data
        >>> digits = data.load("digits")
        >>> digits.name, digits.train_images.dtype, digits.train_labels.dtype
        ('digits', dtype('uint8'), dtype('int32'))
        >>> data.load("mnist", data_dir="nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: data folder nowhere does not exist; give the folder that holds mnist/
    """
    if name == "digits":
        return digits()
    spec = _prepared.parse(name)
    root = _prepared.default_root() if data_dir is None else pathlib.Path(data_dir).expanduser()
    allowed = data_dir is None if download is None else download
    if allowed and not _prepared.exists(root, spec):
        from dessilbi_jax.data import _decode

        _decode.download(root, spec)
    source = _prepared.find(root, spec)
    fingerprint = _prepared.fingerprint(source)
    folder = _cache.default_folder() if cache_dir is None else pathlib.Path(cache_dir).expanduser()
    file = _cache.file_for(folder, name, source)
    dataset = _cache.read(file, fingerprint)
    if dataset is None:
        from dessilbi_jax.data import _decode  # takes seconds to import what this needs

        dataset = _decode.decode(source, spec)
        _cache.write(file, fingerprint, dataset)
    return dataset
