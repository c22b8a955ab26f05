"""What only an accelerator can show: updates, Pallas, whole steps, latency, a short run.

    python -m benchmarks accelerator [--arrays FILE] [--seconds 450]
    python -m benchmarks accelerator --budget smoke
    python -m benchmarks accelerator --pack DATA_DIR FILE [--images 12000]

Sections in the order of their weight: the update alone against Adam and a copy of memory, in
float32 and bfloat16, on VGG-16's list and GPT-2 small's, and Pallas against XLA in the same runs;
whole training steps of VGG-16; latency of a slim network against its dense one; with `--arrays`, if
there is time, a short CIFAR-10 run that ends with a small network. Results are written after each
section, an error in one does not stop the next, and all end within `--seconds` and the compilation
that is under way then. Data come as arrays (`--pack` writes them where the data set is), so that no
data library is needed where this runs. "smoke" tries all of it on a CPU, with a few small leaves
and made-up images, and its numbers say nothing.
"""

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import latency
from benchmarks.harness.results import RESULTS, write
from benchmarks.on_device import networks, updates
from benchmarks.on_device.clock import Clock, Section, run_sections
from benchmarks.optimizer_step import MODELS, Shapes

COST = {"smoke": "half a minute of CPU", "gpu": "at most 8 minutes"}
NAME = "accelerator"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is measured."""

    seconds: float
    shrink: Callable[[Shapes], Shapes]
    forms: tuple[tuple[str, ...], tuple[str, ...]]  # variants and structures of the full tables
    rounds: int
    network: str
    widths: Any
    batch: int
    slim_network: str
    slim_batches: tuple[int, ...]
    slim_seconds: float
    epochs: int


BUDGETS = {
    "gpu": Budget(
        450.0, lambda shapes: shapes, (("toolbox", "paper"), ("filters", "weights")), 21,
        "vgg16", None, 128, "vgg16", (1, 32, 256), 6.0, 40,
    ),
    # Its time never ends: what a slow machine leaves out is not tried.
    "smoke": Budget(
        3600.0, updates.small, (("toolbox",), ("filters",)), 1,
        "vgg-small", (4, 4, 8), 8, "transformer", (2,), 0.0, 4,
    ),
}  # fmt: skip


def all_updates(budget: Budget, clock: Clock) -> dict[str, Any]:
    """The update alone, and Pallas against XLA."""
    everything = updates.rivals(*budget.forms)
    few = updates.rivals(("toolbox",), ("filters",))
    plan = [("vgg16", "float32", everything), ("gpt2-small", "float32", few),
            ("vgg16", "bfloat16", everything), ("gpt2-small", "bfloat16", few)]  # fmt: skip
    tables: dict[str, Any] = {}
    for k, (model, dtype, rivals) in enumerate(plan):
        shapes = budget.shrink(MODELS[model]())
        part = clock.part(1 / (len(plan) - k))
        table = updates.measure(shapes, rivals, dtype, budget.rounds, part)
        tables[f"{model}, {dtype}"] = table | {
            "pallas_over_xla": updates.pallas_over_xla(table["rows"])
        }
        jax.clear_caches()
    return {"tables": tables}


def all_steps(budget: Budget, clock: Clock) -> dict[str, Any]:
    """Whole training steps."""
    return {
        "tables": [
            networks.training_steps(
                budget.network, budget.widths, budget.batch, dtype, budget.rounds, clock.part(share)
            )
            for dtype, share in (("float32", 0.5), ("bfloat16", 1.0))
        ]
    }


def all_latencies(budget: Budget, clock: Clock) -> dict[str, Any]:
    """Slim against dense."""
    rows = []
    for batch in budget.slim_batches:
        if rows and clock.left < 10:
            break
        rows.append(latency.measure(budget.slim_network, batch, budget.slim_seconds, 0))
    return {"networks": rows}


def made_up(folder: Path) -> Path:
    """A file as `--pack` writes it, of random images."""
    rng = np.random.default_rng(0)
    sizes = {"train": 64, "test": 16}
    arrays = {f"{k}_images": rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
              for k, n in sizes.items()}  # fmt: skip
    arrays |= {f"{k}_labels": rng.integers(0, 10, n) for k, n in sizes.items()}
    np.savez(folder / "made_up.npz", **arrays)
    return folder / "made_up.npz"


def sections(budget: Budget, arrays: Path | None) -> dict[str, Section]:
    """The questions, in the order of their weight."""
    out = {
        "updates": Section(functools.partial(all_updates, budget), 0.45, 0.0),
        "training_steps": Section(functools.partial(all_steps, budget), 0.4, 20.0),
        "latency": Section(functools.partial(all_latencies, budget), 0.4, 20.0),
    }
    if arrays is not None:
        run = functools.partial(
            networks.short_run, arrays, budget.network, budget.widths, budget.batch, budget.epochs
        )
        out["cifar10"] = Section(run, 0.9, 30.0)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", choices=BUDGETS, default="gpu")
    parser.add_argument("--seconds", type=float, help="time for all sections")
    parser.add_argument("--arrays", type=Path, help="a file of --pack, for the short run")
    parser.add_argument("--pack", nargs=2, metavar=("DATA_DIR", "FILE"), help="write such a file")
    parser.add_argument("--images", type=int, default=12000, help="training images for --pack")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    if args.pack:
        networks.pack(args.pack[0], Path(args.pack[1]), args.images)
        return
    if args.arrays is not None and not args.arrays.is_file():
        parser.error(f"there is no file {args.arrays}: write one with --pack where the data are")
    if args.budget == "gpu" and jax.default_backend() == "cpu":
        parser.error("there is no accelerator here; --budget smoke tries it on a CPU")
    started, budget = time.time(), BUDGETS[args.budget]
    clock = Clock(time.monotonic() + (args.seconds or budget.seconds))

    def keep(results: dict[str, Any]) -> None:
        write(NAME, {"budget": args.budget, "seed": 0, "sections": results}, started, args.out)
        last = list(results)[-1]
        print(f"{last}: {json.dumps(results[last])[:400]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        arrays = made_up(Path(folder)) if args.budget == "smoke" else args.arrays
        results = run_sections(sections(budget, arrays), clock, keep)
    failed = [name for name, found in results.items() if "error" in found]
    print(f"written to {args.out / NAME}.json" + (f"; failed: {failed}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
