import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_sets

from dessilbi_jax import data
from dessilbi_jax.data import _decode


def equal(dataset, parts, test="test"):
    np.testing.assert_array_equal(dataset.train_images, parts["train"][0])
    np.testing.assert_array_equal(dataset.train_labels, parts["train"][1])
    np.testing.assert_array_equal(dataset.test_images, parts[test][0])
    np.testing.assert_array_equal(dataset.test_labels, parts[test][1])


@pytest.mark.parametrize("shape", [(6, 5, 3), (8, 8, 1), (3, 4, 4)])
def test_reads_what_was_written(tmp_path, shape):
    parts = tiny_sets.prepare(tmp_path, shape=shape)
    for _ in range(2):  # decoded, then from the cache
        dataset = data.load("tiny", tmp_path)
        equal(dataset, parts)
        assert (dataset.name, dataset.classes) == ("tiny", ("cat", "dog", "owl"))
        assert dataset.train_images.dtype == np.uint8
        assert dataset.train_labels.dtype == np.int32
        np.testing.assert_allclose(dataset.mean, (parts["train"][0] / 255).mean((0, 1, 2)))


def test_reads_the_same_as_tfds(tmp_path):
    tiny_sets.prepare(tmp_path)
    dataset = data.load("tiny", tmp_path)
    source = tfds.builder_from_directory(str(tmp_path / "tiny/1.0.0")).as_data_source("test")
    np.testing.assert_array_equal([row["image"] for row in source], dataset.test_images)
    np.testing.assert_array_equal([row["label"] for row in source], dataset.test_labels)


def test_newest_version_or_the_one_asked_for(tmp_path):
    old = tiny_sets.prepare(tmp_path, version="2.9.0", seed=1)
    new = tiny_sets.prepare(tmp_path, version="2.10.0", seed=5)
    (tmp_path / "tiny" / "2.11.0").mkdir()  # unfinished: passed over
    equal(data.load("tiny", tmp_path), new)
    equal(data.load("tiny:2.9.0", tmp_path), old)
    with pytest.raises(FileNotFoundError, match=r"no version 1\.0\.0 of 'tiny' in .*2\.10\.0/"):
        data.load("tiny:1.0.0", tmp_path)


def test_configurations_and_validation_split(tmp_path):
    parts = tiny_sets.prepare(tmp_path, name="pets/small", splits=("train", "validation"))
    equal(data.load("pets/small", tmp_path), parts, "validation")
    with pytest.raises(FileNotFoundError, match="name a configuration: pets/small"):
        data.load("pets", tmp_path)


def test_default_folder_is_that_of_tfds(tmp_path):
    parts = tiny_sets.prepare(tmp_path / "tensorflow_datasets")
    equal(data.load("tiny"), parts)


def test_the_advice_about_group_sizes_is_hidden_and_nothing_else(tmp_path, caplog):
    tiny_sets.prepare(tmp_path)
    with caplog.at_level(logging.INFO):
        data.load("tiny", tmp_path)
        logging.getLogger("absl").error("another message")
    messages = [record.getMessage() for record in caplog.records]
    assert not any("group size" in message for message in messages)
    assert "another message" in messages
    # the message is there when tfds reads by itself: the filter is not idle, and it is gone
    with caplog.at_level(logging.INFO):
        folder = str(tmp_path / "tiny/1.0.0")
        tfds.builder_from_directory(folder).as_data_source("test")[0]
    assert any("group size" in record.getMessage() for record in caplog.records)


@pytest.mark.process
def test_neither_the_package_nor_a_cached_set_imports_tfds(tmp_path):
    tiny_sets.prepare(tmp_path)
    data.load("tiny", tmp_path)
    program = (
        "import sys; from dessilbi_jax import data; data.load('digits');"
        f"data.load('tiny', {str(tmp_path)!r});"
        "print([m for m in ('tensorflow_datasets', 'array_record', 'PIL', 'tensorflow', 'sklearn')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (shown.stdout.strip(), shown.returncode) == ("[]", 0), shown.stderr


def message_of(kind, name, root, **settings):
    with pytest.raises(kind) as caught:
        data.load(name, root, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder(tmp_path):
    message = message_of(FileNotFoundError, "tiny", tmp_path / "nowhere")
    assert f"data folder {tmp_path / 'nowhere'} does not exist" in message
    (tmp_path / "file").touch()
    assert "is not a folder" in message_of(FileNotFoundError, "tiny", tmp_path / "file")


def test_folder_without_the_set(tmp_path):
    tiny_sets.prepare(tmp_path)
    message = message_of(FileNotFoundError, "tinny", tmp_path)
    assert f"no data set 'tinny' in {tmp_path}, which holds tiny/" in message
    assert "did you mean 'tiny'?" in message
    (tmp_path / "empty").mkdir()
    assert "which holds nothing" in message_of(FileNotFoundError, "tiny", tmp_path / "empty")


@pytest.mark.parametrize("below", ["tiny", "tiny/1.0.0"])
def test_folder_of_the_set_itself(tmp_path, below):
    tiny_sets.prepare(tmp_path)
    assert f"; give {tmp_path} instead" in message_of(FileNotFoundError, "tiny", tmp_path / below)


def test_folder_one_level_too_high(tmp_path):
    tiny_sets.prepare(tmp_path / "data")
    assert f"; give {tmp_path / 'data'} instead" in message_of(FileNotFoundError, "tiny", tmp_path)


@pytest.mark.parametrize("missing", ["dataset_info.json", "features.json"])
def test_half_there_without_description(tmp_path, missing):
    tiny_sets.prepare(tmp_path)
    (tmp_path / "tiny/1.0.0" / missing).unlink()
    message = message_of(FileNotFoundError, "tiny", tmp_path)
    assert "1.0.0 is half there: it has no " + missing in message


@pytest.mark.parametrize("damaged", ["dataset_info.json", "features.json"])
def test_description_cut_short(tmp_path, damaged):
    tiny_sets.prepare(tmp_path)
    file = tmp_path / "tiny/1.0.0" / damaged
    file.write_text(file.read_text()[:40])
    message = message_of(ValueError, "tiny", tmp_path)
    assert str(tmp_path / "tiny/1.0.0") in message
    assert "copy or prepare" in message


@pytest.mark.parametrize("cached", [False, True])
def test_half_there_without_a_file_of_records(tmp_path, cached):
    tiny_sets.prepare(tmp_path)
    if cached:  # the cache must not hide that its source is no longer whole
        data.load("tiny", tmp_path)
    shard = tmp_path / "tiny/1.0.0/tiny-train.array_record-00001-of-00002"
    shard.unlink()
    message = message_of(FileNotFoundError, "tiny", tmp_path)
    assert f"1 of its 4 files of records are missing, the first is {shard}" in message


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("split", ["train", "test"])
def test_file_of_records_cut_short(tmp_path, keep, split):
    tiny_sets.prepare(tmp_path)
    shard = tmp_path / f"tiny/1.0.0/tiny-{split}.array_record-00001-of-00002"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(keep * len(content))])
    message = message_of(ValueError, "tiny", tmp_path)
    assert f"the {split} records of tiny are damaged or cut short" in message
    assert str(shard) in message
    assert not list((tmp_path / "cache").glob("*"))
    shard.write_bytes(content)
    assert len(data.load("tiny", tmp_path).train_labels) == 50


def test_record_that_is_no_image(tmp_path):
    tiny_sets.prepare(tmp_path, shards=1)
    folder = tmp_path / "tiny/1.0.0"
    images, _ = tiny_sets.random_part(20, (6, 5, 3), 3, 0)
    records = [tiny_sets.record(tiny_sets.encode(image)[:-30], 0) for image in images]
    tiny_sets.write_shards(folder, "tiny-test", records, 1)
    message = message_of(ValueError, "tiny", tmp_path)
    assert "the test records of tiny are damaged" in message


def test_images_of_several_sizes(tmp_path):
    tiny_sets.prepare(tmp_path, shards=1)
    images, _ = tiny_sets.random_part(20, (6, 5, 3), 3, 0)
    records = [tiny_sets.record(tiny_sets.encode(x[: 6 - i % 2]), 0) for i, x in enumerate(images)]
    tiny_sets.write_shards(tmp_path / "tiny/1.0.0", "tiny-test", records, 1)
    message = message_of(ValueError, "tiny", tmp_path)
    assert "differ in size ((5, 5, 3) and (6, 5, 3))" in message


def test_other_file_format(tmp_path):
    tiny_sets.prepare(tmp_path, file_format="tfrecord")
    message = message_of(ValueError, "tiny", tmp_path)
    assert "was prepared as tfrecord, array_record is needed" in message


def test_set_without_a_test_part(tmp_path):
    tiny_sets.prepare(tmp_path, splits=("train", "extra"))
    message = message_of(ValueError, "tiny", tmp_path)
    assert "it has train, extra" in message


def test_set_that_is_not_image_classification(tmp_path):
    tiny_sets.prepare(tmp_path)
    file = tmp_path / "tiny/1.0.0/features.json"
    file.write_text(file.read_text().replace('"label"', '"target"'))
    message = message_of(ValueError, "tiny", tmp_path)
    assert "not an image classification set" in message
    assert "it has image, target" in message


@pytest.mark.parametrize("name", ["", "MNIST", "../mnist", "mnist/../x/y", "mnist:latest"])
def test_names_that_cannot_be(tmp_path, name):
    assert "cannot be the name of a data set" in message_of(ValueError, name, tmp_path)


class FakeBuilder:
    """Stands in for a tfds builder, which would need a network."""

    def __init__(self, prepare):
        self.download_and_prepare = prepare


@pytest.fixture
def all_installed(monkeypatch):
    monkeypatch.setattr(_decode, "_PREPARING", ("json",))


def test_downloads_where_no_folder_was_given(tmp_path, monkeypatch, all_installed):
    calls = []
    root = tmp_path / "tensorflow_datasets"

    def builder(name, **settings):
        calls.append((name, settings))
        return FakeBuilder(lambda: parts.update(tiny_sets.prepare(root)))

    parts = {}
    monkeypatch.setattr(tfds, "builder", builder)
    equal(data.load("tiny"), parts)
    equal(data.load("tiny"), parts)  # the second time it is there
    assert calls == [("tiny", {"data_dir": str(root), "file_format": "array_record"})]


def test_never_downloads_into_a_given_folder_unasked(tmp_path, monkeypatch, all_installed):
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: pytest.fail("asked tfds"))
    tiny_sets.prepare(tmp_path, name="other")
    message_of(FileNotFoundError, "tiny", tmp_path)
    message_of(FileNotFoundError, "tiny", None, download=False)
    monkeypatch.setattr(
        tfds, "builder", lambda *_, **__: FakeBuilder(lambda: tiny_sets.prepare(tmp_path))
    )
    assert len(data.load("tiny", tmp_path, download=True).test_labels) == 20


def test_download_that_fails(monkeypatch, all_installed):
    def fail():
        raise ConnectionError("no route to host\nand more lines")

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: FakeBuilder(fail))
    message = message_of(FileNotFoundError, "mnist", None)
    assert "could not be downloaded (ConnectionError: no route to host)" in message
    assert "dessilbi data mnist --data-dir" in message


def test_download_of_an_unknown_set():
    message = message_of(ValueError, "fashion_mnits", None)
    assert "knows no data set 'fashion_mnits'; did you mean 'fashion_mnist'?" in message


def test_download_asks_first_for_what_preparing_needs(monkeypatch):
    monkeypatch.setattr(_decode, "_PREPARING", ("json", "not_installed"))
    monkeypatch.setattr(
        tfds, "builder", lambda *_, **__: FakeBuilder(lambda: pytest.fail("downloaded"))
    )
    message = message_of(ImportError, "kmnist", None)
    assert "preparing it needs not_installed" in message
    assert "`pip install not_installed`" in message
    # Of what the command can prepare by itself.
    message = message_of(ImportError, "mnist", None)
    assert "dessilbi data mnist --data-dir" in message
    assert "pip install" not in message


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record", "PIL"])
def test_reader_that_is_not_installed(tmp_path, monkeypatch, package):
    tiny_sets.prepare(tmp_path)
    for module in list(sys.modules):
        if module == package or module.startswith(package + "."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    message = message_of(ImportError, "tiny", tmp_path)
    assert f"needs {package}" in message
    assert "pip install 'dessilbi_jax[train]'" in message


# --- files of another set ----------------------------------------------------------------------


def move(root, old, new, *, renamed=False):
    """The files of one set in the folder of another, with its file names or their own."""
    (root / old).rename(root / new)
    for file in sorted((root / new).rglob(f"{old}-*")) if renamed else []:
        file.rename(file.with_name(file.name.replace(old, new, 1)))
    return next((root / new).iterdir())


def told(folder, name, **changes):
    """Says something else in the description of a set."""
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "name": name}))
    if "shape" in changes:
        features = json.loads((folder / "features.json").read_text())
        image = features["featuresDict"]["features"]["image"]["image"]
        image["shape"]["dimensions"] = [str(n) for n in changes["shape"]]
        (folder / "features.json").write_text(json.dumps(features))


CIFAR = {"name": "cifar10", "shape": (32, 32, 3), "sizes": (6, 4)}


@pytest.mark.parametrize("renamed", [False, True])
def test_a_set_in_the_folder_of_another(tmp_path, renamed):
    tiny_sets.prepare(tmp_path, **CIFAR)
    folder = move(tmp_path, "cifar10", "mnist", renamed=renamed)
    with pytest.raises(ValueError, match=r"mnist/1\.0\.0 holds cifar10, not mnist: .*says so"):
        data.load("mnist", tmp_path)
    told(folder, "mnist")
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\) by its features.json, those of mn"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "tiny"])
def test_records_of_another_set_under_its_description(tmp_path, name):
    tiny_sets.prepare(tmp_path, **CIFAR)
    folder = move(tmp_path, "cifar10", name, renamed=True)
    told(folder, name, shape=(28, 28, 1))
    with pytest.raises(ValueError, match=r"images of .* have shape \(32, 32, 1\).* tells \(28, 28"):
        data.load(name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "emnist/letters", "cifar100"])
def test_sets_of_their_own_shape(tmp_path, name):
    shape = (32, 32, 3) if "cifar" in name else (28, 28, 1)
    parts = tiny_sets.prepare(tmp_path, name=name, shape=shape, sizes=(6, 4))
    equal(data.load(name, tmp_path), parts)
