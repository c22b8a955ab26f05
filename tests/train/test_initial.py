"""Runs that start from weights: of an earlier run, of another number of classes, from PyTorch."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from train_runs import CHANNELS, Quiet

from dessilbi_jax import cli, models, train
from dessilbi_jax.models.pretrained import torch_shapes
from dessilbi_jax.train.data_facts import DataFacts
from dessilbi_jax.train.initial import digest, start_from
from dessilbi_jax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

CONFIG = dataclasses.replace(CHANNELS, epochs=2)


@pytest.fixture(scope="module")
def first(tmp_path_factory, compiled_in_haste):
    out = tmp_path_factory.mktemp("first") / "run"
    train.fit(CONFIG, out, progress=Quiet())
    return out


def facts(classes=10, shape=(8, 8, 1)):
    return DataFacts(
        dataset="digits", data_dir=None, input_shape=shape, classes=classes, mean=(0.0,),
        std=(1.0,), held_out=10, holdout_seed=0, steps_per_epoch=5, text=None, tokenizer=None,
        image_size=None,
    )  # fmt: skip


def arrays(model):
    return dict(leaf_paths(nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))))


def test_a_run_starts_from_the_last_weights_of_another(first, tmp_path):
    out = tmp_path / "second"
    train.fit(CONFIG, out, init=first, progress=Quiet())
    end, start = train.checkpoints(first), train.checkpoints(out)
    jax.tree.map(np.testing.assert_array_equal, start[0], end[max(end)])
    # The configuration says which weights, so that a run goes on only with its own.
    assert train.run_folder.folder.read_config(out).init == digest(first)
    with pytest.raises(ValueError, match=r"init: '[0-9a-f]{16}', now None"):
        train.fit(CONFIG, out, progress=Quiet(), resume=True)
    again = train.fit(CONFIG, out, init=first, progress=Quiet(), resume=True)
    assert again["steps"] == max(start)


def test_the_command_starts_from_a_file(first, tmp_path, capsys):
    out, file = tmp_path / "run", first / "weights" / "0.safetensors"
    words = ["train", "demo", "--no-settle", "--epochs", "1", "--batch-size", "32"]
    assert cli.main([*words, "--init", str(file), "--out", str(out)]) == 2
    assert "another network than lenet300: fc1/bias is (16,) there, (300,) here" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    assert cli.main([*words, "--init", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "there are no weights to start from" in capsys.readouterr().err


def test_a_head_of_another_size_is_drawn_anew(first):
    model = models.build("lenet300", input_shape=(8, 8, 1), classes=4, widths=(16, 12))
    before = arrays(model)
    got, fresh = start_from(first, model, CONFIG, facts(classes=4))
    assert fresh == ["fc3/bias", "fc3/kernel"]
    theirs = dict(leaf_paths(train.checkpoints(first)[max(train.checkpoints(first))]))
    for path, leaf in arrays(got).items():
        np.testing.assert_array_equal(leaf, before[path] if path in fresh else theirs[path])


@pytest.mark.parametrize("suffix", ["safetensors"])
@pytest.mark.parametrize("classes", [10, 7])
def test_weights_of_pytorch(suffix, classes, tmp_path):
    widths = (2, 3, 4, 5)
    config = dataclasses.replace(CONFIG, network="resnet18", widths=widths, structure="filters")
    made = models.build("resnet18", input_shape=(64, 64, 3), classes=7, widths=widths)
    draw = np.random.default_rng(0)
    file = tmp_path / f"weights.{suffix}"
    named = {n: draw.normal(size=s).astype(np.float32) for n, s in torch_shapes(made).items()}
    save_file(named, file)
    model = models.build("resnet18", input_shape=(64, 64, 3), classes=classes, widths=widths)
    got, fresh = start_from(file, model, config, facts(classes, (64, 64, 3)))
    assert fresh == ([] if classes == 7 else ["fc/bias", "fc/kernel"])
    expected = arrays(models.load_torch(file, made))
    for path, leaf in arrays(got).items():
        if path not in fresh:
            np.testing.assert_array_equal(leaf, expected[path])
    save_file({"conv1.weight": named["conv1.weight"]}, file)
    with pytest.raises(ValueError, match=r"holds no fc.weight, the head of this network"):
        start_from(file, model, config, facts(classes, (64, 64, 3)))
