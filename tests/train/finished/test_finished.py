import collections
import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_runs import CHANNELS, Quiet

import dessilbi_jax as dl
from dessilbi_jax import data, train
from dessilbi_jax.dependency import trace
from dessilbi_jax.slimming import smaller
from dessilbi_jax.train.finished import make_slim
from dessilbi_jax.train.finished.latency import measure
from dessilbi_jax.train.finished.trained import load_run, load_trained
from dessilbi_jax.train.optim import make_optimizer, make_retraining, make_structure
from dessilbi_jax.train.run_folder.weights import read_weights
from dessilbi_jax.train.step import split_network
from dessilbi_jax.tree import leaf_paths


def files(place):
    return sorted(f.relative_to(place).as_posix() for f in place.rglob("*") if f.is_file())


def result_of(place):
    return json.loads((place / "result.json").read_text())


def test_a_ticket_has_exactly_the_groups_and_says_where_it_is_from(channel_run, ticket_file):
    ticket = dl.Ticket.load(ticket_file)
    card = ticket.card
    assert card["groups"] == [9, 28]
    assert ticket.masks["fc1/bias"].sum() + ticket.masks["fc2/bias"].sum() == 9
    for name in ("fc1", "fc2"):
        columns = ticket.masks[f"{name}/kernel"].all(axis=0)
        np.testing.assert_array_equal(columns, ticket.masks[f"{name}/bias"])
    assert ticket.structured == ("fc1/bias", "fc1/kernel", "fc2/bias", "fc2/kernel")
    assert (card["run"], card["preset"], card["seed"]) == (str(channel_run), "small", 0)
    assert card["config"] == CHANNELS.to_json()
    assert card["finished"] is True
    assert {"jax", "dessilbi_jax"} <= set(card["versions"])
    assert "by entry step" in card["rule"]
    assert set(card["accuracy"]) == {"held-out"}
    first, second = (int(ticket.masks[f"fc{i}/bias"].sum()) for i in (1, 2))
    left = 64 * first + first + first * second + second + second * 10 + 10
    assert card["left"]["params"] == [left, 64 * 16 + 16 + 16 * 12 + 12 + 120 + 10]
    assert card["left"]["flops"][0] == 2 * (64 * first + first * second + second * 10)
    last = json.loads((channel_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert card["accuracy"]["held-out"]["dense"] == pytest.approx(last["accuracy"])


def test_sizes_count_what_is_left_after_the_cut(channel_run, tmp_path):
    for i, (size, most) in enumerate([({"params": 700}, 700), ({"flops": 1100.0}, 1100)]):
        ticket, _ = train.take_ticket(channel_run, size=size, out=tmp_path / f"{i}.npz")
        (name,) = size
        assert 0.7 * most < ticket.card["left"][name][0] <= most
    at, _ = train.take_ticket(channel_run, size={"at": 60}, out=tmp_path / "at.npz", test=True)
    result = result_of(channel_run)
    assert at.card["groups"] == result["groups"]
    assert at.card["accuracy"]["test"]["dense"] == result["test_accuracy"]
    asked, _ = train.take_ticket(channel_run, out=tmp_path / "default.npz")
    assert asked.card["request"]["density"] == 0.5


def test_the_projection_of_the_last_record_is_that_of_its_ticket(channel_run, tmp_path):
    """Γ's own support, and the ticket with all of each empty channel masked, give one network."""
    ticket, _ = train.take_ticket(channel_run, size={"at": 60}, out=tmp_path / "t.npz", test=True)
    projected = ticket.card["accuracy"]["test"]["projected"]
    assert projected == result_of(channel_run)["test_projected_accuracy"]


def test_retraining_keeps_zeros_and_starts_where_it_was_told(channel_run, ticket_file, retrained):
    ticket = dl.Ticket.load(ticket_file)
    params, _ = read_weights(retrained / "weights.safetensors")
    init, start = (dict(leaf_paths(train.checkpoints(channel_run)[step])) for step in (0, 40))
    gone = ~ticket.masks["fc1/bias"]
    for path, leaf in leaf_paths(params):
        mask = ticket.masks[path].copy()
        if path == "fc2/kernel":
            mask[gone] = False  # what reads a channel goes with it
        if path == "fc3/kernel":
            mask[~ticket.masks["fc2/bias"]] = False
        assert not leaf[~mask].any()
        moved, since_init = (np.abs(leaf - before[path])[mask].mean() for before in (start, init))
        assert 0 < moved < since_init
    result = result_of(retrained)
    assert (result["from"], result["step"], result["steps"]) == ("2", 40, 40)
    assert [line["epoch"] for line in result["epochs"]] == [1, 2]
    assert result["test"]["dense"] == result_of(channel_run)["test_accuracy"]
    card = ticket.card["accuracy"]["held-out"]
    assert result["held_out"]["projected"] == card["projected"]
    assert result["held_out"]["retrained"] == result["epochs"][-1]["accuracy"]
    assert result["config"]["seed"] == 5
    assert result["data"]["holdout_seed"] == 0
    assert files(retrained) == ["result.json", "weights.safetensors"]


def test_retraining_is_the_same_bit_for_bit_with_the_same_seed(ticket_file, retrained, tmp_path):
    options = {"start": "2", "epochs": 2, "seed": 5, "progress": Quiet()}
    train.retrain(ticket_file, out=tmp_path / "again", **options)
    again = (tmp_path / "again" / "weights.safetensors").read_bytes()
    assert (retrained / "weights.safetensors").read_bytes() == again


class Signalled(Quiet):
    """Sends a signal when an epoch has ended."""

    def __init__(self, signum):
        super().__init__()
        self._signum = signum

    def epoch(self, line, epochs):
        os.kill(os.getpid(), self._signum)


def test_a_retraining_is_resumed_as_if_it_had_not_been_stopped(ticket_file, retrained, tmp_path):
    out = tmp_path / "again"
    options = {"start": "2", "epochs": 2, "seed": 5, "out": out}
    with pytest.raises(train.Interrupted, match="stopped at step 21 of 40") as caught:
        train.retrain(ticket_file, progress=Signalled(signal.SIGHUP), **options)
    assert caught.value.signum == signal.SIGHUP
    assert [f.name for f in tmp_path.iterdir()] == ["again.unfinished"]
    with pytest.raises(FileExistsError, match="go on with --resume, or start it anew"):
        train.retrain(ticket_file, progress=Quiet(), **options)
    with pytest.raises(ValueError, match="had from='2', now 'init': resume it with its own"):
        train.retrain(ticket_file, resume=True, **{**options, "start": "init"})
    result = train.retrain(ticket_file, resume=True, progress=Quiet(), **options)
    assert (retrained / "weights.safetensors").read_bytes() == (
        out / "weights.safetensors"
    ).read_bytes()
    assert result["epochs"] == result_of(retrained)["epochs"]
    assert [f.name for f in tmp_path.iterdir()] == ["again"]
    assert train.retrain(ticket_file, resume=True, **options) == result


def test_a_run_without_a_finished_checkpoint_is_not_measured(channel_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(channel_run, run)
    (run / "result.json").unlink()
    whole = train.evaluate(channel_run)
    # Of a run that goes on, its newest checkpoint, also where it keeps no weights of that step.
    for file in (run / "weights").iterdir():
        if file.name != "0.safetensors":
            file.unlink()
    assert train.evaluate(run) == whole
    shutil.rmtree(run / "checkpoints")
    for look in (train.evaluate, train.take_ticket):
        with pytest.raises(FileNotFoundError, match="no finished checkpoint, only the weights it"):
            look(run)


def test_a_loss_that_is_not_finite_leaves_nothing(ticket_file, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step .* nothing was written"):
        train.retrain(
            ticket_file, out=tmp_path / "r", epochs=1, learning_rate=1e30, progress=Quiet()
        )
    assert list(tmp_path.iterdir()) == []


def few_digits():
    """The digits 0 to 4."""
    whole = data.load("digits")
    parts = []
    for part in ("train", "test"):
        images, labels = (getattr(whole, f"{part}_{kind}") for kind in ("images", "labels"))
        parts.append((images[labels < 5], labels[labels < 5]))
    return data.Dataset.from_arrays("few", *parts, ["0", "1", "2", "3", "4"])


def test_another_data_set_gets_a_new_head(ticket_file, channel_run, tmp_path, monkeypatch):
    few, load = few_digits(), data.load
    monkeypatch.setattr(
        data, "load", lambda name, **options: few if name == "few" else load(name, **options)
    )
    result = train.retrain(
        ticket_file, dataset="few", start="end", epochs=2, out=tmp_path / "r", progress=Quiet()
    )
    assert result["head"] == ["fc3/bias", "fc3/kernel"]
    assert result["test"]["dense"] is result["held_out"]["projected"] is None
    assert result["test"]["retrained"] > 0.4  # of five classes
    params, _ = read_weights(tmp_path / "r" / "weights.safetensors")
    assert params["fc3"]["kernel"].shape == (12, 5)
    ticket = dl.Ticket.load(ticket_file)
    assert not params["fc1"]["kernel"][~ticket.masks["fc1/kernel"]].any()
    small = train.make_slim(
        ticket_file, params_from=tmp_path / "r", batches=[1], out=tmp_path / "s"
    )
    assert small["networks"]["slim"]["test_accuracy"] == result["test"]["retrained"]
    assert train.evaluate(tmp_path / "s")["accuracy"] == result["test"]["retrained"]


def test_images_of_another_size_are_refused(ticket_file, tmp_path, monkeypatch):
    few, load = few_digits(), data.load
    wide = dataclasses.replace(
        few, train_images=np.repeat(few.train_images, 2, axis=1),
        test_images=np.repeat(few.test_images, 2, axis=1),
    )  # fmt: skip
    monkeypatch.setattr(
        data, "load", lambda name, **options: wide if name == "few" else load(name, **options)
    )
    with pytest.raises(
        ValueError, match=r"does not go with few: fc1/kernel would have shape \(128"
    ):
        train.retrain(ticket_file, dataset="few", out=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_slim_is_smaller_and_its_outputs_are_the_masked_ones(slimmed, retrained, ticket_file):
    result, ticket = result_of(slimmed), dl.Ticket.load(ticket_file)
    networks = result["networks"]
    assert result["difference"] <= 1e-5
    assert result["channels"] == [9, 28]
    assert result["compared"] == 144
    left = ticket.card["left"]
    assert networks["slim"]["parameters"] == left["params"][0]
    assert networks["slim"]["bytes"] == 4 * left["params"][0]
    assert networks["slim"]["flops"] == left["flops"][0]
    for name in ("dense", "masked"):
        assert [networks[name][k] for k in ("parameters", "flops")] == [
            left["params"][1], left["flops"][1],
        ]  # fmt: skip
    assert networks["masked"]["test_accuracy"] == result_of(retrained)["test"]["retrained"]
    assert networks["slim"]["test_accuracy"] == networks["masked"]["test_accuracy"]
    for network in networks.values():
        assert set(network["latency"]) == {"1", "3"}
    assert files(slimmed) == [
        "card.json", "forward.jaxexport", "params.safetensors", "plan.json", "result.json",
    ]  # fmt: skip


def test_the_exported_network_takes_bytes_and_gives_the_masked_outputs(slimmed, retrained):
    forward = jax.export.deserialize(bytearray((slimmed / "forward.jaxexport").read_bytes()))
    masked = load_trained(retrained)
    images = data.load("digits").test_images[:7]
    network = masked.network()
    expected = network.evaluate(masked.params, masked.stats, network.normalise(jnp.asarray(images)))
    np.testing.assert_allclose(forward.call(images), expected, rtol=1e-4, atol=1e-4)
    assert json.loads((slimmed / "card.json").read_text())["batch"] == "any"


def test_the_three_kinds_of_network_are_measured(channel_run, ticket_file, retrained, slimmed):
    found = train.evaluate(channel_run)
    assert (found["network"], found["images"]) == ("dense", 360)
    assert found["accuracy"] == result_of(channel_run)["test_accuracy"]
    projected = train.evaluate(channel_run, ticket=ticket_file, split="held-out")
    assert projected["images"] == 144
    assert projected["accuracy"] == result_of(retrained)["held_out"]["projected"]
    after = train.evaluate(retrained, ticket=ticket_file)
    assert after["accuracy"] == result_of(retrained)["test"]["retrained"]
    cut = train.evaluate(slimmed)
    assert cut["accuracy"] == after["accuracy"]
    assert cut["loss"] == pytest.approx(after["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="its ticket is cut out: no --ticket"):
        train.evaluate(slimmed, ticket=ticket_file)
    with pytest.raises(ValueError, match="split must be one of test, held-out, got 'train'"):
        train.evaluate(retrained, split="train")


def test_an_error_on_the_way_leaves_nothing_and_what_was_there_stays(
    ticket_file, slimmed, tmp_path, monkeypatch
):
    def fail(*args, **options):
        raise OSError("disk full")

    target = tmp_path / "slim"
    shutil.copytree(slimmed, target)
    monkeypatch.setattr(dl, "save_slim", fail)
    with pytest.raises(OSError, match="disk full"):
        train.make_slim(ticket_file, out=target, batches=[1], overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["slim"]
    assert files(target) == files(slimmed)


def test_a_network_is_traced_planned_and_compared_once(ticket_file, tmp_path, monkeypatch):
    calls = collections.Counter()

    def counted(owner, name, what):
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            calls[what] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    counted(trace, "_traced", "traced")
    counted(dl.ChannelGroups, "rounded", "planned")
    counted(smaller, "difference", "compared")  # on the example inputs
    counted(make_slim, "_difference", "compared")  # and on all held-out images
    train.make_slim(ticket_file, out=tmp_path / "slim", batches=[1])
    assert calls == {"traced": 1, "planned": 1, "compared": 1}


def test_folders_are_replaced_only_if_asked_and_only_ones_of_their_kind(
    ticket_file, channel_run, retrained, tmp_path
):
    for make in (train.make_slim, train.retrain):
        with pytest.raises(FileExistsError, match="was not written by this command: give --out"):
            make(ticket_file, out=channel_run, overwrite=True)
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        train.retrain(ticket_file)
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        train.take_ticket(channel_run, out=ticket_file)
    with pytest.raises(FileExistsError, match="is a folder"):
        train.take_ticket(channel_run, out=tmp_path)


def test_a_ticket_that_does_not_belong_is_refused(channel_run, ticket_file, retrained, tmp_path):
    other, file = train.take_ticket(channel_run, size={"groups": 12}, out=tmp_path / "o.npz")
    with pytest.raises(ValueError, match="was retrained from another ticket: its digest is"):
        train.make_slim(file, params_from=retrained)
    run = edited(channel_run, tmp_path / "run", nu=3.0)
    with pytest.raises(ValueError, match=r"is not a ticket of the run in .* configuration differs"):
        train.retrain(ticket_file, run=run)
    for use in (
        lambda: train.make_slim(ticket_file, params_from=run, out=tmp_path / "slim"),
        lambda: train.evaluate(run, ticket=ticket_file),
    ):
        with pytest.raises(ValueError, match=r"of another run than the network in .*run: their"):
            use()
    nameless = dataclasses.replace(dl.Ticket.load(ticket_file), card={})
    nameless.save(tmp_path / "nameless.npz")
    with pytest.warns(UserWarning, match="does not say which run it is of"):
        train.evaluate(channel_run, ticket=tmp_path / "nameless.npz")
    (tmp_path / "nameless.npz").unlink()
    lost = dataclasses.replace(other, card={**other.card, "run": str(tmp_path / "gone")})
    lost.save(tmp_path / "lost.npz")
    with pytest.raises(FileNotFoundError, match="which is not there: give --run"):
        train.make_slim(tmp_path / "lost.npz")
    found = train.make_slim(tmp_path / "lost.npz", run=channel_run, batches=[1], round_to=4)
    assert found["channels"][0] in (12, 16, 20)
    kept = dl.Plan.load(tmp_path / "lost-slim" / "plan.json")
    assert [kept.shape(f"fc{i}/bias")[0] % 4 for i in (1, 2)] == [0, 0]
    assert json.loads((tmp_path / "lost-slim" / "card.json").read_text())["round_to"] == 4
    assert sorted(f.name for f in tmp_path.iterdir()) == ["lost-slim", "lost.npz", "o.npz", "run"]


def edited(run, to, **changes):
    """A copy of a run with other fields in config.json."""
    shutil.copytree(run, to)
    saved = json.loads((to / "config.json").read_text())
    saved["config"] |= changes
    (to / "config.json").write_text(json.dumps(saved))
    return to


def test_single_weights_leave_nothing_to_cut(channel_run, tmp_path):
    run = edited(channel_run, tmp_path / "run", structure="weights")
    with pytest.raises(ValueError, match="saves no FLOPs: ask by --weights or --density, or train"):
        train.take_ticket(run, size={"flops": 1e3})
    ticket, file = train.take_ticket(run, size={"params": 900})
    assert 700 < ticket.card["params"][0] <= 900  # kept parameters, nothing is cut
    rng = np.random.default_rng(0)
    masks = {path: rng.random(mask.shape) < 0.5 for path, mask in ticket.masks.items()}
    dl.Ticket(masks, 60, ticket.structured, 0.5, "", ticket.card).save(file)
    before = files(run)
    with pytest.raises(ValueError, match=r"nothing to cut: .* train with --structure channels"):
        train.make_slim(file)
    assert files(run) == before


def test_a_run_of_an_earlier_version_is_named(channel_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(channel_run, run)
    saved = json.loads((run / "config.json").read_text())
    del saved["data"]
    (run / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"config\.json does not say what data"):
        train.take_ticket(run)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


def test_channels_of_a_residual_network_go_together_and_are_cut_out(tmp_path):
    config = dataclasses.replace(
        CHANNELS, network="resnet-small", widths=(6,), epochs=2, batch_size=128, density=0.6
    )
    run = tmp_path / "run"
    train.fit(config, run, progress=Quiet())
    path = dl.SolutionPath.load(run / "path.npz")
    kernels = [p for p in path.groups if p.endswith("kernel")]
    assert {p.replace("conv", "bn").replace("kernel", "scale") for p in kernels} <= set(path.groups)
    ticket, file = train.take_ticket(run, size={"density": 0.6})
    channels = {p: m.any(axis=(0, 1, 2)) for p, m in ticket.masks.items() if p in kernels}
    for kernel, kept in channels.items():
        scale = kernel.replace("conv", "bn").replace("kernel", "scale")
        np.testing.assert_array_equal(ticket.masks[scale], kept)
    small = train.make_slim(file, batches=[1])
    assert small["difference"] <= 1e-5
    assert small["channels"][0] < small["channels"][1]
    assert small["networks"]["slim"]["parameters"] < small["networks"]["dense"]["parameters"]
    assert train.evaluate(run / "slim")["accuracy"] == small["networks"]["slim"]["test_accuracy"]


def test_a_structure_of_channels_is_read_from_the_network(channel_run):
    trained = load_run(channel_run)
    structure = make_structure(CHANNELS, trained.model())
    resolved = {leaf.path: leaf for leaf in structure.resolve(trained.params)}
    assert resolved["fc1/bias"].joint == resolved["fc1/kernel"].joint
    assert resolved["fc3/kernel"].counts is None
    _, params, _ = split_network(trained.model(), [0.0], [1.0])
    assert dl.describe(params, structure).rows


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "weight_decay": 0.1},
        {"nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.0, "schedule": "cosine"},
        {"variant": "paper", "weight_decay": 0.1},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_retraining_optimizer_is_that_of_the_run_without_gamma(changes):
    config = dataclasses.replace(CHANNELS, **changes)
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])}
    mask = {"kernel": jnp.array([[True, False], [True, True]]), "bias": jnp.array([True, False])}
    params = dl.project(params, mask)
    tx = make_retraining(config, 10, mask)
    # Γ so loose and so far from opening that it changes nothing
    far = dataclasses.replace(config, nu=1e30, lam=1e30, density=None)
    dense = optax.chain(make_optimizer(far, 10, dl.weights), dl.keep_support(mask))
    states, at = [t.init(params) for t in (tx, dense)], [params, params]
    for k in range(4):
        for i, t in enumerate((tx, dense)):
            grads = jax.tree.map(lambda p, k=k: jnp.cos(p + k), at[i])
            updates, states[i] = t.update(grads, states[i], at[i])
            at[i] = optax.apply_updates(at[i], updates)
    for one, other, m in zip(*map(jax.tree.leaves, (*at, mask)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert not one[~m].any()
        assert one[m].all()


def test_latencies_are_taken_in_turns():
    calls = []
    found = measure(
        {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in "abc"}, seconds=0.0
    )
    assert set(calls) == set(found) == set("abc")
    for times in found.values():
        assert 0 < times["low"] <= times["median"] <= times["high"]
        assert times["samples"] == 9
