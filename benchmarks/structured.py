"""Which way to remove filters keeps the most accuracy, by FLOPs and by measured latency?

    python -m benchmarks structured --budget cpu --data-dir DIR

CIFAR-10, a VGG and a ResNet; per seed every method of `rivals.filters` cuts a smaller network out
at each share of the FLOPs. Beside each stand the controls of Liu et al. (2019): the network of the
same widths, freshly initialised, trained for the dense run's epochs (Scratch-E) or for as many as
cost the dense run's FLOPs (Scratch-B, epochs divided by the share, however small, where the authors
stop at twice the epochs: ours is the harder to beat). Latency is that
of a forward pass, the slim networks and the dense one in turn in one process, as the ratio of the
medians. Costs are FLOPs of training in dense runs: until the cut ("search") and in all. A method
and its controls share the seed, and so the order of images: differences are paired by seed.

No weight decay. Every method has four settings (`trials`). Choosing is done on the first network
only: once, on held-out images, with a seed of its own, at the middle share; the other networks are
given what was chosen there.

Budgets: "cpu": a VGG of six convolutions and a ResNet-8, 4096 images, 4 epochs, a quarter of the
FLOPs, 3 seeds: the figures compare with each other, not with the best that is known. "gpu": VGG-16
and ResNet-56, all images, moved and mirrored, 160 epochs, five shares, 3 seeds; and the papers'
Fig. 5 (`rivals.papers`): tickets of Γ's support along one run, retrained from the first weights.
"smoke": no data, seconds.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

import dessilbi_jax as dl
from benchmarks.harness import cells, masks, options, results
from benchmarks.harness.work import Setting, Work
from benchmarks.latency import compiled, interleaved
from benchmarks.rivals import filters, papers
from dessilbi_jax import models
from dessilbi_jax.train.devices.allocator import keep_memory

COST = {
    "smoke": "seconds, one core, no data",
    "cpu": "80 minutes of one core",
    "gpu": "about 3e18 FLOPs of training, of which VGG-16 takes 2e18; not measured",
}
CHOOSING_SEED = 100
HELD_OUT = 2000


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a table is made of.

    Attributes:
        settings: of each network.
        shares: of the FLOPs.
        seeds: how many.
        choosing: whether the methods' trials are compared first; else their defaults are taken.
        batch, seconds: of the latencies.
        figure_5: what is run of it.
    """

    settings: tuple[Setting, ...]
    shares: tuple[float, ...]
    seeds: int
    choosing: bool = True
    batch: int = 128
    seconds: float = 20.0
    figure_5: tuple[papers.Published, ...] = ()


_TINY = Setting("vgg-small", "cifar10", 2, 0.05, batch=8, widths=(8,))  # all methods: (4,)
BUDGETS = {
    "smoke": Budget(
        (_TINY,), (0.5,), 1, False, 8, 0.1,
        (papers.Published("tiny, group", _TINY, "filters", 1e-4, 5.0),),
    ),
    "cpu": Budget(
        (
            Setting("vgg-small", "cifar10", 4, 0.05, batch=32, images=4096),
            Setting("resnet-small", "cifar10", 4, 0.05, batch=32, images=4096),
        ),
        (0.25,), 3,
    ),
    "gpu": Budget(
        (
            Setting("vgg16", "cifar10", 160, 0.05, augment=True),
            Setting("resnet56", "cifar10", 160, 0.1, augment=True),
        ),
        (0.7, 0.5, 0.35, 0.25, 0.15), 3, seconds=60.0,
        figure_5=papers.FIGURE_5,
    ),
}  # fmt: skip


def whole(setting: Setting, seed: int, args: Any) -> dict[str, Any]:
    """The dense network's accuracy."""
    work = Work(setting, seed, args.data_dir, args.work)
    ended = work.dense()
    return {"accuracy": work.accuracy(ended["params"], ended["stats"])}


def method(
    setting: Setting, name: str, given: dict[str, Any], share: float, seed: int, args: Any
) -> dict[str, Any]:
    """A method's smaller network and its two controls."""
    work = Work(setting, seed, args.data_dir, args.work)
    found = filters.RIVALS[name].find(work, share, **given)
    row: dict[str, Any] = {
        "network": setting.network, "method": name, "share": share, "seed": seed,
        "accuracy": found.cut.work.accuracy(found.params, found.stats),
        "widths": found.widths, "flops_share": round(found.cut.flops, 4),
        "params_share": round(found.cut.numbers, 4),
        "slim_minus_masked": found.cut.difference,
        "search": found.search, "training": found.training,
    }  # fmt: skip
    for budget in ("E", "B"):
        fresh, ended = filters.scratch(work, found, budget)
        row[f"scratch_{budget}_training"] = work.in_runs(fresh.cost)
        test = functools.partial(fresh.accuracy, ended["params"], ended["stats"])
        # Found once for all methods that end with the same widths.
        made = fresh.kept("accuracy", lambda test=test: {"test": np.asarray(test())})
        row[f"scratch_{budget}"] = float(made["test"])
    return row


def latencies(
    setting: Setting, widths: list[list[int]], batch: int, seconds: float, args: Any
) -> dict[str, Any]:
    """Medians of a forward pass: the dense network, and one of each of the widths, in turn."""
    work = Work(setting, 0, args.data_dir)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, *work.shape)), jnp.float32)
    calls = {}
    for name, sizes in [("dense", setting.widths), *((str(w), w) for w in widths)]:
        model = models.build(setting.network, input_shape=work.shape, widths=sizes)
        model.eval()
        run, arrays = compiled(model, x)
        calls[name] = functools.partial(run, arrays, x)
    times = interleaved(calls, seconds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "batch": batch, "dense_ms": round(1e3 * medians["dense"], 3), "turns": len(times["dense"]),
        "ratio": {name: round(each / medians["dense"], 4) for name, each in medians.items()},
    }  # fmt: skip


def figure_5(published: papers.Published, seed: int, args: Any) -> dict[str, Any]:
    """Tickets of Γ's support along one run of the paper's setting, retrained from the start."""
    setting = published.setting
    work = Work(setting, seed, args.data_dir, args.work)
    path, accuracy = dl.SolutionPath(), {}
    each, last = work.steps(1), work.steps()

    def watch(step: int, params: Any, stats: Any, state: Any) -> None:
        path.record(step, state)
        if step == last:
            accuracy["W"] = work.accuracy(params, stats)
            accuracy["projected"] = work.accuracy(dl.project(params, dl.support(state)), stats)

    tx = papers.optimizer(
        work.rate(), setting.momentum, published.structure, 1.0, published.nu, published.lam
    )
    work.train(tx, watch=watch, every=each)
    tickets = []
    epochs = [max(1, round(share * setting.epochs)) for share in (0.25, 0.5, 1.0)]
    for epoch in dict.fromkeys(epochs):  # a smoke run has too few for three
        step = each * epoch
        if path.density()[list(path.steps).index(step)] == 0:
            tickets.append({"epoch": epoch, "density": 0.0, "retrained": None})
            continue
        mask = path.ticket(at=step).mask(work.params)
        ended = work.retrained(mask)
        tickets.append({
            "epoch": epoch, "density": round(masks.density(mask), 5),
            "retrained": work.accuracy(ended.params, ended.stats),
        })  # fmt: skip
    return {"name": published.name, "seed": seed, **accuracy, "tickets": tickets}


def summary(rows: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table from its rows, one a seed, and the latencies measured for them."""
    first = rows[0]
    accuracy = [r["accuracy"] for r in rows]
    line = {key: first[key] for key in ("network", "method", "share")}
    line["seeds"] = len(rows)
    for key in ("flops_share", "params_share", "accuracy", "search", "training"):
        line[key] = results.spread([r[key] for r in rows])
    line["latency"] = results.spread(
        [ratio["ratio"][str(r["widths"])] for r, ratio in zip(rows, ratios, strict=True)]
    )
    for budget in ("E", "B"):
        control = [r[f"scratch_{budget}"] for r in rows]
        line[f"scratch_{budget}"] = results.spread(control)
        line[f"scratch_{budget}_training"] = results.spread(
            [r[f"scratch_{budget}_training"] for r in rows]
        )
        line[f"minus_scratch_{budget}"] = results.paired(accuracy, control)
    return line


def choice(budget: Budget, runs: cells.Runs, args: Any) -> list[dict[str, Any]] | None:
    """What each method's trials reach on held-out images, on the first network only.

    None while other processes try some.
    """
    setting = dataclasses.replace(budget.settings[0], held_out=HELD_OUT)
    share = budget.shares[len(budget.shares) // 2]

    def tried(name: str, given: dict[str, Any]) -> dict[str, Any]:
        work = Work(setting, CHOOSING_SEED, args.data_dir, args.work)
        found = filters.RIVALS[name].find(work, share, **given)
        right = found.cut.work.accuracy(found.params, found.stats, "held_out")
        return {"method": name, "given": given, "held_out": right}

    wanted = [
        cells.Cell(f"choice {setting.key} share={share} {name} {given}",
                   functools.partial(tried, name, given), group=f"choice {name}")
        for name, rival in filters.RIVALS.items() for given in rival.trials
    ]  # fmt: skip
    return cells.run(runs, wanted, args.share)


def best(tried: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each method the setting of the highest accuracy; of equal ones the first."""
    top: dict[str, dict[str, Any]] = {}
    for row in tried:
        if row["held_out"] > top.get(row["method"], {"held_out": -1.0})["held_out"]:
            top[row["method"]] = row
    return {name: row["given"] for name, row in top.items()}


def table(budget: Budget, runs: cells.Runs, args: Any) -> dict[str, Any] | None:
    """All cells and what follows from them; None while other processes make the rest."""
    tried = choice(budget, runs, args) if budget.choosing else []
    if tried is None:
        return None
    chosen = best(tried)
    wanted: list[cells.Cell] = []
    places: list[tuple[Any, ...]] = []
    for setting in budget.settings:
        for seed in range(budget.seeds):
            key = f"{setting.key} seed={seed}"
            make = functools.partial(whole, setting, seed, args)
            wanted.append(cells.Cell(f"{key} dense", make, group=key))
            places.append((setting, "dense", None, seed))
            for share in budget.shares:
                for name in filters.RIVALS:
                    given = chosen.get(name, {})
                    make = functools.partial(method, setting, name, given, share, seed, args)
                    words = "".join(f" {k}={v}" for k, v in given.items())
                    told = f"{key} share={share} {name}{words}"
                    wanted.append(cells.Cell(told, make, 2.5, key))
                    places.append((setting, name, share, seed))
    for each in budget.figure_5:
        for seed in range(budget.seeds):
            make = functools.partial(figure_5, each, seed, args)
            told = f"figure 5: {each.name} {each.setting.key} seed={seed}"
            wanted.append(cells.Cell(told, make, 4.0))
            places.append((each.setting, "figure 5", each.name, seed))
    rows = cells.run(runs, wanted, args.share)
    if rows is None:
        return None
    found = dict(zip(places, rows, strict=True))
    measured = {}
    for setting in budget.settings:  # by one process: others may be at work on the rest
        for seed in range(budget.seeds):
            widths = sorted({
                tuple(row["widths"]) for (s, name, _, k), row in found.items()
                if s == setting and k == seed and name in filters.RIVALS
            })  # fmt: skip
            sizes = [list(w) for w in widths]
            key = f"latency {setting.key} batch={budget.batch} seconds={budget.seconds} {sizes}"
            make = functools.partial(latencies, setting, sizes, budget.batch, budget.seconds, args)
            measured[setting, seed] = runs.get(key, make)
    seeds = range(budget.seeds)
    lines: list[dict[str, Any]] = []
    for setting in budget.settings:
        right = [found[setting, "dense", None, seed]["accuracy"] for seed in seeds]
        lines.append({"network": setting.network, "method": "dense", "seeds": budget.seeds,
                      "flops_share": 1.0, "params_share": 1.0,
                      "accuracy": results.spread(right)})  # fmt: skip
        for share in budget.shares:
            for name in filters.RIVALS:
                own = [found[setting, name, share, seed] for seed in seeds]
                ratios = [measured[setting, seed] for seed in seeds]
                line = summary([{**r, "widths": list(r["widths"])} for r in own], ratios)
                line["minus_dense"] = results.paired([r["accuracy"] for r in own], right)
                ours = [found[setting, "DessiLBI", share, seed]["accuracy"] for seed in seeds]
                line["dessilbi_minus_this"] = results.paired(ours, [r["accuracy"] for r in own])
                lines.append(line)
    return {
        "config": {
            "budget": args.budget, "seeds": budget.seeds, "shares": budget.shares,
            "settings": [dataclasses.asdict(s) for s in budget.settings],
            "chosen": chosen, "chosen_on": budget.settings[0].network, "tried_on_held_out": [
                {k: row[k] for k in ("method", "given", "held_out")} for row in tried],
            "weight_decay": 0.0,
            "latency": {"batch": budget.batch, "dense_ms": {
                s.network: results.spread([measured[s, k]["dense_ms"] for k in seeds])
                for s in budget.settings}},
            "methods": {n: {"source": r.source, "assumed": r.assumed}
                        for n, r in filters.RIVALS.items()},
            **cells.made_on([*tried, *rows, *measured.values()]),
        },
        "table": lines,
        "figure_5": [row for place, row in found.items() if place[1] == "figure 5"],
    }  # fmt: skip


def show(lines: list[dict[str, Any]]) -> None:
    """The table in short."""
    print(f"n = {lines[0]['seeds']} seeds: mean ± standard deviation; p: paired t-tests")
    for line in lines:
        right = line["accuracy"]
        text = f"{line['network']:13} {line['method']:24} {right['mean']:6.2f} ± {right['std']}"
        if line["method"] != "dense":
            text += (
                f"  FLOPs {line['flops_share']['mean']:.3f}  latency {line['latency']['mean']:.3f}"
                f"  − E {line['minus_scratch_E']['mean']:+.2f} (p {line['minus_scratch_E']['p']})"
                f"  − B {line['minus_scratch_B']['mean']:+.2f} (p {line['minus_scratch_B']['p']})"
                f"  search {line['search']['mean']:.2f}, in all {line['training']['mean']:.2f}"
            )
        print(text)


def main() -> None:
    args = options.parsed(options.parser(__doc__, tuple(BUDGETS)))
    started = time.time()
    keep_memory()
    budget = BUDGETS[args.budget]
    name = options.name(args, "structured")
    runs = cells.Runs(options.place(args, name))
    result = table(budget, runs, args)
    if result is None:
        return
    show(result["table"])
    print(f"written to {results.write(name, result, started, options.folder(args))}")


if __name__ == "__main__":
    main()
