"""What does a ticket of 5 % cost that trains as well as the dense network? (Table 4)

    python -m benchmarks ticket_cost

Read from the results of `benchmarks.tickets`: for each method the training before the final
retraining, all of its rounds counted, in floating-point operations of dense training, in dense
runs and in seconds, and whether the accuracy after retraining is within 0.2 points of the dense
network's: yes or no where a one-sided t-test over the seeds says so at 5 %, else whether it is so
in the mean.
`sparse_runs` is the search where weights at zero cost nothing, which no machine here achieves.
Seconds are of one core of a shared machine, with compilation: processor time is the steadier. The
final retraining, one dense run for each ticket, is equal for all and not counted; methods that end
with a sparse network of their own can do without it, and `own_reached` says whether that is within
the bound too.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import results

COST = {"cpu": "a second, after tickets"}
TOLD = (
    "method", "nested", "retrained", "minus_dense", "own", "own_minus_dense", "search_flops",
    "search_runs", "search_seconds", "search_cpu_seconds", "sparse_runs",
)  # fmt: skip
BOUND = 0.2
DENSITY = 0.05


REACHED = ("yes", "in the mean", "not in the mean", "no")


def reached(gaps: dict[str, Any]) -> str:
    """One of `REACHED`, from the differences to the dense runs."""
    sure = results.above(gaps["values"], -BOUND)
    if sure != "undecided":
        return sure
    return "in the mean" if gaps["mean"] >= -BOUND else "not in the mean"


def cost(source: dict[str, Any]) -> dict[str, Any]:
    """The table from the result of one budget of `tickets`."""
    of_lottery = {
        line["density"]: line["search_flops"]
        for line in source["table"] if "lottery" in line["method"]
    }  # fmt: skip
    lottery = of_lottery[DENSITY]
    table = []
    for line in source["table"]:
        if line["density"] != DENSITY:
            continue
        own = line["own"] and reached(line["own_minus_dense"])
        row = {name: line[name] for name in TOLD if name in line}
        row["reached"] = reached(line["minus_dense"])
        row["own_reached"] = own
        flops = line["search_flops"]
        row["lottery_over_this"] = round(lottery / flops, 2) if flops else None
        table.append(row)
    smallest: dict[str, dict[str, float]] = {}
    for density in sorted(of_lottery, reverse=True):  # those that every method was asked for
        for line in source["table"]:
            found = [reached(line[key]) for key in ("minus_dense", "own_minus_dense")
                     if line["density"] == density and line.get(key)]  # fmt: skip
            if {"yes", "in the mean"} & set(found):
                smallest[line["method"]] = {name: line[name] for name in ("density", "search_runs")}
    return {
        **{name: source[name] for name in source if name.startswith("dense")},
        "table": sorted(table, key=lambda r: (REACHED.index(r["reached"]), r["search_flops"])),
        "smallest_reached": smallest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=results.RESULTS, metavar="DIR",
        help="folder of tickets.json, and of what is written",
    )  # fmt: skip
    args = parser.parse_args()
    started = time.time()
    file = args.results / "tickets.json"
    if not file.exists():
        parser.error(f"{file} is not there yet: python -m benchmarks tickets makes it")
    source = json.loads(file.read_text())
    result = cost(source)
    for row in result["table"]:
        mean = row["search_cpu_seconds"]["mean"]
        print(f"{row['method']:24s} {row['reached']:10s} {row['minus_dense']['mean']:+.2f}"
              f"  {row['search_runs']:6.2f} runs  {mean:7.1f} s")  # fmt: skip
    config = {"bound": BOUND, "density": DENSITY, "measured_on": source["machine"]}
    config |= source["config"]
    print(results.write("ticket_cost", {"config": config, **result}, started, args.results))


if __name__ == "__main__":
    main()
