"""The data set as the training loop sees it, and the embedded handwritten digits.

The digits are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, data set 80), as distributed with
scikit-learn: 1,797 grey images of 8x8 pixels with 17 levels, written by 13 people. They are
under the Creative Commons Attribution 4.0 International licence (CC BY 4.0); here they are
divided once and for all, stratified by class, into 1,437 train and 360 test images, and scaled
from 0…16 to 0…255.
"""

import dataclasses
import importlib.resources
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.data._source import ArrayPart, Batches, Part

_DIGITS_TRAIN = 1437


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory, divided into a train and a test part: a resident `Source`.

    Attributes:
        name: what `load` was asked for.
        train_images: uint8 [N, height, width, channels].
        train_labels: int32 [N], from 0 to len(classes) - 1.
        test_images: uint8 [M, height, width, channels].
        test_labels: int32 [M].
        classes: name of each class.
        mean: of each channel of the train images, pixels scaled to [0, 1].
        std: likewise the standard deviation; 1 for a channel that is constant.

    Raises:
        ValueError, TypeError: arrays of another form, which the message names, or of lengths that
            do not go together; `from_arrays` computes mean and std.

    Examples:
        >>> from dessilbi_jax import data
        >>> digits = data.load("digits")
        >>> digits.train_images.shape, digits.test_images.shape, digits.input_shape
        ((1437, 8, 8, 1), (360, 8, 8, 1), (8, 8, 1))
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    kind: ClassVar[Literal["images"]] = "images"
    resident: ClassVar[bool] = True

    def __post_init__(self) -> None:
        train = self.train_images, self.train_labels
        _check_parts(self.name, train, (self.test_images, self.test_labels), len(self.classes))
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.train_images.shape[-1] or not np.isfinite(values).all():
                raise ValueError(
                    f"{self.name}: {what} must be one finite number for each of the "
                    f"{self.train_images.shape[-1]} channels, got {values!r}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"{self.name}: std must be above 0, got {self.std!r}")

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        classes: Sequence[str],
    ) -> "Dataset":
        """A data set from (images, labels) pairs; mean and standard deviation are computed.

        Args:
            name: what to call it.
            train: uint8 images [N, height, width, channels] and integer labels [N].
            test: likewise.
            classes: name of each class.

        Raises:
            ValueError: images that are not uint8 with four axes, an empty part, parts whose
                images differ in shape, or labels that do not fit the images or the classes.

        Examples:
            >>> import numpy as np
            >>> images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1])
            >>> Dataset.from_arrays("black", (images, labels), (images, labels), ["a", "b"]).std
            (1.0,)
        """
        _check_parts(name, train, test, len(classes))
        mean, std = _channel_statistics(train[0])
        return cls(
            name=name,
            train_images=train[0],
            train_labels=train[1].astype(np.int32),
            test_images=test[0],
            test_labels=test[1].astype(np.int32),
            classes=tuple(classes),
            mean=mean,
            std=std,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def train_size(self) -> int:
        """Number of train images."""
        return len(self.train_labels)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    def test_part(self) -> Part:
        """The test images, in batches."""
        return ArrayPart(self.test_images, self.test_labels)

    def set_aside(self, n: int, seed: int = 0) -> tuple["Dataset", Part]:
        """As `holdout`, with the images set aside as a part.

        Examples:
            >>> from dessilbi_jax import data
            >>> rest, part = data.load("digits").set_aside(137)
            >>> rest.train_size, len(part)
            (1300, 137)
        """
        rest, images, labels = self.holdout(n, seed)
        return rest, ArrayPart(images, labels)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The train images and their labels."""
        return self.train_images, self.train_labels

    def pick(self, arrays: tuple[jax.Array, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images uint8 [batch, height, width, channels] and labels int32 [batch] of some rows.

        Examples:
            >>> from dessilbi_jax import data
            >>> digits = data.load("digits")
            >>> images, labels = digits.pick(digits.arrays(), np.array([5, 3]))
            >>> images.shape, labels.dtype
            ((2, 8, 8, 1), dtype('int32'))
        """
        images, labels = arrays
        return images[rows], labels[rows]

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
        """None: a data set in memory is put on the device as a whole.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} is in memory and does not stream; use `arrays` and `pick`")

    def normalize(self, images: jax.typing.ArrayLike) -> jax.Array:
        """(images / 255 - mean) / std as float32, of the same shape; may be called under jit.

        Examples:
            >>> from dessilbi_jax import data
            >>> digits = data.load("digits")
            >>> print(f"{abs(digits.normalize(digits.train_images).mean()):.3f}")
            0.000
        """
        mean = np.asarray(self.mean, np.float32)
        scale = np.asarray(self.std, np.float32)
        return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / scale

    def holdout(self, n: int, seed: int = 0) -> tuple["Dataset", np.ndarray, np.ndarray]:
        """Sets `n` train images aside for choosing models, with the classes' shares kept.

        The test part stays as it is, and so do `mean` and `std`: what the network is fed must
        not depend on how many images are set aside. The order of the rest is kept.

        Args:
            n: number of images to set aside, at least 1 and fewer than there are.
            seed: which ones.

        Returns:
            The data set with `n` fewer train rows, the images [n, height, width, channels] and
            the labels [n] set aside.

        Raises:
            ValueError: `n` out of range.

        Examples:
            >>> from dessilbi_jax import data
            >>> rest, images, labels = data.load("digits").holdout(137)
            >>> len(rest.train_images), images.shape, labels.shape
            (1300, (137, 8, 8, 1), (137,))
        """
        total = len(self.train_labels)
        if not 1 <= n < total:
            raise ValueError(
                f"holdout must be at least 1 and less than the {total} train images of "
                f"{self.name}, got {n}"
            )
        kept_out = np.zeros(total, bool)
        kept_out[_stratified(self.train_labels, n, np.random.default_rng(seed))] = True
        rest = dataclasses.replace(
            self,
            train_images=self.train_images[~kept_out],
            train_labels=self.train_labels[~kept_out],
        )
        return rest, self.train_images[kept_out], self.train_labels[kept_out]


def _stratified(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `n` labels whose classes have the shares of all; largest remainders decide."""
    members = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    exact = np.array([len(m) for m in members]) * n / len(labels)
    take = np.floor(exact).astype(int)
    short = n - take.sum()
    take[np.argsort(take - exact, kind="stable")[:short]] += 1
    return np.concatenate([rng.permutation(m)[:k] for m, k in zip(members, take, strict=True)])


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], exact in float64."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        mean = float(share @ levels)
        std = float(np.sqrt(share @ (levels - mean) ** 2))
        means.append(mean)
        stds.append(std if np.count_nonzero(share) > 1 else 1.0)
    return tuple(means), tuple(stds)


def digits() -> Dataset:
    """The embedded handwritten digits: 1,437 train and 360 test images of 8x8x1.

    Examples:
        >>> digits().classes
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    file = importlib.resources.files("dessilbi_jax.data") / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as stored:
        pixels, labels = stored["images"], stored["labels"]
    images = np.round(pixels[..., None] * (255 / 16)).astype(np.uint8)
    train, test = slice(_DIGITS_TRAIN), slice(_DIGITS_TRAIN, None)
    return Dataset.from_arrays(
        "digits",
        (images[train], labels[train]),
        (images[test], labels[test]),
        [str(i) for i in range(10)],
    )


def _check_parts(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> None:
    """Raises unless images and labels of both parts have their form and go together.

    Raises:
        TypeError: what is no array.
        ValueError: another dtype or shape, an empty part, or labels that are no classes.
    """
    for part, (images, labels) in (("train", train), ("test", test)):
        for what, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name}: {part} {what} must be a NumPy array, got {type(array)}")
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"{name}: {part} images must be uint8 [N, height, width, channels] with "
                f"N > 0, got {images.dtype} {list(images.shape)}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{name}: {part} labels must be integers [{len(images)}], "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{name}: {part} labels must lie in 0…{classes - 1} for "
                f"{classes} classes, got {labels.min()}…{labels.max()}"
            )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{name}: train images {train[0].shape[1:]} and test images "
            f"{test[0].shape[1:]} differ in shape"
        )
