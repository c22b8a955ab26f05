import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from dessilbi_jax.train.run_folder.checkpoints import (
    Checkpoints,
    Snapshot,
    load_params,
    restore_latest,
)
from dessilbi_jax.train.step import first_state

RECORDS = {"metrics.jsonl": b'{"step": 1}\n', "path.npz": bytes(range(256)), "norms.npz": b"x"}
TX = optax.chain(optax.scale_by_adam(), dl.dessilbi(0.1, lam=0.1, momentum=0.9))


def state_at(step, shape=(5, 4)):
    params = {
        "fc": {"kernel": jnp.arange(20.0).reshape(shape) * step, "bias": jnp.full(4, jnp.nan)}
    }
    return first_state(params, {}, TX)._replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(Snapshot(state_at(step), RECORDS, step / 2))
    return directory


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_the_last_two_are_kept_and_the_newest_comes_back_bit_for_bit(saved):
    assert sorted(d.name for d in saved.iterdir()) == ["20", "30"]
    snapshot, notes = restore_latest(saved, state_at(0))
    assert_same(snapshot.state, state_at(30))
    assert (snapshot.records, snapshot.seconds, notes) == (RECORDS, 15.0, [])


NEVER_READ = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax's own notes


def test_the_best_is_kept_beside_the_last(tmp_path):
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory, keep=1) as checkpoints:
        for step, accuracy in ((10, 0.5), (20, 0.9), (30, None), (40, 0.7), (50, None)):
            checkpoints.save(Snapshot(state_at(step), RECORDS, 1.0, b"position"), accuracy)
    assert sorted(d.name for d in directory.iterdir()) == ["20", "50"]
    for which, step in (("newest", 50), ("best", 20)):
        params, _ = load_params(tmp_path, which)
        np.testing.assert_array_equal(params["fc"]["kernel"][0, 1], step)
    with pytest.raises(ValueError, match="which must be 'newest' or 'best', got 'last'"):
        load_params(tmp_path, "last")
    assert restore_latest(directory, state_at(0))[0].data == b"position"


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    move = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros(3_000_000)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            state = move(state)
            snapshot = Snapshot(state_at(step)._replace(params=state), RECORDS, 1.0)
            checkpoints.save(snapshot)
            for _ in range(5):
                state = move(state)
    like = state_at(0)._replace(params=state)
    assert (np.asarray(restore_latest(tmp_path, like)[0].state.params["w"]) == 7).all()


def test_a_wait_that_was_interrupted_can_be_taken_up_again(tmp_path, monkeypatch):
    saving, go_on, complete = threading.Event(), threading.Event(), Checkpoints._complete

    def interrupting(self):
        assert saving.wait(300)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert go_on.wait(300)
        complete(self)

    def wait(checkpoints):
        saving.set()
        checkpoints.wait()

    def act(signum, frame):
        threading.Timer(0.5, go_on.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_complete", interrupting)
    before = signal.signal(signal.SIGUSR1, act)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(Snapshot(state_at(10), RECORDS, 1.0))
            with pytest.raises(KeyboardInterrupt):
                wait(checkpoints)
            checkpoints.wait()
            assert [d.name for d in tmp_path.iterdir()] == ["10"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_checkpoint_that_cannot_be_written_says_what_is_left(saved, tmp_path, monkeypatch):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dessilbi_jax.files.write_json", full)
    checkpoints = Checkpoints(directory)
    checkpoints.save(Snapshot(state_at(40), RECORDS, 1.0))
    with pytest.raises(OSError, match=r"of step 40 could not be written .*No space left") as caught:
        checkpoints.save(Snapshot(state_at(50), RECORDS, 1.0))
    assert f"last good checkpoint: {directory / '30'}." in str(caught.value)
    assert restore_latest(directory, state_at(0))[0].seconds == 15.0


def files_of(directory):
    files = (f for f in directory.rglob("*") if f.is_file() and f.name not in NEVER_READ)
    return sorted(f.relative_to(directory) for f in files)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", flip, None],
    ids=["truncated", "emptied", "one byte changed", "missing"],
)
def test_damage_to_any_file_is_found_and_the_one_before_is_used(saved, tmp_path, damage, capfd):
    for i, file in enumerate(files_of(saved / "30")):
        directory = tmp_path / str(i)
        shutil.copytree(saved, directory)
        target = directory / "30" / file
        if damage is None:
            target.unlink()
        elif target.stat().st_size:
            target.write_bytes(damage(target.read_bytes()))
        else:
            continue
        snapshot, notes = restore_latest(directory, state_at(0))
        assert_same(snapshot.state, state_at(20))
        assert (snapshot.records, snapshot.seconds) == (RECORDS, 10.0)
        assert len(notes) == 1
        assert "30 is damaged" in notes[0]
        assert "that of step 20 is used" in notes[0]
        assert not (directory / "30").exists()
    assert capfd.readouterr() == ("", "")


def test_with_no_good_checkpoint_nothing_is_deleted(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    for step in ("20", "30"):
        shutil.rmtree(directory / step / "state")
    before = files_of(directory)
    with pytest.raises(ValueError, match="no good one is left: start again with --overwrite"):
        restore_latest(directory, state_at(0))
    assert files_of(directory) == before


def test_a_checkpoint_of_another_network_names_the_leaf(saved):
    with pytest.raises(ValueError, match=r"another network or optimizer.*kernel is \(\(5, 4\)"):
        restore_latest(saved, state_at(0, shape=(4, 5)))
    assert (saved / "30").exists()


def test_no_checkpoint_at_all(tmp_path):
    assert restore_latest(tmp_path / "none", state_at(0)) == (None, [])
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        load_params(tmp_path)


def test_parameters_of_a_run_without_its_network(saved):
    params, stats = load_params(saved.parent)
    assert stats == {}
    np.testing.assert_array_equal(params["fc"]["kernel"], np.arange(20.0).reshape(5, 4) * 30)
