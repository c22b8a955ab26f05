"""What all networks have, and what is known of one by name."""

import abc
import dataclasses
from collections.abc import Callable

import jax
from flax import nnx


class Network(nnx.Module):
    """A network of this package.

    Attributes:
        input_shape: (height, width, channels) of an image, or (context,) of a token network.

    Examples:
        >>> from dessilbi_jax.models import lenet
        >>> network: Network = lenet.LeNet300(widths=(5, 4), rngs=nnx.Rngs(0))
        >>> network.input_shape, network.widths
        ((28, 28, 1), (5, 4))
    """

    input_shape: tuple[int, ...]

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, ...]:
        """The widths in full: one for each set of channels that can be removed by itself.

        They are read from the arrays, so also of a network that has been slimmed.
        """

    @abc.abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """How a named network is made, and what its publication says of it.

    Attributes:
        make: `make(input_shape, classes, widths, *, dtype, remat, rngs)`, the network.
        input_shape: of the publication: (height, width, channels) of an image, or (context,) of
            a token network.
        classes: of the publication; the vocabulary of a token network.
        widths: the default ones.
        counts: how many widths may be given, such as 3 in short and 12 in full; None: one or
            more.
        meaning: what the widths are.
        source: the publication.

    Examples:
        >>> from dessilbi_jax.models import lenet
        >>> entry = lenet.NETWORKS["lenet5"]
        >>> entry.widths, entry.counts
        ((20, 50, 500), (3,))
    """

    make: Callable[..., nnx.Module]
    input_shape: tuple[int, ...]
    classes: int
    widths: tuple[int, ...]
    counts: tuple[int, ...] | None
    meaning: str
    source: str
