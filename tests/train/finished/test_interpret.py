"""What is kept of a run's filters: it is what the run's own files say."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import dessilbi_jax as dl
from dessilbi_jax import files, interpretation, report, train
from dessilbi_jax.interpretation import rank_correlation
from dessilbi_jax.report.interpretation_file import _sizes, read_looked
from dessilbi_jax.train.finished.interpret import _first_in
from dessilbi_jax.train.finished.trained import load_run
from dessilbi_jax.tree import leaf_paths


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    """A copy of the run, which may be written to."""
    return shutil.copytree(whole[0], tmp_path_factory.mktemp("looked") / "run")


@pytest.fixture(scope="module")
def looked(run, whole):
    """Header and arrays of what was found out about it, beside the run itself."""
    options = {"steps": 2, "filters": 3, "images": (4, 0), "epochs": (1, 3, 0)}
    header = train.interpret(run, beside=whole[0], command="dessilbi interpret run", **options)
    told, arrays = files.read(run / "interpretation.npz", "interpretation", (1,), _sizes)
    assert told == json.loads(json.dumps(header))
    return header, arrays


def test_the_panels_are_the_kept_weights_by_their_norm(run, looked):
    header, arrays = looked
    path = dl.SolutionPath.load(run / "path.npz")
    kept = train.checkpoints(run)
    assert [panel["step"] for panel in header["panels"]] == [0, 10, 30, 30]
    assert [panel["own"] for panel in header["panels"]] == [True, True, True, False]
    assert [panel["epoch"] for panel in header["panels"]] == [0, 1, 3, 3]
    for i, panel in enumerate(header["panels"]):
        filters = np.moveaxis(dict(leaf_paths(kept[panel["step"]]))["conv1/kernel"], -1, 0)
        norms = np.linalg.norm(filters.reshape(6, -1), axis=1)
        order = arrays[f"panel_{i}_order"]
        np.testing.assert_allclose(arrays[f"panel_{i}_norms"], norms, rtol=1e-5)
        assert (np.diff(norms[order]) <= 0).all()
        first = filters[order[0]]
        scaled = 255 * (first - first.min()) / (first.max() - first.min())
        np.testing.assert_allclose(arrays[f"panel_{i}_filters"][0], scaled, atol=0.51)
        support = path.support(panel["step"])["conv1/kernel"] if panel["step"] else np.zeros(6)
        np.testing.assert_array_equal(
            arrays[f"panel_{i}_selected"], support.reshape(-1, 6).any(axis=0)
        )
    assert arrays["panel_2_selected"].sum() > 0


def test_the_gradients_are_guided_ones_on_held_out_images(run, looked):
    arrays = looked[1]
    loaded = load_run(run)
    network, source = loaded.network(), loaded.facts.load()
    batch, _ = next(loaded.facts.split(source)[1].batches(5))
    np.testing.assert_array_equal(arrays["images"], batch[[4, 0]])
    x = network.normalise(jnp.asarray(batch[[4, 0]]))
    unit = ("conv1/kernel", int(arrays["panel_2_order"][1]))
    found = interpretation.guided_gradients(
        lambda p, x: network.evaluate(p, loaded.stats, x), loaded.params, x, unit, activated=True
    )
    for image, gradient in enumerate(np.asarray(found)):
        span = gradient.max() - gradient.min()
        scaled = 255 * (gradient - gradient.min()) / (span or 1)
        np.testing.assert_allclose(arrays["panel_2_guided"][image, 1], scaled, atol=0.6)
    assert looked[0]["activated"]


def test_images_are_of_the_filters_that_entered_first(run, looked):
    header, arrays = looked
    entry = dl.SolutionPath.load(run / "path.npz").entry_steps()["conv1/kernel"].ravel()
    np.testing.assert_array_equal(arrays["layer_entry"], entry)
    units = arrays["layer_units"]
    assert len(units) == header["shown"] == min(3, (entry >= 0).sum())
    assert arrays["maximal_w"].shape == arrays["maximal_gamma"].shape == (len(units), 8, 8, 1)
    assert header["silent"]["w"] == (arrays["activation_w"] <= 0).sum()


def test_the_earliest_come_first_then_the_largest():
    leaf = np.ones((2, 5)) * [1, 3, 2, 5, 4]
    assert _first_in(np.array([7, 5, 5, -1, 7]), leaf).tolist() == [1, 2, 4, 0]
    assert _first_in(np.full(5, -1), leaf).tolist() == [3, 4, 1, 2, 0]


def test_the_correlations_are_those_of_the_measures(looked):
    header, arrays = looked
    entry = arrays["first_entry"]
    others = {
        "norm": arrays["panel_2_norms"],
        "entry": np.where(entry < 0, entry.max() + 1, entry),
    }
    assert len(header["correlations"]) == 12
    for row in header["correlations"]:
        values = arrays[f"measure_{row['measure']}"]
        expected = rank_correlation(values, others[row["against"]])
        if row["measure"] == "saturation":  # of images without colour
            assert (row["rho"], row["pairs"]) == (None, 0)
        else:
            assert row["rho"] == pytest.approx(expected.value)
            assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_the_report_shows_it_whenever_it_is_renewed(run, looked):
    text = report.write(run).read_text()
    assert "What the filters respond to" in text
    assert text == report.write(run).read_text()


def test_units_that_see_pixels_are_filters_too(channel_run, tmp_path):
    run = shutil.copytree(channel_run, tmp_path / "run")
    header = train.interpret(run, steps=1, filters=2, images=(0,), epochs=(3,))
    assert (header["layer"], header["first"], header["units"]) == ("fc1/kernel", "fc1/kernel", 16)
    panel = read_looked(run).panels[0]
    assert panel.filters.shape == (16, 8, 8, 1)
    steps = list(train.checkpoints(run))
    kernel = train.checkpoints(run)[steps[-1]]["fc1"]["kernel"]
    np.testing.assert_allclose(panel.norms, np.linalg.norm(kernel, axis=0), rtol=1e-5)


def test_what_is_not_there_is_said_and_nothing_is_written(whole, channel_run, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    for options, message in (
        ({"layer": "bn1/scale"}, "bn1/scale makes no channels.*that do: conv1/kernel, fc/kernel"),
        ({"layer": "conv9/kernel"}, "conv9/kernel is not a leaf"),
        ({"layer": "fc/kernel"}, r"not its 10 filters or units \(it has 60 of them\)"),
        ({"images": (144,)}, "holds out 144 images, numbered from 0 to 143; got 144"),
        ({"images": ()}, "got none"),
        ({"epochs": (5,)}, "epoch 5 are not kept.*those of epochs 0, 1, 2, 3 are"),
        ({"filters": 0}, "filters must be a whole number of at least 1"),
        ({"beside": channel_run}, r"another network than .*\(lenet300, not vgg-small\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train.interpret(run, steps=1, **options)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        train.interpret(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"dataset": "text", "input_shape": [16]}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was trained on text"):
        train.interpret(run)
    assert not (run / "interpretation.npz").exists()
