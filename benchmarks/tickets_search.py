"""The search that the recipes of `benchmarks.tickets` come from.

    python -m benchmarks.tickets_search --data-dir DIR [--epochs 10]

Held-out training images (10 000) and seeds from 100 on: neither the test images nor the seeds of
the table are touched. Runs with other ν, densities opened, moments, placements and ranking rules,
and second runs restricted to the ticket of the first, are each read at some densities and
retrained. κ is not searched: under an automatic λ, (κV, κλ) is all that Γ depends on, and κV does
not depend on κ. Each line of results/tickets_search.jsonl is one run; stops and goes on where it
was. The list below was made step by step, seed 100 first; about 40 minutes on a busy core.
"""

import argparse
import dataclasses
import functools
from typing import Any

import dessilbi_jax as dl
from benchmarks import lenet300 as bench
from benchmarks import recipes
from benchmarks.harness.results import RESULTS

Recipe = recipes.Recipe
Reading = tuple[float, str]  # density, ranking rule

V = ((0.02, "v"), (0.01, "v"), (0.06, "v"))
V2 = V[:2]
WIDE = ((0.02, "v"), (0.02, "path"), (0.02, "support"), (0.06, "v"))
CLOSED = (*V, (0.06, "w"))
PATH = ((0.06, "path"), (0.02, "path"), (0.01, "path"))

ONCE: list[tuple[int, Recipe, tuple[Reading, ...]]] = [
    (100, Recipe(nu=20, opened=0.02), WIDE),
    (100, Recipe(nu=20, opened=0.06), WIDE),
    (100, Recipe(nu=20, opened=0.2), WIDE),
    (100, Recipe(nu=5, opened=0.02), WIDE),
    (100, Recipe(nu=5, opened=0.06), WIDE),
    (100, Recipe(nu=5, opened=0.2), WIDE),
    (100, Recipe(nu=20, opened=0.02), ((0.01, "v"),)),
    (100, Recipe(nu=10, opened=0.02), V),
    (100, Recipe(nu=20, opened=0.0), CLOSED),
    (100, Recipe(nu=50, opened=0.02), V),
    (100, Recipe(nu=5, opened=0.02), ((0.01, "v"),)),
    (100, Recipe(variant="paper", nu=200, opened=0.02), V),
    (101, Recipe(nu=20, opened=0.02), V),
    (101, Recipe(nu=20, opened=0.06), V),
    (101, Recipe(nu=10, opened=0.02), V),
    (101, Recipe(nu=20, opened=0.06), ((0.06, "path"),)),
    (101, Recipe(nu=20, opened=0.02, at=0.5), ((0.02, "v"), (0.02, "path"), (0.06, "v"))),
    (102, Recipe(nu=20, opened=0.02), V),
    (102, Recipe(nu=20, opened=0.06), ((0.06, "v"), (0.06, "path"), (0.02, "v"))),
    (100, Recipe(nu=20, opened=0.01), (*PATH, (0.02, "v"))),
    (101, Recipe(nu=20, opened=0.01), (*PATH, (0.02, "v"))),
    (102, Recipe(nu=20, opened=0.01), PATH),
]
# Seed, first run, share of the weights kept by |V|, second run on them from the initialisation.
TWICE: list[tuple[int, Recipe, float, Recipe, tuple[Reading, ...]]] = [
    (100, Recipe(nu=20, opened=0.06), 0.06, Recipe(nu=20, opened=0.02), V2),
    (100, Recipe(nu=20, opened=0.06), 0.1, Recipe(nu=10, opened=0.01), V2),
    (100, Recipe(nu=20, opened=0.06), 0.06, Recipe(nu=20, opened=0.01), V2),
    (100, Recipe(nu=20, opened=0.02), 0.06, Recipe(nu=10, opened=0.01), V2),
    (100, Recipe(nu=20, opened=0.02), 0.04, Recipe(nu=20, opened=0.01), V2),
    (100, Recipe(nu=20, opened=0.02, share=0.5), 0.06, Recipe(nu=20, opened=0.02, share=0.5), V2),
    (101, Recipe(nu=20, opened=0.06), 0.06, Recipe(nu=20, opened=0.02), V2),
    (101, Recipe(nu=20, opened=0.02), 0.06, Recipe(nu=10, opened=0.01), (*V2, *PATH[1:])),
    (102, Recipe(nu=20, opened=0.02), 0.06, Recipe(nu=10, opened=0.01), V2),
    (101, Recipe(nu=20, opened=0.02), 0.06, Recipe(nu=5, opened=0.01), V2),
]
RIVALS = (100, 101)


def read(work: recipes.Work, run: Any, readings: tuple[Reading, ...]) -> dict[str, Any]:
    out: dict[str, Any] = {"reached": float(run[0].density()[-1])}
    for density, rank in readings:
        mask = recipes.ranked(run, density, rank)
        projected = dl.project(run[1], mask)
        out[f"projected {density:g} {rank}"] = work.accuracy(projected, "held_out")
        out[f"{density:g} {rank}"] = work.retrained(mask, "held_out")
    return out


def once(work: recipes.Work, recipe: Recipe, readings: tuple[Reading, ...]) -> dict[str, Any]:
    run = work.select(recipe)
    row = {"seed": work.seed, "recipe": dataclasses.asdict(recipe)}
    return row | {"dense": work.accuracy(run[1], "held_out")} | read(work, run, readings)


def twice(
    work: recipes.Work, first: Recipe, keep: float, second: Recipe, readings: tuple[Reading, ...]
) -> dict[str, Any]:
    before = work.select(first)
    run = work.select(second, recipes.ranked(before, keep, first.rank))
    row = {
        "seed": work.seed, "recipe": dataclasses.asdict(first), "keep": keep,
        "second": dataclasses.asdict(second),
        "dense": work.accuracy(before[1], "held_out"),
        "dense2": work.accuracy(run[1], "held_out"),
    }  # fmt: skip
    return row | read(work, run, readings)


def one_shot(work: recipes.Work) -> dict[str, Any]:
    dense = work.dense()
    row = {"seed": work.seed, "method": "one-shot", "dense": work.accuracy(dense, "held_out")}
    for d in recipes.ROUNDS:
        row[f"{d:g}"] = work.retrained(recipes.magnitude(dense, d), "held_out")
        mask = recipes.by_layer(dense, d, bench.everything(dense), 1.0)
        row[f"layerwise {d:g}"] = work.retrained(mask, "held_out")
    return row


def iterative(work: recipes.Work, layerwise: bool) -> dict[str, Any]:
    row = {"seed": work.seed, "method": "iterative " + ("layerwise" if layerwise else "global")}
    masks = work.iterative(layerwise)
    return row | {f"{d:g}": work.retrained(mask, "held_out") for d, mask in masks.items()}


def words(recipe: Recipe) -> str:
    return " ".join(
        f"{f.name}={getattr(recipe, f.name)}"
        for f in dataclasses.fields(recipe)
        if f.name in ("variant", "nu", "opened", "at", "share")
    )


def listed(readings: tuple[Reading, ...]) -> str:
    return ", ".join(f"{density:g} {rank}" for density, rank in readings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    runs = bench.Runs(RESULTS / "tickets_search.jsonl")

    @functools.cache
    def work(seed: int) -> recipes.Work:
        return recipes.Work.of(args.data_dir, recipes.HELD_OUT, args.epochs, seed)

    def get(key: str, seed: int, function: Any, *given: Any) -> None:
        key = f"{key} epochs={args.epochs} seed={seed}"
        runs.get(key, lambda: function(work(seed), *given))

    for seed in RIVALS:
        get("one-shot", seed, one_shot)
        get("iterative global", seed, iterative, False)
        get("iterative layerwise", seed, iterative, True)
    for seed, recipe, readings in ONCE:
        get(f"once {words(recipe)}: {listed(readings)}", seed, once, recipe, readings)
    for seed, first, keep, second, readings in TWICE:
        key = f"twice {words(first)}, {keep:g} of it, {words(second)}: {listed(readings)}"
        get(key, seed, twice, first, keep, second, readings)


if __name__ == "__main__":
    main()
