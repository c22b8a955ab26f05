"""The sections of tables 3 and 4 and of the tuning before them, from the JSON of their results."""

import json
from typing import Any

from benchmarks.harness import results
from benchmarks.report.markdown import SIGNIFICANT, gap, listed, mean, percent, table

Result = dict[str, Any]

# Densities by layer of the winning tickets that the papers print.
PAPERS_LAYERS = {
    "lenet300": ("LeNet-3", (0.049, 0.087, 0.398)),
    "conv2": ("Conv-2", (0.9375, 1.0, 0.0067, 0.0284, 0.1551)),
    "conv4": ("Conv-4", (0.921875, 1.0, 1.0, 1.0, 0.0040, 0.0094, 0.1004)),
}
OURS = "DessiLBI"


def _is_ours(method: str) -> bool:
    return method.startswith(OURS)


def _lines(result: Result, density: float) -> list[Result]:
    return [line for line in result["table"] if line["density"] == density]


def tuning(result: Result) -> str:
    """What was chosen, of what, and what was assumed."""
    config = result["config"]
    setting = config["setting"]
    rows = [
        (line["method"], f"`{json.dumps(line['chosen'])}`", f"{line['score']:.2f}",
         f"{min(_score(t) for t in line['trials']):.2f}")
        for line in result["table"]
    ]  # fmt: skip
    text = (
        f"Eight settings of every method (random masks have none), each tried once: "
        f"{setting['network']}, {setting['dataset']}, {percent(config['density'])} of the weights, "
        f"{setting['epochs']} epochs, seed {config['seed']}, judged on {setting['held_out']:,} "
        "training images that were kept apart. The better of the accuracy after retraining and of "
        "the method's own network decides. The chosen settings are used at all densities, on all "
        "networks; methods that are not told a density (STR, relaxed masks) may suit others less. "
        "Decays and ν act for as long as the sum of the learning rates: where that is smaller, as "
        "it is for LeNet-5, a setting does less than where it was chosen."
    )
    told = [
        f"- **{line['method']}**: {line['source'].rstrip('.')}. {line['assumed']}".rstrip()
        for line in result["table"]
    ]
    assumed = "Where each comes from, and what was assumed where the source leaves it open:"
    heads = ("", "chosen", "best, %", "worst, %")
    return "\n\n".join([text, table(heads, rows), assumed, "\n".join(told)])


def _score(trial: Result) -> float:
    return max(trial["retrained"], trial["own"] or 0.0)


def _better(line: Result) -> tuple[str, Result]:
    """A rival's better network of two, and DessiLBI's retrained ticket minus it."""
    if line["own"] is not None and line["own"]["mean"] > line["retrained"]["mean"]:
        return f"{line['method']} (own)", line["dessilbi_minus_own"]
    return line["method"], line["dessilbi_minus_this"]


def compared(result: Result) -> str:
    """Who is ahead at each density, in words.

    Paired by seed; p of the t-tests as Holm corrects them for all rivals at a density. As a
    rival's setting was chosen by the better of its two networks, that one is compared.
    """
    words = []
    for density in sorted(result["config"]["densities"]):
        rivals = [_better(line) for line in _lines(result, density) if not _is_ours(line["method"])]
        tested = [(name, gap) for name, gap in rivals if gap["p"] is not None]
        ps = results.holm([gap["p"] for _, gap in tested])
        sure = sorted(
            ((name, gap["mean"], p)
             for (name, gap), p in zip(tested, ps, strict=True) if p < SIGNIFICANT),
            key=lambda found: found[1],
        )  # fmt: skip
        better = [f"{name} by {-gap:.2f} (p = {p:.2g})" for name, gap, p in sure if gap < 0]
        worse = [f"{name} by {gap:.2f}" for name, gap, _ in sure if gap > 0]
        text = f"At {percent(density)} of the weights, "
        text += f"ahead of {OURS}: {listed(better)}" if better else f"none is ahead of {OURS}"
        text += f"; behind: {listed(worse)}" if worse else "; none is behind"
        sure_names = {name for name, *_ in sure}
        higher = [
            f"{name} ({-gap['mean']:.2f})"
            for name, gap in sorted(rivals, key=lambda rival: rival[1]["mean"])
            if gap["mean"] < 0 and name not in sure_names
        ]
        text += f". Higher by less than is significant: {listed(higher)}." if higher else "."
        words.append(f"- {text}")
    n = len(result["config"]["seeds"])
    return (
        f"{OURS}'s retrained tickets against the better of each rival's two networks, retrained or "
        f"its own. Paired by seed, n = {n}, with p below {SIGNIFICANT:g} after Holm's correction "
        "for the rivals at a density:\n\n" + "\n".join(words)
    )


def _runs(lines: list[Result]) -> str:
    """Dense runs until the tickets of all these densities are there."""
    costs = [line["search_runs"] for line in lines]
    return f"{max(costs) if lines[0]['nested'] else sum(costs):.3g}"


def tickets(result: Result) -> str:
    """Table 3."""
    config, setting = result["config"], result["config"]["setting"]
    densities = sorted(config["densities"], reverse=True)
    cells = {(line["method"], line["density"]): line for line in result["table"]}
    methods = [m for m in dict.fromkeys(m for m, _ in cells) if (m, densities[0]) in cells]
    rows, owns = [], []
    for method in methods:
        found = [cells[method, d] for d in densities]
        each = " / ".join(f"{line['search_runs']:.3g}" for line in found)
        rows.append((method, *(mean(line["retrained"]) for line in found), each, _runs(found)))
        if found[0]["own"] is not None:
            told = [line.get("reached", line.get("density_before_cut")) for line in found]
            ended = "" if told[0] is None else " / ".join(f"{100 * t:.3g}" for t in told)
            owns.append((method, *(mean(line["own"]) for line in found), ended))
    wide = (*map(percent, densities),)
    parts = [
        f"{setting['network']} on {setting['dataset']}, {setting['epochs']} epochs a run, "
        f"{len(config['seeds'])} seeds; test accuracy in percent after the mask was trained from "
        f"the initialisation for one run. Dense: {mean(result['dense'])}.",
        table(("retrained", *wide, "runs to find each", "all"), rows),
        "Runs: training before that retraining, in dense runs, by density and for the tickets of "
        "all densities together, which one run or one chain of rounds may give. In all, a network "
        "costs one run more.",
        "The sparse network that a method itself ends with, which needs no retraining (one run "
        "less in all), and the density in percent that the method had reached before it was cut "
        "to the size, where it has one of its own:",
        table(("own", *wide, "before the cut, %"), owns),
        compared(result),
    ]
    if result.get("rewound"):
        late = "; ".join(
            f"k = {line['epochs']}: {mean(line['retrained'])}" for line in result["rewound"]
        )
        density = result["rewound"][0]["density"]
        first = mean(cells[OURS, density]["retrained"])
        parts.append(
            f"The {OURS} ticket of {percent(density)} from the weights after k epochs of its own "
            f'run ("F-epoch k"), for the rest of the schedule: k = 0: {first}; {late}.'
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
    for line in _lines(result, 0.05):
        if line["method"] in (OURS, "lottery (IMP)"):
            rows.append((f"{line['method']}, 5 %", *(f"{x:.3g}" for x in line["layers"])))
    heads = ("density of kernel", *(str(i + 1) for i in range(len(theirs))))
    return table(heads, rows)


def ticket_cost(result: Result) -> str:
    """Table 4."""
    bound = result["config"]["bound"]
    rows = []
    for line in result["table"]:
        factor, free = line["lottery_over_this"], line.get("sparse_runs")
        rows.append(
            (line["method"], line["reached"], gap(line["minus_dense"]),
             f"{line['search_runs']:.3g}", f"{line['search_flops']:.3g}",
             "" if free is None else f"{free:.3g}",
             mean(line["search_seconds"], 0), mean(line["search_cpu_seconds"], 0),
             "–" if factor is None else f"{factor:.4g} ×", line["own_reached"] or "–")
        )  # fmt: skip
    heads = (
        "", f"within {bound:g}", "minus dense", "dense runs", "FLOPs", "runs if zeros were free",
        "s", "CPU s", "IMP over this", "own network within it",
    )  # fmt: skip
    smallest = result["smallest_reached"]
    words = [
        f"Tickets of 5 %: is the accuracy after retraining within {bound:g} points of the dense "
        f"network's ({mean(result['dense'])}), and what was trained to find it (without that "
        f"retraining, which is equal for all)? A dense run is {result['dense_flops']:.3g} FLOPs. "
        f"yes and no: by a one-sided t-test at {SIGNIFICANT:g}, else what the mean says. FLOPs are "
        "those of dense training, which is what the machine does; if weights at zero cost nothing, "
        "searches that are sparse would cost what the column beside it says. Seconds are those of "
        "one core of a shared machine, with compilation."
    ]
    ours = next(line for line in result["table"] if line["method"] == OURS)
    words.append(
        f"{OURS}'s search costs {ours['search_runs']:g} × a dense run, that of iterative magnitude "
        f"pruning with rewinding {ours['lottery_over_this']:g} times as much."
    )
    if smallest:
        words.append(
            "Smallest density, of those asked of every method, at which a network is within the "
            "bound, surely or in the mean, retrained or its own, and the dense runs of the search:"
        )
    told = []
    for density in sorted({found["density"] for found in smallest.values()}):
        those = sorted(
            (found["search_runs"], method)
            for method, found in smallest.items()
            if found["density"] == density
        )
        named = listed([f"{method} ({runs:.3g})" for runs, method in those])
        told.append(f"- {percent(density)}: {named}")
    parts = [" ".join(words), "\n".join(told), table(heads, rows)]
    return "\n\n".join(part for part in parts if part)
