"""What does a run cost and bring that cuts its network to 25 % of the FLOPs on its way?

    python -m benchmarks in_place --data-dir DIR [--networks lenet5 vgg-small] [--seeds 3]

*Time.* A run that settles on channels and is cut where settling ends, against what it cannot be
faster than: plain SGD on the dense network up to the cut and on a fresh network of the final widths
behind it. Blocks of steps take turns in one process, compilation and the cut itself apart; the
figure is the sum of the run's blocks over the sum of the others.

*Accuracy*, on test images, of the network that each way ends with:

- `dense`: the whole network for as many epochs;
- `in place`: the run that is cut on its way;
- `fresh`: a network of the widths that this run found, drawn anew, trained for the same FLOPs in
  all. A strong control: it says whether the widths alone are what matters.

Rows are kept in results/in_place.jsonl and not made again.
"""

import argparse
import dataclasses
import functools
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import optax

import dessilbi_jax as dl
from benchmarks.harness.cells import Cell, Row, Runs, made_on, run
from benchmarks.harness.results import RESULTS, write
from dessilbi_jax import models, train
from dessilbi_jax.train import cutting
from dessilbi_jax.train.data_facts import Where
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import make_feed
from dessilbi_jax.train.finished.trained import load_run
from dessilbi_jax.train.prepare import placed_state, prepare
from dessilbi_jax.train.progress import Progress
from dessilbi_jax.train.step import Network, make_step
from dessilbi_jax.train.stepper import Stepper

COST = {"cpu": "about 15 minutes a network and seed on two cores"}

FLOPS, BLOCK = 0.25, 10
CONFIGS = {
    "lenet5": train.TrainConfig(
        network="lenet5", dataset="mnist", epochs=3, learning_rate=0.05, schedule="half", nu=100.0,
        density=0.25, at=0.5, settle=(0.1, 0.5), budget=("flops", FLOPS), structure="channels",
    ),
    "vgg-small": train.TrainConfig(
        network="vgg-small", dataset="cifar10", epochs=10, learning_rate=0.05, schedule="cosine",
        weight_decay=5e-4, nu=100.0, density=0.25, at=0.5, settle=(0.1, 0.5),
        budget=("flops", FLOPS), structure="channels", augment=True,
    ),
    # Seconds: for a look at the way itself.
    "digits": train.TrainConfig(
        network="lenet300", dataset="digits", epochs=5, batch_size=16, learning_rate=0.02, nu=100.0,
        density=0.25, at=0.5, settle=(0.1, 0.5), budget=("flops", FLOPS), structure="channels",
    ),
}  # fmt: skip
TIMED = {"lenet5": (40, 100, 1000)}  # widths doubled, where the step is what takes the time


def plain(network: Network, params: Any, stats: Any, feed: Any, rate: float) -> Stepper:
    """Training by SGD with momentum, and nothing else."""
    tx = optax.sgd(rate, momentum=0.9)
    state = placed_state(params, stats, tx, make_mesh("one"))
    return Stepper(make_step(network, tx, feed.pick), feed, state)


def timed(stepper: Stepper, steps: int) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    jax.block_until_ready(stepper.advance(steps).step)
    return time.perf_counter() - began


def cost(name: str, data_dir: str | None, seed: int) -> Row:
    """The time of a whole run in units of the plain steps it cannot do without."""
    config = dataclasses.replace(CONFIGS[name], epochs=1, seed=seed, augment=False)
    if name in TIMED:
        config = dataclasses.replace(config, widths=TIMED[name])
    mesh = make_mesh("one")
    setup = prepare(config, Where(data_dir, None, None), mesh)
    cut_at = cutting.moment(config, setup.steps)
    assert cut_at is not None
    feed = make_feed(setup.training, config, mesh)
    stage, state = cutting.Stage.first(setup), setup.state
    before = _interleaved(config, stage, state, feed, 0, cut_at)
    stage, state = cutting.cut(setup, config, before.pop("state"), mesh)
    behind = _interleaved(config, stage, state, feed, cut_at, setup.steps)
    del behind["state"]
    whole, parts = (before[k] + behind[k] for k in ("run", "plain"))
    return {
        "kind": "time", "network": name, "widths": config.widths, "seed": seed,
        "steps": [cut_at, setup.steps - cut_at], "ratio": whole / parts,
        "before": before, "behind": behind,
        "flops": cutting.facts(setup, _plan(stage), cut_at)["flops"],
    }  # fmt: skip


def _plan(stage: cutting.Stage) -> dl.Plan:
    assert stage.plan is not None
    return stage.plan


def _interleaved(
    config: train.TrainConfig, stage: cutting.Stage, state: Any, feed: Any, start: int, stop: int
) -> Row:
    """Seconds of a stage's steps, and of as many plain ones of the same network."""
    copied = jax.tree.map(lambda x: x.copy(), (state.params, state.stats))
    other = plain(stage.network, *copied, feed, config.learning_rate)
    own = Stepper(make_step(stage.network, stage.tx, feed.pick), feed, state)
    other.step = own.step
    timed(own, 1), timed(other, 1)  # compile
    sums = {"run": 0.0, "plain": 0.0}
    blocks = []
    while own.step < stop:
        steps = min(BLOCK, stop - own.step)
        pair = timed(own, steps), timed(other, steps)
        blocks.append(pair[0] / pair[1])
        sums["run"] += pair[0]
        sums["plain"] += pair[1]
    return {**sums, "median_ratio": statistics.median(blocks), "state": own.state}


def accuracy(name: str, way: str, data_dir: str | None, seed: int, runs: Runs) -> Row:
    """What a way ends with."""
    config = dataclasses.replace(CONFIGS[name], seed=seed)
    if way == "dense":
        config = dataclasses.replace(config, settle=None, budget=None, nu=1e6)
    elif way == "fresh":
        found = runs.rows[f"{name} in place {seed}"]
        config = dataclasses.replace(
            config, settle=None, budget=None, nu=1e6, widths=tuple(found["widths"]),
            epochs=max(1, round(config.epochs * found["epochs_for_as_much"])),
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        quiet = Progress(io.StringIO(), lines=False)
        result = train.fit(config, out, data_dir=data_dir, progress=quiet)
        row = {
            "kind": "accuracy", "network": name, "way": way, "seed": seed,
            "epochs": config.epochs, "test_accuracy": result["test_accuracy"],
            "parameters": result["cut"]["params"][1] if result["cut"] else result["parameters"],
            "training_seconds": result["seconds"],
        }  # fmt: skip
        if way == "in place":
            before, after = result["cut"]["flops"]
            share, end = after / before, result["cut"]["step"] / result["steps"]
            model = load_run(out).model()
            masks = jax.tree.map(lambda x: x != 0, load_run(out).params)
            small = dl.slim(model, masks, models.example_input(model), check=False).model
            row |= {
                "flops": share, "widths": list(models.widths(small)),
                "epochs_for_as_much": (end + (1 - end) * share) / share,
            }  # fmt: skip
    return row


def cells(names: list[str], seeds: int, data_dir: str | None, runs: Runs) -> list[Cell]:
    """All that there is to make."""
    out = []
    for name in names:
        out.append(Cell(f"time {name}", functools.partial(cost, name, data_dir, 0)))
        for seed in range(seeds):
            for way in ("dense", "in place", "fresh"):
                make = functools.partial(accuracy, name, way, data_dir, seed, runs)
                out.append(Cell(f"{name} {way} {seed}", make, group=f"{name} {seed}"))
    return out


def summary(rows: list[Row]) -> Row:
    """Means by network and way, and the times."""
    times = [r for r in rows if r["kind"] == "time"]
    ways: Row = {}
    for row in rows:
        if row["kind"] == "accuracy":
            ways.setdefault(row["network"], {}).setdefault(row["way"], []).append(row)
    return {
        "time": {r["network"]: {k: r[k] for k in ("ratio", "before", "behind", "flops", "steps",
                                                  "widths")} for r in times},
        "accuracy": {
            name: {
                way: {
                    "mean": statistics.mean(r["test_accuracy"] for r in each),
                    "deviation": statistics.stdev(r["test_accuracy"] for r in each)
                    if len(each) > 1 else None,
                    "seeds": len(each), "epochs": each[0]["epochs"],
                    "parameters": statistics.mean(r["parameters"] for r in each),
                }
                for way, each in by_way.items()
            }
            for name, by_way in ways.items()
        },
    }  # fmt: skip


def main() -> None:
    """Makes what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--networks", nargs="+", choices=CONFIGS, default=["lenet5", "vgg-small"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    started, runs = time.time(), Runs(args.results / "in_place.jsonl")
    rows = run(runs, cells(args.networks, args.seeds, args.data_dir, runs))
    if rows is None:
        return
    result = summary(rows)
    print(write("in_place", {**result, **made_on(rows)}, started, args.results))
    for name, each in result["time"].items():
        print(f"{name}: whole run {each['ratio']:.3f} of plain steps of the same shapes")
    for name, by_way in result["accuracy"].items():
        for way, each in by_way.items():
            deviation = each["deviation"]
            told = "" if deviation is None else f" ± {deviation:.2%}"
            print(f"{name:10} {way:9} {each['mean']:.2%}{told} ({each['seeds']} seeds)")


if __name__ == "__main__":
    main()
