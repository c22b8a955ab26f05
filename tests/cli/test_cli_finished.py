"""The commands ticket, retrain, slim and evaluate, from a run to its report."""

import functools
import json
import shutil

import pytest

import dessilbi_jax as dl
from dessilbi_jax import cli, run_files
from dessilbi_jax.train.finished import latency
from dessilbi_jax.train.run_folder.owned import foreign

RUN = ["--no-settle", "--density", "0.5", "--nu", "50", "--epochs", "2", "--batch-size", "64"]


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(scope="module", autouse=True)
def blank_pictures():
    """Reports are written without drawing: their text alone is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dessilbi_jax.report.style.svg", lambda figure, background="none": b"<svg/>")
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_latencies():
    """Latencies are measured with the least number of samples."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(latency.measure, seconds=0.0)
        patch.setattr("dessilbi_jax.train.finished.make_slim.measure", quick)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_in_haste):
    """A run with its ticket, retrained and slim network; tests must not change it."""
    run = tmp_path_factory.mktemp("cli") / "run"
    for words in (
        ["demo", *RUN, "--out", run],
        ["ticket", run, "--params", "20000"],
        ["retrain", run / "ticket.npz", "--from", "1", "--epochs", "1"],
        ["slim", run / "ticket.npz", "--params-from", run / "retrained", "--batch", "1", "4"],
        ["report", run],
    ):
        assert cli.main(list(map(str, words))) == 0
    return run


def tree(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def said(capsys, *words):
    assert cli.main(list(map(str, words))) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_a_run_becomes_a_smaller_network_and_the_report_shows_it(run):
    assert {"ticket.npz", "retrained", "slim", "weights"} <= {f.name for f in run.iterdir()}
    card = dl.Ticket.load(run / "ticket.npz").card
    assert card["command"] == f"dessilbi ticket {run} --params 20000"
    result = json.loads((run / "slim" / "result.json").read_text())
    assert result["command"].startswith(f"dessilbi slim {run}/ticket.npz --params-from")
    small = result["networks"]["slim"]
    assert 15000 < small["parameters"] <= 20000
    assert result["difference"] <= 1e-5
    text = (run / "report.html").read_text()
    assert "Ticket and slimmed network" in text
    assert f"{small['parameters']:,}" in text


def test_the_ticket_is_printed_by_layer(run, tmp_path, capsys):
    out = tmp_path / "t.npz"
    words = ["--groups", "40", "--per-layer", "--rank", "strength", "--test", "--out", out]
    lines = said(capsys, "ticket", run, *words)
    assert lines[1].split() == ["layer", "kept", "of", "share"]
    assert [line.split()[0] for line in lines[2:6]] == [
        "fc1/bias", "fc1/kernel", "fc2/bias", "fc2/kernel",
    ]  # fmt: skip
    shown = "\n".join(lines)
    assert "projected on the ticket, not retrained (held-out data)" in shown
    assert "projected on the ticket, not retrained (test data)" in shown
    assert "can be cut out: 360 of 400 channels" in shown
    assert lines[-2] == f"The ticket is in {out}."
    assert lines[-1].split() == ["next", "dessilbi", "retrain", str(out)]
    assert dl.Ticket.load(out).card["request"] == {
        "groups": 40, "per_layer": True, "minimum": 1,
    }  # fmt: skip
    assert dl.Ticket.load(out).card["rule"].endswith("at the last record, largest first; then as "
                                                     "the leaves stand")  # fmt: skip


def test_retraining_prints_the_three_accuracies(run, tmp_path, capsys):
    out = tmp_path / "again"
    words = ["retrain", run / "ticket.npz", "--epochs", "1", "--learning-rate", "0.05", "--quiet"]
    lines = said(capsys, *words, "--seed", "3", "--out", out)
    result = json.loads((out / "result.json").read_text())
    assert (result["from"], result["config"]["learning_rate"]) == ("init", 0.05)
    assert lines[0] == f"The retrained network is in {out}."
    assert f"{result['test']['retrained']:.1%}".replace("%", " % retrained (test") in lines[2]
    assert "from the initial weights" in lines[3]
    assert lines[4].strip() == f"next       dessilbi slim {run}/ticket.npz --params-from {out}"


def test_slim_prints_its_table_and_its_proof(run, tmp_path, capsys):
    lines = said(capsys, "slim", run / "ticket.npz", "--batch", "2", "--out", tmp_path / "s")
    assert lines[0].split() == ["dense", "masked", "slim"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "parameters", "FLOPs", "bytes", "batch 2", "accuracy",
    ]  # fmt: skip
    assert "channels were cut out. On 144 held-out rows" in lines[6]
    assert "of the largest." in lines[7]


def test_evaluate_measures_each_kind(run, capsys):
    found = [
        said(capsys, "evaluate", *words)[0]
        for words in (
            [run],
            [run, "--ticket", run / "ticket.npz", "--split", "held-out"],
            [run / "retrained"],
            [run / "slim"],
        )
    ]
    assert found[0].startswith("dense: accuracy ")
    assert found[1].endswith("(144 held-out rows)")
    result = json.loads((run / "slim" / "result.json").read_text())
    accuracy = f"{result['networks']['slim']['test_accuracy']:.1%}".replace("%", " %")
    for line, name in ((found[2], "retrained"), (found[3], "slim, by its exported forward pass")):
        assert line.startswith(f"{name}: accuracy {accuracy}, loss ")
        assert line.endswith("(360 test rows)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ticket", "nowhere"], "nowhere holds no run"),
        (["ticket", "RUN"], "ticket.npz is there already: replace it with --overwrite"),
        (["ticket", "RUN", "--at", "7", "--out", "t"], "step 7 was not recorded; the nearest one"),
        (["ticket", "RUN", "--density", "0", "--out", "t"], "density"),
        (["ticket", "RUN", "--groups", "1", "--out", "t"], "2 groups"),
        (["ticket", "RUN", "--params", "10", "--out", "t"], "params"),
        (["ticket", "RUN", "--at", "20", "--minimum", "2"], "no --per-layer, --minimum or --rank"),
        (["ticket", "RUN", "--at", "20", "--rank", "strength"], "no --per-layer, --minimum or"),
        (["ticket", "RUN", "--density", "0.1", "--groups", "3"], "not allowed with argument"),
        (["ticket", "RUN", "--density", "0.1", "--out", "RUN"], "is a folder: give a file"),
        (["retrain", "nowhere.npz"], "no ticket at nowhere.npz"),
        (["retrain", "RUN/config.json"], "is no readable ticket"),
        (["retrain", "RUN/ticket.npz"], "retrained is there already: replace it with --overwrite"),
        (["retrain", "RUN/ticket.npz", "--from", "9", "--out", "r"], "keeps those of 1, 2"),
        (["retrain", "RUN/ticket.npz", "--epochs", "0", "--out", "r"], "epochs must be an integer"),
        (["retrain", "RUN/ticket.npz", "--dataset", "digitz", "--out", "r"], "digitz"),
        (["slim", "RUN/ticket.npz", "--batch", "0", "--out", "s"], "batch sizes must be whole"),
        (
            ["slim", "RUN/ticket.npz", "--round-to", "0", "--out", "s"],
            "--round-to must be a positive",
        ),
        (["slim", "RUN/ticket.npz", "--params-from", "nowhere", "--out", "s"], "holds no run"),
        (["slim", "RUN/ticket.npz", "--out", "RUN"], "was not written by this command"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["evaluate", "RUN/slim", "--ticket", "RUN/ticket.npz"], "its ticket is cut out"),
        (["evaluate", "RUN", "--split", "train"], "invalid choice: 'train'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_error_is_one_line_and_writes_nothing(
    words, message, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = tree(run)
    assert cli.main([word.replace("RUN", str(run)) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
    assert tree(run) == before


def test_a_damaged_ticket_or_network_is_one_line(run, tmp_path, capsys):
    for name in ("ticket.npz", "retrained/weights.safetensors", "slim/forward.jaxexport"):
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:60])
        words = {
            "ticket.npz": ["slim", copy / "ticket.npz", "--out", tmp_path / "s"],
            "retrained/weights.safetensors": ["evaluate", copy / "retrained"],
            "slim/forward.jaxexport": ["evaluate", copy / "slim"],
        }[name]
        assert cli.main(list(map(str, words))) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert name.split("/")[-1] in err
        shutil.rmtree(copy)
    assert list(tmp_path.iterdir()) == []


def test_a_card_without_its_configuration_is_one_line(run, tmp_path, capsys):
    shutil.copytree(run / "slim", tmp_path / "slim")
    file = tmp_path / "slim" / "card.json"
    card = json.loads(file.read_text())
    for config in (None, {"network": "lenet300"}):
        file.write_text(json.dumps({**card, "config": config}))
        assert cli.main(["evaluate", str(tmp_path / "slim")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "card.json does not say what the network was trained with" in err


def test_a_folder_with_all_that_was_made_is_still_a_run(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = [
        "demo", "--no-settle", "--epochs", "1", "--batch-size", "32", "--density", "0.5", "--out",
        copy,
    ]  # fmt: skip
    assert cli.main([*map(str, words)]) == 2
    assert "holds another run: continue it with --resume" in capsys.readouterr().err


def test_describe_shows_what_can_be_cut_out(capsys):
    lines = said(capsys, "describe", "vgg-small-cifar10", "--structure", "channels")
    text = "\n".join(lines)
    assert "what can be cut out, for one row of the batch:" in text
    assert "parameters in 448 groups" in text
    assert "conv6/kernel" in text


def test_interpret_prints_what_goes_with_what_and_renews_the_report(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    words = ["--steps", "1", "--filters", "1", "--image", "0", "--epochs", "2"]
    lines = said(capsys, "interpret", copy, *words)
    assert lines[0] == "fc1/kernel, rank correlations with 95 % intervals"
    assert lines[1].split() == ["run", "measure", "with", "ρ"]
    assert [line.split()[1] for line in lines[4:8]] == ["frequency"] * 2 + ["orientation"] * 2
    assert lines[-1] == f"The filters are in {copy}/report.html."
    assert "What the filters respond to" in (copy / "report.html").read_text()
    assert cli.main(["interpret", str(copy), "--layer", "fc1/bias"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dessilbi: error: fc1/bias makes no channels to look at")


def test_a_sweep_is_resumed_made_finer_and_shown(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ["sweep", copy, "--epochs", "1", "--quiet", "--density"]
    lines = said(capsys, *words, "0.2")
    assert lines[0].split() == ["density", "projected", "retrained", "dense"]
    result = json.loads((copy / "sweep" / "0.2-retrained" / "result.json").read_text())
    assert 0.15 < result["ticket"]["density"] <= 0.2
    assert lines[2].split()[0] == f"{result['ticket']['density']:.1%}".replace("%", "")
    before = (copy / "sweep" / "0.2-retrained" / "weights.safetensors").stat().st_mtime_ns
    assert len(said(capsys, *words, "0.4", "0.2")) == len(lines) + 1
    after = (copy / "sweep" / "0.2-retrained" / "weights.safetensors").stat().st_mtime_ns
    assert before == after  # only what is new
    text = (copy / "report.html").read_text()
    assert "Accuracy against density" in text
    assert text.index("Slim network") < text.index("Dense accuracy")  # the best leads
    assert foreign(copy, run_files.WRITTEN) == []
    for words_, message in (
        ([copy, "--density", "0.2", "--quiet", "--epochs", "2"], "do it anew with --overwrite"),
        ([copy, "--density", "0.2", "0.2"], "one or more different shares"),
        ([copy, "--density", "1.2"], "got [1.2]"),
        (["nowhere"], "nowhere holds no run"),
    ):
        assert cli.main(["sweep", *map(str, words_)]) == 2
        assert message in capsys.readouterr().err


def test_runs_are_compared_as_a_table_and_a_page(run, tmp_path, capsys):
    other, page = tmp_path / "other", tmp_path / "page.html"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["config"]["nu"] = 7.0
    (other / "config.json").write_text(json.dumps(config))
    shutil.rmtree(other / "slim")
    lines = said(capsys, "compare", run, other, "--out", page)
    assert lines[0].split()[:3] == ["run", "state", "accuracy"]
    result = json.loads((run / "result.json").read_text())
    small = json.loads((run / "slim" / "result.json").read_text())["networks"]["slim"]
    assert f"{100 * result['test_accuracy']:.2f}" in lines[2]
    assert f"{small['parameters']:,}" in lines[2]
    assert f"{small['parameters']:,}" not in lines[3]
    assert ["nu", "50.0", "7.0"] in [line.split() for line in lines]
    assert not any(line.startswith("kappa") for line in lines)
    text = page.read_text()
    assert "side by side" in text
    assert "What was different" in text
    tmp_path.joinpath("mine.html").write_text("mine")
    for words, message in (
        ([run, run], "two different runs or more"),
        ([run], "two different runs or more"),
        ([run, "nowhere"], "nowhere is not a folder"),
        ([run, other, "--out", page], "is there already: replace it with --overwrite"),
        (
            [run, other, "--out", tmp_path / "mine.html", "--overwrite"],
            "so that it is not replaced",
        ),
    ):
        assert cli.main(["compare", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    assert said(capsys, "compare", run, other, "--out", page, "--overwrite")[-1] == str(page)
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_commands_that_add_to_a_run_renew_its_report(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    lines = said(capsys, "ticket", copy, "--params", "15000", "--overwrite")
    assert f"report     {copy}/report.html" in lines[-2]
    assert "Ticket and slimmed network" in (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    said(capsys, "ticket", copy, "--params", "15000", "--out", tmp_path / "elsewhere.npz")
    assert not (copy / "report.html").exists()
