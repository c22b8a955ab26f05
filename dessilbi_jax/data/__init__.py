"""Image data sets as arrays in memory, the order of their batches, and augmentation.

Examples:
    >>> from dessilbi_jax import data
    >>> digits = data.load("digits")
    >>> order = data.epoch_order(seed=0, epoch=0, n=len(digits.train_labels), batch=128)
    >>> digits.normalize(digits.train_images[order[0]]).shape
    (128, 8, 8, 1)
"""

from dessilbi_jax.data._dataset import Dataset
from dessilbi_jax.data._load import load
from dessilbi_jax.data.batches import augment, epoch_order

__all__ = ["Dataset", "augment", "epoch_order", "load"]
