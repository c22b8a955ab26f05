import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from train_runs import CHANNELS, TINY

import dessilbi_jax as dl
from dessilbi_jax import models, train
from dessilbi_jax.train import loop
from dessilbi_jax.train.run_folder.weights import read_weights, step_of, write_weights


def same(a, b):
    a, b = (jax.tree_util.tree_flatten_with_path(tree) for tree in (a, b))
    assert [path for path, _ in a[0]] == [path for path, _ in b[0]]
    for (_, x), (_, y) in zip(a[0], b[0], strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_start_epochs_and_end_are_kept_and_read_when_asked_for(channel_run):
    kept = train.checkpoints(channel_run)
    assert list(kept) == [0, 20, 40, 60]
    params, stats = train.load_params(channel_run)
    same(dl.rewind(kept, "end"), params)
    assert stats == kept.load(60)[1] == {}
    with pytest.raises(KeyError):
        kept[7]
    with pytest.raises(ValueError, match="no checkpoint of step 7; the nearest one is 0"):
        dl.rewind(kept, 7)


@pytest.mark.parametrize(("config", "run"), [(CHANNELS, "channel_run"), (TINY, "whole")])
def test_the_initial_parameters_are_those_of_the_seed_bit_for_bit(config, run, request):
    run = request.getfixturevalue(run)
    run = run if config is CHANNELS else run[0]
    model = models.build(
        config.network, input_shape=(8, 8, 1), seed=config.seed, widths=config.widths
    )
    params, stats = train.checkpoints(run).load(0)
    same(params, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    same(stats, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_which_epochs_are_kept(every, epochs):
    config = dataclasses.replace(CHANNELS, keep_every=every)
    assert [epoch for epoch in range(1, 5) if loop._kept(config, epoch)] == epochs


def test_a_start_is_a_word_or_an_epoch(channel_run, tmp_path):
    assert [step_of(channel_run, s, 20) for s in ("init", "2", "end", "0")] == [0, 40, 60, 0]
    for wrong in ("4", "-1", "1.5", "begin"):
        with pytest.raises(ValueError, match=r"--from must be init, end or an epoch .* 1, 2, 3"):
            step_of(channel_run, wrong, 20)
    shutil.copytree(channel_run / "weights", tmp_path / "weights")
    (tmp_path / "weights" / "20.safetensors").unlink()
    with pytest.raises(ValueError, match=r"got '1'; .* keeps those of 2, 3"):
        step_of(tmp_path, "1", 20)
    with pytest.raises(ValueError, match="has not finished, so it has no end"):
        step_of(tmp_path, "end", 20)


def test_a_damaged_file_is_named_and_no_run_keeps_nothing(channel_run, tmp_path):
    content = (channel_run / "weights" / "20.safetensors").read_bytes()
    for broken in (b"", content[:100], content[:-3], b"\x02\0\0\0\0\0\0\0{}"[:8] + b"xx"):
        (tmp_path / "w").write_bytes(broken)
        with pytest.raises(ValueError, match=r"w is damaged"):
            read_weights(tmp_path / "w")
    with pytest.raises(FileNotFoundError, match="keeps no parameters"):
        train.checkpoints(tmp_path)


def test_what_is_written_comes_back(tmp_path):
    params = {
        "b": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
        "a": {"x": np.ones(1)},
    }
    write_weights(tmp_path / "w", params, {})
    same(read_weights(tmp_path / "w")[0], params)
    assert [f.name for f in tmp_path.iterdir()] == ["w"]
