"""Networks by name: what `models.build` and `models.names` know."""

import difflib
import numbers
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from dessilbi_jax.models import (
    alexnet,
    conv_n,
    densenet,
    gpt,
    lenet,
    mobilenet,
    resnet,
    vgg,
    vit,
    wide_resnet,
)
from dessilbi_jax.models._entry import Entry, Network

_MODULES = (lenet, conv_n, alexnet, vgg, resnet, wide_resnet, densenet, mobilenet, vit, gpt)
NETWORKS: dict[str, Entry] = {
    name: entry for module in _MODULES for name, entry in module.NETWORKS.items()
}


def names() -> tuple[str, ...]:
    """The names that `build` takes.

    Examples:
        >>> [name for name in names() if name.startswith("conv")]
        ['conv2', 'conv4', 'conv6']
    """
    return tuple(NETWORKS)


def entry(name: str) -> Entry:
    """How a network is made, the sizes of its publication, and what its widths are.

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> found = entry("resnet20")
        >>> found.input_shape, found.widths, found.counts
        ((32, 32, 3), (16, 32, 64), (3, 12))
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(str(name).lower(), NETWORKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown network {name!r}: {hint}There are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build(
    name: str,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    seed: int = 0,
    widths: Sequence[int] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Network:
    """A new network, initialised from `seed` with zero biases and He-normal kernels.

    (Where the publication draws kernels otherwise, so does the network; it then says so.) A
    network maps float images [batch, height, width, channels] to logits [batch, classes], or
    int32 tokens [batch, context] to logits [batch, context, vocabulary]. Kernels are leaves named
    `kernel`, (in, out) for dense layers and (height, width, in, out) for convolutions. Networks
    with batch normalisation start in training mode and obey `model.train()` and `model.eval()`.

    Args:
        name: one of `names()`.
        input_shape: (height, width, channels) of an image, or (context,) of a token network;
            None: that of the publication.
        classes: number of logits: classes, or the vocabulary; None: that of the publication.
        seed: of the initialisation; the same seed gives the same parameters.
        widths: sizes of the layers where those of the publication are not wanted. Many networks
            take them in short, such as the channels of each stage of "resnet20", and in full,
            one for each set of channels that can be removed by itself: what `widths` reads from
            a network. `entry(name).meaning` says what they are.
        dtype: what the network computes in, such as `jnp.bfloat16`. Parameters, statistics and
            logits are float32 whatever it is.
        remat: whether each block is computed again in the backward pass, instead of keeping what
            lies inside it: less memory for about a third more time. Results are equal.

    Returns:
        A `flax.nnx.Module` with float32 parameters.

    Raises:
        ValueError: an unknown name, a shape that is not as many positive integers as the network
            takes, images too small for the network, widths of the wrong number, sizes below 1, or
            a type that is not floating-point.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> model = build("lenet300")
        >>> params = nnx.state(model, nnx.Param)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        266610
    """
    known = entry(name)
    shape = known.input_shape
    if input_shape is not None:
        shape = tuple(_positive(size, "the sizes in input_shape") for size in input_shape)
    if len(shape) != len(known.input_shape):
        wanted = "(height, width, channels)" if len(known.input_shape) == 3 else "(context,)"
        raise ValueError(f"input_shape must be {wanted}, got {input_shape!r}")
    sizes = known.widths if widths is None else tuple(_positive(w, "widths") for w in widths)
    if not sizes or (known.counts is not None and len(sizes) not in known.counts):
        counts = "" if known.counts is None else " or ".join(map(str, known.counts))
        wanted = f"{counts} numbers" if counts else "one number or more"
        raise ValueError(f"widths of {name} must be {wanted} ({known.meaning}), got {widths!r}")
    classes = known.classes if classes is None else _positive(classes, "classes")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype must be a floating-point type such as bfloat16, got {jnp.dtype(dtype).name}"
        )
    made = known.make(shape, classes, sizes, dtype=dtype, remat=remat, rngs=nnx.Rngs(seed))
    return cast(Network, made)


def widths(model: Network) -> tuple[int, ...]:
    """The widths of a network in full: one for each set of channels that can be removed by itself.

    They are read from its arrays. `build` makes a network of the same sizes from them, also where
    the network has been slimmed.

    Raises:
        ValueError: a "resnet-small" of one or two stages: its full widths would be read as the
            channels of more stages.

    Examples:
        >>> model = build("resnet20", widths=(4, 6, 8))
        >>> widths(model)
        (4, 4, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8)
    """
    return model.widths


def example_input(model: Network, batch: int = 1) -> jax.ShapeDtypeStruct:
    """Shape and type of an input of a network: float32 images, or int32 tokens.

    Args:
        model: a network of this package.
        batch: how many images or texts.

    Examples:
        >>> example_input(build("lenet5"), 8)
        ShapeDtypeStruct(shape=(8, 28, 28, 1), dtype=float32)
    """
    kind = jnp.int32 if len(model.input_shape) == 1 else jnp.float32
    return jax.ShapeDtypeStruct((batch, *model.input_shape), kind)


def _positive(value: object, what: str) -> int:
    """`value` as an int; raises unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{what} must be whole numbers of at least 1, got {value!r}")
    return int(value)
