"""Runs that end with the network: exactly the budget, the same after a stop, and cut out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_runs import Quiet, StopAt

import dessilbi_jax as dl
from dessilbi_jax import cli, files, train
from dessilbi_jax.tree import leaf_paths

CONFIG = train.TrainConfig(
    network="lenet300", dataset="digits", epochs=3, batch_size=64, widths=(12, 8),
    structure="weights", density=0.1, settle=(0.1, 0.7), nu=5.0, learning_rate=0.1,
)  # fmt: skip


def weights_of(run):
    """The last weights of a run, by path."""
    last = max((run / "weights").glob("*.safetensors"), key=lambda file: int(file.stem))
    from safetensors.numpy import load_file

    return load_file(last)


def left(run):
    named = weights_of(run)
    kernels = [w for path, w in named.items() if path.endswith("kernel")]
    return sum(int((w != 0).sum()) for w in kernels), sum(w.size for w in kernels)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_w_ends_with_exactly_the_density(optimizer, tmp_path):
    rate = 0.1 if optimizer == "sgd" else 0.01
    config = dataclasses.replace(CONFIG, optimizer=optimizer, learning_rate=rate)
    result = train.fit(config, tmp_path / "run", progress=Quiet())
    kept, of = left(tmp_path / "run")
    assert kept == round(0.1 * of)
    assert result["settled"]
    assert result["density"] == kept / of
    assert result["test_projected_accuracy"] == result["test_accuracy"] > 0.3
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The run ended with a sparse network" in page


def test_a_stopped_run_ends_with_the_same_network(tmp_path):
    whole = train.fit(CONFIG, tmp_path / "whole", progress=Quiet())
    for epoch in (1, 2):
        run = tmp_path / f"stopped{epoch}"
        with pytest.raises(KeyboardInterrupt):
            train.fit(CONFIG, run, progress=StopAt(epoch=epoch))
        again = train.fit(CONFIG, run, progress=Quiet(), resume=True)
        assert again["test_loss"] == whole["test_loss"]
        for path, w in weights_of(tmp_path / "whole").items():
            np.testing.assert_array_equal(w, weights_of(run)[path])


def test_the_command_ends_with_a_small_network(tmp_path, capsys):
    out = tmp_path / "demo"
    words = ["train", "demo", "--epochs", "4", "--out", str(out)]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "of the sparse network that the run ends with" in told
    assert f"load it    dl.load_slim('{out / 'slim'}')" in told
    made = files.read_json(out / "slim" / "result.json")
    small, dense = (made["networks"][name] for name in ("slim", "dense"))
    assert small["parameters"] < 0.2 * dense["parameters"]
    assert small["test_accuracy"] == dense["test_accuracy"]  # W is what was cut
    params, *_ = dl.load_slim(out / "slim")
    assert sum(x.size for _, x in leaf_paths(params)) >= small["parameters"]
    assert cli.main([*words, "--resume"]) == 0
    assert "is finished already" in capsys.readouterr().out


def test_no_settle_keeps_w_dense(tmp_path, capsys):
    out = tmp_path / "dense"
    words = ["train", "demo", "--epochs", "2", "--no-settle", "--out", str(out)]
    assert cli.main(words) == 0
    assert "dense" in capsys.readouterr().out
    assert not (out / "slim").exists()
    kept, of = left(out)
    assert kept > 0.95 * of


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settle", "0.5"], "expected two fractions of the run such as 0.1:0.75, got '0.5'"),
        (["--settle", "0.7:0.2"], "settle must begin before it ends, got 0.7:0.2"),
        (["--settle", "0.1:1.5"], "the end of settle must be a finite number above 0 and at most"),
        (["--settle", "0.1:0.7", "--lam", "0.3"], "--settle ends with the density that --lam auto"),
        (["--density", "0.00001"], "is less than one group of 1: give at least 2e-05"),
    ],
)  # fmt: skip
def test_what_cannot_be_settled(words, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "demo", *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_settings_of_a_configuration():
    with pytest.raises(TypeError, match=r"settle must be \(begin, end\)"):
        dataclasses.replace(CONFIG, settle=True)
    assert train.TrainConfig.from_json(CONFIG.to_json()) == CONFIG
    tx = train.optim.make_optimizer(CONFIG, 100, dl.weights)
    state = tx.init({"kernel": jnp.ones((8, 8))})
    settled = dl.get_state(state).settled
    assert jax.tree.map(jnp.shape, settled.allowed) == {"kernel": (8, 8)}
