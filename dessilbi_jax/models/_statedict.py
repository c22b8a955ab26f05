"""Arrays of a PyTorch state-dict file, read without PyTorch and without running what it holds.

A `.pth` file is a pickle, and unpickling runs whatever code the file names. Here the pickle's
instructions are listed by `pickletools.genops` and carried out by a small interpreter, which knows
dictionaries, tuples, numbers, strings and the functions that stand for tensors, and nothing else.
"""

import dataclasses
import io
import math
import mmap
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of that number
_DAMAGE = (LookupError, TypeError, AttributeError, EOFError, OverflowError, RuntimeError, OSError)
_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Tensor(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage that lies elsewhere in the file."""

    storage: "Storage"
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Storage(NamedTuple):
    """A run of numbers in the file, found by its key."""

    dtype: np.dtype
    key: str
    length: int


@dataclasses.dataclass(frozen=True)
class Named:
    """What a pickle names and this reader knows: `module.name`."""

    name: str


def read(file: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, in PyTorch's layout.

    The format is told by the file's first bytes: safetensors; the zip archive that `torch.save`
    writes since PyTorch 1.6; or the run of pickles it wrote before, as many published weights
    still are. A checkpoint that holds the state dict under "state_dict" or "model" is opened
    there. Nothing in the file is executed.

    Args:
        file: a local `.safetensors`, `.pth` or `.pt` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of these, truncated or damaged, or its pickle asks for anything
            that a state dict does not need.
        ImportError: a safetensors file, and safetensors is not installed.

    Examples:
        >>> import os, tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> file = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> save_file({"fc.weight": np.ones((10, 4), np.float32)}, file)
        >>> {name: array.shape for name, array in read(file).items()}
        {'fc.weight': (10, 4)}
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; give a .safetensors, .pth or .pt file")
    with file.open("rb") as stream:
        start = stream.read(len(_LEGACY_START))
        stream.seek(0)
        try:
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(stream)
            if start == _LEGACY_START:
                # Mapped, because asked for more than there is, a file reserves it first.
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    return _read_legacy(mapped)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{file} is a truncated or damaged archive ({error}); download it again"
            ) from None
        except _DAMAGE as error:
            raise ValueError(f"{file} is damaged: {error!r}; download it again") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    if start[8:9] == b"{":
        return _read_safetensors(file)
    raise ValueError(
        f"{file} is neither a safetensors file nor what torch.save writes; it begins with {start!r}"
    )


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            f"reading {file} needs the package safetensors: pip install safetensors"
        ) from None
    try:
        # as Flax arrays, because NumPy alone has no bfloat16
        with safetensors.safe_open(file, framework="flax") as opened:
            names = opened.keys()
            return {name: np.asarray(opened.get_tensor(name)) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from None


def _read_zip(stream: BinaryIO) -> dict[str, np.ndarray]:
    """The format since PyTorch 1.6: a pickle, and each storage a file of its own."""
    with zipfile.ZipFile(stream) as archive:
        found = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(found) != 1:
            raise ValueError(f"a zip archive with {len(found)} files */data.pkl, not one")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            order = _member(archive, f"{folder}byteorder")
            if order != b"little":
                raise ValueError(f"numbers in byte order {order!r}; only little-endian is read")
        tensors = _tensors(interpret(io.BytesIO(_member(archive, found[0])), {}))

        def raw(storage: Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            held = archive.getinfo(name).file_size
            if held != storage.length * storage.dtype.itemsize:
                raise ValueError(
                    f"{name} holds {held} bytes, not {storage.length} of {storage.dtype}"
                )
            return _member(archive, name)

        return _arrays(tensors, raw)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, which must not be compressed: a small one could unpack to any size."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, as torch.save leaves nothing")
    return archive.read(name)


def _read_legacy(stream: Any) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: five pickles, then the storages in the order of the last."""
    known: dict[str, Storage] = {}
    magic, version, system, content, keys = (interpret(stream, known) for _ in range(5))
    if magic != _LEGACY_MAGIC or version != 1001 or not system["little_endian"]:
        raise ValueError(f"written as version {version} on {system}; only 1001 is read")
    tensors = _tensors(content)
    found: dict[str, bytes] = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        if count != known[key].length:
            raise ValueError(f"storage {key} has {count} numbers, not {known[key].length}")
        size = count * known[key].dtype.itemsize
        found[key] = stream.read(size)
        if len(found[key]) != size:
            raise ValueError("the file ends too early; download it again")
    return _arrays(tensors, lambda storage: found[storage.key])


def _tensors(content: Any) -> dict[str, Tensor]:
    """The state dict in what was unpickled."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds no state dict, but {type(content).__name__}: {content!r:.200}")
    other = [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if other:
        raise ValueError(
            "holds no state dict, a mapping from names to tensors, but one that also has: "
            f"{', '.join(map(repr, other[:10]))}"
        )
    return content


def _arrays(tensors: dict[str, Tensor], raw: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """The arrays that tensors are, once their storages have been read; each only once."""
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, (storage, offset, size, stride) in tensors.items():
        if storage.key not in storages:
            storages[storage.key] = np.frombuffer(raw(storage), storage.dtype)
        numbers = storages[storage.key]
        whole = (offset, *size, *stride)
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in whole):
            raise ValueError(f"{name} has size {size}, stride {stride} and offset {offset}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if not math.prod(size):
            arrays[name] = np.zeros(size, storage.dtype)
        elif last < len(numbers) and numbers.dtype == storage.dtype:
            steps = tuple(step * numbers.itemsize for step in stride)
            view = np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)
            arrays[name] = view
        else:
            raise ValueError(f"{name} lies outside its storage of {len(numbers)} numbers")
    return arrays


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
_FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{name}" for name in _DTYPES),
}


def interpret(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
    """The value of the next pickle of a stream, if it is one that a state dict may need.

    Args:
        stream: is read as far as the pickle goes.
        storages: is given all that the pickle refers to, by key.

    Raises:
        ValueError: an instruction or a name that a state dict has no need of, or a damaged pickle.
    """
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _NUMBERS | _STRINGS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _FIXED_TUPLES:
            n = _FIXED_TUPLES[name]
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "SETITEMS", "APPENDS"):
            items, stack = stack, marks.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "SETITEMS":
                _instance(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            else:
                _instance(stack[-1], list).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _instance(stack[-1], dict)[key] = value
        elif name == "APPEND":
            value = stack.pop()
            _instance(stack[-1], list).append(value)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = arg.split(" ") if name == "GLOBAL" else stack[-2:]
            stack = stack if name == "GLOBAL" else stack[:-2]
            stack.append(_named(".".join(parts)))
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            storages[storage.key] = storage
            stack.append(storage)
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_called(function, args))
        elif name == "BUILD":  # attributes of the dictionary, such as _metadata
            stack.pop()
            _instance(stack[-1], dict)
        elif name == "STOP":
            (value,) = stack
            return value
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(
                f"its pickle has the instruction {name}, which no state dict needs; it is refused. "
                "Save the model's state_dict() alone, or as safetensors"
            )
    raise ValueError("its pickle has no end")


def _instance(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(
            f"its pickle uses a {type(value).__name__} where a {kind.__name__} belongs"
        )
    return value


def _named(name: str) -> Named:
    if name not in _KNOWN:
        raise ValueError(
            f"its pickle names {name}, which no state dict needs; it is refused, and nothing was "
            "run. Save the model's state_dict() alone, or as safetensors"
        )
    return Named(name)


def _called(function: Any, args: Any) -> Any:
    """What a known function gives; a hook or an argument that means nothing here is passed over."""
    name = _instance(function, Named).name
    if name == "collections.OrderedDict" and args == ():
        return {}
    if name == "torch._utils._rebuild_parameter":
        return _instance(args[0], Tensor)
    if name.startswith("torch._utils._rebuild_tensor"):
        storage, offset, size, stride = args[:4]
        return Tensor(_instance(storage, Storage), offset, tuple(size), tuple(stride))
    raise ValueError(f"its pickle calls {name} with {args!r:.100}, which is refused")


def _storage(identity: Any) -> Storage:
    """A storage from its persistent id: ("storage", type, key, device, count[, view])."""
    kind, storage, key, _, count, *view = identity
    if kind != "storage" or not isinstance(storage, Named) or view not in ([], [None]):
        raise ValueError(f"its pickle refers to {identity!r:.200}, which is refused")
    dtype = _DTYPES[storage.name.removeprefix("torch.")]
    return Storage(np.dtype(dtype), str(key), count)
