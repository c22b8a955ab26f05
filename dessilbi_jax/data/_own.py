"""One's own arrays as a source of data."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from dessilbi_jax.data._dataset import Dataset
from dessilbi_jax.data._source import ArrayPart, Batches, Part, check_set_aside

_Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Inputs of any shape and their labels in memory, divided into train and test: a `Source`.

    Attributes:
        name: what to call it.
        train_inputs: float32 [N, …], given to the network as they are.
        train_labels: int32 [N], from 0 to num_classes - 1.
        test_inputs: float32 [M, …].
        test_labels: int32 [M].
        num_classes: number of classes.
    """

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    kind: ClassVar[Literal["images"]] = "images"
    resident: ClassVar[bool] = True
    mean: ClassVar[tuple[float, ...]] = ()
    std: ClassVar[tuple[float, ...]] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.train_inputs.shape[1:]

    @property
    def train_size(self) -> int:
        """Number of train rows."""
        return len(self.train_labels)

    @property
    def test_size(self) -> int:
        """Number of test rows."""
        return len(self.test_labels)

    def test_part(self) -> Part:
        """The test rows, in batches."""
        return ArrayPart(self.test_inputs, self.test_labels)

    def set_aside(self, n: int, seed: int = 0) -> tuple["Arrays", Part]:
        """The source with `n` fewer train rows, and those rows."""
        check_set_aside(self.name, self.train_size, n)
        out = np.zeros(self.train_size, bool)
        out[np.random.default_rng(seed).choice(self.train_size, n, replace=False)] = True
        inputs, labels = self.train_inputs, self.train_labels
        rest = dataclasses.replace(self, train_inputs=inputs[~out], train_labels=labels[~out])
        return rest, ArrayPart(inputs[out], labels[out])

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The train inputs and their labels."""
        return self.train_inputs, self.train_labels

    def pick(self, arrays: tuple[jax.Array, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs and labels of some rows."""
        inputs, labels = arrays
        return inputs[rows], labels[rows]

    def train_batches(
        self,
        batch: int,
        *,
        seed: int,
        shard: int = 0,
        shards: int = 1,
        workers: int = 0,
        threads: int | None = None,
    ) -> Batches:
        """None: arrays in memory are put on the device as a whole.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} is in memory and does not stream; use `arrays` and `pick`")


def from_arrays(name: str, train: Any, test: Any) -> Dataset | Arrays:
    """A source from one's own (inputs, labels) of both parts.

    Args:
        name: what to call it.
        train: inputs [N, …] and integer labels [N]. Images as uint8 [N, height, width, channels]
            are normalised by their channels' mean and deviation; other inputs are numbers that
            the network gets as they are.
        test: likewise.

    Raises:
        TypeError: they are no pairs of arrays.
        ValueError: arrays that do not go together, are not finite, or hold no rows; labels that
            are not 0, 1, …

    Examples:
        >>> import numpy as np
        >>> inputs, labels = np.zeros((4, 3)), np.array([0, 1, 1, 0])
        >>> source = from_arrays("mine", (inputs, labels), (inputs, labels))
        >>> source.input_shape, source.num_classes, source.train_inputs.dtype
        ((3,), 2, dtype('float32'))
    """
    parts: list[_Pair] = []
    for part, pair in (("train", train), ("test", test)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{part} data must be (inputs, labels), got {type(pair).__name__}")
        inputs, labels = np.asarray(pair[0]), np.asarray(pair[1])
        if inputs.ndim < 2 or not len(inputs) or labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"{part} data must be inputs [N, …] and labels [N] with N > 0, got "
                f"{list(inputs.shape)} and {list(labels.shape)}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(f"{part} labels must be integers from 0, got {labels.dtype}")
        if inputs.dtype != np.uint8:
            inputs = inputs.astype(np.float32)
            if not np.isfinite(inputs).all():
                raise ValueError(f"{part} inputs are not all finite")
        parts.append((inputs, labels.astype(np.int32)))
    (x, y), (test_x, test_y) = parts
    if x.shape[1:] != test_x.shape[1:] or x.dtype != test_x.dtype:
        raise ValueError(
            f"train inputs are {x.dtype} {list(x.shape[1:])}, test inputs {test_x.dtype} "
            f"{list(test_x.shape[1:])}: they must be alike"
        )
    classes = int(max(y.max(), test_y.max())) + 1
    if x.dtype == np.uint8 and x.ndim == 4:
        return Dataset.from_arrays(name, (x, y), (test_x, test_y), list(map(str, range(classes))))
    return Arrays(name, np.asarray(x, np.float32), y, np.asarray(test_x, np.float32), test_y,
                  classes)  # fmt: skip
