"""What does a training step cost with DessiLBI, against SGD and Adam? (Table 6)

    python -m benchmarks computational_cost
    python -m benchmarks computational_cost --budget gpu

Table 6 of the ICLR text: mean time of a batch and memory of SGD, SplitLBI and Adam on VGG-16 at
batch 64. Whole training steps (forward pass, gradient, update), compiled, parameters and state
donated; the optimizers take turns in one process, so that the ratios hold when the machine's speed
drifts, and medians are compared. Memory is the peak of the compiled step, as the compiler plans it.
Every step sees the same batch, digits enlarged to the network's size. `cpu`: float32 on what is
there; `gpu`: float32 and bfloat16, on an accelerator. All with momentum 0.9, DessiLBI with filters,
λ fixed.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dessilbi_jax as dl
from benchmarks.harness import options, results
from benchmarks.harness.work import Setting, Work
from benchmarks.memory import memory
from dessilbi_jax.train.devices.allocator import keep_memory
from dessilbi_jax.train.devices.mesh import shardings
from dessilbi_jax.train.step import placed_step, started

COST = {"smoke": "20 s", "cpu": "8 minutes on two cores", "gpu": "a few minutes; not measured"}
# Seconds a batch and megabytes, as printed in the ICLR text.
PUBLISHED = {"sgd": (0.0197, 1161), "SplitLBI": (0.0221, 1459), "adam": (0.0210, 1267)}
SETTINGS: dict[str, dict[str, float]] = {
    "sgd": {"learning_rate": 0.01, "momentum": 0.9},
    "adam": {"learning_rate": 1e-3},
    "DessiLBI": {"learning_rate": 0.01, "nu": 100.0, "lam": 0.05, "momentum": 0.9},
}
BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "networks": [("lenet5", "mnist", 8, (4, 6, 10))], "rounds": 2, "dtypes": ["float32"],
    },
    "cpu": {
        "networks": [("vgg16", "cifar10", 64, None), ("lenet5", "mnist", 128, None)],
        "rounds": 15, "dtypes": ["float32"],
    },
    "gpu": {
        "networks": [("vgg16", "cifar10", 64, None), ("vgg16", "cifar10", 256, None)],
        "rounds": 200, "dtypes": ["float32", "bfloat16"],
    },
}  # fmt: skip


def optimizers() -> dict[str, optax.GradientTransformation]:
    """SGD, Adam, and DessiLBI in both placements, with stored Γ and lean."""
    out = {"sgd": optax.sgd(**SETTINGS["sgd"]), "adam": optax.adam(**SETTINGS["adam"])}
    for variant in ("paper", "toolbox"):
        for lean in (False, True):
            out[f"DessiLBI {variant}{', lean' * lean}"] = dl.dessilbi(
                **SETTINGS["DessiLBI"], variant=variant, lean=lean
            )
    return out


def pick(given: tuple[jax.Array, ...], step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same rows at every step."""
    x, y, rows = given
    return x[rows], y[rows]


def measure(
    network: str, dataset: str, batch: int, widths: Any, dtype: str, rounds: int
) -> dict[str, Any]:
    """Medians and peaks of every optimizer on one network."""
    work = Work(Setting(network, dataset, 1, 0.01, widths=widths, dtype=dtype), seed=0)
    x, y = work.arrays["train_x"], work.arrays["train_y"]
    given = x, y, jnp.arange(batch, dtype=jnp.int32)
    runs: dict[str, dict[str, Any]] = {}
    for name, tx in optimizers().items():
        params, stats = jax.tree.map(jnp.copy, (work.params, work.stats))
        state = started(params, stats, jax.jit(tx.init)(params))
        step = placed_step(work.network, tx, pick, shardings(state))
        runs[name] = {"step": step.lower(state, given).compile(), "state": state, "times": []}
    for turn in range(rounds + 2):
        for run in runs.values():
            start = time.perf_counter()
            run["state"] = jax.block_until_ready(run["step"](run["state"], given))
            if turn >= 2:  # the first turns touch fresh memory
                run["times"].append(time.perf_counter() - start)
    median = {name: statistics.median(run["times"]) for name, run in runs.items()}
    # The data set is an argument of every step; it is not part of the step's memory.
    data = x.nbytes + y.nbytes
    peak = {name: memory(run["step"])["peak"] - data for name, run in runs.items()}
    return {
        "network": network, "batch": batch, "dtype": dtype, "rounds": rounds,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(work.params)),
        "optimizers": {
            name: {
                "median_ms": round(1e3 * median[name], 3),
                "quartiles_ms": [round(1e3 * q, 3)
                                 for q in statistics.quantiles(run["times"], n=4)[::2]],
                "over_sgd": round(median[name] / median["sgd"], 3),
                "over_adam": round(median[name] / median["adam"], 3),
                "peak_MiB": round(peak[name] / 2**20, 1),
                "peak_over_sgd": round(peak[name] / peak["sgd"], 3),
                "peak_over_adam": round(peak[name] / peak["adam"], 3),
            }
            for name, run in runs.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = options.parser(__doc__ or "", tuple(BUDGETS), needs_data=False)
    args = options.parsed(parser)
    started = time.time()
    keep_memory()
    budget = BUDGETS[args.budget]
    table = []
    for dtype in budget["dtypes"]:
        for network in budget["networks"]:
            table.append(measure(*network, dtype, budget["rounds"]))
            row = table[-1]
            print(f"{row['network']}, batch {row['batch']}, {row['dtype']}")
            for name, line in row["optimizers"].items():
                print(f"  {name:24s} {line['median_ms']:9.2f} ms  {line['over_sgd']:.3f} x sgd  "
                      f"{line['over_adam']:.3f} x adam  {line['peak_MiB']:8.1f} MiB  "
                      f"{line['peak_over_sgd']:.3f} x sgd", flush=True)  # fmt: skip
    published = {name: {"seconds": s, "MB": mb} for name, (s, mb) in PUBLISHED.items()}
    name = options.name(args, "computational_cost")
    config = {"seed": 0, "rounds": budget["rounds"], "optimizers": SETTINGS}
    result = {"config": config, "published": published, "table": table}
    print(results.write(name, result, started, options.folder(args)))


if __name__ == "__main__":
    main()
