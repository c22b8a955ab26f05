"""Finding a data set that tensorflow-datasets has prepared, without importing it.

A prepared set lies in `data_dir/name/version` or `data_dir/name/config/version` and holds
`dataset_info.json`, `features.json` and its records. Importing tensorflow-datasets takes
seconds, reading these two files does not, so a cached set loads at once.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
import re
from typing import Any

from dessilbi_jax import files
from dessilbi_jax.data import _published
from dessilbi_jax.text import nearest

KNOWN = (
    "digits",
    "mnist",
    "fashion_mnist",
    "kmnist",
    "emnist/letters",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "imagenet2012",
    "folder",
    "text",
)
"""Names offered when one is misspelt; any other image classification set works as well."""

# Of these the shape of an image is known; no other set passes for one of them.
_SHAPES = {
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist", "emnist"), (28, 28, 1)),
    **dict.fromkeys(("cifar10", "cifar100", "svhn_cropped"), (32, 32, 3)),
}
_ALIASES = {"imagenet": "imagenet2012", "svhn": "svhn_cropped"}

MEMORY_BYTES = 2**31
"""Sets whose decoded images take more are streamed."""

_NAME = re.compile(
    r"(?P<path>[a-z]\w*(?:/[\w.\-]+)?)(?::(?P<version>\d+\.\d+\.\d+))?", flags=re.ASCII
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO, _FEATURES = "dataset_info.json", "features.json"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A data set as tensorflow-datasets names it: "mnist", "emnist/letters", "mnist:3.0.1"."""

    text: str
    path: str
    version: str | None


def parse(name: str) -> Spec:
    """Splits a name into its parts.

    Raises:
        ValueError: not a name that tensorflow-datasets could have.

    Examples:
        >>> parse("emnist/letters:3.1.0")
        Spec(text='emnist/letters:3.1.0', path='emnist/letters', version='3.1.0')
    """
    match = _NAME.fullmatch(_ALIASES.get(name, name))
    if match is None:
        raise ValueError(f"{name!r} cannot be the name of a data set{suggestion(name)}")
    return Spec(match[0], match["path"], match["version"])


def suggestion(name: str, known: tuple[str, ...] = KNOWN) -> str:
    """A clause that offers the nearest known name, empty if none is near.

    Examples:
        >>> suggestion("mnits")
        "; did you mean 'mnist'?"
    """
    near = nearest(name.lower().replace("-", ""), known, cutoff=0.7)
    return f"; did you mean {near!r}?" if near and near != name else ""


def command(root: pathlib.Path, spec: Spec) -> str:
    """What prepares the set under `root`."""
    if spec.path in _published.SETS:
        return f"dessilbi data {spec.path} --data-dir {root}"
    built = f"tfds build {spec.path} --file_format=array_record --data_dir={root}"
    if spec.path != "imagenet2012":
        return built
    # Its licence does not let tensorflow-datasets download it.
    return (
        f"{built} --manual_dir=DIR, where DIR holds ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar from image-net.org"
    )


def default_root() -> pathlib.Path:
    """The folder where tensorflow-datasets keeps its sets unless told otherwise."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def exists(root: pathlib.Path, spec: Spec) -> bool:
    """Whether `root` has a version of the data set, or the one asked for, finished or not.

    The temporary folders of an interrupted preparation do not count.
    """
    return bool(_versions(root / spec.path, spec))


def find(root: pathlib.Path, spec: Spec) -> pathlib.Path:
    """The folder of the newest prepared version, or of the version asked for.

    Raises:
        FileNotFoundError: `root` is missing, does not hold the data set, or holds an unfinished
            one; the message says where was looked, what is there and what to give instead.
        ValueError: the set was prepared in a file format that cannot be read at random.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"data folder {root} {what}; give the folder that holds {spec.path}/"
            f", or prepare the set: {command(root, spec)}"
        )
    folder = root / spec.path
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no data set {spec.path!r} in {root}, which holds {_contents(root)}"
            + _misplaced(root, spec)
            + f"; or prepare it: {command(root, spec)}"
        )
    versions = _versions(folder, spec)
    finished = [p for p in versions if (p / _INFO).is_file()]
    if not finished:
        if versions:
            raise FileNotFoundError(
                f"{versions[-1]} is half there: it has no {_INFO}, only "
                f"{_contents(versions[-1])}; copy or prepare it again"
            )
        wanted = f"version {spec.version}" if spec.version else "prepared version"
        raise FileNotFoundError(
            f"no {wanted} of {spec.path!r} in {folder}, which holds {_contents(folder)}"
            + _configurations(folder, spec)
        )
    chosen = finished[-1]
    if not (chosen / _FEATURES).is_file():
        raise FileNotFoundError(
            f"{chosen} is half there: it has no {_FEATURES}; copy or prepare it again"
        )
    _check_own(chosen, spec, _check_format(chosen, spec))
    return chosen


def fingerprint(folder: pathlib.Path) -> str:
    """A digest that changes when a file of the set does: names, sizes and times of all its
    files, and the content of the two that describe it."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."):
        status = file.stat()
        name = file.relative_to(folder).as_posix()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        if name in (_INFO, _FEATURES):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def fits_in_memory(folder: pathlib.Path) -> bool:
    """Whether all images have one size and take at most `MEMORY_BYTES` decoded.

    True where the description of the set is not as expected: reading it will say what is wrong.
    """
    try:
        info = files.parse_json((folder / _INFO).read_bytes())
        sides = _told_shape(folder)
        rows = sum(int(n) for split in info["splits"] for n in split["shardLengths"])
    except (ValueError, KeyError, TypeError):
        return True
    return min(sides, default=0) > 0 and rows * math.prod(sides) <= MEMORY_BYTES


def _check_format(folder: pathlib.Path, spec: Spec) -> dict[str, Any]:
    """`dataset_info.json`; raises unless it parses and names array_record as the file format."""
    try:
        info: dict[str, Any] = files.parse_json((folder / _INFO).read_bytes())
        found = info.get("fileFormat", "tfrecord")
        others = info.get("alternativeFileFormats", [])
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder / _INFO} is damaged ({error}); copy or prepare {spec.path} again"
        ) from error
    if "array_record" not in (found, *others):
        raise ValueError(
            f"{folder} was prepared as {found}, array_record is needed; prepare it again with "
            f"`tfds build {spec.path} --file_format=array_record --data_dir=OTHER_FOLDER`"
        )
    return info


def _check_own(folder: pathlib.Path, spec: Spec, info: dict[str, Any]) -> None:
    """Raises unless the set says that it is the one asked for, with images of its shape."""
    name = spec.path.split("/")[0]
    if info.get("name", name) != name:
        raise ValueError(
            f"{folder} holds {info['name']}, not {name}: {_INFO} says so; put the files of "
            f"{spec.path} there, or ask for {info['name']}"
        )
    own = _SHAPES.get(name)
    try:
        found = _told_shape(folder)
    except (ValueError, KeyError, TypeError):
        return  # reading the set will say what is wrong with its description
    if own is not None and found != own:
        raise ValueError(
            f"{folder} holds images of shape {found} by its {_FEATURES}, those of {spec.path} have "
            f"{own}: these are the files of another set"
        )


def _told_shape(folder: pathlib.Path) -> tuple[int, ...]:
    """Height, width and channels of the images as `features.json` has them, −1 where they differ.

    Raises:
        ValueError, KeyError, TypeError: it says something else.
    """
    features = files.parse_json((folder / _FEATURES).read_bytes())["featuresDict"]["features"]
    return tuple(int(n) for n in features["image"]["image"]["shape"]["dimensions"])


def _contents(folder: pathlib.Path) -> str:
    """The first names in a folder, folders with a slash."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _versions(folder: pathlib.Path, spec: Spec) -> list[pathlib.Path]:
    """Folders in `folder` named like versions, oldest first; only the one asked for, if any."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _VERSION.fullmatch(p.name) and p.is_dir()]
    if spec.version:
        found = [p for p in found if p.name == spec.version]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _misplaced(root: pathlib.Path, spec: Spec) -> str:
    """What to give instead of `root`, where a common slip explains that the set is not in it."""
    here = root.resolve()
    # the folder of the set itself, of one of its configurations or of one of its versions
    for parent in here.parents[:3]:
        if here.is_relative_to(parent / spec.path.split("/")[0]) and exists(parent, spec):
            return f"; give {parent} instead"
    for child in sorted(p for p in root.iterdir() if p.is_dir()):
        if exists(child, spec):
            return f"; give {child} instead"
    present = tuple(p.name for p in root.iterdir() if p.is_dir())
    near = suggestion(spec.path, (*present, "digits"))
    return near or f"; give the folder that holds {spec.path}/"


def _configurations(folder: pathlib.Path, spec: Spec) -> str:
    """The configurations to choose from where a set has them and none was named."""
    versionless = Spec(spec.path, spec.path, None)
    names = sorted(p.name for p in folder.iterdir() if _versions(p, versionless))
    if not names:
        return "; copy or prepare it again"
    return "; name a configuration: " + ", ".join(f"{spec.path}/{name}" for name in names)
