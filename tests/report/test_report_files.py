"""Runs in progress, files that are damaged or missing, and that nothing half-written stays."""

import dataclasses
import html
import json
import os
import re
import shutil

import numpy as np
import pytest

from dessilbi_jax import report
from dessilbi_jax.report.run import read_run
from dessilbi_jax.run_files import Record


def sections(folder):
    text = report.render(folder)
    return {part.split('"')[0]: part for part in text.split('<section id="')[1:]}


def edit(file, **changes):
    value = json.loads(file.read_text())
    for name, new in changes.items():
        value[name] = new
    file.write_text(json.dumps(value))


def resave(file, drop=(), **changes):
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if name not in drop}
    np.savez(file, **(arrays | changes))


def test_write_puts_the_page_beside_the_files_and_replaces_it(make_run):
    folder = make_run()
    (folder / "report.html").write_text("old, by dessilbi_jax")
    before = set(os.listdir(folder))
    assert report.write(folder) == folder / "report.html"
    assert (folder / "report.html").read_text(encoding="utf-8") == report.render(folder)
    assert set(os.listdir(folder)) == before
    assert report.write(str(folder)) == folder / "report.html"


def test_a_run_in_progress_shows_its_last_record_without_a_result(make_run):
    folder = make_run(finished=False)
    text, parts = report.render(folder), sections(folder)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "in progress" in text
    assert "at step 80 (epoch 4)" in text
    assert f"{100 * last['accuracy']:.2f}" in parts["figures"]
    assert f"{100 * last['projected_accuracy']:.2f}" in parts["figures"]
    assert "Density so far" in parts["figures"]
    assert "of 900" in parts["figures"]
    assert "at the last record of the path" in parts["layers"]
    assert "running for</dt><dd>40.0 s" in parts["again"]
    run = read_run(folder)
    assert run.estimates() == [(20, 0.0123456), (40, 0.0210987)]
    finished = make_run("finished")
    assert run.layers() == read_run(finished).layers()


def test_a_path_older_than_the_records_says_at_which_step_it_was_saved(make_run):
    folder = make_run(steps=(1, 20, 40), finished=False)
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record | {"step": 55, "epoch": 2.75}) + "\n")
    parts = sections(folder)
    assert "at step 40" in parts["figures"]
    assert "at step 55 (epoch 2.75)" in report.render(folder)


def test_a_single_record_before_any_group_entered(make_run):
    folder = make_run(steps=(1,), lam=50.0, finished=False)
    parts = sections(folder)
    assert list(parts) == ["figures", "path", "curves", "layers", "entry", "settings", "again"]
    assert "None of the sampled groups has entered so far." in parts["path"]
    assert "conv1/kernel: 0 of 6 groups entered" in parts["entry"]
    assert "λ has not been estimated yet" in parts["settings"]
    assert sum(part.count("<img") for part in parts.values()) == 5


def test_a_folder_with_nothing_but_its_configuration(make_run):
    folder = make_run(finished=False)
    for name in ("metrics.jsonl", "path.npz", "norms.npz"):
        (folder / name).unlink()
    parts = sections(folder)
    assert "nothing is recorded yet" in report.render(folder)
    assert "figures" not in parts
    assert not any("<img" in part for part in parts.values())
    assert "dessilbi train lenet-small" in parts["again"]
    assert "running for</dt><dd>–" in parts["again"]


def test_without_norms_the_other_pictures_stay(make_run):
    folder = make_run()
    (folder / "norms.npz").unlink()
    parts = sections(folder)
    assert "holds no norms.npz" in parts["path"]
    assert sum(part.count("<img") for part in parts.values()) == 4


def test_without_a_path_the_final_table_stays(make_run):
    folder = make_run()
    (folder / "path.npz").unlink()
    parts = sections(folder)
    assert "path.npz" in parts["entry"]
    assert "conv1/kernel" in parts["layers"]


def test_metrics_that_are_not_known_are_shown_as_a_dash(make_run):
    folder = make_run(steps=(1,), finished=False)
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.05, "accuracy": null}\n')
    assert '<span class="value">–</span>' in sections(folder)["figures"]


def test_what_a_run_records_is_what_its_report_knows(make_run):
    folder = make_run(steps=(1, 20), finished=False)
    record = Record(20, 1.0, held_out_loss=0.1234567, skipped=3)
    assert (
        "and 0.1235 on held-out data" not in sections(folder)["curves"]
    )  # of a run older than the field
    assert "Steps left out" not in sections(folder)["curves"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record.to_json() | {"of a later version": "x"}) + "\n")
    metrics = read_run(folder).metrics
    assert list(metrics) == [field.name for field in dataclasses.fields(Record)]
    assert metrics["held_out_loss"].tolist()[1:] == [0.1234567]
    body = sections(folder)["curves"]
    assert "and 0.1235 on held-out data" in body
    assert "loss or gradient was not finite: 3." in body


def test_a_line_still_being_written_is_left_out_and_repeated_steps_are_replaced(make_run):
    folder = make_run(finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epoch": 2.0, "accuracy": 0.5}\n\n{"step": 60, "epo')
    metrics = read_run(folder).metrics
    assert metrics["step"].tolist() == [1, 3, 9, 20, 40]
    assert metrics["accuracy"][-1] == 0.5
    assert np.isnan(metrics["density"][-1])


@pytest.mark.drawn
def test_the_same_run_gives_the_same_bytes(finished_run):
    assert report.render(finished_run) == report.render(finished_run)


def test_a_damaged_path_is_replaced_by_the_previous_one_and_the_page_says_so(make_run):
    folder = make_run()
    shutil.copy(folder / "path.npz", folder / "path.npz.previous")
    (folder / "path.npz").write_bytes((folder / "path.npz").read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"path\.npz is damaged"):
        text = report.render(folder)
    assert "path.npz is damaged" in text


def test_a_folder_that_is_not_there_and_one_that_holds_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        report.write(tmp_path)
    assert os.listdir(tmp_path) == []


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:150])


def change(name, **changes):
    return lambda folder: edit(folder / name, **changes)


def one_array(folder):
    np.save(folder / "norms.npy", np.ones(3))
    os.replace(folder / "norms.npy", folder / "norms.npz")


LAYER = {"name": "fc", "shape": [4, 0], "groups": 4, "selected_groups": 1, "density": 0.2}
DAMAGE = {
    "config not JSON": (put("config.json", b"{"), r"config\.json is damaged: it is not valid JSON"),
    "config not text": (
        put("config.json", b"\xff\xfe"),
        r"config\.json is damaged: it is not valid JSON",
    ),
    "config a list": (
        put("config.json", b"[]"),
        r"config\.json is damaged: expected a JSON object, got list",
    ),
    "config incomplete": (put("config.json", b"{}"), r"config\.json: 'config' should be a JSON"),
    "machine a string": (change("config.json", machine="x"), r"config\.json: 'machine' should"),
    "record not JSON": (
        put("metrics.jsonl", b'{"step"\n'),
        r"metrics\.jsonl, line 1, is not valid",
    ),
    "record not text": (put("metrics.jsonl", b"\xff\n"), r"metrics\.jsonl is not text"),
    "record without step": (put("metrics.jsonl", b"{}\n"), r"line 1,: the field 'step' is missing"),
    "record a list": (put("metrics.jsonl", b"\n[]\n"), r"metrics\.jsonl, line 2,: expected a JSON"),
    "step infinite": (
        put("metrics.jsonl", b'{"step": Infinity, "epoch": 1}\n'),
        r"metrics\.jsonl, line 1,: step and epoch should be finite",
    ),
    "loss a string": (
        put("metrics.jsonl", b'{"step": 1, "epoch": 1, "loss": "x"}\n'),
        r"metrics\.jsonl, line 1,: 'loss' should be a number or null, got 'x'",
    ),
    "path cut": (cut("path.npz"), r"path\.npz is no readable solution path"),
    "result not JSON": (cut("result.json"), r"result\.json is damaged: it is not valid JSON"),
    "result incomplete": (put("result.json", b"{}"), r"result\.json: the field 'test_accuracy'"),
    "accuracy a string": (
        change("result.json", test_accuracy="high"),
        r"result\.json: 'test_accuracy' should be a number, got 'high'",
    ),
    "parameters a flag": (
        change("result.json", parameters=True),
        r"result\.json: 'parameters' should be a whole number, got True",
    ),
    "asked a string": (change("result.json", asked_density="5%"), r"result\.json: 'asked_density'"),
    "lambda not pairs": (change("result.json", lam=[0.1]), r"result\.json: 'lam' should be a list"),
    "layer incomplete": (
        change("result.json", layers=[{}]),
        r"result\.json: layers\[0\]: the field 'name' is missing",
    ),
    "layer without elements": (
        change("result.json", layers=[LAYER]),
        r"result\.json: layers\[0\]: 'shape' should hold positive sizes, got \[4, 0\]",
    ),
}


# The norms are only the sample of a picture.
SAMPLE = {
    "norms cut": (cut("norms.npz"), r"norms\.npz is truncated or not a NumPy archive"),
    "norms empty": (put("norms.npz", b""), r"norms\.npz is truncated or not a NumPy archive"),
    "norms without steps": (
        lambda folder: resave(folder / "norms.npz", drop=["steps"]),
        r"norms\.npz: the array 'steps' is missing",
    ),
    "norms without gamma": (
        lambda folder: resave(folder / "norms.npz", drop=["leaf_1_gamma"]),
        r"norms\.npz: the array 'leaf_1_gamma' is missing",
    ),
    "norms of other records": (
        lambda folder: resave(folder / "norms.npz", leaf_0_w=np.ones((2, 6))),
        r"norms\.npz: leaf_0_w should have the shape \(7, 6\)",
    ),
    "norms an array": (
        one_array,
        r"norms\.npz is truncated or not a NumPy archive",
    ),
}


@pytest.mark.parametrize("case", SAMPLE)
def test_a_damaged_sample_is_told_and_all_else_is_shown(case, make_run):
    damage, message = SAMPLE[case]
    folder = make_run()
    damage(folder)
    text = report.render(folder)
    assert re.search(f"The norms of groups cannot be drawn: .*{message}", html.unescape(text))
    assert "96.79" in text


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_error_that_names_the_file_and_leaves_the_folder(case, make_run):
    damage, message = DAMAGE[case]
    folder = make_run()
    (folder / "report.html").write_text("the report before, by dessilbi_jax")
    damage(folder)
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(ValueError, match=message) as error:
        report.write(folder)
    assert "\n" not in str(error.value)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_write_that_fails_leaves_the_old_report_and_nothing_else(make_run, monkeypatch):
    folder = make_run(steps=(1,), finished=False)
    (folder / "report.html").write_text("the report before, by dessilbi_jax")
    before = set(os.listdir(folder))

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        report.write(folder)
    assert set(os.listdir(folder)) == before
    assert (folder / "report.html").read_text() == "the report before, by dessilbi_jax"


def test_figures_are_written_as_files_and_replace_only_their_own(finished_run, tmp_path):
    folder = tmp_path / "figures"
    written = report.write_figures(finished_run, folder)
    names = ["path", "curves", "losses", "layers", "entry"]
    assert [file.name for file in written] == [f"{name}.svg" for name in names]
    assert all(b"<svg" in file.read_bytes() for file in written)
    with pytest.raises(FileExistsError, match="is there already: replace it with --overwrite"):
        report.write_figures(finished_run, folder)
    (folder / "curves.svg").write_text("<svg>mine</svg>")
    with pytest.raises(FileExistsError, match="is no picture of this library"):
        report.write_figures(finished_run, folder, overwrite=True)
    assert (folder / "curves.svg").read_text() == "<svg>mine</svg>"
