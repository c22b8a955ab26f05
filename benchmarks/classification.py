"""Does DessiLBI train the dense network as well as the usual optimizers? (Table 1)

    python -m benchmarks classification --data-dir DIR [--share 1/2]
    python -m benchmarks classification --data-dir DIR --budget long
    python -m benchmarks classification --data-dir DIR --budget gpu

The papers' Tables 1 and 2. `cpu`: LeNet-5 on MNIST, every optimizer, 8 epochs instead of 100 with
the rate divided by 10 after 30, 60 and 90 % of them, batch 128, 3 seeds. `long`: two of the rows,
24 epochs, one seed: what the short run costs. `gpu`: the column of CIFAR-10, ResNet-20 with crops
and flips, 160 epochs; it has not been run. The rows of ImageNet are `dessilbi train
resnet18-imagenet` and `resnet50-imagenet` on a pod, see the project's README.

The coupling of DessiLBI stands behind the momentum ("toolbox") or before it ("paper"); without
momentum both are the same. ν = 100, κ = 1, λ automatic for 10 % of the weights by filters. Rates
were chosen among three on held-out images after one epoch (`--choose`), for the first optimizer
that uses each; of two that are within an image of each other, the larger. Nesterov has the decay of
the row above it, which its published accuracy suggests. Adagrad is Optax's, whose sums of squares
start at 0.1, and so is AMSGrad, which takes the maximum of second moments corrected for their bias,
so that the first batch's count fully. "DessiLBI-Mom-Wd, paper" has the placement of the papers and
the decay of all rows here, as L2 in the loss.

Rows farther from their figure than 0.15 points are short of training: in `long` SGD with momentum
is at its figure. The paper's placement is not; there the decay by 1/ν of what is not in Γ passes
through the momentum, which makes it ten times as strong (see `benchmarks.placement` for larger ν).
"""

import dataclasses
import time
from typing import Any

import dessilbi_jax as dl
from benchmarks.harness import cells, masks, options, results
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals.optimizers import OPTIMIZERS, Optimizer, made
from dessilbi_jax.train.devices.allocator import keep_memory

COST = {
    "smoke": "a minute",
    "cpu": "2.4 hours on one core",
    "long": "20 minutes on one core",
    "gpu": "about 9e16 FLOPs of training; not measured",
}
CHOOSING_SEED = 100


@dataclasses.dataclass(frozen=True)
class Budget:
    """A network, the seeds, the peak of the rate by kind of optimizer, and the rows if not all."""

    setting: Setting
    seeds: int
    rates: dict[str, float]
    published: str
    tried: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = ()

    @property
    def optimizers(self) -> list[Optimizer]:
        return [o for o in OPTIMIZERS if not self.only or o.name in self.only]


MNIST_RATES = {"sgd": 0.05, "momentum": 0.01, "adaptive": 0.001, "adagrad": 0.02}
BUDGETS = {
    "smoke": Budget(
        Setting("lenet300", "mnist", 2, 0.05, batch=16, schedule="steps", widths=(10, 8)),
        1, MNIST_RATES, "mnist",
    ),
    "cpu": Budget(
        Setting("lenet5", "mnist", 8, 0.05, schedule="steps"), 3, MNIST_RATES, "mnist",
        {"sgd": (0.1, 0.05, 0.02), "momentum": (0.02, 0.01, 0.005),
         "adaptive": (0.003, 0.001, 0.0003), "adagrad": (0.05, 0.02, 0.01)},
    ),
    "long": Budget(
        Setting("lenet5", "mnist", 24, 0.05, schedule="steps"), 1, MNIST_RATES, "mnist",
        only=("SGD Mom", "DessiLBI-Mom, paper"),
    ),
    "gpu": Budget(
        Setting("resnet20", "cifar10", 160, 0.1, schedule="steps", augment=True), 3,
        {"sgd": 0.1, "momentum": 0.1, "adaptive": 0.001, "adagrad": 0.01}, "cifar10",
    ),
}  # fmt: skip


def measure(work: Work, optimizer: Optimizer, split: Any = "test") -> dict[str, Any]:
    """Accuracy at the end of one run; for DessiLBI also of W projected on the support of Γ."""
    tx = made(optimizer.name, work.rate(), work.steps())
    params, stats, state = work.train(tx, penalty=optimizer.penalty)
    row: dict[str, Any] = {
        "method": optimizer.name,
        "seed": work.seed,
        "rate": work.setting.rate,
        "accuracy": work.accuracy(params, stats, split),
    }
    if optimizer.is_dessilbi:
        kept = dl.support(state)
        row["projected"] = work.accuracy(dl.project(params, kept), stats, split)
        row["density"] = masks.density(kept)
        row["layers"] = masks.by_layer(kept)
    return row


def cell(budget: Budget, optimizer: Optimizer, seed: int, data_dir: str | None) -> cells.Cell:
    setting = dataclasses.replace(budget.setting, rate=budget.rates[optimizer.rate])

    def make() -> dict[str, Any]:
        return measure(Work(setting, seed, data_dir), optimizer)

    return cells.Cell(f"{setting.key} {optimizer.name} seed={seed}", make)


def choose(budget: Budget, args: Any) -> None:
    """Tries rates on held-out images, one epoch each, with a seed of its own."""
    runs = cells.Runs(options.place(args, "classification_rates"))
    wanted = []
    for kind, rates in budget.tried.items():
        optimizer = next(o for o in OPTIMIZERS if o.rate == kind)
        for rate in rates:
            setting = dataclasses.replace(budget.setting, rate=rate, epochs=1, held_out=10_000)

            def make(setting: Setting = setting, optimizer: Optimizer = optimizer) -> Any:
                return measure(Work(setting, CHOOSING_SEED, args.data_dir), optimizer, "held_out")

            wanted.append(cells.Cell(f"{setting.key} {optimizer.name}", make))
    for row in cells.run(runs, wanted, args.share) or []:
        print(f"{row['method']:20s} {row['rate']:<8g} {row['accuracy']:.2f}")


def main() -> None:
    parser = options.parser(__doc__ or "", tuple(BUDGETS))
    parser.add_argument("--choose", action="store_true", help="try learning rates instead")
    args = options.parsed(parser)
    started = time.time()
    keep_memory()
    budget = BUDGETS[args.budget]
    if args.choose:
        choose(budget, args)
        return
    name = options.name(args, "classification")
    runs = cells.Runs(options.place(args, name))
    wanted = [cell(budget, optimizer, seed, args.data_dir)
              for seed in range(budget.seeds) for optimizer in budget.optimizers]  # fmt: skip
    rows = cells.run(runs, wanted, args.share)
    if rows is None:
        return
    table = []
    for optimizer in budget.optimizers:
        own = [row for row in rows if row["method"] == optimizer.name]
        published = getattr(optimizer, budget.published)
        line: dict[str, Any] = {
            "method": optimizer.name,
            "rate": own[0]["rate"],
            "accuracy": results.spread([row["accuracy"] for row in own]),
            "published": published,
        }
        line["minus_published"] = round(line["accuracy"]["mean"] - published, 3)
        for extra in ("projected", "density"):
            if extra in own[0]:
                line[extra] = results.spread([row[extra] for row in own])
        if "layers" in own[-1]:
            line["layers"] = own[-1]["layers"]
        if optimizer.is_dessilbi:
            base = "SGD naive" if optimizer.rate == "sgd" else "SGD Mom"
            base += "-Wd" if "Wd" in optimizer.name else ""
            theirs = [row["accuracy"] for row in rows if row["method"] == base]
            line["minus_sgd"] = {
                "method": base,
                **results.paired([row["accuracy"] for row in own], theirs),
            }
        table.append(line)
        print(f"{optimizer.name:26s} {line['accuracy']['mean']:6.2f} ± {line['accuracy']['std']}"
              f"  published {published:.2f}")  # fmt: skip
    config = {
        "setting": dataclasses.asdict(budget.setting),
        "seeds": list(range(budget.seeds)),
        "rates": budget.rates,
        **cells.made_on(rows),
    }
    result = {"config": config, "table": table}
    print(results.write(name, result, started, options.folder(args)))


if __name__ == "__main__":
    main()
