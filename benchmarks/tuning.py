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

COST = {"smoke": "5 minutes", "cpu": "an hour on one core"}
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


def choice(rival: Rival, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the trials of a method say: the setting of the best one, of equal ones the first."""
    best = max(rows, key=lambda row: row["score"])
    told = ("setting", "own", "retrained", "search_runs")
    return {
        "method": rival.name,
        "source": rival.source,
        "assumed": rival.assumed,
        "chosen": best["setting"],
        "score": best["score"],
        "trials": [{name: row[name] for name in told} for row in rows],
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

            key = f"{setting.key} {rival.name} {density:g} {json.dumps(words)}"
            wanted.append(cells.Cell(key, make, 8.0 if "lottery" in key else 1.0, rival.name))
    rows = cells.run(runs, wanted, args.share)
    if rows is None or args.methods:
        return
    table = [choice(rival, [r for r in rows if r["method"] == rival.name]) for rival in rivals]
    for line in table:
        print(f"{line['method']:26s} {line['score']:6.2f}  {line['chosen']}")
    config = {"setting": dataclasses.asdict(setting), "seed": SEED, "density": density}
    result = {"config": config | cells.made_on(rows), "table": table}
    print(results.write("tuning", result, started, options.folder(args)))


if __name__ == "__main__":
    main()
