"""Runs of one's own network and arrays, and what is told of each record."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from train_runs import Quiet

import dessilbi_jax as dl
from dessilbi_jax import data, train
from dessilbi_jax.report.run import read_run
from dessilbi_jax.train.callbacks import Csv, TensorBoard

CONFIG = train.TrainConfig(
    network=None, dataset=None, epochs=2, batch_size=40, learning_rate=0.1, nu=50.0, density=0.5,
    structure="channels",
)  # fmt: skip


class Own(nnx.Module):
    """Not of the zoo: the layer that comes first has the later name."""

    def __init__(self, rngs):
        self.wide = nnx.Linear(6, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.wide(x)))


def rows(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return rng.normal(size=(n, 6)) + 2 * np.eye(6)[labels], labels


DATA = rows(900, 0), rows(60, 1)


class Told:
    def __init__(self):
        self.steps, self.metrics, self.closed = [], [], 0

    def record(self, step, metrics):
        self.steps.append(step)
        self.metrics.append(metrics)

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of a run, its result, its network, and a callback."""
    run, told, model = tmp_path_factory.mktemp("own") / "run", Told(), Own(nnx.Rngs(0))
    table = Csv(run.parent / "run.csv")
    board = TensorBoard(run.parent / "board")
    result = train.fit(
        CONFIG, run, model=model, data=DATA, callbacks=[told, table, board], progress=Quiet()
    )
    return run, result, model, told


def test_a_network_of_ones_own_has_all_that_a_run_has(own):
    run, result, model, _ = own
    assert result["test_accuracy"] > 0.8
    first = train.checkpoints(run)[0]
    np.testing.assert_array_equal(first["wide"]["kernel"], model.wide.kernel[...])
    path = dl.SolutionPath.load(run / "path.npz")
    ticket = path.ticket(groups=4)
    params, _ = train.load_params(run)
    nnx.update(model, params)
    nnx.update(model, jax.tree.map(jnp.asarray, dl.project(params, ticket.mask(params))))
    small = dl.slim(model, ticket, jnp.ones((2, 6)))
    assert small.model.wide.kernel.shape == (6, 4)
    # In the network's order, not by name.
    assert [each.title for each in read_run(run).sets()] == ["wide"]
    assert read_run(run).config["order"][:2] == ["wide/kernel", "wide/bias"]
    assert "Side by side" not in (run / "report.html").read_text()
    for command in (train.take_ticket, train.evaluate):
        with pytest.raises(ValueError, match=r"given to fit\((model|data)=…\)"):
            command(run)


def test_callbacks_are_told_of_each_record_and_closed(own):
    run, _, _, told = own
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert told.steps == [line["step"] for line in lines]
    assert told.metrics == lines
    assert told.closed == 1
    with (run.parent / "run.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in table] == told.steps
    assert [row["accuracy"] for row in table] == [str(line["accuracy"]) for line in lines]
    assert table[0]["lam"] == ""
    (events,) = (run.parent / "board").iterdir()
    assert b"accuracy" in events.read_bytes()
    (run.parent / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileExistsError, match="is no table of a run"):
        Csv(run.parent / "other.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, r"network is None: name one in the configuration, or give fit\(model=…"),
        ({"data": None}, "dataset is None"),
        ({"config": {"network": "lenet300"}}, "model was given beside network='lenet300'"),
        ({"model": object()}, "model must be a Flax NNX module, got object"),
        ({"model": nnx.Dropout(0.5, rngs=nnx.Rngs(0))}, "arrays that are no nnx.Param"),
        ({"model": nnx.Linear(5, 3, rngs=nnx.Rngs(0))}, "model cannot be called with"),
        ({"model": nnx.Linear(6, 4, rngs=nnx.Rngs(0))}, r"gives \(1, 4\) for one input, expected"),
        ({"data": DATA[0]}, "must be inputs|must be .inputs, labels"),
        ({"data": [DATA[0]]}, r"data must be \(train, test\) or a source"),
        ({"data": (DATA[0], (DATA[1][0] * np.nan, DATA[1][1]))}, "test inputs are not all finite"),
        ({"data": (DATA[0], (DATA[1][0][:, :2], DATA[1][1]))}, "they must be alike"),
        ({"callbacks": [print]}, r"callbacks must have record\(step, metrics\) and close\(\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_ones_own_is_named_and_nothing_is_written(change, message, tmp_path):
    import dataclasses

    config = dataclasses.replace(CONFIG, **change.pop("config", {}))
    given = {"model": Own(nnx.Rngs(0)), "data": DATA, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        train.fit(config, tmp_path / "run", progress=Quiet(), **given)
    left = {f.name for f in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
    assert left <= {"run.lock", "config.json", "weights", "0.safetensors", "checkpoints"}


def test_images_of_ones_own_are_normalised():
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    source = data.from_arrays("mine", (images, [0, 1, 1, 0]), (images, [0, 1, 1, 0]))
    assert isinstance(source, data.Dataset)
    assert len(source.mean) == 3
