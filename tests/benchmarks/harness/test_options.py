"""The words of every table, and data as plain arrays."""

import numpy as np
import pytest

from benchmarks.harness import images, options


@pytest.fixture
def parser():
    return options.parser("A question?", ("smoke", "cpu"))


def test_real_data_have_to_be_named(parser, capsys):
    with pytest.raises(SystemExit):
        options.parsed(parser, [])
    assert "--budget cpu needs --data-dir DIR; --budget smoke needs no data" in (
        capsys.readouterr().err
    )


def test_a_smoke_run_writes_nothing_beside_the_results(parser, tmp_path):
    args = options.parsed(parser, ["--budget", "smoke", "--work", str(tmp_path)])
    assert options.place(args, "tickets") == tmp_path / "smoke" / "tickets.jsonl"
    args = options.parsed(parser, ["--data-dir", "D"])
    assert options.place(args, "tickets").parent.name == "results"


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/"])
def test_a_share_that_is_none_is_refused(parser, share, capsys):
    with pytest.raises(SystemExit):
        options.parsed(parser, ["--budget", "smoke", "--share", share])
    assert f"'{share}' is not a share such as 1/2" in capsys.readouterr().err


def test_plain_arrays_are_read_where_they_are(tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, 32, 32, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(
        tmp_path / "cifar10.npz", train_images=pixels[:4], train_labels=labels[:4],
        test_images=pixels[4:], test_labels=labels[4:],
    )  # fmt: skip
    found = images.load("cifar10", str(tmp_path))
    np.testing.assert_array_equal(found.train_images, pixels[:4])
    np.testing.assert_array_equal(found.test_labels, labels[4:])


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_smoke_images_have_the_shape_of_those_they_stand_for(name, shape):
    found = images.load(name, None)
    assert found.input_shape == shape
    assert len(found.train_images) == images.SMOKE_ROWS
