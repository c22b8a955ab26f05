"""What a run's report says, section by section.

Each builder takes a Run and returns its Section, or None where it has nothing to say. A new section
is one more builder in `SECTIONS`.
"""

import math
from collections.abc import Callable

from dessilbi_jax.report import groups, plots
from dessilbi_jax.report.growth import growth
from dessilbi_jax.report.interpretation import interpretation
from dessilbi_jax.report.page import Section, figure, paragraph, settings, table
from dessilbi_jax.report.plots import Picture
from dessilbi_jax.report.retrained import points
from dessilbi_jax.report.run import Layer, Run
from dessilbi_jax.report.slimming import read_made, ticket
from dessilbi_jax.report.sweep import accuracy_by_density
from dessilbi_jax.report.text import count, duration, escape, number, percent, setting, signed

_NO_PATH = "No path has been saved yet: path.npz is written at the end of each epoch."


def lead(run: Run) -> str:
    """Returns the opening of the page: what came out, in a sentence or two, as HTML.

    The best that was made of the run comes first: the network that was cut out, else the best
    ticket that was retrained, else the run's own networks.
    """
    best = _best(run)
    if best is not None:
        html = paragraph(best[0], "lead")
    elif run.result and run.settled:
        words = (
            f"The run ended with a sparse network: {percent(run.density)} of its structured "
            f"weights are left. It is right on {percent(run.result['test_accuracy'])} of the test "
            "images."
        )
        html = paragraph(words, "lead")
    elif run.result:
        words = (
            f"The dense network is right on {percent(run.result['test_accuracy'])} of the test "
            f"images. With only the selected {percent(run.density)} of its structured weights, "
            f"and no retraining, it is right on {percent(run.result['test_projected_accuracy'])}."
        )
        html = paragraph(words, "lead")
    elif run.records:
        words = (
            f"This run has not finished. The figures are those of its last record, at step "
            f"{count(run.last('step'))} (epoch {run.last('epoch'):.4g}), measured on held-out data."
        )
        html = paragraph(words, "note")
    else:
        html = paragraph("This run has not finished, and nothing is recorded yet.", "note")
    return html + "".join(paragraph(note, "note") for note in run.notes)


def figures(run: Run) -> Section | None:
    """The headline figures: both accuracies, the density asked and reached, the parameters kept."""
    if not run.records and not run.result:
        return None
    if run.result:
        dense, projected = run.result["test_accuracy"], run.result["test_projected_accuracy"]
        where = "test data"
    else:
        dense, projected = run.last("accuracy"), run.last("projected_accuracy")
        where = "held-out data"
    reached = "Density reached" if run.finished else "Density so far"
    lost = 100 * (projected - dense)
    aside = f"{where}, no retraining" + (f"; {signed(lost)} points" if math.isfinite(lost) else "")
    cards = [
        ("dense", "Dense accuracy", percent(dense), where),
        ("projected", "Projected accuracy", percent(projected), aside),
        ("projected", reached, percent(run.density), _asked(run)),
    ]
    if run.settled:
        cards[:2] = [("projected", "Accuracy", percent(dense), f"{where}, of the sparse network")]
    best = _best(run)
    if best is not None:
        cards.insert(0, ("projected", *best[1]))
    kept = _kept(run)
    if kept:
        cards.append(("dense", *kept))
    cells = "".join(
        f'<div class="{kind}"><dt>{escape(name)}</dt><dd><span class="value">{escape(value)}</span>'
        f'<span class="aside">{escape(aside)}</span></dd></div>'
        for kind, name, value, aside in cards
    )
    return Section("figures", "Headline figures", f'<dl class="figures">{cells}</dl>')


def _best(run: Run) -> tuple[str, tuple[str, str, str]] | None:
    """Returns the best that was made of a run in a sentence, and as a figure; None before that."""
    if not run.result:
        return None
    small, found = read_made(run.folder).slim, points(run)
    dense = float(run.result["test_accuracy"])
    if small is not None:
        networks = small["networks"]
        whole, slim = networks["dense"], networks["slim"]
        params = percent(slim["parameters"] / max(whole["parameters"], 1), 1)
        flops = percent(slim["flops"] / max(whole["flops"], 1), 1)
        words = (
            f"A network with {params} of the parameters and {flops} of the operations was cut out "
            f"of this run. It is right on {percent(slim['test_accuracy'])} of the test images"
        )
        words += "." if run.settled else f", the dense one on {percent(dense)}."
        return words, ("Slim network", percent(slim["test_accuracy"]),
                       f"test data, with {params} of the parameters")  # fmt: skip
    if found:
        top = max(found, key=lambda point: point.retrained)
        words = (
            f"With {percent(top.density)} of its structured weights, trained again, the network is "
            f"right on {percent(top.retrained)} of the test images"
        )
        if isinstance(top.dense, float):
            words += (
                f"; with all of them on {percent(top.dense)}, and before it was trained again on "
                f"{percent(float(top.projected or math.nan))}"
            )
        return f"{words}.", ("Retrained ticket", percent(top.retrained),
                             f"test data, at {percent(top.density)} of the weights")  # fmt: skip
    return None


def _asked(run: Run) -> str:
    if run.budget is not None:
        return f"of the structured weights; the run was to end with {run.budget}"
    asked, reached = run.asked_density, run.density
    if not math.isfinite(asked):
        return "of the structured weights; none was asked, λ was given"
    words = f"of the structured weights; {percent(asked)} was asked"
    if run.finished and asked > 0:
        words += f", this is {reached / asked:.2f} times that"
    return words


def _kept(run: Run) -> tuple[str, str, str] | None:
    """Returns name, value and note of the parameters kept, dense leaves included if known."""
    layers = run.layers()
    if not layers:
        return None
    cut = run.result.get("cut") if run.result else None
    if cut:
        (params, left), (channels, kept), (flops, less) = (
            cut[name] for name in ("params", "channels", "flops")
        )
        note = f"of {count(params)}; cut at step {count(cut['step'])} to {count(kept)} of "
        note += f"{count(channels)} channels, {percent(less / flops)} of the FLOPs"
        return "Parameters", count(left), note
    selected = sum(layer.selected_weights for layer in layers)
    weights = sum(layer.weights for layer in layers)
    dense = run.parameters - weights
    note = f"of {count(run.parameters)}: {count(selected)} selected weights"
    note += f" and {count(dense)} parameters without structure" if dense else ""
    if not run.result and run.path is not None:
        note += f", at step {count(run.path.steps[-1])}"
    return "Parameters kept", count(selected + dense), note


def solution_path(run: Run) -> Section:
    """The solution path of group norms (the paper's Fig. 1, left)."""
    picture = groups.solution_path(run)
    title = "Solution path"
    if picture is None:
        words = "The norms of the groups were not kept: the run folder holds no norms.npz."
        if run.norms is not None:
            words = "No norms have been recorded yet."
        return Section("path", title, paragraph(words))
    caption = (
        "One curve for each sampled group. A curve is grey until its group enters, that is, until "
        "its Γ leaves zero; from then on its colour says when it entered, dark for "
        "early and light for late."
    )
    return Section("path", title, figure(picture, caption))


def curves(run: Run) -> Section:
    """Accuracy and density of dense and projected network against epochs (Fig. 3 and 4)."""
    caption = (
        "Solid blue is the network as trained; dashed orange is the same network with every "
        "weight outside the support of Γ set to zero, not retrained. It can only be good once "
        "enough has been selected, so read both panels together."
    )
    if run.settling is not None:
        caption += (
            " Within the grey band the support of W shrinks to what was asked; what has left is "
            "zero from then on, so that behind it both curves are one."
        )
    empty = "Nothing has been recorded yet: metrics.jsonl holds no records."
    body = _figure_or(plots.curves(run), caption, empty)
    picture = plots.losses(run)
    if picture is not None:
        words = "Losses are means since the record before; the learning rate is that of W."
        if run.lam_is_auto:
            words += " The dots are where λ was estimated, as are the ticks at the foot of a panel."
        body += figure(picture, words)
    skipped = run.last("skipped")
    if skipped > 0:
        words = f"Steps left out because their loss or gradient was not finite: {count(skipped)}."
        body += paragraph(words, "note")
    return Section("curves", "Accuracy and density", body)


def layers(run: Run) -> Section:
    """Density by layer, over time and in a final table."""
    caption = "The share of each layer's weights that is selected."
    body = _figure_or(plots.layer_density(run), caption, _NO_PATH)
    rows = run.layers()
    if rows:
        body += table(
            "Layers with structure, "
            + ("at the end of the run." if run.finished else "at the last record of the path."),
            ["layer", "shape", "groups", "selected", "weights", "kept", "density"],
            [
                (
                    layer.name,
                    " × ".join(map(str, layer.shape)),
                    count(layer.groups),
                    count(layer.selected_groups),
                    count(layer.weights),
                    count(layer.selected_weights),
                    percent(layer.density),
                )
                for layer in rows
            ],
            numbers=range(2, 7),
            spare=(1, 4, 5),
            total=_total(rows, run),
        )
    return Section("layers", "Density by layer", body)


def _total(rows: tuple[Layer, ...], run: Run) -> tuple[str, ...]:
    weights, kept = (
        sum(getattr(row, name) for row in rows) for name in ("weights", "selected_weights")
    )
    # A group may span leaves: their numbers do not add up, but the result has counted each once.
    counted = run.result.get("groups") if run.result else None
    if counted:
        groups = tuple(map(count, reversed(counted)))
    elif run.settings.get("structure") == "channels":
        groups = ("", "")
    else:
        groups = (
            count(sum(row.groups for row in rows)),
            count(sum(row.selected_groups for row in rows)),
        )
    return ("all", "", *groups, count(weights), count(kept), percent(kept / weights))


def entry_times(run: Run) -> Section:
    """Which groups entered when, layer by layer."""
    caption = (
        "Each tile is one group (a filter, a unit) in the order of its layer, coloured by the step "
        "at which it entered and pale grey if it never did. For layers of many groups, bars count "
        "those that entered between one record and the next."
    )
    body = _figure_or(groups.entry_times(run), caption, _NO_PATH)
    return Section("entry", "Groups by entry time", body)


def hyper_parameters(run: Run) -> Section:
    """The chosen hyper-parameters and the values λ took."""
    chosen = [(name, setting(value)) for name, value in run.settings.items()]
    body = settings(chosen) if chosen else paragraph("config.json lists no settings.")
    estimates = run.estimates()
    if estimates:
        if not run.lam_is_auto:
            caption = "λ as it was given."
        elif run.result and run.result.get("lam"):
            caption = "λ as estimated inside the run, from how fast V moved; the last one stays."
        else:
            caption = "λ as seen in the records so far; it was estimated at or before these steps."
        rows = [(count(step), number(lam)) for step, lam in estimates]
        body += table(caption, ["step", "λ"], rows, numbers=(0, 1))
    elif run.lam_is_auto:
        body += paragraph("λ has not been estimated yet, so no group can have entered.")
    return Section("settings", "Hyper-parameters", body)


def again(run: Run) -> Section:
    """How to run it again, and on what it ran."""
    command = run.config.get("command")
    if command:
        body = f"<pre><code>{escape(command)}</code></pre>"
    else:
        body = paragraph("The command of this run was not kept.")
    seconds = run.result.get("seconds") if run.result else None
    took = float(seconds) if isinstance(seconds, (int, float)) else run.last("seconds")
    facts = [("took" if run.finished else "running for", duration(took))]
    if run.result and "steps" in run.result:
        facts.append(("steps", count(run.result["steps"])))
    if run.config.get("started"):
        facts.append(("started", setting(run.config["started"])))
    facts += [(name, setting(value)) for name, value in run.config["machine"].items()]
    facts += [(name, setting(value)) for name, value in run.config["versions"].items()]
    return Section("again", "Run it again", body + settings(facts))


def _figure_or(picture: Picture | None, caption: str, otherwise: str) -> str:
    return paragraph(otherwise) if picture is None else figure(picture, caption)


SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    figures,
    growth,
    solution_path,
    curves,
    layers,
    entry_times,
    interpretation,
    ticket,
    accuracy_by_density,
    hyper_parameters,
    again,
)
