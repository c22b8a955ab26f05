"""Group bits: what they say as masks, what is kept of them in tickets, files and channel groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dessilbi_jax as dl
from dessilbi_jax.tickets import GroupMasks
from dessilbi_jax.tickets.ticket import make_ticket
from dessilbi_jax.tree import leaf_paths

SHAPES = {"a": (4, 8), "b": (4, 8), "bias": (8,), "c": (8, 3)}


def kept_columns(a, b):
    """Columns of a and b kept, each a group; column i of both is one group where a ties them."""
    bits = {"a": np.array(a, bool)[None], "b": np.array(b, bool)[None]}
    return GroupMasks(SHAPES, bits)


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_masks_are_the_bits_repeated_over_their_groups(data):
    grid = data.draw(hnp.array_shapes(max_dims=4, max_side=3))
    block = [data.draw(st.integers(1, 3)) for _ in grid]
    bits = data.draw(hnp.arrays(bool, grid))
    masks = GroupMasks({"w": tuple(np.multiply(grid, block).tolist())}, {"w": bits})
    expected = np.kron(bits, np.ones(block, bool)).astype(bool)
    np.testing.assert_array_equal(masks["w"], expected)
    assert masks.size("w") == (expected.sum(), expected.size)
    with pytest.raises(ValueError, match="read-only"):
        masks["w"].flat[0] = True


def test_dense_leaves_and_filters_take_no_memory():
    masks = kept_columns([1] * 8, [0, 1] * 4)
    assert np.shares_memory(masks["b"], masks.bits["b"])
    assert masks["c"].all()
    assert masks["c"].strides == (0, 0)
    assert masks.size("c") == (24, 24)


def test_they_are_read_like_a_dict_of_arrays():
    masks = kept_columns([1] * 8, [0, 1] * 4)
    assert list(masks) == list(SHAPES)
    assert [path for path, _ in leaf_paths(masks)] == list(SHAPES)
    assert jax.tree.map(np.sum, masks) == {"a": 32, "b": 16, "bias": 8, "c": 24}
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    assert dl.project(params, masks)["b"].sum() == 16


def test_a_group_in_several_leaves_counts_once():
    bits = {"a": np.ones((1, 8), bool), "bias": np.ones(8, bool), "c": np.eye(8, 3, dtype=bool)}
    for path in ("a", "bias"):
        bits[path].flat[:2] = False
    ties = {"a": np.arange(8)[None], "bias": np.arange(8)}
    assert GroupMasks(SHAPES, bits, ties).held() == (6 + 3, 8 + 24)


@pytest.mark.parametrize(
    ("bits", "ties", "message"),
    [
        ({"d": np.ones(1, bool)}, {}, "group bits of d, which has no shape"),
        ({"a": np.ones((1, 8))}, {}, r"of a are float64\[1, 8\], expected bool"),
        ({"a": np.ones((1, 3), bool)}, {}, r"in a shape that cuts \(4, 8\) into equal groups"),
        ({"a": np.ones(8, bool)}, {}, r"in a shape that cuts \(4, 8\) into equal groups"),
        ({}, {"a": np.ones((1, 8), int)}, "shared groups of a do not fit"),
        ({"a": np.ones((1, 8), bool)}, {"a": np.ones(8, int)}, "shared groups of a do not fit"),
    ],
)
def test_bits_that_do_not_fit_are_refused(bits, ties, message):
    with pytest.raises(ValueError, match=message):
        GroupMasks(SHAPES, bits, ties)


def test_a_ticket_keeps_its_groups_in_its_file_and_for_another_head(tmp_path):
    bits = {"a": np.arange(8)[None] < 3, "bias": np.arange(8) < 3, "c": np.eye(8, 3, dtype=bool)}
    ties = {"a": np.arange(8)[None], "bias": np.arange(8)}
    made = make_ticket(GroupMasks(SHAPES, bits, ties), 5, tuple(bits), "", {})
    assert made.density == (4 * 3 + 3 + 3) / (32 + 8 + 24)
    made.save(tmp_path / "t.npz")
    loaded = dl.Ticket.load(tmp_path / "t.npz")
    assert str(loaded) == str(made)
    for name in ("bits", "ties"):
        mine, its = getattr(made, name), getattr(loaded, name)
        assert list(its) == list(mine)
        for path, array in mine.items():
            np.testing.assert_array_equal(its[path], array)
    other = {**{p: jnp.ones(shape) for p, shape in SHAPES.items()}, "c": jnp.ones((8, 5))}
    moved = loaded.transfer(other, drop="^c$")
    assert moved.masks["c"].shape == (8, 5)
    assert {p: b.shape for p, b in moved.bits.items()} == {"a": (1, 8), "bias": (8,)}
    assert list(moved.ties) == ["a", "bias"]


def test_the_file_takes_one_bit_a_group(tmp_path):
    kept = np.random.default_rng(0).random((1, 8000)) < 0.5
    masks = GroupMasks({"w": (100, 8000)}, {"w": kept})
    make_ticket(masks, 1, ("w",), "", {}).save(tmp_path / "t.npz")
    assert (tmp_path / "t.npz").stat().st_size < 8000 / 8 + 1500


def test_channels_are_counted_alike_for_bits_their_ticket_and_its_masks():
    """A leaf that keeps all of its groups keeps the channels that it makes with another."""
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}

    def net(p, x):
        return jax.nn.relu(x @ p["a"] + x @ p["b"] + p["bias"]) @ p["c"]

    groups = dl.channel_groups(net, params, jnp.ones((1, 4)))
    assert groups.count == 8
    fewer = kept_columns([1] * 7 + [0], [0, 1] * 3 + [0, 0])
    more = kept_columns([1] * 8, [0, 1] * 3 + [0, 0])
    for masks, channels in ((fewer, 7), (more, 8)):
        ticket = make_ticket(masks, 1, masks.structured, "", {})
        plain = dl.Ticket(dict(masks), 1, ticket.structured, ticket.density)
        for each in (masks, ticket, plain):
            assert groups.kept(each).sum() == channels
            assert groups.flops(each) == groups.flops() * channels // 8
