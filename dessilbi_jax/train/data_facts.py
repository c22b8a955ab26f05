"""What a network has to know about its data: kept with a run, so that it can be rebuilt."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dessilbi_jax import data, models
from dessilbi_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a run finds its data.

    Attributes:
        data_dir: folder of prepared data sets, or of images; None for the default.
        text: the file that `dataset="text"` reads.
        tokenizer: a tokenizer file for it; None: its tokens are bytes.
    """

    data_dir: str | Path | None = None
    text: str | Path | None = None
    tokenizer: str | Path | None = None


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """The data a network was trained on, in so far as others have to know.

    Attributes:
        dataset: name for `data.load`; None for arrays that were given to `fit`.
        data_dir: where it was found, None for the default.
        input_shape: (height, width, channels) of an image, or (context,).
        classes: their number; for text the size of the vocabulary.
        mean: of each channel, pixels in [0, 1]; empty for text.
        std: of each channel.
        held_out: number of training images, or windows of text, held out.
        holdout_seed: which ones.
        steps_per_epoch: batches in an epoch.
        text: the file of a text.
        tokenizer: the tokenizer's file, None for bytes.
        image_size: the side that streamed images were asked for.
    """

    dataset: str | None
    data_dir: str | None
    input_shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    held_out: int
    holdout_seed: int
    steps_per_epoch: int
    text: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None

    @classmethod
    def of(cls, source: data.Source, config: TrainConfig, where: Where) -> "DataFacts":
        """The facts of a source of data under a configuration.

        Raises:
            ValueError: too few rows for a batch.

        Example:
            >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1)
            >>> DataFacts.of(data.load("digits"), config, Where()).steps_per_epoch
            10
        """
        total = source.train_size
        held_out = max(1, round(config.holdout * total))
        steps = (total - held_out) // config.batch_size
        if steps == 0:
            raise ValueError(
                f"batch_size {config.batch_size} is larger than the {total - held_out} training "
                f"{source.kind if source.kind == 'images' else 'windows'} of {source.name}: "
                "give a smaller one"
            )
        data_dir, text, tokenizer = (
            None if path is None else os.path.abspath(path)
            for path in (where.data_dir, where.text, where.tokenizer)
        )
        return cls(
            dataset=config.dataset,
            data_dir=data_dir,
            input_shape=source.input_shape,
            classes=source.num_classes,
            mean=source.mean,
            std=source.std,
            held_out=held_out,
            holdout_seed=config.seed,
            steps_per_epoch=steps,
            text=text,
            tokenizer=tokenizer,
            image_size=config.image_size,
        )

    def load(self, data_dir: str | Path | None = None) -> data.Source:
        """The data, from where it was found unless another folder is given.

        Raises:
            ValueError: what is found is of another shape than what the run was trained on.
        """
        if self.dataset is None:
            raise ValueError(
                "the run was trained on arrays that were given to fit(data=…), which are not kept: "
                "measure its weights, train.load_params(RUN), on them yourself"
            )
        source = data.load(
            self.dataset,
            data_dir=self.data_dir if data_dir is None else data_dir,
            image_size=self.image_size,
            text=self.text,
            tokenizer=self.tokenizer,
            context=self.input_shape[0] if len(self.input_shape) == 1 else None,
        )
        if source.input_shape != self.input_shape or source.num_classes != self.classes:
            raise ValueError(
                f"{self.dataset} is not the data of the run: it has inputs {source.input_shape} "
                f"and {source.num_classes} classes, the run's had {self.input_shape} and "
                f"{self.classes}"
            )
        return source

    def split(self, source: data.Source) -> tuple[data.Source, data.Part]:
        """The source without the rows held out, and these rows."""
        return source.set_aside(self.held_out, seed=self.holdout_seed)

    def build(self, config: TrainConfig) -> models.Network:
        """The network of a configuration for these rows, as `config.seed` initialises it.

        Raises:
            ValueError: it has no name, as it was given to `fit`.
        """
        if config.network is None:
            raise ValueError(
                "the run trained a network of its own, given to fit(model=…), which no name "
                "builds: draw tickets by dl.SolutionPath.load(RUN/path.npz).ticket(…) and cut them "
                "out of your model by dl.slim"
            )
        return models.build(
            config.network,
            input_shape=self.input_shape,
            classes=self.classes,
            seed=config.seed,
            widths=config.widths,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
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
        named = dataclasses.fields(cls)
        needed = {f.name for f in named if f.default is dataclasses.MISSING}
        if not isinstance(fields, dict) or not needed <= set(fields) <= {f.name for f in named}:
            raise ValueError(
                f"{where} does not say what data the network was trained on: it is damaged or of "
                "another version; train it again"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)
