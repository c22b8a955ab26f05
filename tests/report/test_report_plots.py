"""The pictures: what is drawn is what the files hold."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

import dessilbi_jax as dl
from dessilbi_jax.report import groups, plots, style
from dessilbi_jax.report.files import LeafNorms
from dessilbi_jax.report.run import read_run
from dessilbi_jax.tickets.group_sets import group_sets


@pytest.fixture(scope="module")
def run(finished_run):
    return read_run(finished_run)


def drawn(axes):
    return [line for line in axes.lines if len(line.get_xdata())]


def test_accuracy_and_density_are_those_of_the_records(run, finished_run):
    records = [json.loads(s) for s in (finished_run / "metrics.jsonl").read_text().splitlines()]
    left, right = plots.curves(run).figure.axes
    (dense, projected), (density, asked) = (
        [line for line in drawn(axes) if line.get_xydata()[0, 0] != line.get_xydata()[-1, 0]
         or line.get_linestyle() == ":"] for axes in (left, right)
    )  # fmt: skip
    # λ's estimates are ticks at the foot of both panels.
    for axes in (left, right):
        ticks = [line for line in drawn(axes) if set(line.get_ydata()) == {0, 0.03}]
        assert [line.get_xdata()[0] for line in ticks] == [1.0, 2.0]
    for line, name in [
        (dense, "accuracy"),
        (projected, "projected_accuracy"),
        (density, "density"),
    ]:
        assert line.get_xdata().tolist() == [r["epoch"] for r in records]
        assert line.get_ydata().tolist() == [r[name] for r in records]
    assert set(asked.get_ydata()) == {0.3}
    assert to_hex(dense.get_color()) != to_hex(projected.get_color())
    assert dense.get_linestyle() != projected.get_linestyle()


def test_the_norms_are_grey_until_a_group_enters_and_coloured_from_then_on(run, finished_run):
    with np.load(finished_run / "norms.npz") as archive:
        steps = archive["steps"]
        norms = {name: archive[name] for name in archive.files}
    figure = groups.solution_path(run).figure
    panels = {axes.get_title("left"): axes for axes in figure.axes}
    gamma_panels = [axes for axes in figure.axes if axes.get_title("left") == "‖Γ‖"]
    assert [a.get_title("right") for a in gamma_panels] == ["all 6 groups", "12 of 800 groups"]
    for i, name in enumerate(("conv1/kernel", "fc1/kernel")):
        gamma = norms[f"leaf_{i}_gamma"]
        entered = (gamma > 0).any(axis=0)
        assert entered.sum() > 0
        for symbol, values in (("W", norms[f"leaf_{i}_w"]), ("Γ", gamma)):
            axes = panels[f"{name}  ‖W‖"] if symbol == "W" else gamma_panels[i]
            (grey,) = (c for c in axes.collections if isinstance(c, LineCollection))
            assert to_hex(grey.get_color()[0]) == style.WAITING.lower()
            segments = grey.get_segments()
            assert len(segments) == gamma.shape[1]
            coloured = {line.get_ydata().tobytes(): line for line in drawn(axes)}
            assert len(drawn(axes)) == entered.sum()
            for g, segment in enumerate(segments):
                first = int((gamma[:, g] > 0).argmax()) if entered[g] else steps.size - 1
                assert segment[:, 0].tolist() == steps[: first + 1].tolist()
                np.testing.assert_array_equal(segment[:, 1], values[: first + 1, g])
                if entered[g]:
                    line = coloured[np.ascontiguousarray(values[first:, g]).tobytes()]
                    assert line.get_xdata().tolist() == steps[first:].tolist()
    assert not entered.all()


def test_the_colour_of_a_curve_says_when_it_entered(run):
    figure = groups.solution_path(run).figure
    colour_by_start = {}
    for axes in figure.axes:
        for line in drawn(axes):
            colour_by_start.setdefault(line.get_xdata()[0], set()).add(to_hex(line.get_color()))
    starts = sorted(colour_by_start)
    assert len(starts) >= 3
    assert all(len(colours) == 1 for colours in colour_by_start.values())
    # Viridis grows lighter all the way, so that early is dark also without colour.
    light = [sum(to_rgba(*colour_by_start[start])[:3]) for start in starts]
    assert light == sorted(light)
    assert len(set(light)) == len(light)


def test_density_by_layer_is_that_of_the_path(run, finished_run):
    path = dl.SolutionPath.load(finished_run / "path.npz")
    (axes,) = plots.layer_density(run).figure.axes
    for line, (name, density) in zip(drawn(axes), path.layer_density().items(), strict=True):
        assert line.get_label().strip().startswith(name)
        assert line.get_xdata().tolist() == (path.steps / 20).tolist()
        assert line.get_ydata().tolist() == density.tolist()


def test_many_layers_become_the_rows_of_a_heat_map(make_run):
    folder = make_run(leaves={f"conv{i:02d}": (3, 3, 2, 4) for i in range(18)})
    run = read_run(folder)
    picture = plots.layer_density(run)
    (mesh,) = (c for c in picture.figure.axes[0].collections if isinstance(c, QuadMesh))
    expected = np.array(list(run.path.layer_density().values()))
    np.testing.assert_array_equal(np.asarray(mesh.get_array()), expected)
    assert "darker cells are denser" in picture.remark
    for other in (groups.solution_path(run), groups.entry_times(run)):
        # From the first layer to the last, in the network's order.
        assert "16 of 18 sets of groups are drawn, from the first layer to the last" in other.remark
        left_out = other.remark.split("left out: ")[1]
        assert "conv00/kernel" not in left_out
        assert "conv17/kernel" not in left_out
        assert left_out.count("/kernel") == 2


def test_tiles_and_bars_hold_every_group_that_entered(run, finished_run):
    path = dl.SolutionPath.load(finished_run / "path.npz")
    entry = {name: steps.ravel() for name, steps in path.entry_steps().items()}
    _, tiles, bars = groups.entry_times(run).figure.axes
    (mesh,) = (c for c in tiles.collections if isinstance(c, QuadMesh))
    colours = np.asarray(mesh.get_array()).reshape(-1, 4)
    conv, waiting = entry["conv1/kernel"], to_rgba(style.WAITING, 0.45)
    assert (conv < 0).any()
    for step, colour in zip(conv, colours, strict=False):
        assert np.allclose(colour, waiting) == (step < 0)
    assert not colours[conv.size :].any()
    assert len({tuple(c) for c in colours[: conv.size]}) == len(set(conv.tolist()))

    dense = entry["fc1/kernel"]
    spans = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in bars.patches]
    assert len(spans) == path.steps.size
    for (low, high, height), step in zip(spans, path.steps, strict=True):
        assert height == (dense == step).sum()
        assert low < step
        assert high == pytest.approx(step, abs=0.03 * (high - low) + 1e-9)
    assert sum(height for *_, height in spans) == (dense >= 0).sum() > 0


def test_bars_of_a_long_run_stay_few_and_lose_no_group(make_run):
    run = read_run(make_run(steps=tuple(range(1, 151))))
    *_, bars = groups.entry_times(run).figure.axes
    entry = run.path.entry_steps()["fc1/kernel"]
    assert len(bars.patches) <= 60
    assert sum(p.get_height() for p in bars.patches) == (entry >= 0).sum() > 0


def test_a_set_of_channels_is_one_panel_in_the_networks_order(make_run):
    """conv10 comes behind conv2, and kernel and bias of a layer are drawn once, jointly."""
    folder = make_run(leaves={f"conv{i}": (3, 3, 2, 4) for i in (10, 2)})
    config = json.loads((folder / "config.json").read_text())
    ties = {f"conv{i}/{leaf}": start + np.arange(4) for i, start in ((2, 0), (10, 4))
            for leaf in ("kernel", "bias")}  # fmt: skip

    class Joint:
        steps, metrics = np.array([1, 2]), {}

        def sets(self):
            return group_sets(dict.fromkeys(ties, (4,)), ties)

        def entry_steps(self):
            return {name: np.array([1, 2, -1, -1]) for name in ties}

        def layer_density(self):
            return {name: np.array([0.0, 0.5]) for name in ties}

    joint = dataclasses.replace(read_run(folder), path=Joint())
    titles = [axes.get_title("left") for axes in groups.entry_times(joint).figure.axes[1:]]
    assert titles == ["conv2: 2 of 4 entered", "conv10: 2 of 4 entered"]
    told = {**config, "order": ["conv10/kernel", "conv2/kernel"]}
    other = dataclasses.replace(joint, config=told)
    assert [each.title for each in other.sets()] == ["conv10", "conv2"]
    assert len(drawn(plots.layer_density(joint).figure.axes[0])) == 2


def test_of_many_groups_those_that_entered_are_in_the_sample():
    gamma = np.zeros((3, 96))
    gamma[1:, 90:] = 1.0
    sample = LeafNorms("fc", np.arange(96), gamma + 1, gamma, 5000).sample(groups.DRAWN)
    assert sample.index.size == groups.DRAWN
    assert set(range(90, 96)) <= set(sample.index.tolist())
    assert sample.size == 5000


@pytest.mark.parametrize(
    ("values", "shown"), [((0.97, 0.98, 0.1), 0.86), ((0.3, 0.31), 0.25), ((0.999, 0.9985), 0.97)]
)
def test_the_accuracy_axis_shows_small_differences_and_says_what_it_leaves_out(values, shown):
    axes = Figure().subplots()
    axes.plot(values)
    plots._accuracy_axis(axes, np.array(values))
    low, high = axes.get_ylim()
    assert shown - 0.06 < low < min(v for v in values if v > 0.2)
    assert max(values) < high
    assert (plots._below(axes, np.array(values)) != "") == (min(values) < low)
    # Ticks are what they say.
    for tick in axes.get_yticks():
        label = axes.yaxis.get_major_formatter()(tick)
        assert float(label.removesuffix(" %")) / 100 == pytest.approx(tick, abs=1e-12)


def test_losses_learning_rate_and_the_estimates_of_lambda(run, finished_run):
    records = [json.loads(s) for s in (finished_run / "metrics.jsonl").read_text().splitlines()]
    left, right, other = plots.losses(run).figure.axes
    assert drawn(left)[0].get_ydata().tolist() == [r["loss"] for r in records]
    assert drawn(right)[0].get_ydata().tolist() == [r["learning_rate"] for r in records]
    dots = next(line for line in drawn(other) if line.get_marker() == "o")
    assert dots.get_xydata().tolist() == [[1.0, 0.0123456], [2.0, 0.0210987]]
