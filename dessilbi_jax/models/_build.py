"""Networks by name: what `models.build` and `models.names` know."""

import difflib
import numbers
from collections.abc import Sequence

from flax import nnx

from dessilbi_jax.models.lenet import LeNet5, LeNet300
from dessilbi_jax.models.resnet import ResNet
from dessilbi_jax.models.vgg import VGG

Network = LeNet300 | LeNet5 | ResNet | VGG

# name -> (class, default widths, how many widths: None = one or more, what they are)
_NETWORKS: dict[str, tuple[type[Network], tuple[int, ...], int | None, str]] = {
    "lenet300": (LeNet300, (300, 100), None, "units of each hidden layer"),
    "lenet5": (LeNet5, (20, 50, 500), 3, "filters of conv1, filters of conv2, units of fc1"),
    "resnet-small": (ResNet, (16, 32, 64), None, "channels of each stage"),
    "vgg-small": (VGG, (32, 32, 64, 64, 128, 128), None, "filters of each convolution"),
}


def names() -> tuple[str, ...]:
    """The names that `build` takes.

    Examples:
        >>> names()
        ('lenet300', 'lenet5', 'resnet-small', 'vgg-small')
    """
    return tuple(_NETWORKS)


def _positive(value: object, what: str) -> int:
    """`value` as an int; raises unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{what} must be whole numbers of at least 1, got {value!r}")
    return int(value)


def build(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28, 1),
    classes: int = 10,
    seed: int = 0,
    widths: Sequence[int] | None = None,
) -> Network:
    """A new network, initialised with He-normal kernels and zero biases from `seed`.

    It maps float images [batch, height, width, channels] to logits [batch, classes]. Kernels are
    leaves named `kernel`, (in, out) for dense layers and (height, width, in, out) for
    convolutions. Networks with batch normalisation start in training mode and obey
    `model.train()` and `model.eval()`.

    Args:
        name: "lenet300", "lenet5", "vgg-small" or "resnet-small".
        input_shape: (height, width, channels) of an image.
        classes: number of logits.
        seed: of the initialisation; the same seed gives the same parameters.
        widths: sizes of the layers where the default is not wanted: hidden units for lenet300
            (300, 100), filters, filters and units for lenet5 (20, 50, 500), filters of each
            convolution for vgg-small (32, 32, 64, 64, 128, 128), channels of each stage for
            resnet-small (16, 32, 64).

    Returns:
        A `flax.nnx.Module` with float32 parameters.

    Raises:
        ValueError: an unknown name, a shape that is not three positive integers, images too
            small for the network, widths of the wrong number, or sizes below 1.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> model = build("lenet300")
        >>> params = nnx.state(model, nnx.Param)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        266610
    """
    if name not in _NETWORKS:
        near = difflib.get_close_matches(str(name).lower(), _NETWORKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown network {name!r}: {hint}There are {', '.join(_NETWORKS)}")
    network, default, count, meaning = _NETWORKS[name]
    shape = tuple(_positive(size, "the sizes in input_shape") for size in input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}")
    sizes = default if widths is None else tuple(_positive(w, "widths") for w in widths)
    if not sizes or (count is not None and len(sizes) != count):
        wanted = "one number or more" if count is None else f"{count} numbers"
        raise ValueError(f"widths of {name} must be {wanted} ({meaning}), got {widths!r}")
    _positive(classes, "classes")
    return network(shape, classes, sizes, rngs=nnx.Rngs(seed))
