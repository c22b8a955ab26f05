import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import dessilbi_jax as dl
from dessilbi_jax.train.devices import mesh as meshes
from dessilbi_jax.train.devices.mesh import (
    describe,
    make_mesh,
    param_specs,
    process_rows,
    row_shards,
)
from dessilbi_jax.train.prepare import placed_state


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("auto", (1, 1, 1)),
        ("one", (1, 1, 1)),
        ("data", (8, 1, 1)),
        ("fsdp", (1, 8, 1)),
        ("data=2,fsdp=4", (2, 4, 1)),
        ("tensor=2, data", (4, 1, 2)),
        ("data=2,fsdp=2,tensor=2", (2, 2, 2)),
        ("data=3", (3, 1, 1)),
    ],
)
def test_a_mesh_by_name(text, sizes):
    mesh = make_mesh(text)
    assert tuple(mesh.shape.values()) == sizes
    assert row_shards(mesh) == sizes[0] * sizes[1]
    assert tuple(make_mesh(describe(mesh)).shape.values()) == sizes
    assert process_rows(mesh) == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta=2", "'dta' is no axis or named twice; give auto, one, or axes of data, fsdp, tensor"),
        ("data=2,data=4", "no axis or named twice"),
        ("data=0", "the size of data must be a whole number, got '0'"),
        ("data=two", "must be a whole number, got 'two'"),
        ("data,fsdp", "only one axis may go without a size"),
        ("data=3,fsdp", "8 devices cannot be divided by 3"),
        ("data=16", "is of 16 devices, there are 8"),
        ("", "'' is no axis"),
    ],
)
def test_a_mesh_that_cannot_be(text, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(text)


PARAMS = {
    "conv1": {"kernel": (3, 3, 3, 16), "bias": (16,)},
    "attention": {
        "query": {"kernel": (32, 4, 8), "bias": (4, 8)},
        "out": {"kernel": (4, 8, 32), "bias": (32,)},
    },
    "fc1": {"kernel": (32, 64)},
    "fc2": {"kernel": (64, 30)},
    "odd": {"kernel": (7, 5)},
}


def abstract():
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_where_parameters_go():
    specs = param_specs(abstract(), make_mesh("fsdp=2,tensor=4"))
    assert specs["conv1"] == {"kernel": P(None, None, None, "tensor"), "bias": P(None)}
    assert specs["attention"]["query"]["kernel"] == P("fsdp", "tensor", None)
    assert specs["attention"]["out"]["kernel"] == P("tensor", None, "fsdp")
    assert specs["fc1"]["kernel"] == P("fsdp", "tensor")
    assert specs["fc2"]["kernel"] == P("tensor", "fsdp")  # the second of a pair
    assert specs["odd"]["kernel"] == P(None, None)
    whole = param_specs(abstract(), make_mesh("data"))
    assert {axis for spec in jax.tree.leaves(whole) for axis in spec} == {None}


@pytest.mark.parametrize("lean", [False, True])
def test_v_gamma_and_moments_lie_where_their_parameters_lie(lean):
    params = jax.tree.map(lambda x: jnp.ones(x.shape), abstract())
    heads = [("query/kernel", (1,)), ("out/kernel", (0,)), ("kernel", dl.neurons)]
    tx = optax.chain(
        optax.scale_by_adam(),
        dl.add_split_lbi(
            0.1, nu=10.0, lam=dl.auto(density=0.5, steps=100), lean=lean, structure=heads
        ),
        optax.scale_by_learning_rate(0.1),
    )
    state = placed_state(params, {}, tx, make_mesh("fsdp=4,tensor=2"))
    split = dl.get_state(state.opt_state)
    adam = state.opt_state[0]
    for tree in (split.v, adam.mu, adam.nu, *([] if lean else [split.gamma])):
        for leaf, param in zip(jax.tree.leaves(tree), jax.tree.leaves(state.params), strict=True):
            assert jax.typeof(leaf).shape == param.shape
            assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
            sizes = {shard.data.nbytes for shard in leaf.addressable_shards}
            parts = {shard.data.nbytes for shard in param.addressable_shards}
            assert {size * param.dtype.itemsize // leaf.dtype.itemsize for size in sizes} == parts
    kernel = split.v["fc1"]["kernel"]
    assert [shard.data.nbytes for shard in kernel.addressable_shards] == [kernel.nbytes // 8] * 8
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state))


def test_a_placed_array_can_be_donated():
    x = meshes.place(np.arange(8.0), meshes.by_rows(make_mesh("data")))
    moved = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()
    np.testing.assert_array_equal(moved, np.arange(1.0, 9.0))
