"""The picture on the front page."""

import json

import numpy as np
from matplotlib.figure import Figure

from benchmarks import front_picture
from benchmarks.harness import results


def test_units_enter_in_the_run_that_is_drawn():
    moments, norms = front_picture.opening(epochs=5, units=12, records=2)
    assert moments.shape == (11,)
    assert norms.shape == (11, 12)
    assert not norms[:3].any()
    assert 0 < norms[-1].astype(bool).sum() <= 12
    figure = Figure()
    axes = figure.subplots()
    front_picture.draw_opening(axes, moments, norms)
    assert len(axes.lines) == norms[-1].astype(bool).sum() + 1


def test_the_accuracies_drawn_are_those_of_the_result():
    result = json.loads((results.RESULTS / "tickets.json").read_text())
    axes = Figure().subplots()
    front_picture.draw_sizes(axes, result)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    for method, (label, *_) in front_picture.SHOWN.items():
        lines = [line for line in result["table"] if line["method"] == method]
        assert [x for x, _ in drawn[label] if x in (1e-2, 5e-2)] == [1e-2, 5e-2]
        for line in lines:
            point = [line["density"], line["retrained"]["mean"]]
            assert (point in drawn[label]) == (line["density"] >= front_picture.SMALLEST)
    assert np.shape(drawn["this library, one run for all sizes"]) > (4, 2)


def test_the_readme_shows_the_picture_that_is_there():
    readme = front_picture.OUT.parents[1].joinpath("README.md").read_text(encoding="utf-8")
    assert f"](docs/{front_picture.OUT.name})" in readme
    assert front_picture.OUT.read_bytes().startswith(b"<?xml")
    assert len(readme.encode()) <= 8000
