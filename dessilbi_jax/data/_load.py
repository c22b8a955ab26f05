"""Data by name: embedded, cached, prepared, or downloaded; a folder of images; a text."""

import os
import pathlib

from dessilbi_jax.data import _cache, _prepared, _tokens
from dessilbi_jax.data._dataset import Dataset, digits
from dessilbi_jax.data._streamed import StreamedImages

_CONTEXT = 128


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool | None = None,
    image_size: int | None = None,
    text: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    context: int | None = None,
) -> Dataset | StreamedImages | _tokens.Tokens:
    """A source of data by name.

    - "digits" is part of the package.
    - "folder" is `data_dir` with images in train/CLASS/ and in test/, validation/ or val/CLASS/;
      they are streamed.
    - "text" is the file `text` as windows of tokens: its bytes, or what a tokenizer file makes of
      it. The last tenth of the tokens is the test part.
    - Any other name is an image classification set of tensorflow-datasets, such as "mnist",
      "fashion_mnist", "cifar10", "cifar100", "svhn_cropped" (or "svhn") and "imagenet2012" (or
      "imagenet"; also "emnist/letters", "mnist:3.0.1"), prepared in its array_record format.
      TensorFlow is not needed to read one.

    Sets whose images have one size and take at most 2 GiB are decoded at once, which takes
    seconds the first time, and are then kept in a cache file that loads in a fraction of a
    second; one that is damaged, half written or older than its source is decoded anew. Larger
    sets and images of various sizes are streamed, decoded as they are needed. ImageNet has to be
    prepared by hand, as its licence asks:
    `tfds build imagenet2012 --file_format=array_record --data_dir=… --manual_dir=…`, with
    ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in the latter folder.

    Args:
        name: see above.
        data_dir: for a set of tensorflow-datasets the folder that holds the set's own folder,
            so that the records lie in data_dir/mnist/3.0.1. Default: that of tensorflow-datasets,
            TFDS_DATA_DIR or ~/tensorflow_datasets. For "folder" the folder of images.
        cache_dir: folder for cache files. Default: DESSILBI_CACHE if set, else `dessilbi_jax` in
            the platform's folder for caches, such as ~/.cache.
        download: whether to have tensorflow-datasets download and prepare a set that is not
            there. Default: only if `data_dir` was not given.
        image_size: height and width of images that are streamed, 224 by default. If given, any
            set but the digits is streamed, and its images are brought to this size in colour.
        text: the text file, for "text"; UTF-8 if there is a tokenizer.
        tokenizer: for "text" a file of the package `tokenizers` (tokenizer.json). Default: the
            256 bytes are the vocabulary.
        context: for "text" the length of a window in tokens, 128 by default.

    Returns:
        A `Dataset`, `StreamedImages` or `Tokens`; each is a `Source`.

    Raises:
        FileNotFoundError: the folder or file is missing, does not hold the set or only a part of
            it, or the download failed.
        ValueError: a name that cannot be, records that are damaged, a set in another file
            format or one that is not image classification, a text that is too short, or an
            argument that does not belong to this kind of data.
        ImportError: a package needed to read or to prepare the set is not installed.

    Examples:
        >>> from dessilbi_jax import data
        >>> digits = data.load("digits")
        >>> digits.name, digits.train_images.dtype, digits.train_labels.dtype
        ('digits', dtype('uint8'), dtype('int32'))
        >>> data.load("mnist", data_dir="nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: data folder nowhere does not exist; give the folder that holds mnist/,
        or prepare the set: dessilbi data mnist --data-dir nowhere
    """
    given = {"text": text, "tokenizer": tokenizer, "context": context, "image_size": image_size}
    belong = {"text": ("text", "tokenizer", "context"), "digits": ()}.get(name, ("image_size",))
    for argument, value in given.items():
        if value is not None and argument not in belong:
            raise ValueError(f"{argument} does not apply to {name!r}, got {value!r}")
    if name == "digits":
        return digits()
    cache = _cache.default_folder() if cache_dir is None else pathlib.Path(cache_dir).expanduser()
    if name == "text":
        if text is None:
            raise ValueError("'text' needs a file: text=FILE")
        length = _CONTEXT if context is None else context
        return _tokens.read(text, cache, context=length, tokenizer=tokenizer)
    if name == "folder":
        if data_dir is None:
            raise ValueError("'folder' needs the folder of train/CLASS/FILE: data_dir=DIR")
        return StreamedImages.from_folder(data_dir, image_size)
    return _prepared_set(name, data_dir, cache, download, image_size)


def _prepared_set(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    cache: pathlib.Path,
    download: bool | None,
    image_size: int | None,
) -> Dataset | StreamedImages:
    """`load` for a set of tensorflow-datasets."""
    spec = _prepared.parse(name)
    root = _prepared.default_root() if data_dir is None else pathlib.Path(data_dir).expanduser()
    allowed = data_dir is None if download is None else download
    if allowed and not _prepared.exists(root, spec):
        from dessilbi_jax.data import _decode

        builder = _decode.download(root, spec)
        if not _prepared.exists(root, spec):  # found in another folder it knows of, or mocked
            return StreamedImages.from_builder(builder, image_size, spec.text)
    source = _prepared.find(root, spec)
    if image_size is not None or not _prepared.fits_in_memory(source):
        from dessilbi_jax.data import _decode

        builder = _decode.open_prepared(source, spec)
        return StreamedImages.from_builder(builder, image_size, spec.text)
    fingerprint = _prepared.fingerprint(source)
    file = _cache.file_for(cache, spec.text, source)
    dataset = _cache.read(file, fingerprint)
    if dataset is None:
        from dessilbi_jax.data import _decode  # takes seconds to import what this needs

        dataset = _decode.decode(source, spec)
        _cache.write(file, fingerprint, dataset)
    return dataset
