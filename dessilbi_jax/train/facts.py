"""What a network has to know about its images: kept with a run, so that it can be rebuilt."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax import data, models
from dessilbi_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """The images a network was trained on, in so far as others have to know.

    Attributes:
        dataset: name for `data.load`.
        data_dir: where it was found, None for the default.
        input_shape: (height, width, channels).
        classes: their number.
        mean: of each channel, pixels in [0, 1].
        std: of each channel.
        held_out: number of training images held out.
        holdout_seed: which ones.
        steps_per_epoch: batches in an epoch.
    """

    dataset: str
    data_dir: str | None
    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    held_out: int
    holdout_seed: int
    steps_per_epoch: int

    @classmethod
    def of(
        cls, dataset: data.Dataset, config: TrainConfig, data_dir: str | Path | None
    ) -> "DataFacts":
        """The facts of a data set under a configuration.

        Raises:
            ValueError: too few images for a batch.

        Example:
            >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
            >>> DataFacts.of(data.load("digits"), config, None).steps_per_epoch
            10
        """
        total = len(dataset.train_labels)
        held_out = max(1, round(config.holdout * total))
        steps = (total - held_out) // config.batch_size
        if steps == 0:
            raise ValueError(
                f"batch_size {config.batch_size} is larger than the {total - held_out} training "
                f"images of {config.dataset}: give a smaller one"
            )
        return cls(
            config.dataset,
            None if data_dir is None else os.path.abspath(data_dir),
            dataset.input_shape,
            len(dataset.classes),
            dataset.mean,
            dataset.std,
            held_out,
            config.seed,
            steps,
        )

    def load(self, data_dir: str | Path | None = None) -> data.Dataset:
        """The data set, from where it was found unless another folder is given."""
        return data.load(self.dataset, data_dir=self.data_dir if data_dir is None else data_dir)

    def split(self, dataset: data.Dataset) -> tuple[data.Dataset, np.ndarray, np.ndarray]:
        """The data set without the images held out, these images and their labels."""
        return dataset.holdout(self.held_out, seed=self.holdout_seed)

    def build(self, config: TrainConfig) -> models.Network:
        """The network of a configuration for these images, as `config.seed` initialises it."""
        return models.build(
            config.network,
            input_shape=self.input_shape,
            classes=self.classes,
            seed=config.seed,
            widths=config.widths,
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: Any, where: str) -> "DataFacts":
        """The inverse of `to_json`.

        Args:
            fields: what a file holds.
            where: that file, for the error.

        Raises:
            ValueError: it holds no such facts.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(
                f"{where} does not say what images the network was trained on: it is damaged or of "
                "another version; train it again"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)
