"""Data sets as plain arrays: from a prepared folder, one .npz file, or made for a smoke run."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax import data

SMOKE_ROWS = 256


def load(name: str, data_dir: str | None) -> data.Dataset:
    """A data set by name.

    `DIR/NAME.npz` (train_images, train_labels, test_images, test_labels; uint8 images) is read
    where it exists, so that a machine without tensorflow-datasets can be used; else DIR is a
    folder of prepared tfds data. Without DIR, which is for smoke runs, a few of the embedded
    digits are drawn at the size of the set that was asked for.
    """
    if data_dir is None:
        return _enlarged_digits(name)
    file = Path(data_dir) / f"{name}.npz"
    if not file.exists():
        return data.load(name, data_dir=data_dir)
    with np.load(file) as stored:
        parts = [
            (stored[f"{part}_images"], stored[f"{part}_labels"].astype(np.int32))
            for part in ("train", "test")
        ]
    classes = [str(i) for i in range(int(parts[0][1].max()) + 1)]
    return data.Dataset.from_arrays(name, *parts, classes)


@functools.cache
def arrays(
    dataset: str, data_dir: str | None, rows: int | None, held_out: int
) -> dict[str, jax.Array]:
    """Normalised images and labels of the train, held-out and test parts, on the device."""
    full = load(dataset, data_dir)
    parts = {"test": (full.test_images, full.test_labels)}
    train = full
    if held_out:
        held_out = min(held_out, len(full.train_labels) // 4)  # a smoke run has few
        train, x, y = full.holdout(held_out, seed=0)
        parts["held_out"] = (x, y)
    parts["train"] = (train.train_images[:rows], train.train_labels[:rows])
    out = {}
    for name, (x, y) in parts.items():
        out[f"{name}_x"] = jnp.asarray(full.normalize(x), jnp.float32)
        out[f"{name}_y"] = jnp.asarray(y)
    return out


@functools.cache
def _enlarged_digits(name: str) -> data.Dataset:
    digits = data.load("digits")
    size, channels = (32, 3) if name.startswith("cifar") else (28, 1)
    times = size // 8
    edge = (size - 8 * times) // 2

    def enlarged(images: np.ndarray) -> np.ndarray:
        big = images[:SMOKE_ROWS].repeat(times, 1).repeat(times, 2)
        padded = np.pad(big, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        return padded.repeat(channels, 3)

    return data.Dataset.from_arrays(
        name,
        (enlarged(digits.train_images), digits.train_labels[:SMOKE_ROWS]),
        (enlarged(digits.test_images), digits.test_labels[:SMOKE_ROWS]),
        digits.classes,
    )
