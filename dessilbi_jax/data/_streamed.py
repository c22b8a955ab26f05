"""Images too many, too large or too various for the memory of a device: read as they are needed."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.data import _crops, _records, _stream
from dessilbi_jax.data._source import Batch, Batches, Part, check_set_aside, not_resident, share

IMAGE_SIZE = 224


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Labelled images that are decoded while training goes on: a `Source` that streams.

    A train image is a random part of 8 % to 100 % of its area, at a ratio of 3/4 to 4/3,
    resized bilinearly to image_size x image_size, mirrored with probability 1/2: the usual
    augmentation of ImageNet. Test images, and those set aside, are resized to 256/224 of
    image_size along their short side, and their centre is cut out. All are converted to RGB.

    Attributes:
        name: of the data set.
        classes: name of each class.
        image_size: height and width of what the network is fed.
        train: records with the train images.
        test: records with the test images.
        rows: which of the train records are train rows; those set aside are not among them.
        mean: of each channel over ImageNet, pixels scaled to [0, 1]: the constants in common
            use, whatever the data set.
        std: likewise the standard deviation.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    train: _records.Records
    test: _records.Records
    rows: np.ndarray

    kind: ClassVar[Literal["images"]] = "images"
    resident: ClassVar[bool] = False
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    @classmethod
    def from_records(
        cls,
        name: str,
        classes: tuple[str, ...],
        train: _records.Records,
        test: _records.Records,
        image_size: int | None = None,
    ) -> "StreamedImages":
        """A source from the records of both parts.

        Args:
            name: what to call it.
            classes: name of each class.
            train: len(train) images; train[i] is an encoded image and its label.
            test: likewise.
            image_size: height and width of what the network is fed. Default: 224.

        Raises:
            ValueError: an image size below 1, or a part without images.
        """
        size = IMAGE_SIZE if image_size is None else image_size
        if size < 1:
            raise ValueError(f"image_size must be at least 1, got {size}")
        for part, records in (("train", train), ("test", test)):
            if len(records) == 0:
                raise ValueError(f"the {part} part of {name} has no images")
        return cls(name, classes, size, train, test, np.arange(len(train), dtype=np.int32))

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], image_size: int | None = None
    ) -> "StreamedImages":
        """The images folder/train/CLASS/FILE, and those in test, validation or val.

        Files may be JPEG, PNG, BMP, GIF or WebP. Classes are the folders' names, sorted.

        Args:
            folder: the folder of the parts.
            image_size: height and width of what the network is fed. Default: 224.

        Raises:
            FileNotFoundError: a folder is missing or holds no images.
            ValueError: the parts have different classes.
        """
        return cls.from_records(
            "folder", *_records.from_folder(pathlib.Path(folder).expanduser()), image_size
        )

    @classmethod
    def from_builder(
        cls, builder: Any, image_size: int | None = None, name: str | None = None
    ) -> "StreamedImages":
        """The images of a tensorflow-datasets builder whose set is prepared as array_record.

        The test part is the split `test`, or `validation` where there is no `test`; of
        imagenet2012, whose test images have no labels, it is `validation`.

        Args:
            builder: a `tfds.core.DatasetBuilder`.
            image_size: height and width of what the network is fed. Default: 224.
            name: what to call it. Default: as tensorflow-datasets does.

        Raises:
            ImportError: tensorflow-datasets, array_record or Pillow is not installed.
            FileNotFoundError: files of records are missing.
            ValueError: not an image classification set with a train and a test part.
        """
        from dessilbi_jax.data import _decode

        return cls.from_records(*_decode.streamed(builder, name), image_size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(image_size, image_size, 3)."""
        return self.image_size, self.image_size, 3

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def train_size(self) -> int:
        """Number of train images."""
        return len(self.rows)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self.test)

    def normalize(self, images: jax.typing.ArrayLike) -> jax.Array:
        """(images / 255 - mean) / std as float32, of the same shape; may be called under jit."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std

    def test_part(self) -> Part:
        """The centres of the test images."""
        rows = np.arange(len(self.test), dtype=np.int32)
        return _ImagesPart(_Images(self.test, rows, self.image_size))

    def set_aside(self, n: int, seed: int = 0) -> tuple["StreamedImages", Part]:
        """The source without `n` train images, and the centres of those.

        They are drawn from all alike: labels are known only once an image is read, so the
        classes' shares are kept by chance alone.

        Raises:
            ValueError: `n` below 1 or not less than the number of train images.
        """
        check_set_aside(self.name, self.train_size, n)
        out = np.zeros(self.train_size, bool)
        out[np.random.default_rng(seed).choice(self.train_size, n, replace=False)] = True
        rest = dataclasses.replace(self, rows=self.rows[~out])
        return rest, _ImagesPart(_Images(self.train, self.rows[out], self.image_size))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """None: the images are too many for a device.

        Raises:
            ValueError: always.
        """
        return not_resident(self.name)

    def pick(self, arrays: tuple[jax.Array, ...], rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """None: see `arrays`.

        Raises:
            ValueError: always.
        """
        return not_resident(self.name)

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
        """See `Source.train_batches`; images uint8 [rows, image_size, image_size, 3].

        Raises:
            ValueError: sizes that do not fit together; while iterating, an image that cannot be
                read or decoded, with its file or its records.
            ImportError: grain or Pillow is not installed.
        """
        return _stream.Endless(
            _Images(self.train, self.rows, self.image_size),
            _stream.Plan(self.name, self.train_size, batch, seed),
            share(batch, shard, shards),
            workers,
            threads,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
    """Some of the records' images as pixels."""

    records: _records.Records
    rows: np.ndarray
    size: int

    def __call__(self, rows: np.ndarray, draw: tuple[int, int] | None) -> Batch:
        """Images uint8 [rows, size, size, 3] and labels int32 [rows]; random crops if `draw`."""
        images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        for i, row in enumerate(self.rows[rows].tolist()):
            encoded, labels[i] = self.records[row]
            try:
                if draw is None:
                    images[i] = _crops.test_pixels(encoded, self.size)
                else:
                    images[i] = _crops.train_pixels(
                        encoded, self.size, np.random.default_rng((*draw, row))
                    )
            except ImportError:
                raise
            except Exception as error:  # Pillow raises of many kinds
                raise ValueError(
                    f"{self.records.where(row)} is damaged or no image ({error}); replace it"
                ) from error
        return images, labels


@dataclasses.dataclass(frozen=True, eq=False)
class _ImagesPart:
    """Images to be evaluated, a `Part`."""

    images: _Images

    def __len__(self) -> int:
        return len(self.images.rows)

    def batches(self, size: int, *, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        """See `Part.batches`."""
        return _stream.once(self.images, len(self), size, shard, shards)
