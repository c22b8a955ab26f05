"""One training step and one evaluation, as jitted functions of plain arrays.

A Flax NNX network is used functionally: its static part once for training and once for
evaluation (they differ in what batch normalisation does), its parameters and its batch
statistics as nested dicts whose leaf paths read like `fc1/kernel`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dessilbi_jax import data
from dessilbi_jax.train.devices.mesh import gathered, shardings

Tree = Any
Batch = tuple[jax.Array, jax.Array]


class TrainState(NamedTuple):
    """All that a run carries from step to step, and all that a checkpoint holds of it.

    Attributes:
        step: int32, updates made.
        params: nested dict of the network's parameters.
        stats: nested dict of its batch statistics, empty without batch normalisation.
        opt_state: the optimizer's state.
        loss_sum: float32, training losses summed since the last record.
        loss_steps: int32, the number of them.
        bad_step: int32, the first step whose loss was not finite, -1 if none was.
        skipped: int32, steps left out because of a loss or gradient that was not finite.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: optax.OptState
    loss_sum: jax.Array
    loss_steps: jax.Array
    bad_step: jax.Array
    skipped: jax.Array


class Network(NamedTuple):
    """The static parts of a network and its pixel normalisation.

    Attributes:
        training: graph definition in training mode.
        evaluating: graph definition in evaluation mode.
        mean: float32 [C], subtracted from pixels in [0, 1]; empty for tokens.
        std: float32 [C], divided by.
    """

    training: nnx.GraphDef
    evaluating: nnx.GraphDef
    mean: np.ndarray
    std: np.ndarray

    def normalise(self, images: jax.Array) -> jax.Array:
        """Returns float32 images of about zero mean and unit variance from uint8 [N, H, W, C].

        Tokens are returned as they are.
        """
        if not self.mean.size:
            return images
        pixels = images.astype(jnp.float32) / 255.0
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def train(self, params: Tree, stats: Tree, inputs: jax.Array) -> tuple[jax.Array, Tree]:
        """Returns the logits and the new batch statistics, in training mode."""
        model = nnx.merge(self.training, params, stats)
        logits = model(inputs)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def evaluate(self, params: Tree, stats: Tree, inputs: jax.Array) -> jax.Array:
        """Returns the logits in evaluation mode."""
        return nnx.merge(self.evaluating, params, stats)(inputs)


def split_network(
    model: Any, mean: Iterable[float], std: Iterable[float]
) -> tuple[Network, Tree, Tree]:
    """Returns the static parts of an NNX model, its parameters and its batch statistics.

    Args:
        model: an `nnx.Module` that holds nothing but `nnx.Param` and `nnx.BatchStat` variables.
        mean: per channel, of pixels in [0, 1]; empty for tokens.
        std: per channel, of pixels in [0, 1].
    """
    model.train()
    training, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, states)
    model.eval()
    evaluating = nnx.graphdef(model)
    network = Network(
        training, evaluating, np.asarray(mean, np.float32), np.asarray(std, np.float32)
    )
    return network, params, stats


def first_state(params: Tree, stats: Tree, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the optimizer's lies where the parameters lie."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        loss_sum=jnp.float32(0),
        loss_steps=jnp.int32(0),
        bad_step=jnp.int32(-1),
        skipped=jnp.int32(0),
    )


def make_step(
    network: Network,
    tx: optax.GradientTransformation,
    pick: Callable[[Any, jax.Array], Batch],
    *,
    seed: int,
    augment: bool,
    skip: bool = False,
) -> Callable[[TrainState, Any], TrainState]:
    """Returns `step(state, given) -> state`, jitted; the old state is donated.

    The new state lies on the devices as the one of the first call does. The arguments are those of
    `placed_step`.
    """
    compiled: list[Callable[[TrainState, Any], TrainState]] = []

    def first_call_knows_where(state: TrainState, given: Any) -> TrainState:
        if not compiled:
            where = shardings(state)
            compiled.append(
                placed_step(network, tx, pick, where, seed=seed, augment=augment, skip=skip)
            )
        return compiled[0](state, given)

    return first_call_knows_where


def placed_step(
    network: Network,
    tx: optax.GradientTransformation,
    pick: Callable[[Any, jax.Array], Batch],
    where: TrainState,
    *,
    seed: int,
    augment: bool,
    skip: bool = False,
) -> Any:
    """Returns `step(state, given) -> state` as `jax.jit` makes it; the old state is donated.

    One jitted call a step: XLA runs convolutions several times slower inside a scan on the CPU.
    Augmentation depends on (seed, step) alone, so that a resumed run sees the same images. The
    new state lies on the devices as the old one does, which the compiler alone would not promise.

    Args:
        network: its static parts.
        tx: the optimizer.
        pick: of what the step is given and the number of updates made, inputs and labels; -1
            marks labels that do not count.
        where: the shardings of the state.
        seed: of the augmentation.
        augment: whether images are moved and mirrored.
        skip: leave out a step whose loss or gradient is not finite: only `skipped` counts it.
    """
    parts = jax.tree.leaves(where.params)

    def loss_fn(params: Tree, stats: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Tree]:
        logits, stats = network.train(gathered(params, parts), stats, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), stats

    def step(state: TrainState, given: Any) -> TrainState:
        x, y = pick(given, state.step)
        x = network.normalise(x)
        if augment:
            x = data.augment(jax.random.fold_in(jax.random.key(seed), state.step), x)
        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.stats, x, y
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        finite = jnp.isfinite(loss)
        if skip:
            finite &= jnp.isfinite(optax.tree.norm(grads))
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            stats=stats,
            opt_state=opt_state,
            loss_sum=state.loss_sum + loss,
            loss_steps=state.loss_steps + 1,
            bad_step=jnp.where((state.bad_step < 0) & ~finite, state.step + 1, state.bad_step),
            skipped=state.skipped,
        )
        if not skip:
            return new
        left_out = state._replace(step=state.step + 1, skipped=state.skipped + 1)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, left_out)

    return jax.jit(step, donate_argnums=0, out_shardings=where)


def make_evaluate(
    network: Network,
) -> Callable[[Tree, Tree, Iterable[Batch]], tuple[float, float]]:
    """Returns `evaluate(params, stats, batches) -> (accuracy, mean loss)`, exact on all rows.

    Labels of -1 are padding and count nothing. Of tokens each is a row.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def count(
        where: tuple[Any, ...], params: Tree, stats: Tree, inputs: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        params = gathered(params, where)
        logits = network.evaluate(params, stats, network.normalise(inputs))
        real = labels >= 0
        right = (jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels) & real
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return right.sum(), jnp.where(real, losses, 0.0).sum(), real.sum()

    def evaluate(params: Tree, stats: Tree, batches: Iterable[Batch]) -> tuple[float, float]:
        where = tuple(getattr(x, "sharding", None) for x in jax.tree.leaves(params))
        counts = jax.device_get([count(where, params, stats, x, y) for x, y in batches])
        right, loss, rows = (sum(float(c[i]) for c in counts) for i in range(3))
        return right / rows, loss / rows

    return evaluate
