"""Cutting inside a run: where settling has ended, the smaller network trains on.

From then on a step costs what the smaller network costs. Nothing else changes: parameters, batch
statistics, momentum, V and Γ are those that the masked network has, the data and the learning rate
go on, and what a run keeps to rewind to is the network that it began with, zero where it was cut.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

import dessilbi_jax as dl
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.devices.mesh import place
from dessilbi_jax.train.optim import example_of, make_optimizer, make_structure
from dessilbi_jax.train.prepare import Setup, placed_state
from dessilbi_jax.train.step import Network, TrainState, split_network
from dessilbi_jax.tree import leaf_paths, to_host


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The network that a run trains at a time.

    Attributes:
        network: its static parts.
        tx: its optimizer.
        state: one of its states, on the devices, for the shapes and where they lie.
        plan: what was kept of the network that the run began with; None before the cut.
    """

    network: Network
    tx: optax.GradientTransformation
    state: TrainState
    plan: dl.Plan | None = None

    @classmethod
    def first(cls, run: Setup) -> "Stage":
        """The network that a run begins with."""
        return cls(run.network, run.tx, run.state)

    def whole(self, tree: Any) -> Any:
        """Parameters or batch statistics in the shapes of the first network, zero where cut."""
        return tree if self.plan is None else self.plan.spread(to_host(tree))


def moment(config: TrainConfig, steps: int) -> int | None:
    """Returns the step behind which a run of `steps` steps cuts its network, None where it doesn't.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=1,
        ...                      settle=(0.1, 0.6), structure="channels")
        >>> moment(config, 100), moment(dataclasses.replace(config, cut=False), 100)
        (60, None)
    """
    if not config.cuts:
        return None
    assert config.settle is not None
    step = round(config.settle[1] * steps)
    return step if step < steps else None


def cut(run: Setup, config: TrainConfig, state: TrainState, mesh: Mesh) -> tuple[Stage, TrainState]:
    """Returns the smaller network, and the state with which it goes on.

    Args:
        run: of the run.
        config: of the run.
        state: where settling has ended; all of it stays as it is.
        mesh: the devices.
    """
    params, stats, opt_state = to_host((state.params, state.stats, state.opt_state))
    masks = dl.support(opt_state, params)
    small = _slim(run, (params, stats), masks, opt_state)
    stage, (params, stats) = _stage(run, config, small, mesh)
    host = state._replace(params=params, stats=stats, opt_state=small.opt_state)
    return stage, jax.tree.map(lambda x, like: place(x, like.sharding), to_host(host), stage.state)


def stage_of(run: Setup, config: TrainConfig, plan: dl.Plan, mesh: Mesh) -> Stage:
    """Returns the network that a plan leaves, to go on with from a checkpoint."""
    arrays = to_host((run.state.params, run.state.stats))
    return _stage(run, config, _slim(run, arrays, plan, None), mesh)[0]


def facts(run: Setup, plan: dl.Plan, step: int | None) -> dict[str, Any]:
    """Returns what result.json says of a cut: when, and [before, after] of what there is."""
    assert run.channels is not None
    groups, every = run.channels, np.ones(run.channels.count, bool)
    kept = groups.kept_by(plan)
    paths = [path for path, _ in leaf_paths(run.state.params)]
    return {
        "step": step,
        "channels": [groups.count, int(kept.sum())],
        "flops": [groups.flops_of(every), groups.flops_of(kept)],
        "params": [
            sum(math.prod(shapes(path)) for path in paths)
            for shapes in (plan.shapes.__getitem__, plan.shape)
        ],
    }


def said(run: Setup, plan: dl.Plan | None) -> str:
    """Returns the same in words."""
    assert plan is not None
    told = facts(run, plan, None)
    (channels, left), (flops, less) = told["channels"], told["flops"]
    return f"cut to {left:,} of {channels:,} channels, {less / flops:.1%} of the FLOPs a step"


def _slim(run: Setup, arrays: tuple[Any, Any], ticket: Any, opt_state: Any) -> dl.Slim:
    """The network cut; its groups make no constant but zero, which is proved when it is written."""
    model = nnx.merge(run.network.evaluating, *jax.tree.map(jnp.asarray, arrays))
    return dl.slim(
        model, ticket, example_of(model, run.facts.input_shape), groups=run.channels,
        opt_state=opt_state, check=False,
    )  # fmt: skip


def _stage(
    run: Setup, config: TrainConfig, small: dl.Slim, mesh: Mesh
) -> tuple[Stage, tuple[Any, Any]]:
    network, params, stats = split_network(small.model, run.facts.mean, run.facts.std)
    structure = make_structure(config, small.model, run.facts.input_shape)
    tx = make_optimizer(config, run.steps, structure, settled=True, lam=run.lam)
    state = placed_state(params, stats, tx, mesh)
    return Stage(network, tx, state, small.plan), (params, stats)
