"""Growing inside a run: where Γ has selected nearly all channels of a layer, it gets more.

The network keeps its outputs, parameters, batch statistics, momentum, V and Γ; it is only wider.
Looks are at ends of epochs, so that a record stands at each; the learning rate stays constant until
no more may grow, and its schedule is that of the rest of the run, in which the network is tuned.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import dessilbi_jax as dl
from dessilbi_jax import files, models, run_files
from dessilbi_jax.growing import layout
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.devices import processes
from dessilbi_jax.train.devices.mesh import place
from dessilbi_jax.train.optim import make_optimizer, make_structure, trace_channels
from dessilbi_jax.train.prepare import Setup, placed_state
from dessilbi_jax.train.step import TrainState, split_network
from dessilbi_jax.tree import leaf_paths, to_host

START = 16  # the authors' first width of a layer


@dataclasses.dataclass(frozen=True)
class Grew:
    """One growth.

    Attributes:
        step: behind which update.
        widths: of the network that goes on, in full.
        sets: by the name of each set of channels that grew, how many it had and has.
        params: parameters before and after it.
        flops: operations for one row before and after it.
    """

    step: int
    widths: tuple[int, ...]
    sets: Mapping[str, tuple[int, int]]
    params: tuple[int, int]
    flops: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Growth:
    """What has grown in a run so far.

    Attributes:
        first: channels of each set in the network that the run began with, by name.
        growths: one after another.
        over: the step of the look at which nothing grew; None before.

    Example:
        >>> grew = Grew(30, (12,), {"fc1/kernel": (4, 12)}, (98, 210), (180, 410))
        >>> growth = Growth({"fc1/kernel": 4}, (grew,))
        >>> growth.widths, Growth.from_json(growth.to_json()) == growth
        ((12,), True)
    """

    first: Mapping[str, int]
    growths: tuple[Grew, ...] = ()
    over: int | None = None

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Of the network now; None where nothing has grown."""
        return self.growths[-1].widths if self.growths else None

    @property
    def since(self) -> int:
        """The step from which on the network has been what it is now."""
        return self.growths[-1].step if self.growths else 0

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Growth":
        """The inverse of `to_json`.

        Raises:
            ValueError: it tells of no growth.
        """
        try:
            growths = tuple(
                Grew(
                    step=int(each["step"]),
                    widths=tuple(map(int, each["widths"])),
                    sets={str(k): (int(a), int(b)) for k, (a, b) in each["sets"].items()},
                    params=(int(each["params"][0]), int(each["params"][1])),
                    flops=(int(each["flops"][0]), int(each["flops"][1])),
                )
                for each in value["growths"]
            )
            over = None if value["over"] is None else int(value["over"])
            return cls({str(k): int(n) for k, n in value["first"].items()}, growths, over)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"it tells of no growth: {error!r}") from None


def started(config: TrainConfig) -> TrainConfig:
    """The configuration with the widths that a network begins to grow from.

    Without widths of its own it begins with 16 a layer, as the authors' does, or what its paper has
    where that is less.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=4, grow=1, lam=0.1,
        ...                      density=None)
        >>> started(config).widths
        (16, 16)
    """
    if config.grow is None or config.widths is not None:
        return config
    assert config.network is not None  # as the configuration has it
    widths = tuple(min(START, n) for n in models.entry(config.network).widths)
    return dataclasses.replace(config, widths=widths)


def begin(config: TrainConfig, run: Setup) -> Growth | None:
    """What a run knows of its growth before the first step; None where none was asked for."""
    if config.grow is None:
        return None
    model = run.facts.build(config)
    return Growth({each.name: len(each.groups) for each in trace_channels(model).sets})


def due(config: TrainConfig, growth: Growth | None, step: int, run: Setup) -> bool:
    """Whether the network is looked at behind this step."""
    if config.grow is None or growth is None or growth.over is not None or not step:
        return False
    every = config.grow * run.facts.steps_per_epoch
    return step % every == 0 and step <= config.grow_until * run.steps and step > growth.since


def look(
    run: Setup, config: TrainConfig, growth: Growth, state: TrainState, mesh: Mesh
) -> tuple[Setup, TrainState, Growth, dl.Plan | None]:
    """Grows what Γ has found too narrow.

    Args:
        run: of the network now.
        config: of the run.
        growth: so far.
        state: of training, as it is; a new one is made where something grows.
        mesh: the devices.

    Returns:
        The run with the wider network, its state, the growth, and what is kept of it to have the
        narrower one; None where nothing grew, which is the last look.
    """
    assert config.grow is not None
    step, (params, stats, opt_state) = (
        int(state.step), to_host((state.params, state.stats, state.opt_state))
    )  # fmt: skip
    model = nnx.merge(run.network.evaluating, *jax.tree.map(jnp.asarray, (params, stats)))
    groups = run.channels or trace_channels(model)
    grower = dl.Grower(
        every=config.grow * run.facts.steps_per_epoch, add=config.grow_add, limit=config.grow_limit
    )
    sizes, over = grower.decide(opt_state, groups, step)
    if over:
        return run, state, dataclasses.replace(growth, over=step), None
    seed = int(np.random.default_rng([config.seed, step]).integers(2**31))
    plan = layout.widened(groups, sizes)
    larger = plan.spread((params, stats))
    widths = models.widths(nnx.merge(run.network.evaluating, *larger))
    fresh = run.facts.build(dataclasses.replace(config, widths=widths, seed=seed))
    drawn = dict(leaf_paths(nnx.to_pure_dict(nnx.state(fresh))))
    shape = models.example_input(model)
    noise = np.random.default_rng(seed).normal(size=shape.shape)  # tokens: all 0
    grown = dl.grow(
        model,
        sizes,
        jnp.asarray(noise, shape.dtype),
        key=jax.random.key(seed),
        opt_state=opt_state,
        init=lambda path, shape, key: drawn[path],
    )
    wider = widened(run, config, widths, mesh)
    _, params, stats = split_network(grown.model, run.facts.mean, run.facts.std)
    host = state._replace(params=params, stats=stats, opt_state=grown.opt_state)
    host = jax.tree.unflatten(jax.tree.structure(wider.state), jax.tree.leaves(to_host(host)))
    state = jax.tree.map(lambda x, like: place(x, like.sharding), host, wider.state)
    there = {each.name: len(each.groups) for each in groups.sets}
    sizes_of = [sum(x.size for x in jax.tree.leaves(r.state.params)) for r in (run, wider)]
    grew = Grew(
        step=step,
        widths=widths,
        sets={name: (there[name], n) for name, n in sizes.items()},
        params=(sizes_of[0], sizes_of[1]),
        flops=(grown.flops[0], grown.flops[1]),
    )
    return wider, state, dataclasses.replace(growth, growths=(*growth.growths, grew)), grown.plan


def widened(run: Setup, config: TrainConfig, widths: tuple[int, ...], mesh: Mesh) -> Setup:
    """The run as it is with a network of other widths."""
    model = run.facts.build(dataclasses.replace(config, widths=widths))
    structure = make_structure(config, model)
    network, params, stats = split_network(model, run.facts.mean, run.facts.std)
    tx = make_optimizer(config, run.steps, structure, lam=run.lam)
    return dataclasses.replace(
        run,
        network=network,
        tx=tx,
        state=placed_state(params, stats, tx, mesh),
        channels=structure.groups if isinstance(structure, dl.Channels) else None,
    )


def write(out: Path, growth: Growth | None) -> None:
    """Keeps beside a run what has grown in it."""
    if growth is not None and processes.is_first():
        files.write_json(out / run_files.GROWTH, growth.to_json())


def read(run: Path) -> Growth | None:
    """What has grown in a run; None for one that does not grow.

    Raises:
        ValueError: its growth.json is damaged.
    """
    file = run / run_files.GROWTH
    if not file.exists():
        return None
    try:
        return Growth.from_json(files.read_json(file))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def said(growth: Growth) -> str:
    """What the last look found, in words."""
    if growth.over is not None:
        return "no layer asks for more channels: the network stays as wide as it is"
    last = growth.growths[-1]
    more = ", ".join(f"{name} {a} to {b}" for name, (a, b) in last.sets.items())
    return f"grown: {more}; {last.params[1]:,} parameters, {last.params[0]:,} before"
