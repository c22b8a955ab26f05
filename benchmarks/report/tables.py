"""A section of the page for each table, from the JSON of its result."""

import json
from typing import Any

from benchmarks.harness import results
from benchmarks.report.markdown import SIGNIFICANT, gap, listed, made_by, mean, percent, table

Result = dict[str, Any]

NEAR = 0.15  # points from a published figure


def classification(result: Result) -> str:
    """Table 1."""
    config = result["config"]
    setting, lines = config["setting"], result["table"]
    rows = [
        (line["method"], f"{line['rate']:g}", mean(line["accuracy"]), f"{line['published']:.2f}",
         f"{line['minus_published']:+.2f}",
         f"{line['minus_sgd']['method']}: {gap(line['minus_sgd'])}" if "minus_sgd" in line else "",
         mean(line["projected"]) if "projected" in line else "")
        for line in lines
    ]  # fmt: skip
    near = sum(abs(line["minus_published"]) <= NEAR for line in lines)
    best = max(lines, key=lambda line: line["accuracy"]["mean"])
    parts = [
        f"{setting['network']} on {setting['dataset']}, {setting['epochs']} epochs (the papers: "
        f"100), the rate divided by 10 after 30, 60 and 90 % of them, batch {setting['batch']}, "
        f"{len(config['seeds'])} seed{'s' * (len(config['seeds']) > 1)}; test accuracy in percent. "
        "Rates were the best of three on held-out images. Wd: L2 of 1e-4 in the loss. DessiLBI is "
        "SGD with the coupling of the weights W to the sparse Γ, behind the momentum (toolbox) or "
        "before it (paper). The last columns: paired by seed, p uncorrected, and W projected on "
        "the support of Γ without retraining.",
        table(
            ("", "rate", "accuracy", "published", "difference", "minus SGD", "W on Γ"),
            rows,
        ),
        f"{near} of {len(lines)} {'is' if near == 1 else 'are'} within {NEAR:g} points of the "
        f"published accuracy. Highest mean: {best['method']}.",
    ]
    closed = [line for line in lines if line.get("layers")]
    if closed:
        told = "; ".join(
            f"{line['method']}: {' / '.join(f'{100 * x:.0f}' for x in line['layers'])} %"
            for line in closed
        )
        parts.append(
            f"Shares of the kernels in Γ, first to last, of seed {config['seeds'][-1]}: {told}. "
            "Where a kernel is not in Γ at all, nothing passes."
        )
    return "\n\n".join(parts)


def kappa_nu(result: Result) -> str:
    """Table 2."""
    parts = [
        "The rate of W, which is κα, is the same in all runs, so that κ acts on Γ alone: a run at "
        "κ and λ has the support of one at 1 and κλ. λ is fixed for each network. Means at half of "
        "the run and at its end: share of the weights in Γ, accuracy of W, and of W projected on "
        "the support of Γ, in percent.",
    ]
    for case in result["config"]["cases"]:
        setting = case["setting"]
        own = "".join(f", {f:g} times that in {path}" for path, f in case["chosen"]["factors"])
        lines = [line for line in result["table"] if line["network"] == setting["network"]]
        rows = []
        for line in lines:
            points = line["points"]
            shown = [points[(len(points) - 1) // 2], points[-1]]
            rows.append(
                (f"κ = {line['kappa']:g}, ν = {line['nu']:g}",
                 *(text for point in shown for text in (
                     mean(point["density_percent"]), mean(point["dense"]),
                     mean(point["projected"]))))
            )  # fmt: skip
        heads = ("", "Γ, half", "W", "on Γ", "Γ, end", "W", "on Γ")
        parts.append(
            f"{setting['network']} on {setting['dataset']}, {setting['epochs']} epochs, "
            f"λ = {lines[0]['lam']:g}{own}, {case['structure']}, seeds: {lines[0]['seeds']}."
        )
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


def structured(result: Result) -> str:
    """Table 5."""
    config = result["config"]
    setting = config["settings"][0]
    parts = [
        f"{setting['dataset']}, {setting['images'] or 'all'} images, {setting['epochs']} epochs, "
        f"{config['seeds']} seeds. The networks are cut out physically; latency is that of a "
        f"forward pass of {config['latency']['batch']} images over the dense network's, in turn in "
        "one process; widths are what a method leaves, not rounded to what the hardware likes. "
        "Scratch-E: the same widths, freshly initialised, for the same epochs; "
        "Scratch-B: for the training FLOPs of the dense run. The last four columns are training "
        "in dense runs: until the cut, in all, and that of the controls.",
    ]
    rows = []
    for line in result["table"]:
        if line["method"] == "dense":
            rows.append((line["network"], "dense", "1", "1", mean(line["accuracy"]), *"––––––––"))
            continue
        rows.append(
            (line["network"], line["method"], mean(line["flops_share"]), mean(line["latency"]),
             mean(line["accuracy"]), mean(line["scratch_E"]), mean(line["scratch_B"]),
             gap(line["minus_scratch_E"]), gap(line["minus_scratch_B"]),
             mean(line["search"]), mean(line["training"]),
             mean(line["scratch_E_training"]), mean(line["scratch_B_training"]))
        )  # fmt: skip
    heads = (
        "", "", "FLOPs", "latency", "accuracy", "Scratch-E", "Scratch-B", "minus E", "minus B",
        "search", "all", "E", "B",
    )  # fmt: skip
    parts.append(table(heads, rows))
    parts.append(_rivals(result))
    tests = [
        (line, name, line[key])
        for line in result["table"]
        for name, key in (("Scratch-E", "minus_scratch_E"), ("Scratch-B", "minus_scratch_B"))
        if key in line and line[key]["p"] is not None
    ]
    ps = results.holm([found["p"] for *_, found in tests])
    lost = [
        f"{line['method']} on {line['network']} ({name} by {-found['mean']:.2f})"
        for (line, name, found), p in zip(tests, ps, strict=True)
        if found["mean"] < 0 and p < SIGNIFICANT
    ]
    parts.append(
        f"Behind a control (p < {SIGNIFICANT:g} after Holm): {listed(lost)}."
        if lost
        else f"No method is behind a control with p below {SIGNIFICANT:g} after Holm's correction "
        f"for {len(tests)} tests (p in the table are uncorrected); with n = {config['seeds']} only "
        "large differences would show."
    )
    if result["figure_5"]:
        rows = [
            (row["name"], row["seed"], ticket["epoch"], f"{100 * ticket['density']:.2f}",
             "–" if ticket["retrained"] is None else f"{ticket['retrained']:.2f}",
             f"{row['W']:.2f}", f"{row['projected']:.2f}")
            for row in result["figure_5"]
            for ticket in row["tickets"]
        ]  # fmt: skip
        heads = ("Fig. 5", "seed", "epoch", "Γ, %", "retrained", "W at the end", "on Γ")
        parts.append(table(heads, rows))
    parts.append(_filter_methods(config))
    return "\n\n".join(parts)


def _filter_methods(config: Result) -> str:
    """Source and setting of each way to remove filters."""
    told = [
        f"- **{name}**: {about['source']}. Assumed: {about['assumed']}"
        + (f". Chosen: `{json.dumps(config['chosen'][name])}`." if config["chosen"] else ".")
        for name, about in config["methods"].items()
    ]
    chosen = (
        f"Four settings of every method were tried once on {config['chosen_on']}, on training "
        "images that were kept apart; what was chosen there is used on all networks.\n\n"
        if config["chosen"]
        else ""
    )
    return chosen + "\n".join(told)


def _rivals(result: Result) -> str:
    """DessiLBI against the other ways to remove filters, on each network at each share."""
    tests = [
        (line, line["dessilbi_minus_this"])
        for line in result["table"]
        if line["method"] not in ("dense", "DessiLBI")
        and line["dessilbi_minus_this"]["p"] is not None
    ]
    ps = results.holm([found["p"] for _, found in tests])
    told = [
        f"{line['network']}, {percent(line['share'])} of the FLOPs, minus {line['method']}: "
        f"{found['mean']:+.2f} (p = {p:.2g})"
        for (line, found), p in zip(tests, ps, strict=True)
    ]
    if not told:
        return "With one seed nothing is tested."
    return f"DessiLBI against the others, paired by seed, p after Holm: {'; '.join(told)}."


def _times(line: Result) -> str:
    low, high = line["quartiles_ms"]
    return f"{line['median_ms']:.1f} ({low:.1f} to {high:.1f})"


def computational_cost(result: Result) -> str:
    """Table 6."""
    published = result["published"]
    sgd, lbi, adam = (published[name] for name in ("sgd", "SplitLBI", "adam"))
    rows = []
    for block in result["table"]:
        where = f"{block['network']}, batch {block['batch']}, {block['dtype']}"
        for name, line in block["optimizers"].items():
            rows.append(
                (where, name, _times(line), f"{line['over_sgd']:.2f}",
                 f"{line['over_adam']:.2f}", f"{line['peak_MiB']:.0f}",
                 f"{line['peak_over_sgd']:.2f}", f"{line['peak_over_adam']:.2f}")
            )  # fmt: skip
    rows.append(
        ("published, VGG-16, batch 64", "SplitLBI", f"{1e3 * lbi['seconds']:.1f}",
         f"{lbi['seconds'] / sgd['seconds']:.2f}", f"{lbi['seconds'] / adam['seconds']:.2f}",
         f"{lbi['MB']}", f"{lbi['MB'] / sgd['MB']:.2f}", f"{lbi['MB'] / adam['MB']:.2f}")
    )  # fmt: skip
    heads = ("", "", "ms a step", "÷ SGD", "÷ Adam", "peak MiB", "÷ SGD", "÷ Adam")
    text = (
        "Whole training steps, medians (and quartiles) of "
        f"{result['config']['rounds']} turns, the optimizers one after the other in each; memory "
        "is the peak of the compiled step, as the compiler plans it. The last row is the authors' "
        "PyTorch on a GPU, memory in MB of the whole process."
    )
    return f"{text}\n\n{table(heads, rows)}"


def footed(section: str, result: Result, name: str) -> str:
    """A section with how it was made."""
    return f"{section}\n\n{made_by(result, name)}"
