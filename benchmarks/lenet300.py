"""What the benchmarks on LeNet-300-100 and MNIST share: one run, trained from given weights."""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import data, models

BATCH = 128
MOMENTUM = 0.9
HELD_OUT = 5000


@functools.cache
def mnist(data_dir: str, held_out: int) -> dict[str, jax.Array]:
    """MNIST, normalised, on the device; `held_out` training rows are kept for choosing."""
    full = data.load("mnist", data_dir=data_dir)
    train, images, labels = full.holdout(held_out, seed=0) if held_out else (full, None, None)
    arrays = {
        "train": (train.train_images, train.train_labels),
        "test": (full.test_images, full.test_labels),
    }
    if held_out:
        arrays["held_out"] = (images, labels)
    out = {}
    for name, (x, y) in arrays.items():
        out[f"{name}_x"] = jnp.asarray(full.normalize(x), jnp.float32)
        out[f"{name}_y"] = jnp.asarray(y)
    return out


def initial(seed: int) -> tuple[Any, Any]:
    """(definition, parameters) of LeNet-300-100 with He initialisation."""
    return nnx.split(models.build("lenet300", seed=seed))


@functools.cache  # one object for one schedule: what is compiled for it is found again
def learning_rate(peak: float, steps: int) -> optax.Schedule:
    """The schedule of every run: constant for half of it, then a cosine to zero."""
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, steps - steps // 2)],
        [steps // 2],
    )


@functools.lru_cache(8)
def _step(definition: Any, tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One compiled update, kept for as long as the same optimizer object is used."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = nnx.merge(definition, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: Any, y: Any, rows: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(
    arrays: dict[str, jax.Array],
    definition: Any,
    params: Any,
    tx: optax.GradientTransformation,
    epochs: int,
    seed: int,
    watch: Callable[[int, Any, Any], None] = lambda step, params, state: None,
    state: Any = None,
    records: int = 1,
) -> tuple[Any, Any]:
    """Trains for some epochs and returns (parameters, optimizer state).

    `watch` is called `records` times an epoch; `state` is the optimizer's state to start from
    where it is not `tx.init`'s.
    """
    n = len(arrays["train_y"])
    steps = n // BATCH
    step = _step(definition, tx)
    marks = {steps * (i + 1) // records for i in range(records)}
    params = jax.tree.map(jnp.copy, params)
    state = jax.jit(tx.init)(params) if state is None else state
    for epoch in range(epochs):
        order = jnp.asarray(data.epoch_order(seed=seed, epoch=epoch, n=n, batch=BATCH))
        for i, rows in enumerate(order, start=1):
            params, state = step(params, state, arrays["train_x"], arrays["train_y"], rows)
            if i in marks:
                watch(epoch * steps + i, params, state)
    return params, state


@functools.lru_cache(8)
def _forward(definition: Any) -> Callable[[Any, jax.Array], jax.Array]:
    return jax.jit(lambda params, x: nnx.merge(definition, params)(x))


def accuracy(arrays: dict[str, jax.Array], definition: Any, params: Any, split: str) -> float:
    """Percent of a split classified rightly."""
    logits = _forward(definition)(params, arrays[f"{split}_x"])
    return 100 * float(jnp.mean(jnp.argmax(logits, -1) == arrays[f"{split}_y"]))


def random_like(mask: Any, seed: int) -> Any:
    """A random mask with the same number of kept weights in every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda m: jnp.asarray(rng.permuted(np.ravel(m)).reshape(m.shape)), mask)


def everything(params: Any) -> Any:
    """The mask that keeps all."""
    return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)


@functools.lru_cache(4)
def _masked_sgd(rate: Any) -> optax.GradientTransformation:
    """Plain training under a mask that is only known from the state: compiled once for all."""
    return optax.chain(optax.sgd(rate, MOMENTUM), dl.keep_support(everything))


def retrained(
    arrays: dict[str, jax.Array],
    definition: Any,
    params: Any,
    mask: Any,
    rate: Any,
    epochs: int,
    seed: int,
) -> Any:
    """Trains from `params` with the weights outside the mask held at zero."""
    start = dl.project(params, mask)
    state = optax.chain(optax.sgd(rate, MOMENTUM), dl.keep_support(mask)).init(start)
    return train(arrays, definition, start, _masked_sgd(rate), epochs, seed, state=state)[0]


class Runs:
    """Results by key, each written when it is there, so that a long table can be made in pieces."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.rows:
            start = time.time()
            row = {"key": key, **make(), "seconds": round(time.time() - start, 1)}
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps(row) + "\n")
                out.flush()
                os.fsync(out.fileno())
            self.rows[key] = row
            print(json.dumps(row), flush=True)
        return self.rows[key]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    return {
        "mean": round(float(np.mean(values)), 3),
        "std": round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None,
        "values": [round(v, 3) for v in values],
    }
