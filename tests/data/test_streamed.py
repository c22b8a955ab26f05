import json

import made_images
import numpy as np
import pytest
import tiny_sets

from dessilbi_jax import data
from dessilbi_jax.data import _decode, _prepared


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made_images.write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def images(root):
    return data.load("folder", root, image_size=8)


def take(batches, n):
    taken = [next(batches) for _ in range(n)]
    batches.close()
    return taken


def equal(some, others):
    assert len(some) == len(others)
    for (x, y), (u, v) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)


def test_what_a_folder_is(images):
    assert (images.name, images.kind, images.resident) == ("folder", "images", False)
    assert (images.input_shape, images.num_classes) == ((8, 8, 3), 3)
    assert images.classes == made_images.CLASSES
    assert (images.train_size, images.test_size) == (30, 10)
    pixels = np.full((1, 8, 8, 3), 255, np.uint8)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(images.normalize(pixels)[0, 0, 0], expected, rtol=1e-5)


def test_224_is_the_default(root):
    assert data.load("folder", root).input_shape == (224, 224, 3)


def test_every_epoch_has_other_rows_in_another_order(images):
    batches = take(images.train_batches(8, seed=3), 6)
    for x, y in batches:
        assert (x.dtype, x.shape, y.dtype, y.shape) == (np.uint8, (8, 8, 8, 3), np.int32, (8,))
        np.testing.assert_array_equal(np.round(x[..., 0].mean((1, 2)) / 80), y)
    rows = [[n for x, _ in batches[i : i + 3] for n in made_images.numbers(x)] for i in (0, 3)]
    assert all(len(set(epoch)) == 24 for epoch in rows)  # 30 // 8 batches, none twice
    assert rows[0] != rows[1]
    assert set(rows[0]) != set(rows[1])  # what is left out changes


def test_the_seed_decides_all(images):
    first, same, other = (take(images.train_batches(8, seed=s), 4) for s in (3, 3, 4))
    equal(first, same)
    assert made_images.numbers(first[0][0]) != made_images.numbers(other[0][0])


def test_an_image_is_cropped_differently_in_every_epoch(images):
    seen = {}
    for x, _ in take(images.train_batches(30, seed=0), 3):
        for number, pixels in zip(made_images.numbers(x), x, strict=True):
            seen.setdefault(number, []).append(pixels)
    assert sorted(seen) == list(range(30))
    assert all((a != b).any() and (b != c).any() for a, b, c in seen.values())


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_together_are_the_whole(images, shards):
    whole = take(images.train_batches(8, seed=3), 7)
    parts = [
        take(images.train_batches(8, seed=3, shard=k, shards=shards, threads=1), 7)
        for k in range(shards)
    ]
    joined = [
        tuple(map(np.concatenate, zip(*each, strict=True))) for each in zip(*parts, strict=True)
    ]
    equal(whole, joined)


@pytest.mark.parametrize("batch", [7, 20])  # one chunk, and two
def test_resuming_gives_exactly_the_remaining_batches(images, batch):
    batches = images.train_batches(batch, seed=5, threads=3)
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    rest = [next(batches) for _ in range(5)]
    resumed = images.train_batches(batch, seed=5, threads=1)
    resumed.set_state(state)
    assert resumed.get_state() == state
    equal(rest, take(resumed, 5))
    batches.set_state(state)  # also back in the same iterator, which had prepared others
    equal(rest, take(batches, 5))


def test_a_state_survives_a_change_of_shards(images):
    batches = images.train_batches(8, seed=5)
    next(batches)
    state = batches.get_state()
    whole = take(batches, 2)
    halves = [images.train_batches(8, seed=5, shard=k, shards=2) for k in (0, 1)]
    for half in halves:
        half.set_state(state)
    joined = [
        tuple(map(np.concatenate, zip(*b, strict=True)))
        for b in zip(*(take(h, 2) for h in halves), strict=True)
    ]
    equal(whole, joined)


def test_the_state_of_other_batches(images):
    state = images.train_batches(8, seed=5).get_state()
    with pytest.raises(ValueError, match="other train batches: seed 5, here 6"):
        images.train_batches(8, seed=6).set_state(state)
    fewer, _ = images.set_aside(3)
    with pytest.raises(ValueError, match="rows 30, here 27, batch 8, here 4"):
        fewer.train_batches(4, seed=5).set_state(state)
    for bad in (b"", b"[]", b"\xff", b'{"seed": 5}'):
        with pytest.raises(ValueError, match="not the state of train batches"):
            images.train_batches(8, seed=5).set_state(bad)
    negative = json.dumps({**json.loads(state), "step": -1}).encode()
    with pytest.raises(ValueError, match="no valid step: -1"):
        images.train_batches(8, seed=5).set_state(negative)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 9, "shards": 2}, "positive multiple of the 2 shards"),
        ({"batch": 0}, "between 1 and"),
        ({"batch": 31}, "between 1 and the number of images, 30"),
        ({"batch": 8, "shard": 2, "shards": 2}, "shard 2 of 2"),
        ({"batch": 8, "seed": -1}, "not be negative"),
        ({"batch": 8, "workers": -1}, "workers must be at least 0"),
        ({"batch": 8, "threads": 0}, "threads at least 1"),
    ],
)
def test_sizes_that_do_not_fit(images, settings, message):
    with pytest.raises(ValueError, match=message):
        images.train_batches(**{"seed": 0, **settings})


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_test_part_is_complete_and_in_order(images, shards):
    part = images.test_part()
    assert len(part) == 10
    split = [list(part.batches(4, shard=k, shards=shards)) for k in range(shards)]
    assert [len(batches) for batches in split] == [3] * shards
    joined = [
        tuple(map(np.concatenate, zip(*each, strict=True))) for each in zip(*split, strict=True)
    ]
    x, y = map(np.concatenate, zip(*joined, strict=True))
    assert (x.dtype, x.shape, y.dtype) == (np.uint8, (12, 8, 8, 3), np.int32)
    assert y.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1]
    assert made_images.numbers(x[:10]) == list(range(10))
    assert not x[10:].any()


def test_a_part_that_is_left_early_is_no_trouble(images):
    for _ in images.test_part().batches(2):
        break


def test_set_aside(images):
    rest, part = images.set_aside(7, seed=1)
    assert (rest.train_size, rest.test_size, len(part)) == (23, 10, 7)
    (aside,) = ((x, y) for x, y in part.batches(7))
    ((x, _),) = take(rest.train_batches(23, seed=0), 1)
    assert sorted(made_images.numbers(x) + made_images.numbers(aside[0])) == list(range(30))
    again = next(images.set_aside(7, seed=1)[1].batches(7))
    equal([aside], [again])
    other = next(images.set_aside(7, seed=2)[1].batches(7))
    assert made_images.numbers(other[0]) != made_images.numbers(aside[0])
    with pytest.raises(ValueError, match="less than the 30 train rows of folder, got 30"):
        images.set_aside(30)


def test_it_cannot_be_put_on_the_device(images):
    for call in (images.arrays, lambda: images.pick((), None)):
        with pytest.raises(ValueError, match="folder is too large for a device"):
            call()


def test_a_damaged_image_is_named_and_the_rest_goes_on(tmp_path):
    made_images.write_folder(tmp_path, 6, 3)
    images = data.load("folder", tmp_path, image_size=8)
    files = sorted((tmp_path / "train").rglob("*.JPEG"))
    content = files[2].read_bytes()
    for bad in (content[: len(content) // 2], b"no image", b""):
        files[2].write_bytes(bad)
        batches = images.train_batches(6, seed=0)
        with pytest.raises(ValueError, match=f"{files[2]} is damaged or no image") as caught:
            next(batches)
        assert "\n" not in str(caught.value)
        files[2].write_bytes(content)
        equal(take(batches, 1), take(images.train_batches(6, seed=0), 1))
    files[2].unlink()
    with pytest.raises(ValueError, match=f"{files[2]} cannot be read: No such file"):
        next(images.train_batches(6, seed=0))
    (file, *_) = (tmp_path / "val").rglob("*.JPEG")
    file.write_bytes(content[:100])
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        list(images.test_part().batches(3))


def test_folders_that_will_not_do(tmp_path):
    def message(kind):
        with pytest.raises(kind) as caught:
            data.load("folder", tmp_path / "images")
        return str(caught.value)

    assert "does not exist; expected DIR/train/CLASS/FILE" in message(FileNotFoundError)
    (tmp_path / "images" / "train").mkdir(parents=True)
    assert "train has no classes" in message(FileNotFoundError)
    made_images.write_folder(tmp_path / "images", 3, 3, test_name="other")
    assert "no classes in test/, validation/ or val/" in message(FileNotFoundError)
    (tmp_path / "images/other").rename(tmp_path / "images/validation")
    (tmp_path / "images/test").mkdir()  # without classes, as ImageNet's: passed over
    assert data.load("folder", tmp_path / "images").test_size == 3
    (tmp_path / "images/validation/n04").mkdir()
    assert "class 'n04' is in" in message(ValueError)
    (tmp_path / "images/train/n04").mkdir()
    (tmp_path / "images/train/n04/notes.txt").touch()
    assert "n04 has no images; files that end with .jpeg" in message(FileNotFoundError)


@pytest.fixture
def imagenet(tmp_path):
    made_images.prepare_imagenet(tmp_path)
    return data.load("imagenet", tmp_path, image_size=8)


def test_prepared_imagenet_uses_the_validation_split(imagenet, caplog):
    assert (imagenet.name, imagenet.num_classes) == ("imagenet2012", 3)
    assert (imagenet.train_size, imagenet.test_size) == (30, 10)
    x, y = map(np.concatenate, zip(*imagenet.test_part().batches(5), strict=True))
    assert made_images.numbers(x) == list(range(10))
    assert y.tolist() == [i % 3 for i in range(10)]
    ((x, y),) = take(imagenet.train_batches(30, seed=0), 1)
    assert sorted(made_images.numbers(x)) == list(range(30))
    assert [n % 3 for n in made_images.numbers(x)] == y.tolist()
    assert "group size" not in caplog.text  # array_record's advice, of no use to a reader


def test_worker_processes_give_the_same(imagenet):
    threads = take(imagenet.train_batches(20, seed=2), 2)
    batches = imagenet.train_batches(20, seed=2, workers=1, threads=1)
    equal(threads, take(batches, 2))


def test_records_cut_short_while_streaming(tmp_path, imagenet):
    folder = tmp_path / "imagenet2012/5.1.0"
    file = folder / "imagenet2012-train.array_record-00001-of-00002"
    content = file.read_bytes()
    for keep in (0, len(content) // 3, len(content) - 200):
        file.write_bytes(content[:keep])
        fresh = data.load("imagenet2012", tmp_path, image_size=8)
        with pytest.raises(ValueError, match="train records of imagenet2012 are") as caught:
            next(fresh.train_batches(30, seed=0))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match="damaged, cut short or gone"):
        next(imagenet.train_batches(30, seed=0))
    with pytest.raises(FileNotFoundError, match=f"the first is {file}; copy or prepare"):
        data.load("imagenet2012", tmp_path)


def test_labels_that_are_none(tmp_path, monkeypatch):
    made_images.prepare_imagenet(tmp_path)
    monkeypatch.setattr(_decode, "_UNLABELLED_TEST", ())
    part = data.load("imagenet2012", tmp_path, image_size=8).test_part()
    with pytest.raises(ValueError, match=r"has label -1, expected 0…2: the split test cannot"):
        next(part.batches(4))


def test_mocked_imagenet(monkeypatch):
    monkeypatch.setattr(_decode, "_PREPARING", ())  # TensorFlow, to prepare what is not there
    with made_images.mocked_imagenet(train=12, validation=5):
        images = data.load("imagenet2012", image_size=16)
    assert (images.num_classes, images.train_size, images.test_size) == (1000, 12, 5)
    assert images.classes[0] == "n01440764"
    ((x, y),) = take(images.train_batches(12, seed=0), 1)
    assert sorted(made_images.numbers(x)) == list(range(12))
    assert [n % 3 for n in made_images.numbers(x)] == y.tolist()
    assert [y.tolist() for _, y in images.test_part().batches(3)] == [[0, 1, 2], [0, 1, -1]]


def test_imagenet_that_is_not_prepared(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set 'imagenet2012'") as caught:
        data.load("imagenet", tmp_path)
    command = f"tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}"
    assert f"{command} --manual_dir=DIR" in str(caught.value)
    assert "ILSVRC2012_img_train.tar" in str(caught.value)


def test_small_sets_are_arrays_and_others_stream(tmp_path, monkeypatch):
    tiny_sets.prepare(tmp_path)
    assert data.load("tiny", tmp_path).resident
    asked = data.load("tiny", tmp_path, image_size=12)
    assert (asked.resident, asked.input_shape, asked.train_size) == (False, (12, 12, 3), 50)
    monkeypatch.setattr(_prepared, "MEMORY_BYTES", 70 * 90 - 1)
    large = data.load("tiny", tmp_path)
    assert (large.resident, large.input_shape) == (False, (224, 224, 3))
    monkeypatch.setattr(_prepared, "MEMORY_BYTES", 70 * 90)
    assert data.load("tiny", tmp_path).resident
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        data.load("tiny", tmp_path, image_size=0)


def test_svhn_is_svhn_cropped(tmp_path):
    tiny_sets.prepare(tmp_path, name="svhn_cropped", shape=(32, 32, 3), sizes=(6, 4))
    assert data.load("svhn", tmp_path).name == "svhn_cropped"


def test_grain_that_is_not_installed(images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(ImportError, match=r"needs grain: install .*'dessilbi_jax\[train\]'"):
        next(images.train_batches(8, seed=0))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits", {"image_size": 8}, "image_size does not apply to 'digits', got 8"),
        ("folder", {}, "needs the folder of train/CLASS/FILE: data_dir=DIR"),
        ("folder", {"text": "x"}, "text does not apply to 'folder'"),
        ("mnist", {"context": 8}, "context does not apply to 'mnist', got 8"),
        ("text", {"image_size": 8}, "image_size does not apply to 'text'"),
        ("text", {}, "'text' needs a file"),
    ],
)
def test_arguments_that_do_not_belong(name, settings, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **settings)
