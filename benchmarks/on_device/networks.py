"""Whole training steps of a network, and a short run that ends with a smaller one."""

import functools
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dessilbi_jax as dl
from benchmarks.on_device.clock import Clock
from dessilbi_jax import data, models
from dessilbi_jax.files import new_file
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Resident, pick_rows
from dessilbi_jax.train.step import first_state, make_evaluate, make_step, split_network
from dessilbi_jax.train.stepper import Stepper

CLASSES = 10
SHAPE = (32, 32, 3)


def pack(data_dir: str, file: Path, images: int) -> None:
    """Writes CIFAR-10, or the first images of it, to one .npz: a fifth as many test images."""
    full = data.load("cifar10", data_dir=data_dir)
    test = max(1, images // 5)
    with new_file(file) as out:
        np.savez_compressed(
            out, train_images=full.train_images[:images], train_labels=full.train_labels[:images],
            test_images=full.test_images[:test], test_labels=full.test_labels[:test],
        )  # fmt: skip


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The rivals of a whole step."""
    ours = functools.partial(dl.dessilbi, 0.1, nu=20.0, lam=0.05, momentum=0.9)
    return {
        "sgd": optax.sgd(0.1, momentum=0.9),
        "adam": optax.adam(1e-3),
        "dessilbi": ours(),
        "dessilbi, lean": ours(lean=True),
    }


def training_steps(
    network: str, widths: Any, batch: int, dtype: str, rounds: int, clock: Clock
) -> dict[str, Any]:
    """Whole steps, forward and backward pass and update, of all optimizers in turn."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, *SHAPE), np.float32))
    y = jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32)
    runs: dict[str, dict[str, Any]] = {}
    for name, tx in optimizers().items():
        if len(runs) > 1 and clock.left < 10:
            break
        model = models.build(
            network, input_shape=SHAPE, classes=CLASSES, widths=widths, dtype=dtype
        )
        static, params, stats = split_network(model, (), ())
        take = make_step(static, tx, lambda given, step: given)
        began = time.perf_counter()
        state = jax.block_until_ready(take(first_state(params, stats, tx), (x, y)))
        runs[name] = {"step": take, "state": state, "times": [],
                      "first_s": time.perf_counter() - began}  # fmt: skip
    for turn in range(rounds + 2):
        if turn > 4 and clock.left < 0:
            break
        for run in runs.values():
            start = time.perf_counter()
            run["state"] = jax.block_until_ready(run["step"](run["state"], (x, y)))
            if turn >= 2:
                run["times"].append(time.perf_counter() - start)
    median = {name: statistics.median(run["times"]) for name, run in runs.items()}
    return {
        "network": network, "batch": batch, "compute": dtype,
        "rounds": len(runs["sgd"]["times"]),
        "rows": {
            name: {
                "median_ms": round(1e3 * median[name], 3),
                "over_sgd": round(median[name] / median["sgd"], 3),
                "over_adam": round(median[name] / median["adam"], 3),
                "first_step_s": round(run["first_s"], 2),
            }
            for name, run in runs.items()
        },
    }  # fmt: skip


def rows_of(arrays: Any, rows: jax.Array) -> Any:
    """Images and labels of some rows."""
    images, labels = arrays
    return images[rows], labels[rows]


def short_run(
    file: Path, network: str, widths: Any, batch: int, most_epochs: int, clock: Clock
) -> dict[str, Any]:
    """Trains a network once and cuts it to about a quarter of its FLOPs.

    Half of the time trains the dense network with channels selected beside it, a quarter the
    small one; λ is found inside the run.

    Args:
        file: an .npz of `pack`.
        network: its name.
        widths: where those of the publication are not wanted.
        batch: images of a step.
        most_epochs: of the dense network, if there is time for them.
        clock: epochs are made as many as fit into it.
    """
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    pixels = arrays["train_images"].astype(np.float32) / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    train = (jnp.asarray(arrays["train_images"]), jnp.asarray(arrays["train_labels"], jnp.int32))
    images, labels = arrays["test_images"], jnp.asarray(arrays["test_labels"], jnp.int32)
    test = [(jnp.asarray(images[i : i + 500]), labels[i : i + 500])
            for i in range(0, len(images), 500)]  # fmt: skip
    each = len(train[1]) // batch
    pick = functools.partial(pick_rows, rows_of=rows_of, augment=True)

    def feed() -> Resident:
        return Resident(
            train, rows_of, rows=len(train[1]), batch=batch, seed=0, augment=True,
            mesh=make_mesh("one"),
        )  # fmt: skip

    def fresh() -> Any:
        return models.build(network, input_shape=train[0].shape[1:], classes=CLASSES,
                            widths=widths, dtype=jnp.bfloat16)  # fmt: skip

    def fitted(model: Any, tx: optax.GradientTransformation, steps: int, watch: Any = None) -> Any:
        static, params, stats = split_network(model, mean, std)
        take = make_step(static, tx, pick)
        stepper = Stepper(take, feed(), first_state(params, stats, tx))
        while stepper.step < steps:
            now = stepper.advance()
            if watch and (stepper.step % max(1, steps // 30) == 0 or stepper.step == steps):
                watch(stepper.step, now.opt_state)
        return static, stepper.state

    # How long a step takes, of the program that will run: it is compiled for any number of steps.
    def dense(steps: int, path: dl.SolutionPath) -> Any:
        model = fresh()
        groups = dl.channel_groups(model, jnp.zeros((1, *train[0].shape[1:])))
        tx = dl.dessilbi(
            optax.cosine_decay_schedule(0.05, steps), nu=20.0, momentum=0.9, weight_decay=5e-4,
            lam=dl.auto(group_density=0.5, steps=steps), structure=dl.channels(groups), lean=True,
        )  # fmt: skip
        return groups, *fitted(model, tx, steps, path.record)

    began = time.monotonic()
    dense(20, dl.SolutionPath())
    compiling = time.monotonic() - began
    began = time.monotonic()
    fitted(fresh(), optax.sgd(0.05, momentum=0.9), 60)
    pace = (time.monotonic() - began) / 60  # an upper bound: compilation is part of it
    room = max(clock.left - 3 * compiling, 1.0)
    steps = int(min(most_epochs * each, max(40, 0.5 * room / pace)))
    path = dl.SolutionPath()
    groups, static, state = dense(steps, path)
    evaluate = make_evaluate(static)

    def accuracy(params: Any, stats: Any, of: Any = evaluate) -> float:
        return round(100 * of(params, stats, test)[0], 2)

    found = {
        "network": network, "images": len(train[1]), "steps": steps,
        "epochs": round(steps / each, 2), "dense": accuracy(state.params, state.stats),
    }  # fmt: skip
    ticket = path.ticket(flops=groups.flops() // 4, count=groups.flops)
    masked = dl.project(state.params, ticket.mask(state.params))
    found["projected"] = accuracy(masked, state.stats)
    whole = nnx.merge(static.evaluating, state.params, state.stats)
    small = dl.slim(whole, ticket, jnp.zeros((2, *train[0].shape[1:])))
    found |= {"flops": list(small.flops), "params": list(small.params),
              "slim_minus_masked": small.difference}  # fmt: skip
    tuned = max(40, steps // 2) if clock.left > 0.2 * room else 40
    small_static, small_state = fitted(
        small.model, optax.sgd(optax.cosine_decay_schedule(0.05, tuned), momentum=0.9), tuned
    )
    found["slim"] = accuracy(small_state.params, small_state.stats, make_evaluate(small_static))
    return found | {"slim_steps": tuned}
