"""A run on eight devices is the run on one, however it is divided among them."""

import dataclasses
import functools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from same_run import assert_same_run
from train_runs import Quiet, StopAt

import dessilbi_jax as dl
from dessilbi_jax import data, models, train
from dessilbi_jax.train.devices.mesh import everywhere, make_mesh, param_specs, place, place_params
from dessilbi_jax.train.feeds import Rows, make_feed
from dessilbi_jax.train.optim import make_optimizer, trace_channels
from dessilbi_jax.train.prepare import placed_state
from dessilbi_jax.train.step import make_evaluate, make_step, split_network
from dessilbi_jax.tree import leaf_paths

STEPS = 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its data, its groups and its optimizer."""

    network: str
    widths: tuple[int, ...]
    structure: str
    trees: int  # V, Γ and moments
    options: tuple[tuple[str, Any], ...] = ()

    def config(self) -> train.TrainConfig:
        return train.TrainConfig(
            network=self.network,
            dataset="digits",
            epochs=1,
            batch_size=32,
            widths=self.widths,
            **{"learning_rate": 0.05, "nu": 10.0, "density": 0.3, **dict(self.options)},
        )

    def source(self):
        if self.network != "gpt-mini":
            return data.load("digits")
        text = np.arange(8000) * np.arange(8000) // 7 % 24
        return data.Tokens.from_arrays("text", text[:7000], text[7000:], 24, context=8)

    def groups(self, model):
        if self.structure == "mixed":
            return [
                ("(query|key|value)/kernel", dl.heads(2)),
                ("kernel", dl.weights),
                ("token_embed", dl.rows),
            ]
        if self.structure == "channels":
            return dl.channels(trace_channels(model))
        return getattr(dl, self.structure)


# Lean and with groups that lie in several kernels; with Γ and every other kind of group.
CASES = {
    "convolutions": Case("resnet-small", (8,), "channels", 2, (("lean", True),)),
    "transformer": Case(
        "gpt-mini", (16, 1, 2, 32), "mixed", 4, (("optimizer", "adam"), ("learning_rate", 0.01))
    ),
}
# Of kernels `tensor` divides the axis of the groups, `fsdp` the one that norms are summed along.
LAYOUTS = [
    ("convolutions", "data"),
    ("convolutions", "fsdp"),
    ("convolutions", "tensor"),
    ("convolutions", "data=2,fsdp=2,tensor=2"),
    ("transformer", "data=4,fsdp=2"),
    ("transformer", "data=4,tensor=2"),
    ("transformer", "fsdp=4,tensor=2"),
]
UNEVEN = ("one", "data", "data=4,fsdp=2")  # where the last batch is tried with other sizes too


@functools.cache
def trained(name, mesh):
    """The summed loss after each step, accuracies by batches of several sizes, and the state."""
    case, devices = CASES[name], make_mesh(mesh)
    config, source = case.config(), case.source()
    model = models.build(
        config.network,
        input_shape=source.input_shape,
        classes=source.num_classes,
        widths=config.widths,
    )
    tx = make_optimizer(config, STEPS, case.groups(model))
    network, params, stats = split_network(model, source.mean, source.std)
    state = placed_state(params, stats, tx, devices)
    assert_divided(state, devices, case.trees)
    feed = make_feed(source, config, devices)
    step = make_step(network, tx, feed.pick)
    losses = []
    for i in range(STEPS):
        state = step(state, feed.at(i))
        losses.append(float(state.loss_sum))
    evaluate = make_evaluate(network)
    seen = [
        evaluate(state.params, state.stats, Rows(source.test_part(), size, devices))
        for size in ((200, 99) if mesh in UNEVEN else (200,))
    ]
    mask = dl.support(state.opt_state)
    masks = mask, dl.keep_support(jax.device_get(mask)).init(state.params).mask
    assert_divided(state, devices, case.trees, masks)
    return losses, seen, state, jax.device_get(mask)


def assert_divided(state, mesh, trees, masks=()):
    """V, Γ, moments, masks and thresholds lie on each device in the part their parameters do.

    `trees` is how many trees like the parameters there are in the optimizer's state, `masks` are
    more of them.
    """
    params = dict(leaf_paths(state.params))

    def like_params(x):
        shapes = {path: leaf.shape for path, leaf in leaf_paths(x)} if isinstance(x, dict) else {}
        return shapes == {path: leaf.shape for path, leaf in params.items()}

    found = [dict(leaf_paths(x)) for x in jax.tree.leaves(state.opt_state, is_leaf=like_params)
             if like_params(x)]  # fmt: skip
    assert len(found) == trees
    own = dl.get_state(state.opt_state)
    found += [dict(leaf_paths(tree)) for tree in masks]
    groups = [dict(leaf_paths(tree)) for tree in own.shrink if own.ties == ()]
    specs = jax.tree.leaves(param_specs(state.params, mesh))
    most = 1
    for (path, param), spec in zip(params.items(), specs, strict=True):
        for leaf in [param, *(tree[path] for tree in found)]:
            assert jax.typeof(leaf).shape == param.shape
            most = max(most, assert_part(path, leaf, mesh, spec))
        for tree in groups:  # where they have the axis that is divided
            leaf = tree[path]
            along = [name if n > 1 else None for name, n in zip(spec, leaf.shape, strict=True)]
            assert_part(path, leaf, mesh, PartitionSpec(*along))
    assert most == mesh.shape["fsdp"] * mesh.shape["tensor"]  # something is divided by all
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == set(mesh.devices.flat)


def assert_part(path, leaf, mesh, spec):
    """Whether each device holds its part of an array and no more; into how many it is divided."""
    parts = math.prod(mesh.shape[name] for name in spec if name is not None)
    assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), path
    held = {shard.data.nbytes for shard in leaf.addressable_shards}
    assert held == {leaf.nbytes // parts}, path
    return parts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), LAYOUTS)
def test_eight_devices_train_as_one(name, mesh):
    losses, seen, state, masks = trained(name, mesh)
    one_losses, one_seen, one, expected = trained(name, "one")
    assert np.diff(one_losses)[-3:].mean() < one_losses[0]  # it learns
    np.testing.assert_allclose(losses, one_losses, rtol=3e-5)
    np.testing.assert_allclose(
        dl.get_state(state.opt_state).lam, dl.get_state(one.opt_state).lam, rtol=2e-4
    )
    chosen = total = 0
    for (path, mask), (_, other) in zip(leaf_paths(masks), leaf_paths(expected), strict=True):
        np.testing.assert_array_equal(mask, other, err_msg=path)
        chosen, total = chosen + mask.sum(), total + mask.size
    assert 0.05 < chosen / total < 0.95
    for (path, leaf), (_, other) in zip(
        leaf_paths(state.params), leaf_paths(one.params), strict=True
    ):
        if not path.endswith("key/bias"):  # whose gradient is 0: Adam makes steps of its rounding
            np.testing.assert_allclose(leaf, other, rtol=0, atol=2e-4, err_msg=path)
    for (accuracy, loss), (one_accuracy, one_loss) in zip(seen, one_seen, strict=False):
        assert accuracy == pytest.approx(one_accuracy, abs=2e-3)
        assert loss == pytest.approx(one_loss, rel=1e-3)


def test_a_tree_that_is_not_divided_is_noticed():
    mesh = make_mesh("fsdp=4,tensor=2")
    params = place_params({"fc": {"kernel": np.ones((16, 4), np.float32)}}, mesh)
    tx = dl.dessilbi(0.1, lam=0.1, momentum=0.9, structure=dl.neurons)
    state = placed_state(params, {}, tx, mesh)
    assert_divided(state, mesh, 3)

    for shape in ((16, 4), (1, 4)):  # V, Γ and momentum; norms of the groups

        def whole(x, shape=shape):
            return place(x, everywhere(mesh)) if (x.shape, x.dtype) == (shape, "float32") else x

        wrong = state._replace(opt_state=jax.tree.map(whole, state.opt_state))
        with pytest.raises(AssertionError, match="fc/kernel"):
            assert_divided(wrong, mesh, 3)


SMALL = train.TrainConfig(
    network="lenet300",
    dataset="digits",
    widths=(16, 8),
    epochs=2,
    learning_rate=0.1,
    density=0.4,
    structure="neurons",
    optimizer="adam",
    nu=100.0,
)


@pytest.mark.slow
def test_a_run_on_a_mesh_is_the_run_on_one_device_and_may_move_to_another(tmp_path):
    one, mesh = tmp_path / "one", tmp_path / "mesh"
    train.fit(SMALL, one, progress=Quiet())
    with pytest.raises(KeyboardInterrupt):
        train.fit(SMALL, mesh, mesh="data=4,fsdp=2", progress=StopAt(1))
    assert json.loads((mesh / "config.json").read_text())["mesh"] == "data=4,fsdp=2"
    progress = Quiet()
    result = train.fit(SMALL, mesh, mesh="fsdp=2,tensor=2", resume=True, progress=progress)
    assert "the mesh has changed (data=4,fsdp=2, now fsdp=2,tensor=2)" in progress.out.getvalue()
    assert result["mesh"] == "fsdp=2,tensor=2"
    assert_same_run(mesh, one)
