"""Published PyTorch weights in networks of this package, without PyTorch."""

import os
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dessilbi_jax.models import _build, _statedict
from dessilbi_jax.models.resnet import ResNet
from dessilbi_jax.models.vgg import VGG

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_LISTED = 10  # of each kind, in an error


def load_torch(file: str | os.PathLike[str], model: str | nnx.Module, **settings: Any) -> Any:
    """A residual network or VGG with the weights of a state-dict file in torchvision's naming.

    Kernels are transposed from OIHW to HWIO and from (out, in) to (in, out), and the first dense
    layer behind a flattened image is reordered, because PyTorch flattens (channels, rows,
    columns) and this package (rows, columns, channels). Running statistics are loaded too;
    `num_batches_tracked` is not needed. Numbers become float32. A prefix `module.` that all names
    have, from data-parallel training, is taken off. The file is only read: nothing in it is
    executed.

    The outputs are PyTorch's for the same images, which torchvision's weights expect as RGB,
    divided by 255, less (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225). For other classes load
    the network whole and give it another `fc`.

    Args:
        file: a local `.safetensors`, `.pth` or `.pt` file: a state dict as `torch.save` writes
            it, before and since PyTorch 1.6, or a checkpoint with one under "state_dict" or
            "model".
        model: a network to fill, or the name of one to build: "resnet18", "resnet34",
            "resnet50", "resnet101" or "vgg16-imagenet" for torchvision's resnet18, resnet34,
            resnet50, resnet101 and vgg16_bn.
        settings: what `models.build` takes besides the name, such as `classes` and `widths`.

    Returns:
        The network, in training mode if it was built here; `model.eval()` for evaluation. A
        network that was given is changed in place, and only once all leaves have been checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file or one that asks to run code; or arrays that are missing,
            superfluous, of another shape or no floating-point numbers, all listed at once.
        TypeError: a network whose naming in PyTorch is not known, or settings for a network that
            is already built.
        ImportError: a safetensors file, and safetensors is not installed.

    Examples:
        >>> import os, tempfile, numpy as np
        >>> from dessilbi_jax import models
        >>> from safetensors.numpy import save_file
        >>> small = dict(widths=(2, 3, 4, 5), classes=10)
        >>> shapes = torch_shapes(models.build("resnet18", **small))
        >>> shapes["layer2.0.downsample.0.weight"]
        (3, 2, 1, 1)
        >>> file = os.path.join(tempfile.mkdtemp(), "resnet18.safetensors")
        >>> save_file({name: np.full(s, 0.1, np.float32) for name, s in shapes.items()}, file)
        >>> model = load_torch(file, "resnet18", **small)
        >>> model.stage2_block1.shortcut.kernel.shape, float(model.bn1.mean[0])
        ((1, 1, 2, 3), 0.1...)
    """
    if isinstance(model, str):
        name = model
        target: Any = nnx.eval_shape(lambda: _build.build(name, **settings))
    elif settings:
        raise TypeError(
            f"{', '.join(settings)}: settings are for a network given by its name; this "
            f"{type(model).__name__} is built already"
        )
    else:
        target = model
    leaves = _torch_leaves(target)
    arrays = _without_prefix(_statedict.read(file))
    _check(file, arrays, {name: shape for name, shape, _ in leaves.values()})
    tree: dict[str, Any] = {}
    for path, (name, _, convert) in leaves.items():
        *parents, last = path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(convert(arrays[name].astype(np.float32)))
    nnx.update(target, tree)
    return target


def torch_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that PyTorch's state dict of this network holds.

    All but `num_batches_tracked`, in the order of the network's own leaves.

    Args:
        model: a residual network or VGG of this package, of whatever widths.

    Raises:
        TypeError: another network, whose naming in PyTorch is not known.

    Examples:
        >>> from dessilbi_jax import models
        >>> torch_shapes(models.build("resnet-small", input_shape=(32, 32, 3)))["fc.weight"]
        (10, 64)
    """
    return {name: shape for name, shape, _ in _torch_leaves(model).values()}


def torch_classes(file: str | os.PathLike[str], model: nnx.Module) -> int:
    """Number of classes that the head of a state dict tells apart.

    Args:
        file: as for `load_torch`.
        model: the network, with whatever number of classes.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: as `load_torch`.
    """
    name, shape, _ = _torch_leaves(model)["fc", "kernel"]
    arrays = _without_prefix(_statedict.read(file))
    if name not in arrays or arrays[name].ndim != len(shape):
        raise ValueError(f"{os.fspath(file)} holds no {name}, the head of this network")
    return int(arrays[name].shape[0])


# name and shape in PyTorch, and how its array becomes ours
Leaf = tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]


def _torch_leaves(model: nnx.Module) -> dict[tuple[str, ...], Leaf]:
    """What belongs into each leaf of the network, by the leaf's path."""
    if isinstance(model, ResNet):
        rename: Callable[[tuple[str, ...]], str] = _resnet_layer
        flat = None
    elif isinstance(model, VGG):
        rename, flat = _vgg_layers(model).__getitem__, "fc1" if model.hidden else "fc"
    else:
        raise TypeError(
            f"the names of a {type(model).__name__}'s weights in PyTorch are not known; they are "
            "for ResNet and VGG"
        )
    leaves = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        *layer, kind = (str(part) for part in path)
        name = f"{rename(tuple(layer))}.{_LEAVES[kind]}"
        shape = tuple(variable.shape)
        convert: Callable[[np.ndarray], np.ndarray] = np.asarray
        if layer == [flat] and kind == "kernel":
            shape, convert = shape[::-1], _flat(_places(model))
        elif kind == "kernel":
            axes = (2, 3, 1, 0) if len(shape) == 4 else (1, 0)
            shape = tuple(shape[axes.index(i)] for i in range(len(shape)))
            convert = _transposed(axes)
        leaves[tuple(map(str, path))] = (name, shape, convert)
    return leaves


def _resnet_layer(layer: tuple[str, ...]) -> str:
    """`stage2_block1/shortcut_bn` is `layer2.0.downsample.1`; conv1, bn1 and fc are the same."""
    first, *inner = layer
    block = re.fullmatch(r"stage(\d+)_block(\d+)", first)
    if block is None:
        return first
    names = {"shortcut": "downsample.0", "shortcut_bn": "downsample.1"}
    return f"layer{block[1]}.{int(block[2]) - 1}.{names.get(inner[0], inner[0])}"


def _vgg_layers(model: VGG) -> dict[tuple[str, ...], str]:
    """Names by layer: PyTorch numbers convolutions, normalisations, ReLUs and poolings in a row."""
    names: dict[tuple[str, ...], str] = {}
    for i in range(model.convolutions):
        before = 3 * i + sum(pooled <= i for pooled in model.pooled)
        names[f"conv{i + 1}",] = f"features.{before}"
        names[f"bn{i + 1}",] = f"features.{before + 1}"
    for i in range(model.hidden):  # each with ReLU and dropout
        names[f"fc{i + 1}",] = f"classifier.{3 * i}"
    names["fc",] = f"classifier.{3 * model.hidden}"
    return names


def _places(model: Any) -> tuple[int, int]:
    """Rows and columns of the image that a VGG flattens."""
    if not model.flatten:
        return (1, 1)
    height, width, _ = model.input_shape
    return height >> len(model.pooled), width >> len(model.pooled)


def _transposed(axes: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.transpose(axes)


def _flat(places: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """From (units, channels · rows · columns) to (rows · columns · channels, units)."""

    def convert(array: np.ndarray) -> np.ndarray:
        image = array.reshape(len(array), -1, *places)
        return image.transpose(2, 3, 1, 0).reshape(-1, len(array))

    return convert


def _without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays but for counts of batches, without a `module.` before all names."""
    arrays = {
        name: array
        for name, array in arrays.items()
        if name.rpartition(".")[2] != "num_batches_tracked"
    }
    if all(name.startswith("module.") for name in arrays):
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _check(
    file: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    wanted: dict[str, tuple[int, ...]],
) -> None:
    """Raises unless the arrays are those wanted, and no others."""
    both = [name for name in wanted if name in arrays]
    faults = {
        "missing": [f"{name} {wanted[name]}" for name in wanted if name not in arrays],
        "superfluous": [f"{name} {arrays[name].shape}" for name in arrays if name not in wanted],
        "of another shape": [
            f"{name} {arrays[name].shape}, expected {wanted[name]}"
            for name in both
            if arrays[name].shape != wanted[name]
        ],
        "no floating-point numbers": [
            f"{name} {arrays[name].dtype}"
            for name in both
            if not jnp.issubdtype(arrays[name].dtype, jnp.floating)
        ],
    }
    if any(faults.values()):
        lines = []
        for fault, names in faults.items():
            more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
            lines += [f"  {fault}: {'; '.join([*names[:_LISTED], *more])}"] if names else []
        raise ValueError(
            f"the weights in {os.fspath(file)} are not this network's:\n"
            + "\n".join(lines)
            + "\nGive the network that they belong to, with its classes, widths and input_shape"
        )
