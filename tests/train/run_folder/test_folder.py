import dataclasses
import os
import re

import pytest

from dessilbi_jax import files, run_files
from dessilbi_jax.train import TrainConfig
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.run_folder.owned import foreign

CONFIG = TrainConfig(network="lenet300", dataset="digits", epochs=2)


def check(run, config=CONFIG, *, resume=False, overwrite=False):
    return folder.check(run, config, resume=resume, overwrite=overwrite)


def contents(run):
    return {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was stopped."""
    run = tmp_path / "run"
    folder.start(run, CONFIG, preset="demo", command="dessilbi train demo", data={})
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "path.npz.previous").write_bytes(b"previous")
    (run / "norms.npz.part").write_bytes(b"half")
    (run / "checkpoints" / "10").mkdir(parents=True)
    return run


def test_a_new_or_empty_folder_may_be_used(tmp_path):
    assert check(tmp_path / "new") == "new"
    assert not (tmp_path / "new").exists()
    assert check(tmp_path) == check(tmp_path, overwrite=True) == "new"


def test_config_json_says_what_was_run_where(run):
    saved = files.read_json(run / "config.json")
    assert (saved["preset"], saved["command"]) == ("demo", "dessilbi train demo")
    assert TrainConfig.from_json(saved["config"]) == folder.read_config(run) == CONFIG
    assert set(saved["versions"]) == {"python", "jax", "optax", "flax", "numpy", "dessilbi_jax"}
    assert saved["machine"]["cores"] == os.cpu_count()
    assert saved["machine"]["cpu"]
    assert "T" in saved["started"]


def test_another_run_is_not_touched_without_being_asked(run):
    before = contents(run)
    with pytest.raises(FileExistsError, match="another run: continue it with --resume, replace"):
        check(run)
    assert contents(run) == before


def test_overwrite_deletes_the_run_and_only_when_it_starts(run):
    before = contents(run)
    assert check(run, overwrite=True) == "new"
    assert contents(run) == before
    folder.start(run, CONFIG, preset="demo", command="", data={})
    assert [f.name for f in run.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".git",
        "src/",
        "weights/mine.safetensors",
        "retrained/notes.txt",
        "slim/figure/a.svg",
        "checkpoints/10/notes.txt",
        "retrained.unfinished/notes.txt",
    ],
)
def test_overwrite_refuses_a_folder_with_anything_else_in_it(run, name):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).mkdir() if name.endswith("/") else (run / name).write_text("mine")
    before = contents(run)
    with pytest.raises(FileExistsError, match=rf"not of a run \({name}\); none is del"):
        check(run, overwrite=True)
    assert contents(run) == before
    # Also where it appears after the check, only what a run wrote is deleted.
    folder.start(run, CONFIG, preset="demo", command="", data={})
    assert sorted(f.name for f in run.iterdir()) == sorted(["config.json", name.split("/")[0]])
    assert name.endswith("/") or (run / name).read_text() == "mine"


def test_all_that_a_run_writes_is_known(whole, retrained, slimmed):
    """Of real runs: so that --overwrite neither stops at a file of theirs nor leaves one."""
    assert foreign(whole[0], run_files.WRITTEN) == []
    for place, own in (
        (retrained, run_files.RETRAINED_FILES), (slimmed, run_files.SLIM_FILES),
    ):  # fmt: skip
        assert foreign(place, re.compile(own)) == []


def test_overwrite_refuses_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not of a run"):
        check(tmp_path, overwrite=True)
    (tmp_path / "config.json").write_text('{"config": {"somebody": "else"}}')
    with pytest.raises(ValueError, match="describes no run of this version: unknown fields"):
        check(tmp_path, overwrite=True)
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_link_in_a_run_folder_is_removed_not_followed(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("mine")
    (run / "checkpoints" / "10").rmdir()
    (run / "checkpoints").rmdir()
    (run / "checkpoints").symlink_to(elsewhere)
    folder.start(run, CONFIG, preset="demo", command="", data={})
    assert (elsewhere / "keep").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(NotADirectoryError, match="is a file: give another folder"):
            check(tmp_path / "file", **options)


def test_resume_goes_on_with_the_same_configuration_only(run):
    assert check(run, resume=True) == "resume"
    other = dataclasses.replace(CONFIG, nu=50.0, epochs=5)
    with pytest.raises(ValueError, match=r"epochs: 2, now 5; nu: 20\.0, now 50\.0\. Resume it"):
        check(run, other, resume=True)
    (run / "result.json").write_text("{}")
    assert check(run, resume=True) == "finished"


def test_resume_where_there_is_a_run(run, tmp_path):
    assert check(run, resume="auto") == "resume"
    assert check(tmp_path / "none", resume="auto") == "new"
    with pytest.raises(ValueError, match="another configuration"):
        check(run, dataclasses.replace(CONFIG, seed=5), resume="auto")
    (run / "result.json").write_text("{}")
    assert check(run, resume="auto") == "finished"


def test_resume_needs_a_run_and_excludes_overwrite(tmp_path):
    for run in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="nothing to resume: there is no run in"):
            check(run, resume=True)
    with pytest.raises(ValueError, match="give one of the two"):
        check(tmp_path, resume=True, overwrite=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}', '{"config": {"nu": 1}}'])
def test_a_damaged_config_json_is_an_error_that_names_it(run, content):
    (run / "config.json").write_text(content)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match=r"config\.json"):
            check(run, **options)
    assert (run / "metrics.jsonl").exists()


def test_json_with_nan_is_refused_and_leaves_the_old_file(tmp_path):
    file = tmp_path / "result.json"
    files.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(file, {"a": float("nan")})
    assert files.read_json(file) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["result.json"]
