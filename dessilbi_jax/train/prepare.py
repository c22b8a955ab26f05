"""What a run is made of before its first step: data, network, optimizer, state."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import dessilbi_jax as dl
from dessilbi_jax import data
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import DataFacts, Where
from dessilbi_jax.train.devices.mesh import place_params, place_whole
from dessilbi_jax.train.feeds import Rows, check_batch, evaluation_size
from dessilbi_jax.train.initial import start_from
from dessilbi_jax.train.optim import growing_lam, make_optimizer, make_schedule, make_structure
from dessilbi_jax.train.step import Network, TrainState, first_state, split_network


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


def prepare(config: TrainConfig, where: Where, mesh: Mesh, init: str | Path | None = None) -> Setup:
    """Loads the data and makes network, optimizer and first state; writes nothing.

    Args:
        config: what to train.
        where: the data is.
        mesh: the devices.
        init: weights to start from, as `start_from` has them.

    Raises:
        ValueError: a batch that cannot be divided among the devices, or is larger than the data;
            an unknown network or data set; augmentation of a text; weights of another network.
        FileNotFoundError: the data, or the weights, are not there.
    """
    check_batch(config, mesh)
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
    model = facts.build(config)
    fresh: list[str] = []
    if init is not None:
        model, fresh = start_from(init, model, config, facts)
    structure = make_structure(config, model)
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
