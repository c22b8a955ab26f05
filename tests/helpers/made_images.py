"""Small JPEG files of various sizes: as a folder, prepared as imagenet2012, or mocked."""

import contextlib
import io

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import tiny_sets

CLASSES = ("n01", "n02", "n03")


def jpeg(number: int, label: int, form: str = "JPEG") -> bytes:
    """An image of its own size whose red channel tells the label and whose green the number."""
    pixels = np.zeros((20 + number % 5, 20 + number % 7, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 80 * label, 3 * number
    pixels[..., 2] = np.linspace(0, 255, pixels.shape[1])[None]
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form, quality=95)
    return buffer.getvalue()


def numbers(images: np.ndarray) -> list[int]:
    """The numbers of images, read off their pixels."""
    return np.round(images[..., 1].mean((1, 2)) / 3).astype(int).tolist()


def write_folder(root, train=30, test=10, test_name="val"):
    """root/train/CLASS/*.JPEG and root/val/CLASS/*.JPEG, numbered in the order of reading."""
    for part, n in (("train", train), (test_name, test)):
        labels = sorted(i % 3 for i in range(n))
        for i, label in enumerate(labels):
            folder = root / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:03d}.JPEG").write_bytes(jpeg(i, label))
    return root


def prepare_imagenet(root, train=30, validation=10, test=4):
    """root/imagenet2012/5.1.0 as tfds prepares it; test images have no labels."""
    folder = root / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    described = []
    for split, n in (("train", train), ("validation", validation), ("test", test)):
        labels = [-1 if split == "test" else i % 3 for i in range(n)]
        records = [tiny_sets.record(jpeg(i, max(k, 0)), k) for i, k in enumerate(labels)]
        lengths = tiny_sets.write_shards(folder, f"imagenet2012-{split}", records, 2)
        described.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1000",
                "shardLengths": [str(length) for length in lengths],
            }
        )
    tiny_sets.describe(folder, "imagenet2012", "5.1.0", described, (-1, -1, 3), CLASSES)
    return folder


class Rows:
    """What a mocked `as_data_source` returns: JPEG files as they would be stored."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return {"image": jpeg(i, i % 3), "label": i % 3, "file_name": f"{i}.JPEG"}


@contextlib.contextmanager
def mocked_imagenet(train=12, validation=5):
    """Within it tensorflow-datasets has ImageNet, whatever is installed and prepared."""

    def as_data_source(self, split, decoders=None, **_):
        assert isinstance(decoders["image"], tfds.decode.SkipDecoding)
        return Rows({"train": train, "validation": validation}[split])

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        yield
