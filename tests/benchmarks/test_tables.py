"""The tables on few digits: every rival, every optimizer, and the page that is written of them."""

import dataclasses
import json
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import classification, computational_cost, page, ticket_cost, tickets, tuning
from benchmarks.harness import results
from benchmarks.report.markdown import mean
from benchmarks.rivals import methods, optimizers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a benchmark with its smoke budget and returns its result; twice, it makes nothing."""
    folder = tmp_path_factory.mktemp("work")

    def run(name, *words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["before"])
            smoke = ["--budget", "smoke", "--work", str(folder)]
            assert benchmarks.main([name, *smoke, *words]) == 0
        return folder / "smoke"

    return run


@pytest.fixture(scope="module")
def measured(run):
    return run("tickets")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_rival_gives_tickets_of_the_size_asked_for(measured):
    rows = [json.loads(line) for line in (measured / "tickets.jsonl").read_text().splitlines()]
    found = [row for row in rows if "kept" in row]
    assert {row["method"] for row in found} == {*tickets.ALL, *tickets.UNTUNED}
    weights = 784 * 16 + 16 * 8 + 8 * 10
    for row in found:
        assert row["kept"] == pytest.approx(round(row["density"] * weights) / weights), row
        assert len(row["layers"]) == 3
        assert 0 <= row["retrained"] <= 100


def test_costs_count_all_that_was_trained(measured):
    result = read(measured, "tickets")
    runs = {(line["method"], line["density"]): line["search_runs"] for line in result["table"]}
    assert runs["DessiLBI", 0.2] == runs["DessiLBI", 0.3] == 1
    assert runs["DessiLBI at 25%", 0.2] == 0.25
    assert runs["DessiLBI, twice", 0.2] == 2
    assert runs["lottery (IMP)", 0.2] == 7
    assert runs["random", 0.2] == 1  # its layers are those of DessiLBI's ticket
    assert 0 < runs["SNIP", 0.2] < 1
    assert {line["epochs"] for line in result["rewound"]} == {1}


def test_a_table_that_is_there_is_not_made_again(measured, run, monkeypatch):
    monkeypatch.setattr(tickets.Maker, "ticket", lambda *_: pytest.fail("made again"))
    before = read(measured, "tickets")["table"]
    assert read(run("tickets"), "tickets")["table"] == before


def test_random_has_the_layers_of_the_ticket_it_is_compared_with(measured):
    table = read(measured, "tickets")["table"]
    layers = {line["method"]: line["layers"] for line in table if line["density"] == 0.2}
    assert layers["random"] == pytest.approx(layers["DessiLBI"], abs=1e-3)


def test_every_rival_has_a_source_and_its_eight_trials():
    names = [rival.name for rival in methods.RIVALS]
    assert len(set(names)) == len(names)
    for rival in methods.RIVALS:
        assert rival.source
        assert len(rival.trials) == 8 or rival.trials == ({},), rival.name
        assert all(rival.trials.count(trial) == 1 for trial in rival.trials), rival.name


def test_settings_are_chosen_by_the_better_of_both_accuracies(run, tmp_path, monkeypatch):
    folder = run("tuning", "--methods", "SNIP", "matched decay")
    assert not (folder / "tuning.json").exists()  # a part is no result
    rows = [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for row in rows:
        assert row["score"] == max(row["retrained"], row["own"] or 0)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(LookupError, match="no setting was chosen for 'SNIP' yet"):
        tuning.chosen("SNIP")
    snip = methods.named("SNIP")
    best = max(rows[:8], key=lambda row: row["score"])
    results.write_json(tmp_path / "tuning.json", {"table": [tuning.choice(snip, rows[:8])]})
    assert tuning.chosen("SNIP") == best["setting"]


def test_every_optimizer_of_the_papers_and_both_placements(run):
    result = read(run("classification"), "classification")
    lines = {line["method"]: line for line in result["table"]}
    assert list(lines) == [optimizer.name for optimizer in optimizers.OPTIMIZERS]
    for name, line in lines.items():
        assert ("projected" in line) == name.startswith("DessiLBI")
    assert lines["DessiLBI-Mom-Wd, paper"]["minus_sgd"]["method"] == "SGD Mom-Wd"
    assert lines["Adam"]["published"] == 99.19


def test_costs_are_ratios_within_one_run(run):
    [block] = read(run("computational_cost"), "computational_cost")["table"]
    lines = block["optimizers"]
    assert lines.keys() == computational_cost.optimizers().keys()
    assert lines["sgd"]["over_sgd"] == lines["adam"]["over_adam"] == 1
    assert lines["DessiLBI paper"]["peak_over_sgd"] > lines["DessiLBI paper, lean"]["peak_over_sgd"]


def made(gaps, density=0.05, runs=None):
    """A result of `tickets` in which each method is so many points from a dense network of 98."""
    rows = []
    for seed in range(3):
        cost = {"steps": 10, "flops": 100.0, "seconds": 1.0, "cpu_seconds": 1.0}
        noise = 0.01 * seed
        rows.append({"method": "dense", "seed": seed, "retrained": 98 + noise, "cost": cost})
        for i, (name, gap) in enumerate(gaps.items()):
            spent = cost | {"flops": 100.0 * (runs or {}).get(name, 1)}
            rows.append(
                {
                    "method": name, "seed": seed, "density": density, "layers": [0.1, 0.2, 0.5],
                    "cost": spent, "own": None, "retrained": 98 + gap + noise * (i + 1),
                }
            )  # fmt: skip
    return tickets.summed(tickets.BUDGETS["cpu"], rows)


def test_the_cost_to_a_ticket_is_the_search_of_those_that_reach_the_bound():
    result = made(
        {"DessiLBI": -0.1, "lottery (IMP)": 0.1, "random": -1.0, "one-shot": -0.25, "ADMM": -0.23},
        runs={"lottery (IMP)": 13, "random": 0},
    )
    lines = {line["method"]: line for line in ticket_cost.cost(result)["table"]}
    assert {name: line["reached"] for name, line in lines.items()} == {
        "DessiLBI": "yes", "lottery (IMP)": "yes", "random": "no", "one-shot": "not in the mean",
        "ADMM": "in the mean",
    }  # fmt: skip
    assert list(lines)[-1] == "random"
    assert lines["DessiLBI"]["lottery_over_this"] == 13
    assert lines["random"]["lottery_over_this"] is None
    assert ticket_cost.cost(result)["smallest_reached"].keys() == {
        "DessiLBI", "lottery (IMP)", "ADMM"
    }  # fmt: skip


def test_the_page_says_where_a_rival_wins(tmp_path, monkeypatch):
    gaps = {"DessiLBI": -0.1, "lottery (IMP)": 0.3, "one-shot": -0.5}
    config = {"setting": dataclasses.asdict(tickets.BUDGETS["cpu"].setting), "seeds": [0, 1, 2],
              "densities": [0.05], "machines": [{}]}  # fmt: skip
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tickets.py", "--data-dir", "/x"])
    results.write("tickets", {"config": config, **made(gaps, runs={"lottery (IMP)": 13})}, 0.0)
    monkeypatch.setattr(sys, "argv", ["ticket_cost.py", "--results", str(tmp_path)])
    ticket_cost.main()
    monkeypatch.setattr(
        sys, "argv", ["page.py", "--results", str(tmp_path), "--out", str(tmp_path)]
    )
    page.main()
    text = (tmp_path / "README.md").read_text()
    assert "At 5 % of the weights, ahead of DessiLBI: lottery (IMP) by 0.4" in text
    assert "behind: one-shot by 0.38" in text
    assert "`python -m benchmarks tickets --data-dir DIR` → `results/tickets.json`" in text
    assert "| lottery (IMP) | yes |" in text
    assert "| one-shot | no |" in text
    assert (
        "- 1. Classification: LeNet-5, MNIST: `python -m benchmarks classification --data-dir DIR`"
        in (text)
    )
    first = (tmp_path / "figures" / "tickets.svg").read_bytes()
    page.main()
    assert (tmp_path / "figures" / "tickets.svg").read_bytes() == first
    assert not list(tmp_path.glob("*.part"))


def test_a_page_of_smoke_results(run, tmp_path, monkeypatch):
    for name in ("tickets", "classification", "computational_cost"):
        folder = run(name)
    monkeypatch.setattr(sys, "argv", ["page.py", "--results", str(folder), "--out", str(tmp_path)])
    page.main()
    text = (tmp_path / "README.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert [head[3:].split(":")[0] for head in heads] == [
        "1. Classification", "3. Winning tickets", "6. Computational cost", "Not measured",
    ]  # fmt: skip
    assert "| RigL |" in text
    assert "F-epoch k" in text
    assert (
        "| published, VGG-16, batch 64 | SplitLBI | 22.1 | 1.12 | 1.05 | 1459 | 1.26 | 1.15 |"
        in (text)
    )
    drawn = {file.name for file in (tmp_path / "figures").iterdir()}
    assert drawn == {"classification.svg", "tickets.svg"}


def test_the_committed_page_is_the_one_that_the_results_give():
    files = {section.name: results.RESULTS / f"{section.name}.json" for section in page.SECTIONS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    assert page.HERE.joinpath("README.md").read_text(encoding="utf-8") == page.page(found)


IN_MEASURED = {
    "DessiLBI, half of the run": "DessiLBI at 50%",
    "DessiLBI": "DessiLBI",
    "lottery tickets, iterative magnitude with rewinding": "lottery (IMP)",
    "gradual pruning (Zhu and Gupta)": "gradual (Zhu-Gupta)",
    "iterative pruning (Han et al.)": "iterative (Han)",
    'magnitude after weight decay ("matched decay")': "matched decay",
    "RigL": "RigL",
    "SNIP": "SNIP",
    "random, DessiLBI's shares of the layers": "random",
}


def text_of(file):
    return page.HERE.parent.joinpath(file).read_text(encoding="utf-8")


def test_the_site_shows_the_tickets_that_were_measured():
    text = text_of("docs/measured.md")
    result = read(results.RESULTS, "tickets")
    right = {(line["method"], line["density"]): mean(line["retrained"]) for line in result["table"]}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {row[0]: row[2:] for row in rows if len(row) == 5 and row[0] in IN_MEASURED}
    assert found == {
        label: [right[method, density] for density in (0.05, 0.02, 0.01)]
        for label, method in IN_MEASURED.items()
    }


def test_the_readme_shows_what_was_measured():
    front = text_of("README.md")
    result = read(results.RESULTS, "tickets")
    right = {(line["method"], line["density"]): mean(line["retrained"]) for line in result["table"]}
    dense, ours, theirs = (
        mean(result["dense"]), right["DessiLBI", 0.05], right["lottery (IMP)", 0.05]
    )  # fmt: skip
    assert f"{ours} %; dense {dense} %" in front
    assert f"13 runs: {theirs} %" in front

    networks = read(results.RESULTS, "latency")["networks"]
    vgg = next(each for each in networks if each["key"].startswith("vgg16-for-cpu batch=128"))
    half = vgg["cases"]["50% gone"]
    assert f"{half['speed_up']:.2f} × as fast, of {half['limit']:.2f} ×" in front
    assert f"masked: {half['masked_speed_up']:.2f} ×" in front

    costs = {
        block["network"]: [
            line["over_sgd"] for name, line in block["optimizers"].items() if "DessiLBI" in name
        ]
        for block in read(results.RESULTS, "computational_cost")["table"]
    }
    assert f"{min(costs['vgg16']):.2f} to {max(costs['vgg16']):.2f} × SGD's time" in front
    assert f"LeNet-5: {min(costs['lenet5']):.2f} to {max(costs['lenet5']):.2f} ×" in front


def test_presets_for_larger_machines_are_what_the_papers_used():
    gpu = classification.BUDGETS["gpu"]
    assert (gpu.setting.network, gpu.setting.augment, gpu.seeds) == ("resnet20", True, 3)
    assert {"conv2", "conv4", "fashion"} < tickets.BUDGETS.keys()
    assert computational_cost.BUDGETS["gpu"]["dtypes"] == ["float32", "bfloat16"]
    for module in (classification, computational_cost, tickets, tuning):
        assert module.COST.keys() == module.BUDGETS.keys()
