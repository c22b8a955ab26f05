"""Every preset of full size trains and ends with a slim network; some stop and go on."""

import dataclasses
import json

import made_images
import numpy as np
import pytest
import tiny_sets
from train_runs import Quiet, StopAt

import dessilbi_jax as dl
from dessilbi_jax import models, train

# What keeps a run in seconds: narrow networks, a few steps of a few rows.
SMALL = {
    "resnet20-cifar10": {"widths": (4, 6, 8), "batch_size": 8},
    "vgg16-cifar10": {"widths": (4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8), "batch_size": 8},
    "vit-tiny-cifar10": {"widths": (64, 2, 1, 8), "batch_size": 8},
    "gpt-mini": {"widths": (32, 2, 1, 8), "batch_size": 4, "context": 16},
    "resnet18-imagenet": {"widths": (4, 6, 8, 8), "batch_size": 4, "image_size": 32},
}
EPOCHS, STEPS = 2, 12
# Tokens and streamed images, Adam and SGD; a stop traces and compiles the whole step anew, and
# that of a run on small images is looked at in test_loop.py.
STOPPED = ("gpt-mini", "resnet18-imagenet")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where each kind of data lies: as little of it as the presets' splits allow."""
    root = tmp_path_factory.mktemp("data")
    classes = tuple(f"c{i}" for i in range(10))
    tiny_sets.prepare(root, "cifar10", "3.0.2", shape=(32, 32, 3), sizes=(107, 10), classes=classes)
    made_images.prepare_imagenet(root, train=50, validation=5)
    text = root / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 22)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DESSILBI_CACHE", str(root / "cache"))
        yield {"data_dir": root, "text": text}


def test_each_preset_of_full_size_is_driven():
    named = ("resnet20", "vgg16", "vit", "gpt", "resnet18")
    assert set(SMALL) == {name for name in train.PRESETS if name.startswith(named)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_preset_from_the_first_step_to_the_slim_network(name, places, tmp_path):
    preset = train.get_preset(name)
    config = dataclasses.replace(preset.config, epochs=EPOCHS, **SMALL[name])
    run, where = tmp_path / "run", dict(places)
    where["text"] = where["text"] if config.dataset == "text" else None
    stops = name in STOPPED
    if stops:
        with pytest.raises(KeyboardInterrupt):
            train.fit(config, run, preset=name, progress=StopAt(epoch=1), **where)
        assert not (run / "result.json").exists()
    result = train.fit(config, run, preset=name, progress=Quiet(), resume=stops, **where)
    assert result["steps"] >= STEPS
    assert np.isfinite([result["test_loss"], result["test_accuracy"], result["density"]]).all()

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    path = dl.SolutionPath.load(run / "path.npz")
    assert [line["step"] for line in lines] == path.steps.tolist()
    assert lines[-1]["step"] == result["steps"]

    ticket, file = train.take_ticket(run, size={"density": 0.5}, rank="strength")
    kept, of = ticket.card["left"]["channels"]
    assert 0 < kept < of
    slim = train.make_slim(file, batches=(1,))
    assert slim["networks"]["slim"]["parameters"] < slim["networks"]["dense"]["parameters"]
    assert slim["difference"] < 1e-5


def test_a_slim_network_is_of_the_zoo_again(places, tmp_path):
    """The widths of what is left build the same class."""
    wide = models.build("resnet20", widths=(4, 6, 8))
    narrow = models.build("resnet20", widths=models.widths(wide))
    assert models.widths(narrow) == models.widths(wide)
