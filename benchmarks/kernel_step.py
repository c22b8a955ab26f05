"""The fused step of `optimizer.kernels` against its XLA form, Adam, and a copy of memory.

    python -m benchmarks.kernel_step [--models vgg16 resnet50 gpt2-small] [--rounds 21]
    python -m benchmarks.kernel_step --smoke

To be run on a GPU or a TPU, for each model in float32 and bfloat16. `tx.update` with
`optax.apply_updates` is one compiled call on the parameter lists alone, everything donated; ten
calls are timed at once, so that their launch is hidden as it is in training. The optimizers take
turns in one process; medians are reported. The share of the copy bandwidth is what the
arithmetic has to read and write, over the time taken, over the bandwidth of one large array
that is read and written in place: 1 is the best there is.

What was faster for every model and dtype belongs into `kernels.MEASURED_FASTER`, with the result
file beside it. `--smoke` runs a few small leaves anywhere, writes nothing and proves only that
all of this runs.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness.results import write
from benchmarks.optimizer_step import MODELS, Shapes
from dessilbi_jax.optimizer.kernels import choice

COST = {"cpu": "not measured: needs an accelerator"}

CALLS = 10


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Adam, and DessiLBI with momentum on filters (the lasso on dense kernels)."""
    out = {"adam": optax.adam(1e-3)}
    for state in ("lean", "full"):
        for kernel in ("xla", "pallas"):
            tx = dl.dessilbi(0.1, nu=100.0, lam=0.05, momentum=0.9, lean=state == "lean")
            out[f"{state}, {kernel}"] = taking(kernel, tx)
    return out


def taking(kernel: choice.Kernel, tx: optax.GradientTransformation) -> Any:
    """The transformation, traced with that kernel."""

    def update(*args: Any) -> Any:
        with choice.taking(kernel):
            return tx.update(*args)

    return optax.GradientTransformation(tx.init, update)


def least_bytes(name: str, params: Any, state: Any) -> int:
    """What one step has to read and write: gradients once, all else once each."""
    w = sum(x.nbytes for x in jax.tree.leaves(params))
    if name == "adam":
        return 7 * w
    inner = dl.get_state(state)
    v = sum(x.nbytes for x in jax.tree.leaves(inner.v) if x.dtype != bool)
    return 5 * w + (2 if name.startswith("lean") else 3) * v  # a new Γ is written, none read


def small(shapes: Shapes) -> Shapes:
    """The first leaves of a list, with axes a 32nd as long."""
    few = list(shapes.items())[:8]
    return {name: tuple(max(n // 32, min(n, 3)) for n in shape) for name, shape in few}


def measure(shapes: Shapes, rounds: int, dtype: str, seed: int) -> dict[str, Any]:
    """Median times on one list of leaves."""
    rng = np.random.default_rng(seed)

    def tree(scale: float) -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(scale * rng.standard_normal(shape, np.float32), dtype)
            for name, shape in shapes.items()
        }

    grads = tree(1e-3)
    runs: dict[str, dict[str, Any]] = {}
    for name, tx in optimizers().items():

        def step(carry: Any, grads: Any, tx: Any = tx) -> Any:
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = tree(0.05)
        state = jax.jit(tx.init)(params)
        least = least_bytes(name, params, state)
        runs[name] = {"carry": (params, state), "bytes": least, "times": []}
        runs[name]["step"] = jax.jit(step, donate_argnums=0).lower((params, state), grads).compile()
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    flat = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x, _: x + 1, donate_argnums=0).lower(flat, grads).compile()
    runs["copy"] = {"carry": flat, "bytes": 2 * flat.nbytes, "times": [], "step": copy}
    for turn in range(rounds + 2):
        for run in runs.values():
            start = time.perf_counter()
            for _ in range(CALLS):
                run["carry"] = run["step"](run["carry"], grads)
            jax.block_until_ready(run["carry"])
            if turn >= 2:  # the first turns touch fresh memory
                run["times"].append((time.perf_counter() - start) / CALLS)
    median = {name: statistics.median(run["times"]) for name, run in runs.items()}
    bandwidth = runs["copy"]["bytes"] / median["copy"]
    return {
        "parameters": size,
        "copy_GB_per_s": round(bandwidth / 1e9, 2),
        "runs": {
            name: {
                "median_ms": round(1e3 * median[name], 4),
                "over_adam": round(median[name] / median["adam"], 3),
                "share_of_copy": round(run["bytes"] / median[name] / bandwidth, 3),
            }
            for name, run in runs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few small leaves, no result file")
    parser.add_argument("--name", default="kernel_step", help="name of the result file")
    args = parser.parse_args()
    if jax.default_backend() == "cpu" and not args.smoke:
        parser.error("kernels are only interpreted on CPU, so their time says nothing; --smoke")
    started = time.time()
    result: dict[str, Any] = {"seed": args.seed, "rounds": args.rounds, "models": {}}
    faster = {"lean": True, "full": True}
    for model in args.models:
        for dtype in ("float32", "bfloat16"):
            shapes = MODELS[model]()
            shapes = small(shapes) if args.smoke else shapes
            table = measure(shapes, 1 if args.smoke else args.rounds, dtype, args.seed)
            result["models"][f"{model}, {dtype}"] = table
            print(f"{model}, {dtype}: copy {table['copy_GB_per_s']} GB/s", flush=True)
            for name, row in table["runs"].items():
                print(
                    f"  {name:14s} {row['median_ms']:10.4f} ms  {row['over_adam']:.2f} x adam  "
                    f"{100 * row['share_of_copy']:5.1f} % of the copy bandwidth",
                    flush=True,
                )
            for state in faster:
                xla, pallas = (table["runs"][f"{state}, {k}"] for k in ("xla", "pallas"))
                faster[state] &= pallas["median_ms"] < xla["median_ms"]
    result["faster"] = faster
    if not args.smoke:
        print(f"faster everywhere: {faster}; written to {write(args.name, result, started)}")


if __name__ == "__main__":
    main()
