"""Sources of data by name, the order of their batches, and augmentation.

Small image sets are arrays in memory (`Dataset`), large ones are decoded as they are needed
(`StreamedImages`), and texts are windows of tokens (`Tokens`). All are a `Source`.

Examples:
    >>> from dessilbi_jax import data
    >>> digits = data.load("digits")
    >>> order = data.epoch_order(seed=0, epoch=0, n=len(digits.train_labels), batch=128)
    >>> digits.normalize(digits.train_images[order[0]]).shape
    (128, 8, 8, 1)
"""

from dessilbi_jax.data._dataset import Dataset
from dessilbi_jax.data._load import load
from dessilbi_jax.data._own import Arrays, from_arrays
from dessilbi_jax.data._prepare import prepare
from dessilbi_jax.data._source import ArrayPart, Batches, Part, Source
from dessilbi_jax.data._streamed import StreamedImages
from dessilbi_jax.data._tokens import Tokens
from dessilbi_jax.data.batches import augment, epoch_order

__all__ = [
    "ArrayPart",
    "Arrays",
    "Batches",
    "Dataset",
    "Part",
    "Source",
    "StreamedImages",
    "Tokens",
    "augment",
    "epoch_order",
    "from_arrays",
    "load",
    "prepare",
]
