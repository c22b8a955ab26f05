"""Runs that cut their network where settling ends: the masked network's run, at less cost."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from same_run import assert_close, lines
from train_runs import CHANNELS, TINY, Quiet, StopAt

import dessilbi_jax as dl
from dessilbi_jax import cli, train
from dessilbi_jax.train import cutting
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.data_facts import Where
from dessilbi_jax.train.devices.mesh import make_mesh, param_specs
from dessilbi_jax.train.finished.trained import load_run, rows_of
from dessilbi_jax.train.prepare import prepare
from dessilbi_jax.train.presets import get_preset, with_options
from dessilbi_jax.train.run_folder.checkpoints import load_params
from dessilbi_jax.train.step import make_evaluate
from dessilbi_jax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

# Batch normalisation and momentum; the cut is in the middle of the second epoch.
CONFIG = dataclasses.replace(
    TINY, structure="channels", widths=(8,), settle=(0.1, 0.5), budget=("flops", 0.4), nu=20.0
)
CUT = 15


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_in_haste):
    """A run that cuts, and its result."""
    out = tmp_path_factory.mktemp("cut") / "run"
    return out, train.fit(CONFIG, out, progress=Quiet(), checkpoint_steps=5, keep=9)


def arrays(run):
    return dict(leaf_paths(train.load_params(run)))


def test_the_cut_network_is_the_masked_one(whole, tmp_path):
    out, result = whole
    masked = tmp_path / "masked"
    expected = train.fit(dataclasses.replace(CONFIG, cut=False), masked, progress=Quiet())
    assert expected["cut"] is None
    there, big = arrays(out), arrays(masked)
    assert there.keys() == big.keys()
    for path, leaf in big.items():
        np.testing.assert_allclose(there[path], leaf * (there[path] != 0), atol=2e-3)
        assert not there[path][leaf == 0].any(), path
    for line, other in zip(lines(out)[-1:], lines(masked)[-1:], strict=True):
        apart = (
            "accuracy",
            "projected_accuracy",
            "parameters",
        )  # which the cut network has fewer of
        assert_close(*({k: v for k, v in each.items() if k not in apart} for each in (line, other)))
        assert line["projected_accuracy"] == line["accuracy"]
    assert result["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.02)
    for name in ("density", "groups", "layers", "steps", "lam"):
        assert result[name] == expected[name], name


def test_the_result_says_what_was_cut(whole):
    out, result = whole
    before, after = result["cut"]["flops"]
    assert result["cut"]["step"] == CUT
    assert 0.3 * before < after <= 0.4 * before
    channels, left = result["cut"]["channels"]
    assert result["groups"] == [left, channels]
    trained = load_run(out)
    params = sum(x.size for x in jax.tree.leaves(trained.params))
    assert result["parameters"] == result["cut"]["params"][0] == params
    assert result["cut"]["params"][1] < 0.6 * params
    # What is kept is the first network with zeros, and as accurate.
    accuracy, _ = accuracy_of(trained)
    assert accuracy == result["test_accuracy"]
    kept = train.checkpoints(out)
    assert {np.shape(x) for x in jax.tree.leaves(kept[30])} == {
        np.shape(x) for x in jax.tree.leaves(kept[0])
    }
    path = dl.SolutionPath.load(out / "path.npz")
    assert path.steps[-1] == CUT
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The run ended with a sparse network" in page
    params, left = result["cut"]["params"]
    assert f"of {params:,}; cut at step {CUT} to" in page
    assert f'<span class="value">{left:,}</span>' in page
    assert "to end with 40 % of the FLOPs" in page


def accuracy_of(trained):
    rows = rows_of(trained, "test", None)
    return make_evaluate(trained.network())(trained.params, trained.stats, rows)


class Stop(Quiet):
    """Ends the run when it says what was cut."""

    def note(self, text):
        super().note(text)
        if text.startswith("cut to"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["in the cut", "at once behind it", "behind"])
def test_a_stopped_run_goes_on_bit_for_bit(moment, whole, tmp_path):
    out, options = tmp_path / "run", {"checkpoint_steps": 5, "keep": 9}
    how = {"behind": StopAt(2), "at once behind it": Stop()}.get(moment, Quiet())
    with pytest.MonkeyPatch.context() as patch:
        if moment == "in the cut":
            patch.setattr(cutting, "_slim", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.fit(CONFIG, out, progress=how, **options)
    result = train.fit(CONFIG, out, progress=Quiet(), resume=True, **options)
    untimed = [{k: v for k, v in r.items() if k != "seconds"} for r in (result, whole[1])]
    assert untimed[0] == untimed[1]
    assert lines(out) == lines(whole[0])
    for step in ("5", "15", "20", "30"):
        assert (out / "checkpoints" / step).is_dir()
    for file in (whole[0] / "weights").iterdir():
        assert (out / "weights" / file.name).read_bytes() == file.read_bytes()
    assert (out / "path.npz").read_bytes() == (whole[0] / "path.npz").read_bytes()


def test_a_checkpoint_behind_the_cut_is_small(whole):
    run = whole[0]
    plans = {
        int(d.name): json.loads((d / "meta.json").read_text())["plan"]
        for d in (run / "checkpoints").iterdir()
    }
    assert {step for step, plan in plans.items() if plan is None} == {5, 10, CUT}
    plan = dl.Plan.from_json(plans[30])
    params, stats = load_params(run)
    for path, leaf in leaf_paths(params):
        assert np.shape(leaf) == plan.shapes[path]
        np.testing.assert_array_equal(plan.spread(plan.apply({path: leaf}))[path], leaf)
    assert any(plan.shape(path) != plan.shapes[path] for path, _ in leaf_paths(stats))


@pytest.mark.slow
def test_on_a_mesh_the_cut_network_lies_as_the_dense_one_did(tmp_path):
    config = dataclasses.replace(CONFIG, widths=(16,), budget=("groups", 8))
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    runs = {name: tmp_path / name for name in ("one", "eight")}
    for name, words in (("one", "one"), ("eight", "data=2,fsdp=2,tensor=2")):
        train.fit(config, runs[name], progress=Quiet(), mesh=words)
    one, eight = (lines(run) for run in runs.values())
    for a, b in zip(one, eight, strict=True):
        assert_close({k: v for k, v in a.items() if "accuracy" not in k}, {
            k: v for k, v in b.items() if "accuracy" not in k})  # fmt: skip
    setup = prepare(config, Where(), mesh)
    meta = json.loads((runs["eight"] / "checkpoints" / "30" / "meta.json").read_text())
    stage = cutting.stage_of(setup, config, dl.Plan.from_json(meta["plan"]), mesh)
    specs = param_specs(stage.state.params, mesh)
    flat = jax.tree.leaves(stage.state.params)
    assert [x.sharding.spec for x in flat] == jax.tree.leaves(
        specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
    )
    assert any("tensor" in x.sharding.spec for x in flat)
    v = jax.tree.leaves(dl.get_state(stage.state.opt_state).v)
    assert [x.sharding.spec for x in v] == [x.sharding.spec for x in flat]


@pytest.mark.parametrize("name", ["weights", "groups", "params"])
def test_every_budget_is_met(name, tmp_path):
    config = dataclasses.replace(CHANNELS, settle=(0.1, 0.6), budget=(name, 0.3), epochs=2)
    result = train.fit(config, tmp_path / "run", progress=Quiet())
    model = jax.tree.leaves(load_run(tmp_path / "run").params)
    if name == "params":
        assert 0.2 < result["cut"]["params"][1] / sum(x.size for x in model) <= 0.3
    elif name == "groups":
        assert result["groups"] == [round(0.3 * 28), 28]
    else:
        assert 0.2 < result["density"] <= 0.3


def test_the_command_takes_every_budget():
    def config(*words):
        from dessilbi_jax.cli.parser import given_options, make_parser

        return with_options(
            get_preset("lenet5-mnist").config,
            given_options(make_parser().parse_args(["train", "lenet5-mnist", *words])),
        )

    assert config("--flops", "0.25", "--structure", "channels").budget == ("flops", 0.25)
    assert config("--params", "20000").budget == ("params", 20000)
    assert config("--channels", "0.5").budget == ("groups", 0.5)
    assert config("--channels", "0.5").settle is not None
    share = config("--weights", "0.02")
    assert (share.density, share.budget, share.settle) == (0.02, None, (0.1, 0.75))
    assert config("--weights", "2000").budget == ("weights", 2000)
    assert config("--density", "0.1").budget is None
    assert not config("--no-cut").cut


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flops", "0.5"], "take --structure channels, or another budget"),
        (["--flops", "1.5"], "a share of the whole, above 0 and below 1, or a whole number"),
        (["--params", "0"], "a share of the whole, above 0 and below 1, or a whole number"),
        (["--params", "nan"], "a share of the whole, above 0 and below 1, or a whole number"),
        (["--params", "0.5", "--weights", "9"], "--weights beside params: a run ends with one"),
        (["--params", "0.5", "--density", "0.1"], "params and density: a run ends with one"),
        (["--params", "0.5", "--no-settle"], "is what a settled run ends with"),
        (["--params", "10"], "the budget of settling is 10 of"),
    ],
)
def test_budgets_that_cannot_be_are_refused_before_anything_is_written(
    words, message, tmp_path, capsys
):
    out = tmp_path / "run"
    given = ["train", "demo", "--structure", "weights", *words, "--out", str(out)]
    assert cli.main(given) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_a_configuration_cannot_end_with():
    base = {"network": "lenet300", "dataset": "digits", "epochs": 1, "settle": (0.1, 0.5)}
    with pytest.raises(TypeError, match="budget must be"):
        TrainConfig(**base, budget=0.5)
    with pytest.raises(ValueError, match="the budget must be one of weights, groups, params"):
        TrainConfig(**base, budget=("flop", 0.5))
    with pytest.raises(ValueError, match="params must be a share of the whole"):
        TrainConfig(**base, budget=("params", True))
    config = TrainConfig(**base, budget=("params", 0.5))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_there_is_no_cut_where_there_is_nothing_behind_it():
    assert cutting.moment(dataclasses.replace(CONFIG, settle=(0.1, 1.0)), 30) is None
    assert cutting.moment(dataclasses.replace(CONFIG, structure="filters", budget=None), 30) is None
    assert cutting.moment(CONFIG, 30) == CUT
