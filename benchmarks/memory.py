"""How much memory a training step and its update need with DessiLBI, against Adam.

    python -m benchmarks.memory [--networks gpt2-small resnet50] [--update-only]

Takes the figures from the memory analysis of the compiled program; the networks are never
allocated. `state` are the bytes of the optimizer's state. `update` is `tx.update` with
`optax.apply_updates`, parameters and state donated, the gradient given; `step` is a whole training
step (float32, one CPU device), the state donated. `temporary` are the bytes that XLA holds besides
arguments and results, `peak` is the most that are held at once: arguments, temporaries, and results
that take no argument's place. Other backends place activations otherwise; the state is the same.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import dessilbi_jax as dl
from benchmarks.harness.results import write
from dessilbi_jax import models
from dessilbi_jax.train.devices.mesh import everywhere, make_mesh
from dessilbi_jax.train.step import first_state, placed_step, split_network

COST = {"cpu": "6 minutes on two cores, all of it compilation"}

# Rows of a batch: 8 x 1024 tokens; 32 images of 224 x 224.
BATCHES = {"gpt2-small": 8, "resnet50": 32}
IN_STEPS = ("adam", "paper", "paper, lean")  # the others differ from these as their updates do
QUICK = {"xla_backend_optimization_level": 0}  # machine code says nothing about memory


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The rivals; DessiLBI with momentum 0.9, for filters (kernels of two axes: weights)."""

    def ours(**kw: Any) -> optax.GradientTransformation:
        return dl.dessilbi(0.1, nu=100.0, lam=0.05, momentum=0.9, **kw)

    return {
        "adam": optax.adam(1e-3),
        "toolbox": ours(variant="toolbox"),
        "toolbox, lean": ours(variant="toolbox", lean=True),
        "paper": ours(variant="paper"),
        "paper, lean": ours(variant="paper", lean=True),
    }


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled program."""
    found = compiled.memory_analysis()
    arguments, results = found.argument_size_in_bytes, found.output_size_in_bytes
    shared, temporary = found.alias_size_in_bytes, found.temp_size_in_bytes
    return {
        "arguments": arguments,
        "results_in_place": shared,
        "temporary": temporary,
        "peak": arguments + temporary + results - shared,
    }


def shapes(name: str, **sizes: Any) -> Any:
    """A network of `dessilbi_jax.models` whose arrays are `jax.ShapeDtypeStruct`."""
    return nnx.eval_shape(lambda: models.build(name, **sizes))


def update(params: Any, tx: optax.GradientTransformation) -> Any:
    """The compiled update of the parameters."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(QUICK)


def training_step(model: Any, tx: optax.GradientTransformation, batch: int) -> Any:
    """The compiled training step on one device."""
    images = len(model.input_shape) == 3
    pixels = ((0.5,) * model.input_shape[2], (0.25,) * model.input_shape[2]) if images else ((), ())
    network, params, stats = split_network(model, *pixels)
    state = jax.eval_shape(lambda p, s: first_state(p, s, tx), params, stats)
    where = jax.tree.map(lambda _: everywhere(make_mesh("one")), state)
    step = placed_step(network, tx, lambda given, _: given, where)
    x = models.example_input(model, batch)
    given = (
        jax.ShapeDtypeStruct(x.shape, jnp.uint8 if images else x.dtype),
        jax.ShapeDtypeStruct(x.shape[:1] if images else x.shape, jnp.int32),
    )
    return step.lower(state, given).compile(QUICK)


def measure(model: Any, batch: int | None) -> dict[str, Any]:
    """State, update and (with a batch) training step of every optimizer."""
    params = split_network(model, (), ())[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows: dict[str, Any] = {}
    for name, tx in optimizers().items():
        state = jax.tree.leaves(jax.eval_shape(tx.init, params))
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in state)
        rows[name] = {
            "state": held,
            "state_bytes_per_parameter": round(held / size, 3),
            "update": memory(update(params, tx)),
        }
        if batch is not None and name in IN_STEPS:
            rows[name]["step"] = memory(training_step(model, tx, batch))
    for row in rows.values():
        for what in ("update", "step"):
            if what in row:
                row[what]["over_adam"] = round(row[what]["peak"] / rows["adam"][what]["peak"], 4)
    return {"parameters": size, "batch": batch, "optimizers": rows}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['parameters'] / 1e6:.2f} M parameters, batch {result['batch']}; MiB")
    for optimizer, row in result["optimizers"].items():
        parts = [
            f"{what} peak {row[what]['peak'] / 2**20:9.1f} (temporary "
            f"{row[what]['temporary'] / 2**20:9.1f}), {row[what]['over_adam']:.3f} x adam"
            for what in ("update", "step")
            if what in row
        ]
        print(
            f"  {optimizer:15s} state {row['state'] / 2**20:8.1f} "
            f"({row['state_bytes_per_parameter']:.2f} B/parameter)  {'  '.join(parts)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--update-only", action="store_true", help="no whole training steps")
    args = parser.parse_args()
    started = time.time()
    result: dict[str, Any] = {"networks": {}}
    for name in args.networks:
        found = measure(shapes(name), None if args.update_only else BATCHES[name])
        result["networks"][name] = found
        show(name, found)
    print(f"written to {write('memory', result, started)}")


if __name__ == "__main__":
    main()
