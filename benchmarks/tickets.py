"""Which sparse network of a size trains to the best accuracy, and what does it cost? (Table 3)

    python -m benchmarks tickets --data-dir DIR [--budget cpu] [--share 1/2]

Fig. 5, Fig. 7 and Tables 7 to 9 of the ICLR text. Every way to sparse weights of `rivals` gives a
mask of exactly the asked share of all kernel weights. Every mask is then trained from the same
initialisation, in the same order of batches and with the same schedule as the dense run
("retrained"); where a method ends with a sparse network of its own, that is judged too ("own").
Settings were chosen once on held-out images by `benchmarks.tuning`; test images are touched once.

    smoke    a narrow LeNet-300-100 on a few digits, every method, seconds each
    cpu      LeNet-300-100 on MNIST: every method, 4 densities, 5 seeds, 10 epochs a run
    lenet5   LeNet-5 on MNIST: five methods, 2 densities, 3 seeds, 3 epochs a run
    fashion  LeNet-300-100 on Fashion-MNIST; not run
    conv2, conv4   on CIFAR-10, 40 epochs a run; for a GPU, not run

`cpu` also trains the DessiLBI tickets from the weights that its run had after some epochs
("F-epoch k"), for the rest of the dense run's schedule.
"""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.harness import cells, masks, options, results
from benchmarks.harness.cost import Cost
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import dessilbi, methods
from benchmarks.rivals.rival import exact
from benchmarks.tuning import chosen
from dessilbi_jax.train.devices.allocator import keep_memory

COST = {
    "smoke": "a minute",
    "cpu": "2.2 hours on one core",
    "lenet5": "1.9 hours on one core",
    "fashion": "as cpu",
    "conv2": "about 3e17 FLOPs of training; not measured",
    "conv4": "about 6e17 FLOPs of training; not measured",
}
SIX = (
    "DessiLBI",
    "DessiLBI, settled",
    "one-shot",
    "lottery (IMP)",
    "gradual (Zhu-Gupta)",
    "random",
)
ALL = tuple(rival.name for rival in methods.RIVALS)
UNTUNED = tuple(rival.name for rival in methods.UNTUNED)
# Methods whose whole curve is shown: one run each.
CURVES = ("DessiLBI", "one-shot", "matched decay")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is trained.

    Attributes:
        setting: the network and its run.
        seeds: how many.
        densities: of every method.
        methods: their names.
        curve: further densities of the methods of `CURVES`.
        rewound: epochs after which the weights are taken for "F-epoch k".
        untuned: whether methods take their first setting.
    """

    setting: Setting
    seeds: int
    densities: tuple[float, ...]
    methods: tuple[str, ...] = ALL + UNTUNED
    curve: tuple[float, ...] = ()
    rewound: tuple[int, ...] = ()
    untuned: bool = False


_DENSITIES = (0.05, 0.02, 0.01, 0.5)
BUDGETS = {
    "smoke": Budget(
        Setting("lenet300", "mnist", 2, 0.01, batch=16, widths=(16, 8)), 1, (0.2,),
        curve=(0.3,), rewound=(1,), untuned=True,
    ),
    "cpu": Budget(
        Setting("lenet300", "mnist", 10, 0.05), 5, _DENSITIES,
        curve=(0.03, 0.1, 0.2, 0.3), rewound=dessilbi.EPOCHS,
    ),
    "lenet5": Budget(Setting("lenet5", "mnist", 3, 0.01), 3, (0.05, 0.02), SIX),
    "fashion": Budget(Setting("lenet300", "fashion_mnist", 10, 0.05), 5, _DENSITIES),
    "conv2": Budget(Setting("conv2", "cifar10", 40, 0.02), 3, _DENSITIES),
    "conv4": Budget(Setting("conv4", "cifar10", 40, 0.02), 3, _DENSITIES),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the rows of one budget."""

    budget: Budget
    args: Any

    def work(self, seed: int) -> Work:
        return Work(self.budget.setting, seed, self.args.data_dir, self.args.work / "kept")

    def setting(self, name: str) -> dict[str, Any]:
        """How a method is run: the first of its trials or the one that was chosen."""
        if name in UNTUNED:
            ours = self.setting("DessiLBI")
            return {"nu": ours["nu"]} if name == methods.SAME_NU.name else ours
        trials = methods.named(name).trials
        return trials[0] if self.budget.untuned or len(trials) == 1 else chosen(name)

    def dense(self, seed: int) -> dict[str, Any]:
        work = self.work(seed)
        run = work.dense()
        row = {"method": "dense", "retrained": work.accuracy(run["params"], run["stats"])}
        return row | {"seed": seed, "cost": dataclasses.asdict(work.cost)}

    def ticket(self, name: str, density: float, seed: int) -> dict[str, Any]:
        work = self.work(seed)
        setting = self.setting(name)
        before = Cost()
        if name == "random":  # as many weights in each layer as DessiLBI's ticket has
            own = dessilbi.once(self.work(seed), density, **self.setting("DessiLBI"))
            setting = {"layers": tuple(float(m.mean()) for m in masks.kernels(own.mask))}
            before = own.cost
        found = methods.named(name).find(work, density, **setting)
        if not exact(found, density):
            raise RuntimeError(f"{name} kept {masks.density(found.mask)} of the weights")
        row: dict[str, Any] = {
            "method": name,
            "seed": seed,
            "density": density,
            "kept": masks.density(found.mask),
            "layers": masks.by_layer(found.mask),
            "cost": dataclasses.asdict(before + found.cost),
            "own": work.accuracy(found.params, found.stats) if found.params else None,
            **found.told,
        }
        searched = work.cost
        after = work.retrained(found.mask)
        final = dataclasses.asdict(work.cost - searched)
        return row | {"retrained": work.accuracy(after.params, after.stats), "final": final}

    def rewound(self, epochs: int, density: float, seed: int) -> dict[str, Any]:
        """DessiLBI's ticket trained from the weights of its own run after some epochs."""
        work = self.work(seed)
        setting = self.setting("DessiLBI")
        found = dessilbi.once(work, density, **setting)
        params, stats = dessilbi.weights_after(work, epochs, **setting)
        after = work.retrained(found.mask, params, stats, first=work.steps(epochs))
        return {
            "method": "DessiLBI", "seed": seed, "density": density, "rewound": epochs,
            "retrained": work.accuracy(after.params, after.stats),
        }  # fmt: skip

    def wanted(self) -> list[cells.Cell]:
        """All cells, seed by seed."""
        return [cell for seed in range(self.budget.seeds) for cell in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> list[cells.Cell]:
        budget = self.budget

        def cell(name: str, setting: Any, make: Callable[..., Any], *words: Any) -> cells.Cell:
            told = "" if setting is None else f" {json.dumps(setting)}"
            key = f"{budget.setting.key} {name}{told} seed={seed}"
            weight = 7.0 if "lottery" in name else 2.0
            return cells.Cell(key, lambda: make(*words, seed), weight, f"seed={seed}")

        ours = self.setting("DessiLBI")
        wanted = [(name, d) for name in budget.methods for d in budget.densities]
        wanted += [(name, d) for name in CURVES for d in budget.curve]
        out = [cell("dense", None, self.dense)]
        for name, d in wanted:
            setting = {"like": ours} if name == "random" else self.setting(name)
            out.append(cell(f"{name} {d:g}", setting, self.ticket, name, d))
        late = budget.densities[min(1, len(budget.densities) - 1)]
        out += [cell(f"F-epoch {k} {late:g}", ours, self.rewound, k, late) for k in budget.rewound]
        return out


def summed(budget: Budget, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table: means, deviations, paired differences, costs in dense runs."""
    dense = [row for row in rows if row["method"] == "dense"]
    run = dense[0]["cost"]["flops"]
    tickets = defaultdict(list)
    late = defaultdict(list)
    for row in rows:
        if "rewound" in row:
            late[row["density"], row["rewound"]].append(row["retrained"])
        elif row["method"] != "dense":
            tickets[row["method"], row["density"]].append(row)
    return {
        "dense": results.spread([row["retrained"] for row in dense]),
        "dense_flops": run,
        "dense_seconds": results.spread([row["cost"]["seconds"] for row in dense]),
        "dense_cpu_seconds": results.spread([row["cost"]["cpu_seconds"] for row in dense]),
        "table": [
            line(own, dense, [row["retrained"] for row in tickets["DessiLBI", density]])
            for (_, density), own in tickets.items()
        ],
        "rewound": [
            {"density": density, "epochs": epochs, "retrained": results.spread(values)}
            for (density, epochs), values in late.items()
        ],
    }


def line(
    own: list[dict[str, Any]], dense: list[dict[str, Any]], ours: list[float]
) -> dict[str, Any]:
    """A method at a density, from its rows, those of the dense runs and DessiLBI's accuracies."""
    whole = [row["retrained"] for row in dense]
    accuracies = [row["retrained"] for row in own]
    run = dense[0]["cost"]["flops"]
    out: dict[str, Any] = {
        "method": own[0]["method"],
        "density": own[0]["density"],
        "nested": methods.named(own[0]["method"]).nested,
        "retrained": results.spread(accuracies),
        "minus_dense": results.paired(accuracies, whole),
        "dessilbi_minus_this": results.paired(ours, accuracies),
        "own": None,
        "layers": [round(sum(each) / len(own), 5)
                   for each in zip(*(row["layers"] for row in own), strict=True)],
        "search_runs": round(own[0]["cost"]["flops"] / run, 3),
        "search_flops": own[0]["cost"]["flops"],
        "search_seconds": results.spread([row["cost"]["seconds"] for row in own]),
        "search_cpu_seconds": results.spread([row["cost"]["cpu_seconds"] for row in own]),
    }  # fmt: skip
    if own[0]["own"] is not None:
        ends = [row["own"] for row in own]
        out["own"] = results.spread(ends)
        out["own_minus_dense"] = results.paired(ends, whole)
        out["dessilbi_minus_own"] = results.paired(ours, ends)
    for extra in ("sparse_runs", "reached", "density_before_cut"):
        if extra in own[0]:
            out[extra] = round(sum(row[extra] for row in own) / len(own), 5)
    return out


def printed(result: dict[str, Any]) -> None:
    """The table on the terminal."""
    print(f"dense {result['dense']['mean']:.2f} ± {result['dense']['std']}")
    for row in sorted(result["table"], key=lambda x: (x["density"], -x["retrained"]["mean"])):
        shown = row["retrained"]
        own = "" if row["own"] is None else f"  own {row['own']['mean']:6.2f}"
        print(f"{row['density']:5.0%} {row['method']:24s} {shown['mean']:6.2f} ± {shown['std']}"
              f"  {row['search_runs']:6.2f} runs{own}")  # fmt: skip


def main() -> None:
    parser = options.parser(__doc__ or "", tuple(BUDGETS))
    args = options.parsed(parser)
    started = time.time()
    keep_memory()
    budget = BUDGETS[args.budget]
    name = options.name(args, "tickets")
    runs = cells.Runs(options.place(args, name))
    rows = cells.run(runs, Maker(budget, args).wanted(), args.share)
    if rows is None:
        return
    result = summed(budget, rows)
    printed(result)
    config = {
        "setting": dataclasses.asdict(budget.setting),
        "seeds": list(range(budget.seeds)),
        "densities": budget.densities,
        "methods": {
            method: Maker(budget, args).setting(method)
            for method in budget.methods
            if method != "random"
        },
        **cells.made_on(rows),
    }
    full = {"config": config, **result}
    print(results.write(name, full, started, options.folder(args)))


if __name__ == "__main__":
    main()
