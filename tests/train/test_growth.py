"""Runs in which the network grows: its own function goes on, in a wider network."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from same_run import lines
from train_runs import CHANNELS, TINY, Quiet, StopAt

import dessilbi_jax as dl
from dessilbi_jax import cli, models, report, train
from dessilbi_jax.train import growth as growing
from dessilbi_jax.train.data_facts import Where
from dessilbi_jax.train.devices.mesh import make_mesh, param_specs
from dessilbi_jax.train.finished.make_slim import make_slim
from dessilbi_jax.train.finished.take_ticket import take_ticket
from dessilbi_jax.train.finished.trained import load_run, read_run
from dessilbi_jax.train.optim import growing_lam, make_schedule
from dessilbi_jax.train.prepare import prepare
from dessilbi_jax.train.presets import get_preset, with_options

# With so small a λ Γ selects all there is. Looks are behind the first and the second epoch, 10
# steps each.
CONFIG = dataclasses.replace(
    TINY, network="lenet300", structure="channels", widths=(3, 4), epochs=4, lam=0.002,
    density=None, nu=20.0, augment=False, grow=1, grow_add=2, grow_until=0.5,
)  # fmt: skip
CONVOLUTIONS = dataclasses.replace(CONFIG, network="vgg-small")  # with batch normalisation


@pytest.fixture(scope="module")
def whole(tmp_path_factory, haste):
    """A run that grows twice, and its result."""
    out = tmp_path_factory.mktemp("grown") / "run"
    return out, train.fit(CONFIG, out, progress=Quiet(), checkpoint_steps=5, keep=9)


def test_what_grew_is_in_the_folder(whole):
    out, result = whole
    growth = growing.read(out)
    assert json.loads((out / "growth.json").read_text()) == json.loads(json.dumps(result["growth"]))
    assert growth.first == {"fc1/kernel": 3, "fc2/kernel": 4}
    assert [(each.step, each.widths) for each in growth.growths] == [(10, (5, 6)), (20, (7, 8))]
    assert growth.over is None
    assert growth.growths[1].sets == {"fc1/kernel": (5, 7), "fc2/kernel": (6, 8)}
    trained = load_run(out)
    assert models.widths(trained.model()) == read_run(out).config.widths == (7, 8)
    size = sum(x.size for x in jax.tree.leaves(trained.params))
    assert size == result["parameters"] == growth.growths[1].params[1]
    told = {line["step"]: line["parameters"] for line in lines(out)}
    before, between = growth.growths[0].params
    assert (told[10], told[20], told[40]) == (before, between, size)
    assert growth.growths[0].flops[0] < growth.growths[1].flops[1]


def test_the_path_goes_on_in_the_wider_network(whole):
    out, _ = whole
    path = dl.SolutionPath.load(out / "path.npz")
    assert path.shapes["fc1/kernel"][-1] == 7
    entries = path.entry_steps()["fc2/kernel"].ravel()
    assert len(entries) == 8
    assert (entries[:4] <= 10).all()
    assert (entries[:4] > 0).all()
    assert (entries[4:6] > 10).all()
    assert (entries[6:] > 20).all()
    then = path.support(10)["fc2/kernel"]
    assert not then[..., 4:].any()
    assert then[..., :4].any()
    with np.load(out / "norms.npz") as norms:
        assert {len(norms[name]) for name in norms.files if name.endswith("_w")} == {len(path)}


def test_the_network_that_grew_keeps_its_outputs(whole, tmp_path):
    """The weights kept when it grew, in the wider network, are as accurate as the record says."""
    out, _ = whole
    kept = train.checkpoints(out)
    assert list(kept) == [20, 30, 40]  # what was narrower cannot be rewound to
    assert (out / "weights" / "0.safetensors").exists()
    setup = prepare(dataclasses.replace(CONFIG, widths=(7, 8)), Where(), make_mesh("one"))
    evaluate = train.step.make_evaluate(setup.network)
    params, stats = kept.load(20)
    accuracy, loss = evaluate(params, stats, setup.held)
    line = next(each for each in lines(out) if each["step"] == 20)
    assert accuracy == line["accuracy"]
    assert loss == pytest.approx(line["held_out_loss"], rel=1e-5)


def test_new_channels_learn_and_can_be_cut_again(whole, tmp_path):
    out, _ = whole
    begun, ended = train.checkpoints(out)[20], train.checkpoints(out)[40]
    moved = np.abs(ended["fc2"]["kernel"] - begun["fc2"]["kernel"])
    assert (moved.sum(1)[5:] > 0).all()
    assert (moved.sum(0)[6:] > 0).all()
    _, ticket = take_ticket(out, size={"groups": 6}, out=tmp_path / "ticket.npz")
    made = make_slim(ticket, out=tmp_path / "slim", batches=(1,))
    assert made["networks"]["slim"]["parameters"] < made["networks"]["dense"]["parameters"]


@pytest.mark.parametrize("moment", ["while it grows", "behind"])
def test_a_stopped_run_goes_on_bit_for_bit(moment, whole, tmp_path):
    out, options = tmp_path / "run", {"checkpoint_steps": 5, "keep": 9}
    with pytest.MonkeyPatch.context() as patch:
        if moment == "while it grows":
            patch.setattr(dl, "grow", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.fit(CONFIG, out, progress=Quiet() if "while" in moment else StopAt(3), **options)
    assert len(growing.read(out).growths) == (0 if "while" in moment else 2)
    result = train.fit(CONFIG, out, progress=Quiet(), resume=True, **options)
    untimed = [{k: v for k, v in r.items() if k != "seconds"} for r in (result, whole[1])]
    assert untimed[0] == untimed[1]
    assert lines(out) == lines(whole[0])
    for step in (20, 40):
        for a, b in zip(
            *(jax.tree.leaves(train.checkpoints(run)[step]) for run in (out, whole[0])),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert growing.read(out) == growing.read(whole[0])


def test_grown_then_settled_and_cut(tmp_path):
    config = dataclasses.replace(CONFIG, settle=(0.5, 0.75), budget=("groups", 0.5))
    result = train.fit(config, tmp_path / "run", progress=Quiet())
    assert result["cut"]["step"] == 30
    assert result["cut"]["channels"] == [15, 8]
    last = result["growth"]["growths"][-1]
    assert last["step"] == 20
    assert result["cut"]["params"][0] == last["params"][1]
    trained = load_run(tmp_path / "run")
    assert models.widths(trained.model()) == tuple(last["widths"])


def test_on_a_mesh_the_wider_network_lies_as_the_first(haste):
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    config = dataclasses.replace(CONVOLUTIONS, widths=(8, 8))
    setup = prepare(config, Where(), mesh)
    wider = growing.widened(setup, config, (16, 16), mesh)
    for state in (setup.state, wider.state):
        specs = param_specs(state.params, mesh)
        found = jax.tree.map(lambda x: x.sharding.spec, state.params)
        assert jax.tree.map(tuple, found) == jax.tree.map(tuple, specs)


def test_nothing_grows_where_the_path_asks_for_no_more(tmp_path):
    """With a λ that few groups reach the first look finds layers that are wide enough."""
    config = dataclasses.replace(
        CONFIG, epochs=2, lam=0.06, grow_until=0.5, structure="neurons", widths=(4, 4)
    )
    out = tmp_path / "run"
    progress = Quiet()
    result = train.fit(config, out, progress=progress)
    chosen = dl.SolutionPath.load(out / "path.npz").layer_density()
    assert 0 < max(float(x[-2]) for x in chosen.values()) < 0.8, chosen
    assert list(result["growth"]["growths"]) == []
    assert result["growth"]["over"] == 10
    assert "no layer asks for more" in progress.out.getvalue()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How the network grew" in page
    assert "no layer asked for more" in page


def test_the_report_shows_every_growth(whole):
    out, _ = whole
    page = report.render(out)
    assert "fc1/kernel 3 → 5, fc2/kernel 4 → 6" in page
    assert "began with 7 channels and has 15" in page
    (out / "growth.json").rename(out / "kept.json")
    try:
        (out / "growth.json").write_text('{"growths": 3}')
        with pytest.raises(ValueError, match=r"growth\.json tells of no growth"):
            report.render(out)
        with pytest.raises(ValueError, match=r"growth\.json is damaged"):
            load_run(out)
    finally:
        (out / "kept.json").rename(out / "growth.json")


def test_the_rate_stays_until_it_no_longer_grows():
    config = dataclasses.replace(CONFIG, schedule="cosine", learning_rate=0.1)
    rate = make_schedule(config, 40)
    assert [round(float(rate(step)), 4) for step in (0, 19, 20, 30, 40)] == [
        0.1, 0.1, 0.1, 0.05, 0.0,
    ]  # fmt: skip


def test_lam_of_a_growing_run_is_beyond_what_idle_groups_reach():
    config = dataclasses.replace(CONVOLUTIONS, lam="auto", density=0.3, nu=0.5)
    model = models.build("vgg-small", input_shape=(8, 8, 1), widths=(3, 4), classes=10)
    kernels = [model.conv1.kernel[...], model.conv2.kernel[...]]
    norms = np.concatenate([np.sqrt((np.asarray(k) ** 2).sum((0, 1, 2))) for k in kernels])
    found = growing_lam(dataclasses.replace(config, structure="neurons"), model, 40, 10)
    assert found == pytest.approx(1.2 * np.median(norms), rel=1e-6)
    with pytest.raises(ValueError, match=r"take nu=0\.5 \(--nu; 20 now\)"):
        growing_lam(dataclasses.replace(config, nu=20.0), model, 40, 10)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"structure": "weights"}, "a network grows by channels"),
        ({"grow": 3}, "that is never"),
        ({"settle": (0.2, 0.6), "budget": ("params", 0.5)}, "let settle begin there or later"),
        ({"settle": (0.5, 0.6), "budget": ("params", 99)}, "give a share of it"),
        ({"grow": 0}, "grow must be an integer of at least 1"),
        ({"grow_until": 1.0}, "grow_until must be a finite number above 0 and below 1"),
        ({"grow_add": 0}, "grow_add must be"),
        ({"grow_limit": 0}, "grow_limit must be"),
    ],
)
def test_what_cannot_grow_is_said_at_once(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **fields)


def test_the_command_takes_growth(tmp_path, capsys):
    preset = get_preset("vgg16-cifar10").config
    config = growing.started(with_options(preset, {"grow": 10}))
    assert config.widths == (16,) * len(models.entry("vgg16").widths)
    assert (config.structure, config.settle) == ("channels", None)
    cut = with_options(preset, {"grow": 10, "budget": ("flops", 0.5)})
    assert (cut.structure, cut.settle) == ("channels", (0.5, 0.75))
    demo = get_preset("demo").config
    assert with_options(demo, {"grow": 2}).settle is None
    out = tmp_path / "run"
    words = "train demo --grow 2 --widths 4,4 --epochs 4 --lam 0.01 --grow-add 3 --grow-limit 6"
    assert cli.main([*words.split(), "--out", str(out)]) == 0
    assert json.loads((out / "growth.json").read_text())["growths"][0]["widths"] == [6, 6]
    assert cli.main(["train", "demo", "--widths", "4,x", "--out", str(out)]) == 2
    assert "expected whole numbers with commas" in capsys.readouterr().err


def test_growth_takes_transformers(tmp_path):
    """Heads and hidden units grow like channels."""
    config = dataclasses.replace(
        CHANNELS, network="vit-tiny", widths=(8, 1, 1, 6), epochs=2, lam=1e-4, density=None,
        grow=1, grow_add=1, structure="channels", nu=20.0, settle=None, at=1.0,
    )  # fmt: skip
    result = train.fit(config, tmp_path / "run", progress=Quiet())
    grew = result["growth"]["growths"][0]["sets"]
    assert any("fc1" in name or "mlp" in name or "up" in name for name in grew), grew
