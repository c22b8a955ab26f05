import logging
import os
import pathlib

import numpy as np
import pytest
import tiny_sets

from dessilbi_jax import data
from dessilbi_jax.data import _cache, _decode

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def decodings(monkeypatch):
    """How often a set was decoded."""
    calls = []
    original = _decode.decode
    monkeypatch.setattr(_decode, "decode", lambda *args: calls.append(args) or original(*args))
    return calls


def same(a, b):
    assert (a.name, a.classes, a.mean, a.std) == (b.name, b.classes, b.mean, b.std)
    for field in FIELDS:
        x, y = getattr(a, field), getattr(b, field)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


def test_decoded_once(tmp_path, decodings):
    tiny_sets.prepare(tmp_path)
    first = data.load("tiny", tmp_path)
    second = data.load("tiny", tmp_path)
    same(first, second)
    assert len(decodings) == 1
    assert second.train_labels.flags.aligned
    assert [file.name[:11] for file in (tmp_path / "cache").iterdir()] == ["tiny-1.0.0-"]


def test_given_folder_is_used(tmp_path, decodings):
    tiny_sets.prepare(tmp_path)
    for _ in range(2):
        data.load("tiny", tmp_path, cache_dir=tmp_path / "mine" / "deep")
    assert len(decodings) == 1
    assert not (tmp_path / "cache").exists()
    assert len(list((tmp_path / "mine" / "deep").iterdir())) == 1


def test_default_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setenv("DESSILBI_CACHE", "~/chosen")
    assert _cache.default_folder() == pathlib.Path("/home/someone/chosen")
    monkeypatch.delenv("DESSILBI_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    assert _cache.default_folder() == pathlib.Path("/scratch/dessilbi_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _cache.default_folder() == pathlib.Path("/home/someone/.cache/dessilbi_jax")
    monkeypatch.setattr("sys.platform", "darwin")
    assert _cache.default_folder() == pathlib.Path("/home/someone/Library/Caches/dessilbi_jax")
    monkeypatch.setattr("sys.platform", "win32")
    assert _cache.default_folder() == pathlib.Path("/local/dessilbi_jax")


def test_changed_source_is_decoded_again(tmp_path, decodings):
    tiny_sets.prepare(tmp_path / "a", seed=0)
    tiny_sets.prepare(tmp_path / "b", seed=9)
    before = data.load("tiny", tmp_path / "a")
    for file in (tmp_path / "b/tiny/1.0.0").iterdir():
        os.replace(file, tmp_path / "a/tiny/1.0.0" / file.name)
    after = data.load("tiny", tmp_path / "a")
    assert len(decodings) == 2
    assert (before.train_images != after.train_images).any()
    same(after, data.load("tiny", tmp_path / "a"))
    assert len(decodings) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1  # replaced, not added


def test_touched_file_and_changed_description_are_noticed(tmp_path, decodings):
    tiny_sets.prepare(tmp_path)
    folder = tmp_path / "tiny/1.0.0"
    data.load("tiny", tmp_path)
    os.utime(folder / "tiny-train.array_record-00000-of-00002", ns=(0, 1))
    data.load("tiny", tmp_path)
    assert len(decodings) == 2
    info = folder / "dataset_info.json"
    times = info.stat().st_atime_ns, info.stat().st_mtime_ns
    info.write_text(info.read_text().replace('"name": "tiny"', '"name":  "tiny"')[:-1] + "}")
    os.utime(info, ns=times)
    data.load("tiny", tmp_path)
    assert len(decodings) == 3


def test_two_copies_do_not_evict_each_other(tmp_path, decodings):
    for copy in "ab":
        tiny_sets.prepare(tmp_path / copy)
    for copy in "abab":
        data.load("tiny", tmp_path / copy)
    assert len(decodings) == 2


@pytest.fixture
def stored(tmp_path):
    """A cached data set small enough to damage it at every byte."""
    images, labels = tiny_sets.random_part(6, (2, 3, 1), 2, 0)
    dataset = data.Dataset.from_arrays("ü", (images, labels), (images[:4], labels[:4]), "ab")
    file = tmp_path / "cache" / "set.cache"
    _cache.write(file, "mark", dataset)
    same(_cache.read(file, "mark"), dataset)
    return file


def test_a_flipped_bit_in_any_byte_is_noticed(stored):
    content = stored.read_bytes()
    for position in range(len(content)):
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            stored.write_bytes(damaged)
            assert _cache.read(stored, "mark") is None, (position, bit)


def test_every_cut_and_every_addition_is_noticed(stored):
    content = stored.read_bytes()
    for length in range(len(content)):
        stored.write_bytes(content[:length])
        assert _cache.read(stored, "mark") is None, length
    stored.write_bytes(content + b"\0")
    assert _cache.read(stored, "mark") is None


def test_other_fingerprint_and_absent_file(stored):
    assert _cache.read(stored, "mark2") is None
    assert _cache.read(stored.with_name("absent"), "mark") is None
    assert _cache.read(stored.parent, "mark") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_is_decoded_again_silently(tmp_path, decodings, caplog, damage):
    tiny_sets.prepare(tmp_path)
    good = data.load("tiny", tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    file.write_bytes(content[: {"flip": None, "cut": len(content) // 2, "empty": 0}[damage]])
    with caplog.at_level(logging.WARNING):
        same(data.load("tiny", tmp_path), good)
    assert not caplog.records
    assert len(decodings) == 2
    same(data.load("tiny", tmp_path), good)
    assert len(decodings) == 2  # and stored anew


def test_interrupted_write_leaves_the_old_file(stored, monkeypatch):
    before = stored.read_bytes()
    dataset = _cache.read(stored, "mark")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _cache.write(stored, "newer", dataset)
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_cache_that_cannot_be_written_is_no_obstacle(tmp_path, caplog):
    parts = tiny_sets.prepare(tmp_path)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        dataset = data.load("tiny", tmp_path, cache_dir=tmp_path / "file" / "below")
    np.testing.assert_array_equal(dataset.train_images, parts["train"][0])
    (record,) = caplog.records
    assert "cannot keep the decoded tiny in" in record.getMessage()
