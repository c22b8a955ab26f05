"""Measuring a trained, retrained or slimmed network."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from dessilbi_jax import files
from dessilbi_jax.slimming.export import CARD, FORWARD
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts
from dessilbi_jax.train.feeds import Rows
from dessilbi_jax.train.finished.trained import (
    RunFacts,
    closed_masks,
    fitted,
    is_retrained,
    load_trained,
    rows_of,
)
from dessilbi_jax.train.step import (
    make_evaluate,
)


def evaluate(
    place: str | Path,
    *,
    ticket: str | Path | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Measures a network that a command has written: of a run, retrained, or slim.

    A slim network is measured by the forward pass that was exported, which knows nothing of this
    library.

    Args:
        place: its folder.
        ticket: a ticket file to mask it by first.
        split: "test" or "held-out".
        data_dir: as `data.load` has it; by default where the run found its images.

    Returns:
        `accuracy`, mean `loss`, the number of `images`, the `split`, and in words what was
        measured, `network`.

    Raises:
        FileNotFoundError: no network, ticket or images.
        ValueError: a ticket that does not fit, or one given for a slim network.
    """
    place = Path(place)
    if (place / FORWARD).is_file():
        if ticket is not None:
            raise ValueError(f"{place} holds a slim network, its ticket is cut out: no --ticket")
        card = files.read_json(place / CARD)
        facts = DataFacts.from_json(card.get("data"), str(place / CARD))
        try:
            config = TrainConfig.from_json(dict(card["config"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{place / CARD} does not say what the network was trained with ({error!r}): cut "
                "it out again with dessilbi slim"
            ) from None
        batches = rows_of(RunFacts("", config, facts), split, data_dir)
        accuracy, loss = _exported(place / FORWARD, batches)
        network = "slim, by its exported forward pass"
    else:
        trained = load_trained(place)
        batches = rows_of(trained, split, data_dir)
        params, network = trained.params, "retrained" if is_retrained(place) else "dense"
        if ticket is not None:
            own = fitted(dl.Ticket.load(ticket), trained)
            params = dl.project(params, closed_masks(own, trained.channels(), params))
            network += f", masked by {ticket}"
        accuracy, loss = make_evaluate(trained.network())(params, trained.stats, batches)
    return {
        "network": network,
        "split": split,
        "images": len(batches),
        "accuracy": accuracy,
        "loss": loss,
    }


def _exported(file: Path, batches: Rows) -> tuple[float, float]:
    """Returns accuracy and mean loss of an exported forward pass.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
    except Exception as error:  # whatever the reader makes of damaged bytes
        raise ValueError(f"{file} is damaged ({type(error).__name__})") from None
    forward = jax.jit(exported.call)
    right = loss = rows = 0.0
    for images, labels in batches:
        logits = forward(images)
        real = labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        right += float(((jnp.argmax(logits, -1) == labels) & real).sum())
        loss += float(jnp.where(real, losses, 0.0).sum())
        rows += float(real.sum())
    return right / rows, loss / rows
