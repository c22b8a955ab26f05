"""Do filters of large norm answer to shape and those of small norm to colour, as the paper reads?

    python -m benchmarks interpretation --data-dir DIR [--budget cpu]

What `dessilbi interpret` measures, on short runs: LeNet-5 on MNIST and a small VGG with 48 filters
in its first layer on CIFAR-10, with κ = 10 (LeNet-5 with κ = 1 too) and by SGD alone (ν = 10⁹: the
coupling is nothing, Γ stays 0), seed 0. Of each first layer at the end: Spearman's rank correlation
of colour saturation, spatial frequency and orientation with the l2 norm and with the time of entry,
with Fisher's 95 % interval; and how many of the twelve filters of the last convolution that entered
first (by SGD: of largest norm) are silent, that is dead behind their ReLU. MNIST has no colour.
Stops and goes on where it was; the runs, with their reports, are kept under `--work`.
"""

import dataclasses
import functools
import time
from typing import Any

from benchmarks.harness import cells, options, results
from benchmarks.harness.cells import Cell, Runs
from dessilbi_jax import report, train
from dessilbi_jax.train import TrainConfig

COST = {"smoke": "seconds", "cpu": "15 minutes of two cores"}

_LENET5 = TrainConfig(
    network="lenet5", dataset="mnist", epochs=1, learning_rate=0.01, schedule="cosine",
    structure="filters", density=0.5, nu=20.0, records_per_epoch=8, holdout=0.02,
)  # fmt: skip
_VGG = TrainConfig(
    network="vgg-small", dataset="cifar10", widths=(48, 12, 24), epochs=1, learning_rate=0.05,
    schedule="cosine", weight_decay=5e-4, structure="filters", density=0.5, nu=100.0,
    records_per_epoch=8, holdout=0.02,
)  # fmt: skip
_SMOKE = TrainConfig(
    network="vgg-small", dataset="digits", widths=(6, 4), epochs=2, learning_rate=0.1,
    structure="filters", density=0.5, nu=50.0,
)  # fmt: skip
# How each network is trained: what changes in its configuration.
WAYS: dict[str, dict[str, Any]] = {
    "kappa=1": {"kappa": 1.0},
    "kappa=10": {"kappa": 10.0},
    "sgd": {"nu": 1e9, "lam": 1.0, "density": None},
}
# Network, and the ways in which it is trained; by SGD first, which the others stand beside.
BUDGETS = {
    "smoke": ((_SMOKE, ("sgd", "kappa=10")),),
    "cpu": ((_LENET5, ("sgd", "kappa=10", "kappa=1")), (_VGG, ("sgd", "kappa=10"))),
}


def measure(config: TrainConfig, way: str, args: Any) -> dict[str, Any]:
    """Trains, looks at the filters, and keeps the numbers."""
    ours = dataclasses.replace(config, **WAYS[way])
    out = args.work / "interpretation" / f"{config.network}-{way.replace('=', '-')}"
    result = train.fit(ours, out, data_dir=args.data_dir, resume="auto")
    beside = out.with_name(f"{config.network}-sgd")
    found = train.interpret(
        out, data_dir=args.data_dir, beside=beside if way != "sgd" else None,
        steps=2 if args.budget == "smoke" else 128,
    )  # fmt: skip
    report.write(out)
    return {
        "network": config.network,
        "dataset": config.dataset,
        "way": way,
        "test_accuracy": result["test_accuracy"],
        "density": result["density"],
        "first": found["first"],
        "filters": found["filters"],
        "entered": found["entered"],
        "last": found["layer"],
        "shown": found["shown"],
        "silent": found["silent"]["w"],
        "correlations": [
            {name: row[name] for name in ("measure", "against", "rho", "low", "high", "pairs")}
            for row in found["correlations"]
            if row["own"] and row["pairs"]
        ],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each correlation with the norm."""
    for row in rows:
        print(
            f"{row['network']} {row['way']}: accuracy {row['test_accuracy']:.4f}, "
            f"{row['entered']} of {row['filters']} filters of {row['first']} entered, "
            f"{row['silent']} of {row['shown']} of {row['last']} silent"
        )
        for each in row["correlations"]:
            if each["rho"] is not None:
                interval = f"{each['low']:+.2f}…{each['high']:+.2f}"
                print(
                    f"  {each['measure']:12}{each['against']:6}{each['rho']:+.2f}  {interval}  "
                    f"n={each['pairs']}"
                )


def main() -> None:
    """Makes the table."""
    args = options.parsed(options.parser(__doc__, tuple(BUDGETS)))
    started = time.time()
    name = options.name(args, "interpretation")
    runs = Runs(options.place(args, name))
    wanted = [
        Cell(
            f"{config.network} {config.dataset} {way} epochs={config.epochs} seed={config.seed}",
            functools.partial(measure, config, way, args),
            group=config.network,  # the others are shown beside the one by SGD
        )
        for config, ways in BUDGETS[args.budget]
        for way in ways
    ]
    rows = cells.run(runs, wanted, args.share)
    if rows is None:
        return
    show(rows)
    told = [config.to_json() for config, _ in BUDGETS[args.budget]]
    result = {"config": {"runs": told, "ways": WAYS, **cells.made_on(rows)}, "table": rows}
    print(results.write(name, result, started, options.folder(args)))


if __name__ == "__main__":
    main()
