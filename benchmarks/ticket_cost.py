"""What does a ticket of 5 % cost that trains as well as the dense network? (Table 4)

    python -m benchmarks ticket_cost

Read from the results of `benchmarks.tickets`: for each method the training before the final
retraining, all of its rounds counted, in floating-point operations of dense training, in dense
runs and in seconds, and whether the mean accuracy after retraining is within 0.2 points of the
dense network's. Seconds are of one core of a shared machine: processor
time is the steadier of the two. The final retraining, one dense run for each ticket, is equal for
all and not counted; methods that end with a sparse network of their own can do without it, and
`own` says whether that network is within the bound too.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import results

COST = {"cpu": "a second, after tickets"}
BOUND = 0.2
DENSITY = 0.05


def cost(source: dict[str, Any]) -> dict[str, Any]:
    """The table from the result of one budget of `tickets`."""
    dense = source["dense"]["mean"]
    lottery = next(
        line["search_flops"] for line in source["table"]
        if "lottery" in line["method"] and line["density"] == DENSITY
    )  # fmt: skip
    table = []
    for line in source["table"]:
        if line["density"] != DENSITY:
            continue
        own = line["own"]
        gap = line["minus_dense"]["mean"]
        table.append(
            {
                "method": line["method"],
                "reached": gap >= -BOUND,
                "retrained": line["retrained"],
                "minus_dense": line["minus_dense"],
                "own_reached": own is not None and own["mean"] >= dense - BOUND,
                "own": own,
                "search_flops": line["search_flops"],
                "search_runs": line["search_runs"],
                "search_seconds": line["search_seconds"],
                "search_cpu_seconds": line["search_cpu_seconds"],
                "lottery_over_this": round(lottery / line["search_flops"], 2)
                if line["search_flops"]
                else None,
            }
        )
    curve = sorted(
        (line["density"], line["retrained"]["mean"], line["retrained"]["std"])
        for line in source["table"]
        if line["method"] == "DessiLBI"
    )
    smallest = {}
    for line in source["table"]:
        if line["minus_dense"]["mean"] >= -BOUND:
            name = line["method"]
            smallest[name] = min(smallest.get(name, 1.0), line["density"])
    return {
        "dense": source["dense"],
        "dense_flops": source["dense_flops"],
        "dense_seconds": source["dense_seconds"],
        "dense_cpu_seconds": source["dense_cpu_seconds"],
        "table": sorted(table, key=lambda row: (not row["reached"], row["search_flops"])),
        "curve": curve,
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
        mark = "reached" if row["reached"] else "       "
        mean = row["search_cpu_seconds"]["mean"]
        print(f"{row['method']:24s} {mark} {row['minus_dense']['mean']:+.2f}"
              f"  {row['search_runs']:6.2f} runs  {mean:7.1f} s")  # fmt: skip
    config = {"bound": BOUND, "density": DENSITY, "measured_on": source["machine"]}
    config |= source["config"]
    print(results.write("ticket_cost", {"config": config, **result}, started, args.results))


if __name__ == "__main__":
    main()
