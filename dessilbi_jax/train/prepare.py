"""What a run is made of before its first step: data, network, optimizer, state."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

import dessilbi_jax as dl
from dessilbi_jax import data
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts, Where
from dessilbi_jax.train.devices.mesh import place_params, place_whole
from dessilbi_jax.train.feeds import Rows, check_batch, evaluation_size
from dessilbi_jax.train.initial import start_from
from dessilbi_jax.train.optim import (
    example_of,
    growing_lam,
    make_optimizer,
    make_schedule,
    make_structure,
)
from dessilbi_jax.train.step import Network, TrainState, first_state, split_network

_MOST_RECORDS = 10**6


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The parts of a run.

    Attributes:
        source: all data.
        facts: what is kept about it.
        training: the data without the rows held out.
        held: the rows held out, as device batches.
        steps: updates in the whole run.
        network: the static parts of the network.
        tx: the optimizer.
        rate: its learning rate.
        state: before the first step, on the devices.
        channels: its channels, where these are the groups.
        lam: λ of a growing run.
        fresh: leaves of a head of another size than that of the weights the run starts from.
        given: whether the weights the run starts from were given, and not drawn.
    """

    source: data.Source
    facts: DataFacts
    training: data.Source
    held: Rows
    steps: int
    network: Network
    tx: optax.GradientTransformation
    rate: optax.Schedule
    state: TrainState
    channels: dl.ChannelGroups | None = None
    lam: float | None = None
    fresh: tuple[str, ...] = ()
    given: bool = False


def prepare(
    config: TrainConfig,
    where: Where,
    mesh: Mesh,
    init: str | Path | None = None,
    model: Any = None,
    given: Any = None,
) -> Setup:
    """Loads the data and makes network, optimizer and first state; writes nothing.

    Args:
        config: what to train.
        where: the data is.
        mesh: the devices.
        init: weights to start from, as `start_from` has them.
        model: a network of one's own, where `config.network` is None.
        given: one's own (train, test) data, where `config.dataset` is None.

    Raises:
        ValueError: a batch that cannot be divided among the devices, or is larger than the data;
            an unknown network or data set; augmentation of a text; weights of another network.
        FileNotFoundError: the data, or the weights, are not there.
    """
    check_batch(config, mesh)
    _check_own("network", config.network, "model", model)
    _check_own("dataset", config.dataset, "data", given)
    source: data.Source
    if config.dataset is None:
        source = _own_source(given)
    else:
        source = data.load(
            config.dataset,
            data_dir=where.data_dir,
            image_size=config.image_size,
            text=where.text,
            tokenizer=where.tokenizer,
            context=config.context,
        )
    if config.augment and source.kind != "images":
        raise ValueError(f"augment is for images, {config.dataset} is text: leave it out")
    facts = DataFacts.of(source, config, where)
    training, held = facts.split(source)
    steps = config.epochs * facts.steps_per_epoch
    check_length(config, facts.steps_per_epoch)
    fresh: list[str] = []
    if config.network is None:
        _check_model(model, facts, init)
        model = nnx.clone(model)
    else:
        model = facts.build(config)
    if init is not None:
        model, fresh = start_from(init, model, config, facts)
    structure = make_structure(config, model, facts.input_shape)
    _check_density(config, structure, model)
    lam = None
    if config.grow is not None:
        lam = growing_lam(config, model, steps, facts.steps_per_epoch)
    network, params, stats = split_network(model, facts.mean, facts.std)
    tx = make_optimizer(config, steps, structure, lam=lam)
    return Setup(
        source=source,
        facts=facts,
        training=training,
        held=Rows(held, evaluation_size(source, config), mesh, keep=source.resident),
        steps=steps,
        network=network,
        tx=tx,
        rate=make_schedule(config, steps),
        state=placed_state(params, stats, tx, mesh),
        channels=structure.groups if isinstance(structure, dl.Channels) else None,
        lam=lam,
        fresh=tuple(fresh),
        given=init is not None,
    )


def _check_own(field: str, name: str | None, argument: str, value: Any) -> None:
    """Raises unless there is a name or one's own, and not both."""
    if name is None and value is None:
        raise ValueError(
            f"{field} is None: name one in the configuration, or give fit({argument}=…)"
        )
    if name is not None and value is not None:
        raise ValueError(
            f"{argument} was given beside {field}={name!r}: the configuration of a run with one's "
            f"own has {field}=None"
        )


def _own_source(given: Any) -> data.Source:
    """Returns one's own data as a source: a source, or (train, test) with (inputs, labels) each."""
    if isinstance(given, data.Source):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"data must be (train, test) or a source, got {type(given).__name__}")
    return data.from_arrays("own data", *given)


def _check_model(model: Any, facts: DataFacts, init: Any) -> None:
    """Raises unless a network of one's own can be trained on the data.

    Raises:
        TypeError: it is no Flax NNX module, or holds more than parameters and batch statistics.
        ValueError: it cannot be called with an input, or gives no logits of the classes.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a Flax NNX module, got {type(model).__name__}")
    if init is not None:
        raise ValueError("init is for networks that have a name: give the model with its weights")
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if others := jax.tree.leaves(states[2]):
        raise TypeError(
            f"model holds {len(others)} arrays that are no nnx.Param or nnx.BatchStat, as "
            "dropout's keys are: leave them out"
        )
    example = example_of(model, facts.input_shape)
    try:
        logits = nnx.eval_shape(lambda m, x: m(x), model, example)
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(f"model cannot be called with {example}: {error}") from error
    if logits.shape != (1, facts.classes):
        raise ValueError(
            f"model gives {logits.shape} for one input, expected (1, {facts.classes}): a logit for "
            "each class of the data"
        )


def check_length(config: TrainConfig, steps_per_epoch: int) -> None:
    """Raises unless the updates and the records of a run can be counted and kept.

    Raises:
        ValueError: there are too many.

    Example:
        >>> long = TrainConfig(network="lenet300", dataset="digits", epochs=10**9)
        >>> check_length(long, 10)
        Traceback (most recent call last):
        ...
        ValueError: epochs 1000000000 of 10 steps are 10,000,000,000 updates, of which a run can
        have at most 2,147,483,520: give fewer
    """
    steps, most = config.epochs * steps_per_epoch, 2**31 - 128
    if steps > most:
        raise ValueError(
            f"epochs {config.epochs} of {steps_per_epoch} steps are {steps:,} updates, of which a "
            f"run can have at most {most:,}: give fewer"
        )
    records = config.epochs * min(config.records_per_epoch, steps_per_epoch)
    if records > _MOST_RECORDS:
        raise ValueError(
            f"records_per_epoch {config.records_per_epoch} in {config.epochs} epochs are "
            f"{records:,} records, of which a run can have {_MOST_RECORDS:,}: give fewer"
        )


def _check_density(config: TrainConfig, structure: Any, model: Any) -> None:
    """Raises where the density asked for is less than the smallest group.

    Raises:
        ValueError: it is.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    leaves = [leaf for leaf in structure.resolve(params) if leaf.counts is not None]
    if config.density is None or config.budget is not None or not leaves:
        return
    total = sum(math.prod(leaf.shape) for leaf in leaves)
    smallest = min(math.prod(leaf.shape) // math.prod(leaf.counts) for leaf in leaves)
    if config.density * total < smallest:
        raise ValueError(
            f"density={config.density:g} of {total:,} structured weights is less than one group of "
            f"{smallest:,}: give at least {smallest / total:.2g}"
        )


def placed_state(
    params: Any, stats: Any, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the first state on the devices of a mesh.

    V, Γ and moments lie where their parameters lie; all that is left is on every device.
    """
    params, stats = jax.tree.map(np.asarray, (params, stats))
    # Outside jit an array made like another takes its place; on one device there is but one, and
    # a compiled program is made faster than many small ones.
    if mesh.size == 1:
        tx = tx._replace(init=jax.jit(tx.init))
    state = first_state(place_params(params, mesh), place_whole(stats, mesh), tx)
    return place_whole(state, mesh)
