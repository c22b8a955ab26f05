"""How long one update takes and how many bytes its state holds, against SGD and Adam.

    python -m benchmarks.optimizer_step [--models vgg16 resnet50 gpt2-small] [--rounds 21]

Times `tx.update` with `optax.apply_updates` in one compiled call on the parameter lists of the
models alone (no network runs); parameters and state are donated unless `--keep` is given. The
optimizers take turns in one process, so that the ratios hold when the machine's speed drifts;
medians are reported.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.harness.results import write

COST = {"cpu": "3 minutes on two cores"}

Shapes = dict[str, tuple[int, ...]]


def vgg16() -> Shapes:
    """VGG-16 with batch normalisation for 32×32 images, one dense layer: 14.72 M parameters."""
    shapes: Shapes = {}
    last = 3
    for i, n in enumerate([64] * 2 + [128] * 2 + [256] * 3 + [512] * 6):
        shapes |= {f"conv{i}/kernel": (3, 3, last, n), f"conv{i}/bias": (n,)}
        shapes |= {f"bn{i}/scale": (n,), f"bn{i}/bias": (n,)}
        last = n
    return shapes | {"fc/kernel": (512, 10), "fc/bias": (10,)}


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 25.56 M parameters."""
    shapes: Shapes = {}

    def conv(name: str, size: int, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"] = (size, size, inputs, outputs)
        shapes[f"{name}_bn/scale"] = shapes[f"{name}_bn/bias"] = (outputs,)

    conv("stem", 7, 3, 64)
    last = 64
    for stage, (blocks, n) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}_{block}"
            if block == 0:
                conv(f"{name}_shortcut", 1, last, 4 * n)
            conv(f"{name}_1", 1, last, n)
            conv(f"{name}_2", 3, n, n)
            conv(f"{name}_3", 1, n, 4 * n)
            last = 4 * n
    return shapes | {"fc/kernel": (2048, 1000), "fc/bias": (1000,)}


def gpt2_small() -> Shapes:
    """GPT-2 small: 124.4 M parameters, of which 39.4 M are embeddings."""
    shapes: Shapes = {"embed/tokens": (50257, 768), "embed/positions": (1024, 768)}
    for i in range(12):
        for name, shape in [
            ("qkv", (768, 2304)), ("out", (768, 768)), ("up", (768, 3072)), ("down", (3072, 768)),
        ]:  # fmt: skip
            shapes |= {f"h{i}_{name}/kernel": shape, f"h{i}_{name}/bias": shape[1:]}
        for norm in ("ln1", "ln2"):
            shapes |= {f"h{i}_{norm}/scale": (768,), f"h{i}_{norm}/bias": (768,)}
    return shapes | {"ln_f/scale": (768,), "ln_f/bias": (768,)}


MODELS: dict[str, Callable[[], Shapes]] = {
    "vgg16": vgg16, "resnet50": resnet50, "gpt2-small": gpt2_small,
}  # fmt: skip


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The rivals, all with momentum 0.9; filters are the lasso on dense kernels."""

    def ours(**kw: Any) -> optax.GradientTransformation:
        return dl.dessilbi(0.1, nu=100.0, momentum=0.9, **({"lam": 0.05} | kw))

    auto = dl.auto(density=0.05, steps=10**6)
    return {
        "sgd": optax.sgd(0.1, momentum=0.9),
        "adam": optax.adam(1e-3),
        "toolbox, filters": ours(),
        "toolbox, weights": ours(structure=dl.weights),
        "toolbox, filters, lean": ours(lean=True),
        "toolbox, weights, lean": ours(structure=dl.weights, lean=True),
        "toolbox, weights, lean, automatic λ": ours(structure=dl.weights, lean=True, lam=auto),
        "paper, filters": ours(variant="paper"),
        "paper, filters, lean": ours(variant="paper", lean=True),
    }


def measure(shapes: Shapes, rounds: int, dtype: Any, seed: int, keep: bool) -> dict[str, Any]:
    """Compile time, median update time and state bytes of every optimizer on one list."""
    rng = np.random.default_rng(seed)

    def tree(scale: float) -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(scale * rng.standard_normal(shape, np.float32), dtype)
            for name, shape in shapes.items()
        }

    grads = tree(1e-3)
    runs: dict[str, Any] = {}
    for name, tx in optimizers().items():

        def step(params: Any, state: Any, grads: Any, tx: Any = tx) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = tree(0.05)
        state = jax.jit(tx.init)(params)
        lowered = jax.jit(step, donate_argnums=() if keep else (0, 1)).lower(params, state, grads)
        start = time.perf_counter()
        compiled = lowered.compile()
        runs[name] = {
            "compiled": compiled,
            "state": (params, state),
            "compile_s": time.perf_counter() - start,
            "bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
            "times": [],
        }
    for turn in range(rounds + 2):
        for run in runs.values():
            start = time.perf_counter()
            run["state"] = jax.block_until_ready(run["compiled"](*run["state"], grads))
            if turn >= 2:  # the first turns touch fresh memory
                run["times"].append(time.perf_counter() - start)
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    median = {name: statistics.median(run["times"]) for name, run in runs.items()}
    return {
        "parameters": size,
        "dtype": jnp.dtype(dtype).name,
        "rounds": rounds,
        "donated": not keep,
        "optimizers": {
            name: {
                "median_ms": round(1e3 * median[name], 3),
                "over_adam": round(median[name] / median["adam"], 3),
                "over_sgd": round(median[name] / median["sgd"], 3),
                "state_bytes_per_parameter": round(run["bytes"] / size, 3),
                "compile_s": round(run["compile_s"], 3),
                "compile_over_adam": round(run["compile_s"] / runs["adam"]["compile_s"], 3),
                "temporary_bytes": run["compiled"].memory_analysis().temp_size_in_bytes,
            }
            for name, run in runs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--keep", action="store_true", help="do not donate the buffers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="optimizer_step", help="name of the result file")
    args = parser.parse_args()
    started = time.time()
    result: dict[str, Any] = {"seed": args.seed, "models": {}}
    for name in args.models:
        table = measure(MODELS[name](), args.rounds, args.dtype, args.seed, args.keep)
        result["models"][name] = table
        print(f"{name}: {table['parameters'] / 1e6:.2f} M parameters")
        for optimizer, row in table["optimizers"].items():
            print(
                f"  {optimizer:36s} {row['median_ms']:9.2f} ms  {row['over_adam']:.2f} x adam  "
                f"{row['over_sgd']:.2f} x sgd  {row['state_bytes_per_parameter']:.2f} B/parameter  "
                f"compile {row['compile_over_adam']:.2f} x adam",
                flush=True,
            )
    print(f"written to {write(args.name, result, started)}")


if __name__ == "__main__":
    main()
