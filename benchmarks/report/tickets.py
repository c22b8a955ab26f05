"""The sections of tables 3 and 4, from the JSON of their results."""

from typing import Any

from benchmarks.report.markdown import gap, listed, mean, percent, table

Result = dict[str, Any]

# Densities by layer of the winning tickets that the papers print.
PAPERS_LAYERS = {
    "lenet300": ("LeNet-3", (0.049, 0.087, 0.398)),
    "conv2": ("Conv-2", (0.9375, 1.0, 0.0067, 0.0284, 0.1551)),
    "conv4": ("Conv-4", (0.921875, 1.0, 1.0, 1.0, 0.0040, 0.0094, 0.1004)),
}
SIGNIFICANT = 0.05


def _cells(result: Result) -> dict[tuple[str, float], Result]:
    return {(line["method"], line["density"]): line for line in result["table"]}


def ahead(result: Result) -> str:
    """Where a rival wins, in words: paired by seed, with the p of the t-test."""
    words = []
    for density in sorted(result["config"]["densities"]):
        lines = [
            line for line in result["table"]
            if line["density"] == density and "dessilbi_minus_this" in line
            and not line["method"].startswith("DessiLBI")
        ]  # fmt: skip
        better = [line for line in lines if line["dessilbi_minus_this"]["mean"] < 0]
        sure = [
            line for line in better
            if (line["dessilbi_minus_this"]["p"] or 1.0) < SIGNIFICANT
        ]  # fmt: skip
        told = [
            f"{line['method']} by {-line['dessilbi_minus_this']['mean']:.2f} "
            f"(p = {line['dessilbi_minus_this']['p']:.2g}, {line['search_runs']:g} runs)"
            for line in sorted(sure, key=lambda line: line["dessilbi_minus_this"]["mean"])
        ]
        text = f"At {percent(density)} of the weights "
        text += (
            f"ahead of DessiLBI after retraining: {listed(told)}"
            if told
            else "no method is ahead of DessiLBI with p below 0.05"
        )
        unsure = len(better) - len(sure)
        text += f"; {unsure} more are ahead within the noise." if unsure else "."
        words.append(text)
    return "\n".join(f"- {text}" for text in words)


def tickets(result: Result) -> str:
    """Table 3."""
    config, setting = result["config"], result["config"]["setting"]
    cells = _cells(result)
    densities = sorted(config["densities"], reverse=True)
    rows = []
    for method in dict.fromkeys(line["method"] for line in result["table"]):
        if (method, densities[0]) not in cells:
            continue
        found = [cells[method, d] for d in densities]
        runs = " / ".join(f"{line['search_runs']:.3g}" for line in found)
        rows.append((method, *(mean(line["retrained"]) for line in found), runs))
    owns = [
        (method, *(mean(cells[method, d]["own"]) for d in densities))
        for method, *_ in rows
        if cells[method, densities[0]]["own"] is not None
    ]
    heads = ("retrained", *map(percent, densities), "runs to find it")
    parts = [
        f"{setting['network']} on {setting['dataset']}, {setting['epochs']} epochs a run, "
        f"{len(config['seeds'])} seeds; test accuracy in percent. Dense: {mean(result['dense'])}.",
        table(heads, rows),
        "Runs to find it: training before the final retraining, in dense runs, in the order of "
        "the columns. DessiLBI's one run serves all of its columns.",
        ahead(result),
        "The sparse network that a method itself ends with, not retrained:",
        table(("own", *map(percent, densities)), owns),
    ]
    if result.get("rewound"):
        late = " ".join(
            f"k = {line['epochs']}: {mean(line['retrained'])};" for line in result["rewound"]
        )
        density = percent(result["rewound"][0]["density"])
        parts.append(
            f"The DessiLBI ticket of {density} from the weights after k epochs of its own run "
            f'("F-epoch k"), for the rest of the schedule: {late.rstrip(";")}.'
        )
    parts.append(layers(result))
    return "\n\n".join(part for part in parts if part)


def layers(result: Result) -> str:
    """Densities by layer beside the papers'."""
    network = result["config"]["setting"]["network"]
    if network not in PAPERS_LAYERS:
        return ""
    name, theirs = PAPERS_LAYERS[network]
    rows = [(f"{name}, the papers'", *(f"{x:g}" for x in theirs))]
    for line in result["table"]:
        if line["method"] in ("DessiLBI", "lottery (IMP)") and line["density"] == 0.05:
            rows.append((f"{line['method']}, 5 %", *(f"{x:.3g}" for x in line["layers"])))
    heads = ("density of kernel", *(str(i + 1) for i in range(len(theirs))))
    return table(heads, rows)


def ticket_cost(result: Result) -> str:
    """Table 4."""
    bound = result["config"]["bound"]
    rows = []
    for line in result["table"]:
        factor = line["lottery_over_this"]
        rows.append(
            (line["method"], "yes" if line["reached"] else "no", gap(line["minus_dense"]),
             f"{line['search_runs']:.3g}", f"{line['search_flops']:.3g}",
             mean(line["search_seconds"], 0), mean(line["search_cpu_seconds"], 0),
             "–" if factor is None else f"{factor:g} ×",
             "yes" if line["own_reached"] else "no" if line["own"] else "–")
        )  # fmt: skip
    heads = (
        "", f"within {bound:g}", "minus dense", "dense runs", "FLOPs", "s", "CPU s",
        "IMP over this", "own network within it",
    )  # fmt: skip
    smallest = result["smallest_reached"]
    ours = smallest.get("DessiLBI")
    words = [
        f"Tickets of 5 %: is the accuracy after retraining within {bound:g} points of the dense "
        f"network's ({mean(result['dense'])}), and what was trained to find it (without that "
        f"retraining, which is equal for all)? A dense run is {result['dense_flops']:.3g} FLOPs. "
        "Seconds are those of one core of a shared machine."
    ]
    if ours is not None:
        words.append(
            f"The smallest density tried at which DessiLBI is within the bound is {percent(ours)}."
        )
    return f"{' '.join(words)}\n\n{table(heads, rows)}"
