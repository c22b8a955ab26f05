"""One training step and one evaluation, as jitted functions of plain arrays.

A Flax NNX network is used functionally: its static part once for training and once for
evaluation (they differ in what batch normalisation does), its parameters and its batch
statistics as nested dicts whose leaf paths read like `fc1/kernel`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dessilbi_jax.train.devices.mesh import gathered, shardings

Tree = Any
Batch = tuple[jax.Array, jax.Array]
Evaluate = Callable[[Tree, Tree, Iterable[Batch]], tuple[float, float]]


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

    def mean_loss(self) -> tuple[float, int]:
        """Returns the mean training loss since the last record, and the step not finite.

        The mean is NaN where every step since then was skipped, the step -1 where there was none.
        """
        bad, total, count = jax.device_get((self.bad_step, self.loss_sum, self.loss_steps))
        return float(total) / int(count) if count else math.nan, int(bad)

    def recorded(self) -> "TrainState":
        """Returns the state behind a record, from where losses are summed anew."""
        return self._replace(
            loss_sum=jnp.zeros_like(self.loss_sum), loss_steps=jnp.zeros_like(self.loss_steps)
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """The static parts of a network and its pixel normalisation; equal ones are compiled once.

    Attributes:
        training: graph definition in training mode.
        evaluating: graph definition in evaluation mode.
        mean: of each channel, subtracted from pixels in [0, 1]; empty for what is given ready.
        std: of each channel, divided by.
    """

    training: nnx.GraphDef
    evaluating: nnx.GraphDef
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: jax.Array) -> jax.Array:
        """Returns float32 images of about zero mean and unit variance from uint8 [N, H, W, C].

        Tokens, and pixels of a network without `mean`, are returned as they are.
        """
        if not self.mean:
            return images
        pixels = images.astype(jnp.float32) / 255.0
        mean, std = (jnp.asarray(each, jnp.float32) for each in (self.mean, self.std))
        return (pixels - mean) / std

    def train(self, params: Tree, stats: Tree, inputs: jax.Array) -> tuple[jax.Array, Tree]:
        """Returns the logits and the new batch statistics, in training mode."""
        model = nnx.merge(self.training, params, stats)
        logits = model(inputs)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def loss(
        self, params: Tree, stats: Tree, inputs: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """Returns the mean cross-entropy and the new batch statistics, in training mode."""
        logits, stats = self.train(params, stats, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    def evaluate(self, params: Tree, stats: Tree, inputs: jax.Array) -> jax.Array:
        """Returns the logits in evaluation mode."""
        return nnx.merge(self.evaluating, params, stats)(inputs)


def split_network(
    model: Any, mean: Iterable[float], std: Iterable[float]
) -> tuple[Network, Tree, Tree]:
    """Returns the static parts of an NNX model, its parameters and its batch statistics.

    Args:
        model: an `nnx.Module` that holds nothing but `nnx.Param` and `nnx.BatchStat` variables.
        mean: per channel, of pixels in [0, 1]; empty for tokens and for pixels that are ready.
        std: per channel, of pixels in [0, 1].
    """
    model.train()
    training, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, states)
    model.eval()
    evaluating = nnx.graphdef(model)
    network = Network(training, evaluating, tuple(map(float, mean)), tuple(map(float, std)))
    return network, params, stats


def first_state(params: Tree, stats: Tree, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the optimizer's lies where the parameters lie."""
    return started(params, stats, tx.init(params))


def started(params: Tree, stats: Tree, opt_state: optax.OptState, step: int = 0) -> TrainState:
    """Returns the state after `step` updates, with no loss seen yet."""
    return TrainState(
        step=jnp.int32(step),
        params=params,
        stats=stats,
        opt_state=opt_state,
        loss_sum=jnp.float32(0),
        loss_steps=jnp.int32(0),
        bad_step=jnp.int32(-1),
        skipped=jnp.int32(0),
    )


def itself(trained: Tree) -> Tree:
    """The network's parameters where they are what is trained."""
    return trained


def nothing(trained: Tree) -> float:
    """No penalty."""
    return 0.0


def make_step(
    network: Network,
    tx: optax.GradientTransformation,
    pick: Callable[[Any, jax.Array], Batch],
    *,
    skip: bool = False,
    view: Callable[[Tree], Tree] = itself,
    penalty: Callable[[Tree], Any] = nothing,
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
                placed_step(network, tx, pick, where, skip=skip, view=view, penalty=penalty)
            )
        return compiled[0](state, given)

    return first_call_knows_where


def placed_step(
    network: Network,
    tx: optax.GradientTransformation,
    pick: Callable[[Any, jax.Array], Batch],
    where: TrainState,
    *,
    skip: bool = False,
    view: Callable[[Tree], Tree] = itself,
    penalty: Callable[[Tree], Any] = nothing,
) -> Any:
    """Returns `step(state, given) -> state` as `jax.jit` makes it; the old state is donated.

    One jitted call a step: XLA runs convolutions several times slower inside a scan on the CPU.
    The new state lies on the devices as the old one does, which the compiler alone would not
    promise.

    Args:
        network: its static parts.
        tx: the optimizer.
        pick: of what the step is given and the number of updates made, inputs and labels; -1
            marks labels that do not count.
        where: the shardings of the state.
        skip: leave out a step whose loss or gradient is not finite: only `skipped` counts it.
        view: the network's parameters from what is trained, where the two differ.
        penalty: added to the mean cross-entropy, of what is trained.
    """
    parts = jax.tree.leaves(where.params)

    def loss_fn(trained: Tree, stats: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Tree]:
        mean, stats = network.loss(view(gathered(trained, parts)), stats, x, y)
        return mean + penalty(trained), stats

    def step(state: TrainState, given: Any) -> TrainState:
        x, y = pick(given, state.step)
        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.stats, network.normalise(x), y
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


@functools.lru_cache(8)  # a finished run is measured again and again
def make_evaluate(network: Network) -> Evaluate:
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
