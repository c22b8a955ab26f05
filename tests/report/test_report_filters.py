"""The section on what filters respond to: what is shown is what interpretation.npz holds."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from test_report_page import Page

from dessilbi_jax import files, report
from dessilbi_jax.report import filters, style
from dessilbi_jax.report.interpretation import interpretation, verdict
from dessilbi_jax.report.interpretation_file import read_looked
from dessilbi_jax.report.run import read_run

RNG = np.random.default_rng(0)
ORDER = np.array([[2, 0, 1, 5, 4, 3], [5, 4, 3, 2, 1, 0]])
SELECTED = np.array([[0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1]], bool)
ENTRY = np.array([20, -1, 9, -1, 40, 40])


def correlations(run, own, rho=-0.6):
    return [
        {"run": run, "own": own, "measure": measure, "against": against, "pairs": 6,
         "rho": rho if measure != "frequency" else None, "low": -0.9, "high": -0.2}
        for measure in ("saturation", "frequency", "orientation")
        for against in ("norm", "entry")
    ]  # fmt: skip


def header():
    names = [("run", True, 0), ("run", True, 80), ("plain sgd", False, 80)]
    panels = [{"run": r, "own": own, "step": s, "epoch": s / 20} for r, own, s in names]
    return {
        "kind": "interpretation", "format": 1, "layer": "conv1/kernel", "first": "conv1/kernel",
        "activated": True, "step": 80, "panels": panels, "command": "dessilbi interpret run",
        "correlations": [*correlations("run", True), *correlations("plain sgd", False, 0.1)],
    }  # fmt: skip


def arrays():
    def pixels(*shape):
        return RNG.integers(0, 256, shape, dtype=np.uint8)

    out = {
        "layer_entry": ENTRY, "layer_units": np.array([2, 0, 1]), "first_entry": ENTRY,
        "maximal_w": pixels(3, 8, 8, 3), "maximal_gamma": pixels(3, 8, 8, 3),
        "activation_w": np.array([1.0, 0.0, 2.0]), "activation_gamma": np.ones(3),
        "images": pixels(2, 8, 8, 3), "measure_saturation": np.linspace(0.1, 0.6, 6),
        "measure_frequency": np.full(6, np.nan), "measure_orientation": np.linspace(0, 1, 6),
    }  # fmt: skip
    for i in range(3):
        at = min(i, 1)
        out |= {
            f"panel_{i}_order": ORDER[at],
            f"panel_{i}_norms": np.argsort(ORDER[at])[::-1].astype(float),
            f"panel_{i}_selected": SELECTED[at] if i < 2 else np.zeros(6, bool),
            f"panel_{i}_filters": pixels(6, 3, 3, 3),
            f"panel_{i}_guided": pixels(2, 6, 8, 8, 3),
        }
    return out


@pytest.fixture
def run(make_run):
    folder = make_run()
    files.write(folder / "interpretation.npz", header(), arrays())
    return folder


def test_without_the_file_there_is_no_such_section(finished_run):
    assert interpretation(read_run(finished_run)) is None


def test_images_stand_beside_the_path_in_the_colours_of_entry(run):
    looked = read_looked(run)
    figure = filters.maximal_images(read_run(run), looked).figure
    titles = [axes.get_title("left") for axes in figure.axes if axes.images]
    assert titles == [
        "2: step 9", "0: step 20", "1: never", "2: step 9", "0: step 20", "1: never",
    ]  # fmt: skip
    silent = [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.images]
    assert silent == [[], ["silent"], [], [], [], ["not in Γ"]]
    paths = {axes.get_title("left") for axes in figure.axes}
    assert {"conv1/kernel  ‖W‖", "conv1/kernel  ‖Γ‖"} <= paths
    framed = [axes.spines["left"].get_edgecolor() for axes in figure.axes if axes.images]
    assert framed[:3] == framed[3:]
    assert len(set(framed)) == 3
    drawn = np.asarray(next(axes for axes in figure.axes if axes.images).images[0].get_array())
    assert (drawn[::12, ::12] == looked.maximal[0][0]).all()


def test_tiles_are_in_the_order_of_the_norm_and_selected_ones_are_framed(run):
    looked = read_looked(run)
    figure = filters.first_layer(looked).figure
    frames = [sum(isinstance(p, Rectangle) for p in axes.patches) for axes in figure.axes]
    assert frames == [0] * 3 + [1] * 3 + [4] * 3 + [0] * 3
    # The frame of the only one that was selected at the start, which has the largest norm.
    (frame,) = figure.axes[3].patches
    assert frame.get_x() < 5
    assert frame.get_y() < 5
    sheet = np.asarray(figure.axes[3].images[0].get_array())
    gap = (sheet.shape[1] - 3 * 30) // 4
    assert (sheet[gap : gap + 30 : 10, gap : gap + 30 : 10] == looked.panels[0].filters[0]).all()


def test_measures_without_a_number_are_not_drawn(run):
    figure = filters.measures(read_looked(run)).figure
    assert [axes.get_title("left") for axes in figure.axes[2:4]] == [
        "colour saturation", "orientation",
    ]  # fmt: skip
    points = sum(len(c.get_offsets()) for c in figure.axes[2].collections)
    assert points == 6


def test_the_section_has_the_tables_and_the_page_holds_all_of_it(run, monkeypatch):
    page = Page(interpretation(read_run(run)).html())
    text = " ".join(page.text["filters"].split())
    assert "Here it holds: colour saturation falls with the norm (ρ = −0.60)." in text
    assert "−0.60 (−0.90 to −0.20)" in text
    assert "plain sgd" in text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3
    monkeypatch.setattr(style, "svg", lambda figure, background="none": b"<svg/>")
    whole = report.render(run)
    assert "<script" not in whole
    assert whole.index("Groups by entry time") < whole.index("What the filters respond to")


def test_what_the_correlation_says():
    (row, *_) = correlations("run", True)
    assert "other way round" in verdict([row | {"rho": 0.6, "low": 0.2, "high": 0.9}])
    assert "too few to tell" in verdict([row | {"high": 0.1}])
    assert "not tested" in verdict([row | {"rho": None}])


def test_an_older_look_at_a_run_that_went_on_says_so(run, monkeypatch):
    monkeypatch.setattr(style, "svg", lambda figure, background="none": b"<svg/>")
    files.write(run / "interpretation.npz", header() | {"step": 40}, arrays())
    assert "when the run was at step 40" in interpretation(read_run(run)).body


def test_a_damaged_file_is_named(run):
    (run / "interpretation.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"interpretation.npz is damaged.*dessilbi interpret"):
        read_looked(run)
