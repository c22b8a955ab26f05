import dataclasses
import json
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_runs import TINY, Quiet

import dessilbi_jax as dl
from dessilbi_jax import data, models, train
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Rows
from dessilbi_jax.train.interrupt import Interrupted, Signals
from dessilbi_jax.train.step import make_evaluate, split_network

FILES = ["checkpoints", "config.json", "metrics.jsonl", "norms.npz", "path.npz"]
FILES += ["path.npz.previous", "report.html", "result.json", "run.lock"]
FILES += ["weights"]
STEPS = [1, 3, 9, 10, 20, 30]


def lines(run, *, without=()):
    """The records of a run."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in without} for line in found]


def same_outcome(run, other):
    """Whether two runs ended the same, bit for bit, in all but the time they took."""
    for a, b in zip(*(jax.tree.leaves(train.load_params(r)) for r in (run, other)), strict=True):
        assert a.tobytes() == b.tobytes()
    assert lines(run, without=["seconds"]) == lines(other, without=["seconds"])
    for name in ("path.npz", "norms.npz"):
        with np.load(run / name) as a, np.load(other / name) as b:
            assert a.files == b.files
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key])
    results = [json.loads((r / "result.json").read_text()) for r in (run, other)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


class Killed(Exception):
    """Stands for whatever ends a process."""


class KillAt(Quiet):
    """Ends the run when an epoch's record has been written and its checkpoint has not."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def epoch(self, line, epochs):
        if line["epoch"] == self.at:
            raise Killed


class SignalAfter(Quiet):
    """Sends this process a signal after some steps that are not recorded."""

    def __init__(self, steps, signum):
        super().__init__()
        self.left, self.signum = steps, signum

    def due(self):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)
        return False


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that Ctrl-C stopped in the middle of its second epoch, and what was raised."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt) as caught:
        train.fit(
            TINY, run, command="dessilbi train tiny --overwrite --out 'a b'",
            progress=SignalAfter(11, signal.SIGINT),
        )  # fmt: skip
    return run, caught.value


def test_a_run_leaves_its_files(whole):
    run, result, _ = whole
    assert sorted(f.name for f in run.iterdir()) == FILES
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["20", "30"]
    assert json.loads((run / "result.json").read_text()) == result
    assert "<html" in (run / "report.html").read_text()


def test_every_record_is_in_the_three_files(whole):
    run, _, _ = whole
    path = dl.SolutionPath.load(run / "path.npz")
    with np.load(run / "norms.npz") as norms:
        recorded = norms["steps"].tolist()
    assert [line["step"] for line in lines(run)] == path.steps.tolist() == recorded == STEPS
    assert [line["density"] for line in lines(run)] == path.density().tolist()
    for name in ("accuracy", "projected_accuracy", "loss", "epoch"):
        assert [line[name] for line in lines(run)] == path.metrics[name].tolist()
    assert [line["epoch"] for line in lines(run)] == [s / 10 for s in STEPS]


def test_lam_is_null_until_it_is_estimated(whole):
    run, result, _ = whole
    estimates = result["lam"]
    assert len(estimates) == 8
    for line in lines(run):
        known = [lam for step, lam in estimates if step <= line["step"]]
        assert line["lam"] == (known[-1] if known else None)
    assert lines(run)[0]["lam"] is None


def test_the_learning_rate_is_that_of_the_last_step(whole):
    run, _, _ = whole
    expected = [0.1 * (1 + np.cos(np.pi * (step - 1) / 30)) / 2 for step in STEPS]
    np.testing.assert_allclose([line["learning_rate"] for line in lines(run)], expected, rtol=1e-5)


def test_the_result_is_that_of_the_last_checkpoint_on_the_test_images(whole):
    run, result, _ = whole
    digits = data.load("digits")
    model = models.build("vgg-small", input_shape=(8, 8, 1), widths=(6,))
    network, _, _ = split_network(model, digits.mean, digits.std)
    params, stats = train.load_params(run)
    evaluate, test = make_evaluate(network), Rows(digits.test_part(), 500, make_mesh("one"))
    assert result["test_accuracy"] == evaluate(params, stats, test)[0]
    mask = dl.SolutionPath.load(run / "path.npz").support(30, params)
    sparse = dl.project(params, mask)
    assert result["test_projected_accuracy"] == evaluate(sparse, stats, test)[0]
    assert result["parameters"] == sum(p.size for p in jax.tree.leaves(params))
    kept = [int(mask[m]["kernel"].sum()) for m in ("conv1", "fc")]
    assert result["density"] == pytest.approx(sum(kept) / (54 + 60))
    assert result["layers"] == [
        {"name": "conv1/kernel", "shape": [3, 3, 1, 6], "groups": 6,
         "selected_groups": kept[0] // 9, "density": pytest.approx(kept[0] / 54)},
        {"name": "fc/kernel", "shape": [6, 10], "groups": 60,
         "selected_groups": kept[1], "density": pytest.approx(kept[1] / 60)},
    ]  # fmt: skip
    assert (result["asked_density"], result["steps"]) == (0.3, 30)


def test_norms_are_those_of_the_sampled_groups(whole):
    run, _, _ = whole
    params, _ = train.load_params(run)
    with np.load(run / "norms.npz") as norms:
        assert [str(norms[f"leaf_{i}_name"]) for i in (0, 1)] == ["conv1/kernel", "fc/kernel"]
        # All filters; of the weights 48, and some of those that entered besides.
        assert norms["leaf_0_index"].size == 6
        assert 48 <= norms["leaf_1_index"].size <= 60
        assert [int(norms[f"leaf_{i}_size"]) for i in (0, 1)] == [6, 60]
        np.testing.assert_allclose(
            norms["leaf_1_w"][-1], np.abs(params["fc"]["kernel"]).ravel()[norms["leaf_1_index"]]
        )
        filters = np.sqrt(np.sum(params["conv1"]["kernel"] ** 2, axis=(0, 1, 2)))
        np.testing.assert_allclose(norms["leaf_0_w"][-1], filters, rtol=1e-6)
        chosen = dl.SolutionPath.load(run / "path.npz").support(30)["fc/kernel"].ravel()
        np.testing.assert_array_equal(norms["leaf_1_gamma"][-1] > 0, chosen[norms["leaf_1_index"]])
        assert not norms["leaf_1_gamma"][0].any()


def test_one_line_an_epoch_is_printed(whole):
    _, _, printed = whole
    assert printed.startswith("training vgg-small on digits: 1,293 rows, 10 steps an epoch, 3 ep")
    assert [line.split("  ")[0] for line in printed.splitlines()[1:]] == [
        "epoch 1/3", "epoch 2/3", "epoch 3/3",
    ]  # fmt: skip
    assert "\r" not in printed
    assert "steps/s" in printed.splitlines()[-1]
    assert "density 2" in printed.splitlines()[-1] or "density 3" in printed.splitlines()[-1]


def test_killed_between_record_and_checkpoint_then_resumed(whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train.fit(TINY, run, progress=KillAt(2))
    assert [line["step"] for line in lines(run)] == STEPS[:-1]
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["10"]
    progress = Quiet()
    train.fit(TINY, run, resume=True, progress=progress)
    same_outcome(run, whole[0])
    assert "note" not in progress.out.getvalue()


def test_a_signal_stops_between_two_steps_with_a_checkpoint(stopped):
    run, error = stopped
    kept = sorted(int(f.name) for f in (run / "checkpoints").iterdir())
    assert kept[0] == 10
    assert 10 < kept[1] < 20
    assert isinstance(error, Interrupted)
    assert error.signum == signal.SIGINT
    assert str(error) == (
        f"stopped at step {kept[1]} of 30; go on with: dessilbi train --resume --out 'a b'"
    )
    assert not (run / "result.json").exists()


def test_resumed_with_damaged_records_and_a_damaged_checkpoint(whole, stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    for name in ("path.npz", "norms.npz", "metrics.jsonl"):
        (run / name).write_bytes((run / name).read_bytes()[:100])
    newest = max(int(f.name) for f in (run / "checkpoints").iterdir())
    largest = max((run / "checkpoints" / str(newest)).rglob("*"), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:50])
    progress = Quiet()
    train.fit(TINY, run, resume=True, progress=progress)
    same_outcome(run, whole[0])
    notes = [line for line in progress.out.getvalue().splitlines() if "note" in line]
    assert len(notes) == 2
    assert f"{newest} is damaged" in notes[0]
    assert "that of step 10 is used" in notes[0]
    assert "path.npz is damaged" in notes[1]
    assert "the one kept with step 10 is put back" in notes[1]


def test_resumed_in_mid_epoch(whole, stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    train.fit(TINY, run, resume=True, progress=Quiet())
    same_outcome(run, whole[0])


def test_a_finished_run_returns_its_result_untouched(whole):
    run, result, _ = whole
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*")}
    assert train.fit(TINY, run, resume=True, progress=Quiet()) == result
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*")} == before


def test_lean_selects_what_full_selects(whole, tmp_path):
    lean = dataclasses.replace(TINY, lean=True)
    train.fit(lean, tmp_path / "lean", progress=Quiet())
    full_path = dl.SolutionPath.load(whole[0] / "path.npz")
    lean_path = dl.SolutionPath.load(tmp_path / "lean" / "path.npz")
    for step in STEPS:
        for name, mask in full_path.support(step).items():
            np.testing.assert_array_equal(lean_path.support(step)[name], mask)
    assert full_path.density()[-1] > 0
    for a, b in zip(
        *(jax.tree.leaves(train.load_params(r)) for r in (whole[0], tmp_path / "lean")),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_written_nowhere(tmp_path, monkeypatch):
    def explode(config, steps, structure, lam=None):
        return dl.dessilbi(lambda step: jnp.where(step < 14, 0.1, 1e30), lam=1.0)

    monkeypatch.setattr("dessilbi_jax.train.prepare.make_optimizer", explode)
    run, config = tmp_path / "run", dataclasses.replace(TINY, network="lenet300", augment=False)
    with pytest.raises(FloatingPointError) as caught:
        train.fit(config, run, progress=Quiet())
    message = str(caught.value)
    assert "the loss is not finite at step 16 (epoch 1.60)" in message
    assert f"last good checkpoint: {run / 'checkpoints' / '10'}." in message
    assert "smaller learning rate than 0.1" in message
    assert [line["step"] for line in lines(run)] == STEPS[:4]
    assert not (run / "report.html").exists()
    assert not (run / "result.json").exists()


def test_adam_resumed_before_the_first_checkpoint_starts_again(whole, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(
        TINY, network="lenet300", seed=1, optimizer="adam", epochs=1, learning_rate=0.01,
        schedule="constant", lam=0.1, density=None, augment=False,
    )  # fmt: skip
    with pytest.raises(Killed):
        train.fit(config, run, progress=KillAt(1))
    before = lines(run, without=["seconds"])
    progress = Quiet()
    result = train.fit(config, run, resume=True, progress=progress)
    assert lines(run, without=["seconds"]) == before
    assert [line["step"] for line in before] == STEPS[:4]
    assert before[0]["loss"] != lines(whole[0])[0]["loss"]
    assert before[-1]["loss"] < before[0]["loss"]
    assert (result["asked_density"], result["lam"]) == (None, [[0, pytest.approx(0.1)]])
    assert "no checkpoint yet" in progress.out.getvalue()
    assert "starting at the beginning" in progress.out.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5000}, "batch_size 5000 is larger than the 1293 training images"),
        ({"network": "vgg-smal"}, "did you mean 'vgg-small'"),
        ({"dataset": "digit"}, "digit"),
        ({"network": "lenet5", "widths": (2, 2, 2)}, "lenet5 needs images of 16x16"),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.fit(dataclasses.replace(TINY, **changes), tmp_path / "run", progress=Quiet())
    assert not (tmp_path / "run").exists()


def test_signals_are_kept_back_once_then_act_and_the_handlers_come_back():
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with Signals() as signals:
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {s: signal.getsignal(s) for s in before} == before


def test_ignored_signals_stay_ignored_and_threads_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received == 0
            thread = threading.Thread(target=lambda: Signals().__enter__().__exit__(*[None] * 3))
            thread.start()
            thread.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_selects_nothing_says_so(tmp_path):
    progress = Quiet()
    config = dataclasses.replace(TINY, epochs=1, lam=1e6, density=None)
    result = train.fit(config, tmp_path / "run", progress=progress)
    assert result["density"] == 0
    assert "note: nothing was selected in 10 steps: Γ never opened at λ = 1e+06" in (
        progress.out.getvalue()
    )
