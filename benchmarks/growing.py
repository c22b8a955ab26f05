"""Is a network that grew as good as one that had its widths from the start?

    python -m benchmarks growing --data-dir DIR [--networks lenet5 vgg-small] [--seeds 5]

Accuracy on test images, and the FLOPs of the whole training, of

- `start`: the widths that the others begin with, as they are;
- `grown`: those widths, grown in the run as Γ asks for (`dessilbi train --grow`);
- `random`: as many new channels at the same steps, in sets drawn at random;
- `afresh`: grown at the same places as the authors' toolbox does it: new filters and new inputs are
  drawn, so that the outputs change, and batch statistics, momentum, V and Γ begin anew;
- `fresh`: the widths that `grown` ended with, from the start, for the same FLOPs in all;
- `zoo`: the widths of the network's paper, for as many epochs.

Rows are kept in results/growing.jsonl and not made again.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import dessilbi_jax as dl
from benchmarks.harness.cells import Cell, Row, Runs, made_on, run
from benchmarks.harness.results import RESULTS, write
from dessilbi_jax import models, train
from dessilbi_jax.train import growth as growing
from dessilbi_jax.train.finished.trained import load_run
from dessilbi_jax.train.optim import trace_channels
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.tree import leaf_paths, to_host

COST = {"cpu": "about 20 minutes a network and seed on two cores"}

WAYS = ("start", "grown", "random", "afresh", "fresh", "zoo")
CONFIGS = {
    "lenet5": train.TrainConfig(
        network="lenet5", dataset="mnist", epochs=12, learning_rate=0.05, schedule="cosine",
        widths=(2, 4, 16), nu=10.0, density=None, lam=1.7, structure="neurons", grow=1,
    ),
    "vgg-small": train.TrainConfig(
        network="vgg-small", dataset="cifar10", epochs=20, learning_rate=0.05, schedule="cosine",
        widths=(8,) * 6, nu=17.0, density=None, lam=1.7, structure="neurons", grow=2,
        weight_decay=5e-4, augment=True,
    ),
    # Seconds: for a look at the way itself.
    "digits": train.TrainConfig(
        network="lenet300", dataset="digits", epochs=4, batch_size=64, learning_rate=0.1,
        widths=(4, 4), nu=20.0, density=None, lam=0.02, structure="neurons", grow=1, grow_add=4,
    ),
}  # fmt: skip


@contextlib.contextmanager
def at_random(config: train.TrainConfig, growths: list[Row]) -> Iterator[None]:
    """Growth by as many channels as another run had, at the same steps, one set after another."""
    by_step = {each["step"]: sum(b - a for a, b in each["sets"].values()) for each in growths}

    def decide(self: dl.Grower, opt_state: Any, groups: dl.ChannelGroups, step: int) -> Any:
        left, draw = by_step.get(step, 0), np.random.default_rng([config.seed, step])
        sizes: dict[str, int] = {}
        names = {each.name: len(each.groups) for each in groups.sets}
        while left > 0:
            name, more = str(draw.choice(sorted(names))), min(left, self.add)
            sizes[name] = sizes.get(name, names[name]) + more
            left -= more
        return sizes, step >= max(by_step, default=0) and not sizes

    with mock.patch.object(dl.Grower, "decide", decide):
        yield


@contextlib.contextmanager
def afresh() -> Iterator[None]:
    """Growth in which only the parameters of old channels are taken along."""
    look = growing.look

    def looked(run: Any, config: Any, growth: Any, state: Any, mesh: Any) -> Any:
        wider, new, growth, plan = look(run, config, growth, state, mesh)
        if plan is None:
            return wider, new, growth, plan
        drawn, kept = to_host((wider.state, new.params))
        there = to_host(plan.mask(kept))
        params = jax.tree.map(lambda old, begun, m: np.where(m, old, begun), kept, drawn.params,
                              there)  # fmt: skip
        count = dict(leaf_paths(to_host(new.opt_state)))  # the records go on
        opt_state = jax.tree.unflatten(
            jax.tree.structure(wider.state.opt_state),
            [count[path] if path.endswith("count") else leaf
             for path, leaf in leaf_paths(drawn.opt_state)],
        )  # fmt: skip
        host = to_host(new)._replace(params=params, stats=drawn.stats, opt_state=opt_state)
        new = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), host, wider.state)
        return wider, new, growth, plan

    with mock.patch.object(growing, "look", looked):
        yield


def flops_of(config: train.TrainConfig, widths: tuple[int, ...] | None, out: Path) -> int:
    """FLOPs for one row of the network of a run's data with some widths."""
    facts = load_run(out).facts
    groups = trace_channels(facts.build(dataclasses.replace(config, widths=widths)))
    return groups.flops_of(np.ones(groups.count, bool))


def trained_flops(config: train.TrainConfig, result: Row, out: Path) -> int:
    """FLOPs for one row and step, summed over the steps of a run (forward passes)."""
    growths = (result["growth"] or {"growths": ()})["growths"]
    moments = [0, *(each["step"] for each in growths), result["steps"]]
    first = growths[0]["flops"][0] if growths else flops_of(config, config.widths, out)
    sizes = [first, *(each["flops"][1] for each in growths)]
    spans = [b - a for a, b in itertools.pairwise(moments)]
    return sum(size * span for size, span in zip(sizes, spans, strict=True))


def accuracy(name: str, way: str, data_dir: str | None, seed: int, runs: Runs) -> Row:
    """What a way ends with."""
    config = dataclasses.replace(CONFIGS[name], seed=seed)
    how: Any = contextlib.nullcontext()
    if way in ("start", "zoo", "fresh"):
        config = dataclasses.replace(config, grow=None, nu=1e6)
    if way == "zoo":
        config = dataclasses.replace(config, widths=models.entry(config.network).widths)
    if way in ("random", "fresh"):
        found = runs.rows[f"{name} grown {seed}"]
        if way == "random":
            how = at_random(config, found["growths"])
        else:
            config = dataclasses.replace(
                config, widths=tuple(found["widths"]),
                epochs=max(1, round(config.epochs * found["share_of_final"])),
            )  # fmt: skip
    if way == "afresh":
        how = afresh()
    with tempfile.TemporaryDirectory() as folder, how:
        out = Path(folder) / "run"
        result = train.fit(
            config, out, data_dir=data_dir, progress=Progress(io.StringIO(), lines=False)
        )
        spent = trained_flops(config, result, out)
        widths = models.widths(load_run(out).model())
        last = flops_of(config, widths, out)
    return {
        "network": name, "way": way, "seed": seed, "epochs": config.epochs,
        "test_accuracy": result["test_accuracy"], "parameters": result["parameters"],
        "widths": list(widths), "flops": last, "trained_flops": spent,
        "share_of_final": spent / (last * result["steps"]),
        "growths": list((result["growth"] or {"growths": ()})["growths"]),
        "training_seconds": result["seconds"],
    }  # fmt: skip


def cells(names: list[str], seeds: int, data_dir: str | None, runs: Runs) -> list[Cell]:
    """All that there is to make; those that need `grown` come behind it."""
    return [
        Cell(f"{name} {way} {seed}", functools.partial(accuracy, name, way, data_dir, seed, runs),
             group=f"{name} {seed}")
        for name in names for seed in range(seeds) for way in WAYS
    ]  # fmt: skip


def summary(rows: list[Row]) -> Row:
    """By network and way: means over seeds."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["network"], {}).setdefault(row["way"], []).append(row)
    mean: Callable[..., float] = statistics.mean
    return {
        name: {
            way: {
                "mean": mean(r["test_accuracy"] for r in each),
                "deviation": statistics.stdev(r["test_accuracy"] for r in each)
                if len(each) > 1 else None,
                "seeds": len(each),
                "parameters": mean(r["parameters"] for r in each),
                "trained_flops": mean(r["trained_flops"] for r in each),
                "epochs": mean(r["epochs"] for r in each),
                "widths": [r["widths"] for r in each],
            }
            for way, each in ways.items()
        }
        for name, ways in found.items()
    }  # fmt: skip


def main() -> None:
    """Makes what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--networks", nargs="+", choices=CONFIGS, default=["lenet5", "vgg-small"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-dir")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    started, runs = time.time(), Runs(args.results / "growing.jsonl")
    rows = run(runs, cells(args.networks, args.seeds, args.data_dir, runs))
    if rows is None:
        return
    result = summary(rows)
    print(write("growing", {"networks": result, **made_on(rows)}, started, args.results))
    for name, ways in result.items():
        for way, each in ways.items():
            print(f"{name:10} {way:7} {each['mean']:.2%} {each['parameters']:,.0f} parameters")


if __name__ == "__main__":
    main()
