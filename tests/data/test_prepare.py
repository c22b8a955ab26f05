"""Well-known sets from the files in which they are published, in every form."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import PIL.Image
import pytest

from dessilbi_jax import cli, data
from dessilbi_jax.data import _published

SIZES = (20, 10)


@pytest.fixture(scope="module", autouse=True)
def small():
    """The sets with few images."""
    with pytest.MonkeyPatch.context() as patch:
        for name, known in _published.SETS.items():
            patch.setitem(_published.SETS, name, known._replace(sizes=SIZES))
        yield


def parts_of(name):
    rng, shape = np.random.default_rng(1), _published.SETS[name].shape
    return [(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10) for n in SIZES]


def idx(array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def idx_files(place, parts, ending=".gz", dash="-"):
    for stem, (images, labels) in zip(("train", "t10k"), parts, strict=True):
        for name, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            content = idx(array)
            file = place / f"{stem}-{name.replace('-idx', dash + 'idx')}-ubyte{ending}"
            file.write_bytes(gzip.compress(content) if ending else content)


def batches(parts):
    """CIFAR's rows: train in two batches, and test."""
    (train, labels), (test, test_labels) = parts
    stems = ("data_batch_1", "data_batch_2", "test_batch")
    cut = [(train[:12], labels[:12]), (train[12:], labels[12:]), (test, test_labels)]
    for stem, (images, y) in zip(stems, cut, strict=True):
        yield stem, images.transpose(0, 3, 1, 2).reshape(len(images), -1), y


def binary_archive(place, parts):
    with tarfile.open(place / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for stem, rows, labels in batches(parts):
            content = np.column_stack([labels.astype(np.uint8), rows]).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{stem}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def python_batches(place, parts):
    for stem, rows, labels in batches(parts):
        batch = {b"data": rows, b"labels": labels.tolist(), b"batch_label": b"1"}
        (place / stem).write_bytes(pickle.dumps(batch, protocol=2))


def one_npz(place, parts):
    (x, y), (tx, ty) = parts
    np.savez(place / "set.npz", x_train=x, y_train=y[:, None], x_test=tx, y_test=ty[:, None])


def folders(place, parts):
    for part, (images, labels) in zip(("train", "test"), parts, strict=True):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = place / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image = image[..., 0] if image.shape[-1] == 1 else image
            PIL.Image.fromarray(image).save(folder / f"{i:03d}.png")


FORMS = {
    "idx.gz": ("mnist", idx_files),
    "idx": ("fashion_mnist", lambda place, parts: idx_files(place, parts, "", ".")),
    "binary": ("cifar10", binary_archive),
    "python": ("cifar10", python_batches),
    "npz": ("cifar10", one_npz),
    "folders": ("mnist", folders),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_read_and_found_by_load(form, tmp_path):
    name, write = FORMS[form]
    published, root = tmp_path / "published", tmp_path / "data"
    published.mkdir()
    parts = parts_of(name)
    write(published, parts)
    folder = data.prepare(name, root, published)
    assert folder == root / name / _published.SETS[name].version
    found = data.load(name, root, tmp_path / "cache")
    assert found.classes == _published.SETS[name].classes
    for (images, labels), got, y in (
        (parts[0], found.train_images, found.train_labels),
        (parts[1], found.test_images, found.test_labels),
    ):
        if form == "folders":  # by class
            order = np.argsort(labels, kind="stable")
            images, labels = images[order], labels[order]
        np.testing.assert_array_equal(got, images)
        np.testing.assert_array_equal(y, labels)
    with pytest.raises(FileExistsError, match="is there already: it is ready, or remove it"):
        data.prepare(name, root, published)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def damages():
    def cut(place):
        file = next(place.glob("t10k-images*"))
        file.write_bytes(file.read_bytes()[:300])

    def lost(place):
        next(place.glob("train-labels*")).unlink()

    def few(place):
        parts = parts_of("mnist")
        idx_files(place, [(parts[0][0][:5], parts[0][1][:5]), parts[1]])

    def pickled(place):
        (place / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))

    def other(place):
        for file in place.iterdir():
            file.unlink()
        (place / "thesis.tex").write_text("mine")

    return {
        "cut": (cut, ValueError, r"t10k-images.* is damaged"),
        "lost": (lost, ValueError, "train-labels… is missing: give all four"),
        "few": (few, ValueError, r"has 5 labels and images \(5, 28, 28, 1\), the published one 20"),
        "pickled": (pickled, ValueError, r"data_batch_1 is damaged \(it names builtins.exec"),
        "other": (other, FileNotFoundError, "in, but thesis.tex; expected idx files"),
    }


@pytest.mark.parametrize("damage", damages())
def test_files_that_are_not_the_set_are_named_and_nothing_is_written(damage, tmp_path):
    place = tmp_path / "published"
    place.mkdir()
    idx_files(place, parts_of("mnist"))
    spoil, error, message = damages()[damage]
    spoil(place)
    with pytest.raises(error, match=message):
        data.prepare("mnist", tmp_path / "data", place)
    assert [f.name for f in tmp_path.iterdir()] == ["published"]


def test_the_command_prepares_and_train_names_it(tmp_path, capsys):
    (tmp_path / "published").mkdir()
    idx_files(tmp_path / "published", parts_of("mnist"))
    words = ["data", "mnist", "--data-dir", str(tmp_path / "data")]
    assert cli.main(["train", "lenet300-mnist", "--data-dir", str(tmp_path / "data")]) == 2
    assert f"dessilbi {' '.join(words)}" in capsys.readouterr().err
    assert cli.main([*words, "--from", str(tmp_path / "published")]) == 0
    assert f"dessilbi train lenet300-mnist --data-dir {tmp_path}/data" in capsys.readouterr().out
    # The tests have no network.
    assert cli.main(["data", "fashion_mnist", "--data-dir", str(tmp_path / "data")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "could not be downloaded" in err[-1]
    assert "give their folder by --from PATH" in err[-1]
    assert cli.main(["data", "mnits"]) == 2
    assert "did you mean 'mnist'?" in capsys.readouterr().err
