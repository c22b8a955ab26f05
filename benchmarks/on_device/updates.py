"""The update alone: against Adam, against a copy of memory, and Pallas against XLA."""

import itertools
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dessilbi_jax as dl
from benchmarks.on_device.clock import Clock
from benchmarks.optimizer_step import Shapes
from dessilbi_jax.optimizer.kernels import choice

CALLS = 10  # between two looks at the clock, so that launching is not what is timed


def taking(kernel: choice.Kernel, tx: optax.GradientTransformation) -> Any:
    """The transformation, traced with that form of the step."""

    def update(*args: Any) -> Any:
        with choice.taking(kernel):
            return tx.update(*args)

    return optax.GradientTransformation(tx.init, update)


def rivals(variants: tuple[str, ...], structures: tuple[str, ...]) -> dict[str, Any]:
    """Adam, and every form of DessiLBI with momentum; filters are the lasso on dense kernels.

    The kernel stands behind the momentum and before it alike: one variant shows it.
    """
    out: dict[str, Any] = {"adam": optax.adam(1e-3)}
    forms: Any = itertools.product(variants, ("lean", "full"), structures, ("xla", "pallas"))
    for variant, state, structure, kernel in forms:
        if kernel == "pallas" and variant != "toolbox":
            continue
        tx = dl.dessilbi(
            0.1, nu=100.0, lam=0.05, momentum=0.9, variant=variant, lean=state == "lean",
            structure=getattr(dl, structure),
        )  # fmt: skip
        out[f"{variant}, {state}, {structure}, {kernel}"] = taking(kernel, tx)
    return out


def least_bytes(name: str, params: Any, state: Any) -> int:
    """What one step has to read and write: gradients once, all else once each."""
    w = sum(x.nbytes for x in jax.tree.leaves(params))
    if name == "adam":
        return 7 * w
    inner = dl.get_state(state)
    v = sum(x.nbytes for x in jax.tree.leaves(inner.v) if x.dtype != bool)
    return 5 * w + (2 if "lean" in name else 3) * v  # a new Γ is written, none need be read


def small(shapes: Shapes) -> Shapes:
    """The first leaves of a list, with axes a 32nd as long."""
    few = list(shapes.items())[:8]
    return {name: tuple(max(n // 32, min(n, 3)) for n in shape) for name, shape in few}


def measure(
    shapes: Shapes, transformations: Mapping[str, Any], dtype: str, rounds: int, clock: Clock
) -> dict[str, Any]:
    """Times of updates on one list of leaves, in turn, and the memory of their programs.

    Args:
        shapes: of the parameters, by path.
        transformations: the rivals, "adam" among them.
        dtype: of parameters and gradients.
        rounds: turns that count; fewer where the clock ends.
        clock: rivals that it leaves no time to compile are left out and named.
    """
    rng = np.random.default_rng(0)

    def tree(scale: float) -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(scale * rng.standard_normal(shape, np.float32), dtype)
            for name, shape in shapes.items()
        }

    grads, runs, left_out = tree(1e-3), {}, []
    for name, tx in transformations.items():
        if runs and clock.left < 5:
            left_out.append(name)
            continue

        def step(carry: Any, grads: Any, tx: Any = tx) -> Any:
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = tree(0.05)
        state = jax.jit(tx.init)(params)
        least = least_bytes(name, params, state)
        began = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=0).lower((params, state), grads).compile()
        runs[name] = {
            "carry": (params, state), "step": compiled, "bytes": least, "times": [],
            "compile_s": time.perf_counter() - began,
            "state": sum(x.nbytes for x in jax.tree.leaves(state)),
        }  # fmt: skip
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    flat = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x, _: x + 1, donate_argnums=0).lower(flat, grads).compile()
    runs["copy"] = {"carry": flat, "bytes": 2 * flat.nbytes, "times": [], "step": copy}
    for turn in range(rounds + 2):
        if turn > 4 and clock.left < 0:
            break
        for run in runs.values():
            start = time.perf_counter()
            for _ in range(CALLS):
                run["carry"] = run["step"](run["carry"], grads)
            jax.block_until_ready(run["carry"])
            if turn >= 2:  # the first turns touch fresh memory
                run["times"].append((time.perf_counter() - start) / CALLS)
    median = {name: statistics.median(run["times"]) for name, run in runs.items()}
    bandwidth = runs["copy"]["bytes"] / median["copy"]
    rows = {}
    for name, run in runs.items():
        low, high = np.percentile(run["times"], (25, 75))
        rows[name] = {
            "median_ms": round(1e3 * median[name], 4),
            "quartiles_ms": [round(1e3 * float(x), 4) for x in (low, high)],
            "over_adam": round(median[name] / median["adam"], 3),
            "share_of_copy": round(run["bytes"] / median[name] / bandwidth, 3),
        }
        if "state" in run:
            memory = run["step"].memory_analysis()
            rows[name] |= {
                "state_bytes_per_parameter": round(run["state"] / size, 3),
                "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
                "compile_s": round(run["compile_s"], 2),
            }
    return {
        "parameters": size, "dtype": dtype, "rounds": len(runs["copy"]["times"]),
        "copy_GB_per_s": round(bandwidth / 1e9, 2), "left_out": left_out, "rows": rows,
    }  # fmt: skip


def pallas_over_xla(rows: Mapping[str, Any]) -> dict[str, float]:
    """Ratios of the medians, by form; below 1 the kernel is ahead."""
    out = {}
    for name, row in rows.items():
        other = name.removesuffix("pallas") + "xla"
        if name.endswith("pallas") and other in rows:
            out[name.removesuffix(", pallas")] = round(
                row["median_ms"] / rows[other]["median_ms"], 3
            )
    return out
