"""Which setting suits each way to sparse weights? Eight trials each, on held-out images.

    python -m benchmarks tuning --data-dir DIR [--share 1/2]

Every method of `rivals.methods` is tried with its eight settings, once each, on LeNet-300-100 at
2 % of the weights: found on 50,000 training images of MNIST with a seed of its own, retrained, and
judged on the other 10,000. The better counts of the accuracy after retraining and of the network
that the method itself ends with. `benchmarks.tickets` uses what is chosen here, at all densities
and on all networks. Retraining is the same for all and is not tuned.
"""

import dataclasses
import json
import time
from typing import Any

from benchmarks.harness import cells, options, results
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import methods
from benchmarks.rivals.rival import Rival

COST = {"smoke": "5 minutes", "cpu": "2 hours on one core"}
SEED = 100
BUDGETS = {
    "smoke": (Setting("lenet300", "mnist", 2, 0.05, batch=16, held_out=50, widths=(16, 8)), 0.2),
    "cpu": (Setting("lenet300", "mnist", 10, 0.05, held_out=10_000), 0.02),
}


def trial(work: Work, rival: Rival, density: float, setting: dict[str, Any]) -> dict[str, Any]:
    """Held-out accuracy of one setting."""
    found = rival.find(work, density, **setting)
    own = work.accuracy(found.params, found.stats, "held_out") if found.params else None
    after = work.retrained(found.mask)
    retrained = work.accuracy(after.params, after.stats, "held_out")
    return {
        "method": rival.name,
        "setting": setting,
        "own": own,
        "retrained": retrained,
        "score": max(retrained, own or 0.0),
        "search_runs": work.in_runs(found.cost),
    }


def chosen(name: str) -> dict[str, Any]:
    """The setting chosen for a method, from the committed result.

    Raises:
        LookupError: there is no result for it yet.
    """
    file = results.RESULTS / "tuning.json"
    rows = json.loads(file.read_text())["table"] if file.exists() else []
    for row in rows:
        if row["method"] == name:
            return row["chosen"]
    raise LookupError(f"no setting was chosen for {name!r} yet: python -m benchmarks tuning")


def main() -> None:
    parser = options.parser(__doc__ or "", tuple(BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=[r.name for r in methods.RIVALS])
    args = options.parsed(parser)
    started = time.time()
    setting, density = BUDGETS[args.budget]
    runs = cells.Runs(options.place(args, "tuning"))
    wanted = []
    rivals = [r for r in methods.RIVALS if not args.methods or r.name in args.methods]
    for rival in rivals:
        for words in rival.trials:

            def make(rival: Rival = rival, words: dict[str, Any] = words) -> dict[str, Any]:
                work = Work(setting, SEED, args.data_dir, args.work / "kept")
                return trial(work, rival, density, words)

            wanted.append(cells.Cell(f"{setting.key} {rival.name} {json.dumps(words)}", make))
    rows = cells.run(runs, wanted, args.share)
    if rows is None or args.methods:
        return
    table = []
    for rival in rivals:
        own = [row for row in rows if row["method"] == rival.name]
        best = max(own, key=lambda row: row["score"])
        table.append(
            {
                "method": rival.name, "source": rival.source, "assumed": rival.assumed,
                "chosen": best["setting"],
                "trials": [
                    {name: row[name] for name in ("setting", "own", "retrained", "search_runs")}
                    for row in own
                ],
            }
        )  # fmt: skip
        print(f"{rival.name:26s} {best['score']:6.2f}  {best['setting']}")
    config = {
        "setting": dataclasses.asdict(setting),
        "seed": SEED,
        "density": density,
        "training_seconds": round(sum(row["seconds"] for row in rows)),
    }
    result = {"config": config, "table": table}
    print(results.write("tuning", result, started, options.folder(args)))


if __name__ == "__main__":
    main()
