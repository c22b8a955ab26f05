"""What goes between devices in a step, read from the compiled program; and what it needs there."""

import functools

import jax
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from benchmarks import collectives, memory
from dessilbi_jax import models
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.step import split_network

pytestmark = pytest.mark.slow

HEADS = [("(query|key|value)/kernel", dl.heads(2)), ("kernel", dl.neurons)]
COUNTS = 256  # bytes for numbers of entries that are not finite, and for losses
MESHES = ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")


@functools.cache
def network():
    return models.build("gpt-mini", input_shape=(8,), widths=(32, 1, 2, 64), classes=64)


@functools.cache
def measured(name, mesh):
    tx, structure = collectives.optimizers(HEADS)[name]
    return collectives.measure(network(), tx, structure, mesh, rows=1)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_exchanges_no_more_than_adams_but_group_norms(mesh):
    adam, ours = measured("adam", mesh), measured("groups, lean", mesh)
    assert ours["bytes"] <= adam["bytes"] + ours["bytes_of_norms"] + COUNTS
    assert ours["bytes_in_branches"] <= COUNTS
    params = split_network(network(), (), ())[1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if mesh == "data=8":  # gradients of all, that of the embedding in two parts, and nothing else
        assert ours["bytes_of_norms"] == 0
        assert size <= adam["bytes"] <= size + params["token_embed"]["embedding"].nbytes + COUNTS
    else:  # of a kernel, at least; V alone would be more than all norms
        assert 0 < ours["bytes_of_norms"] < size / 20


def test_an_exchange_of_v_is_noticed():
    """Gathering V, as a wrong layout would, is far beyond the allowance."""

    def gathers(updates, state, params=None):
        updates, state = tx.update(updates, state, params)
        v = jax.tree.map(whole, dl.get_state(state).v)
        return jax.tree.map(lambda u, x: u + 1e-9 * x.sum(), updates, v), state

    def whole(x):
        spec = jax.sharding.PartitionSpec()
        x = jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))
        return jax.lax.optimization_barrier(x)

    mesh = make_mesh("fsdp=8")
    tx, structure = collectives.optimizers(HEADS)["groups, lean"]
    wrong = optax.GradientTransformation(tx.init, gathers)
    found = collectives.measure(network(), wrong, structure, "fsdp=8", rows=1)
    allowed = measured("adam", "fsdp=8")["bytes"] + found["bytes_of_norms"] + COUNTS
    assert found["bytes"] > 1.2 * allowed


def test_collectives_in_the_text_of_a_program():
    program = """
%branch (x: f32[2]) -> f32[2] {
  %a = f32[2]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}
ENTRY %main {
  %b = (f32[8]{0}, /*index=1*/ bf16[4,2]{1,0}) all-reduce(%x, %y), replica_groups=[2,4]<=[8]
  %c = f32[16]{0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  %d = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}
  %e = f32[16]{0} all-gather-done(%d)
  %f = pred[4]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%or
}"""
    found = collectives.collectives(program)
    assert [tuple(each) for each in found] == [
        ("all-reduce", 8, 4, False),
        ("all-reduce", 48, 4, True),
        ("all-gather", 64, 2, True),
        ("all-gather", 64, 2, True),
    ]
    assert [each.sent for each in found] == [12, 72, 32, 32]


def test_bytes_of_group_norms():
    params = {
        "a": {"kernel": jax.ShapeDtypeStruct((16, 8), np.float32)},  # fsdp, tensor
        "b": {"kernel": jax.ShapeDtypeStruct((3, 8), np.float32)},  # whole, tensor
    }
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    assert collectives.norm_bytes(dl.neurons, params, mesh) == 4 * 8 // 2
    assert collectives.norm_bytes(dl.weights, params, mesh) == 0
    assert collectives.norm_bytes(None, params, mesh) == 0


def test_memory_of_a_network_that_is_not_there():
    model = memory.shapes("gpt-mini", input_shape=(8,), widths=(32, 1, 1, 64), classes=64)
    params = split_network(model, (), ())[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    txs = memory.optimizers()
    update = memory.memory(memory.update(params, txs["adam"]))
    assert 16 * size <= update["arguments"] <= update["peak"]  # W, gradient and two moments
    assert update["results_in_place"] >= 12 * size
    step = memory.memory(memory.training_step(model, txs["paper, lean"], 2))
    assert 12 * size - step["arguments"] < 4 * size  # W, V and momentum of what is structured
    assert step["temporary"] > 4 * size  # the gradient at least
