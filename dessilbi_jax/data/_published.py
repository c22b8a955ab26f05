"""The files in which well-known image sets are published, read into arrays.

No TensorFlow and, of pickled batches, no code: only the arrays and texts in them are taken.
"""

import gzip
import io
import pathlib
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Part: TypeAlias = tuple[np.ndarray, np.ndarray]


class Published(NamedTuple):
    """A well-known set.

    Attributes:
        version: the folder that tensorflow-datasets keeps it in.
        shape: of an image.
        sizes: numbers of train and test images.
        classes: their names.
        urls: what it consists of where it is published.
    """

    version: str
    shape: tuple[int, int, int]
    sizes: tuple[int, int]
    classes: tuple[str, ...]
    urls: tuple[str, ...]


_IDX = tuple(
    f"{part}-{what}-ubyte.gz"
    for part in ("train", "t10k")
    for what in ("images-idx3", "labels-idx1")
)
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_THINGS = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
SETS = {
    "mnist": Published(
        "3.0.1", (28, 28, 1), (60000, 10000), tuple("0123456789"),
        tuple(f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}" for file in _IDX),
    ),
    "fashion_mnist": Published(
        "3.0.1", (28, 28, 1), (60000, 10000), tuple(_CLOTHES.split(",")),
        tuple(f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{f}" for f in _IDX),
    ),
    "cifar10": Published(
        "3.0.2", (32, 32, 3), (50000, 10000), tuple(_THINGS.split(",")),
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    ),
}  # fmt: skip
_DAMAGE = (OSError, EOFError, ValueError, KeyError, zlib.error, tarfile.TarError,
           pickle.UnpicklingError, AttributeError, IndexError, TypeError)  # fmt: skip


def read(path: pathlib.Path, known: Published) -> tuple[Part, Part]:
    """Train and test part of a set, from the files at `path`, as they are published.

    They are idx files (gzipped or not), CIFAR's binary or Python batches, in a folder or a tar
    archive; one `.npz` with x_train, y_train, x_test and y_test; or a folder with images in
    train/CLASS/ and test/CLASS/, where CLASS is the class's name or number.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no such files; what is there is named.
        ValueError: a file is damaged, or it is not all of the set.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the folder or the file of the set")
    if (path / "train").is_dir() and (path / "test").is_dir():
        parts = [_from_folder(path / part, known) for part in ("train", "test")]
    else:
        found = {}
        for name, take in _members(path):
            for pattern, reader in _READERS.items():
                if re.search(pattern, name):
                    found[name] = (pattern, _guarded(f"{path}: {name}", reader, take))
        parts = _assembled(found)
        if not parts:
            names = [pathlib.PurePath(name).name for name, _ in _members(path)]
            there = ", ".join(names[:8]) or "nothing"
            raise FileNotFoundError(
                f"{path} holds none of the files that the set is published in, but {there}; "
                "expected idx files (gzipped or not), batches of CIFAR, an .npz with x_train, "
                "y_train, x_test and y_test, or images in train/CLASS/ and test/CLASS/"
            )
    for part, (images, labels), size in zip(("train", "test"), parts, known.sizes, strict=True):
        if images.shape != (size, *known.shape) or labels.shape != (size,):
            raise ValueError(
                f"{path}: the {part} part has {len(labels)} labels and images {images.shape}, the "
                f"published one {size} of {known.shape}: files are missing or of another set"
            )
        if labels.min() < 0 or labels.max() >= len(known.classes):
            raise ValueError(f"{path}: {part} labels must lie in 0…{len(known.classes) - 1}")
    return parts[0], parts[1]


def _guarded(name: str, reader: Callable[[bytes], Any], take: Callable[[], bytes]) -> Any:
    try:
        content = take()
        return reader(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except _DAMAGE as error:
        raise ValueError(f"{name} is damaged ({error}): get it again") from None


def _members(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of the files at a path, and what reads each."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            if re.search(r"\.(tar|tgz|tar\.gz)$", file.name):
                yield from _members(file)
            else:
                yield str(file.relative_to(path)), file.read_bytes
    elif re.search(r"\.(tar|tgz|tar\.gz)$", path.name):
        try:
            with tarfile.open(path) as archive:  # read member by member, nothing is unpacked
                for member in archive:
                    stream = archive.extractfile(member) if member.isfile() else None
                    if stream is not None:
                        yield member.name, stream.read
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}): get it again") from None
    else:
        yield path.name, path.read_bytes


def _idx(content: bytes) -> np.ndarray:
    """The array in an idx file: two zeros, type, number of axes, sizes, values."""
    if content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise ValueError("it does not begin as an idx file of bytes does")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, 4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _binary(content: bytes) -> Part:
    """A binary batch of CIFAR-10: for each image the label, then red, green and blue."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of arrays, texts and lists; whatever else it names is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        if name == "_reconstruct" and module.startswith("numpy"):
            return lambda kind, shape, code: np.ndarray.__new__(np.ndarray, shape, code)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")


def _python(content: bytes) -> Part:
    """A Python batch of CIFAR-10: a dict of data [N, 3072] and labels."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    images = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.asarray(batch[b"labels"])


def _npz(content: bytes) -> tuple[Part, Part]:
    with np.load(io.BytesIO(content), allow_pickle=False) as data:
        x, y, test_x, test_y = (data[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    return (x, y.reshape(-1)), (test_x, test_y.reshape(-1))


# By what is found in a file's name; later ones are not asked for it again.
_READERS: dict[str, Callable[[bytes], Any]] = {
    r"images[-.]idx3-ubyte(\.gz)?$": _idx,
    r"labels[-.]idx1-ubyte(\.gz)?$": _idx,
    r"(data|test)_batch(_\d)?\.bin$": _binary,
    r"(data|test)_batch(_\d)?$": _python,
    r"\.npz$": _npz,
}


def _assembled(found: dict[str, tuple[str, Any]]) -> list[Part]:
    """Train and test part of what the files hold; empty where none fits."""
    whole = [value for pattern, value in found.values() if pattern == r"\.npz$"]
    if whole:
        return [(_four_axes(images), labels) for images, labels in whole[0]]
    idx = {name: value for name, (pattern, value) in found.items() if "idx" in pattern}
    if idx:
        return [
            (
                _four_axes(_one(idx, rf"(^|/){part}-images")),
                _one(idx, rf"(^|/){part}-labels"),
            )
            for part in ("train", "t10k")
        ]
    batches = {name: value for name, (_, value) in found.items()}
    parts = []
    for stem in ("data_batch", "test_batch") if batches else ():
        some = [value for name, value in sorted(batches.items()) if stem in name]
        if not some:
            raise ValueError(f"{stem} is missing: give all batches of the set")
        images, labels = (np.concatenate(each) for each in zip(*some, strict=True))
        parts.append((images, labels))
    return parts


def _one(arrays: dict[str, np.ndarray], pattern: str) -> np.ndarray:
    for name, array in arrays.items():
        if re.search(pattern, name):
            return array
    raise ValueError(f"the file {pattern.split(')')[-1]}… is missing: give all four of the set")


def _four_axes(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images


def _from_folder(folder: pathlib.Path, known: Published) -> Part:
    """Images and labels of folder/CLASS/FILE."""
    import PIL.Image

    images, labels = [], []
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        names = (*known.classes, *map(str, range(len(known.classes))))
        if place.name not in names:
            raise ValueError(
                f"{place} is of no class of the set; expected {', '.join(known.classes)} or their "
                "numbers"
            )
        label = names.index(place.name) % len(known.classes)
        for file in sorted(p for p in place.iterdir() if p.is_file()):
            try:
                with PIL.Image.open(file) as image:
                    pixels = np.asarray(image.convert("L" if known.shape[-1] == 1 else "RGB"))
            except OSError as error:
                raise ValueError(f"{file} is no image ({error}): get it again") from None
            if pixels.shape[:2] != known.shape[:2]:
                raise ValueError(f"{file} has {pixels.shape[:2]} pixels, not {known.shape[:2]}")
            images.append(pixels.reshape(known.shape))
            labels.append(label)
    if not images:
        raise ValueError(f"{folder} holds no images in folders of classes")
    return np.stack(images), np.array(labels)
