"""Groups: what named structures and rules make of a tree, and what they refuse."""

import itertools
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import dessilbi_jax as dl
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.rules import as_structure, resolve
from dessilbi_jax.tree import leaf_paths


def spec_of(structure, **shapes):
    """Path → counts, for leaves given as name=shape ('__' stands for '/')."""
    params = {}
    for name, shape in shapes.items():
        *modules, leaf = name.split("__")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return {leaf.path: leaf.counts for leaf in as_structure(structure).resolve(params)}


NAMED = {
    # structure: counts for HWIO (3, 5, 4, 8), DHWIO (2, 3, 5, 4, 8) and (inputs, outputs) (6, 4)
    "filters": (dl.filters, (1, 1, 1, 8), (1, 1, 1, 1, 8), (6, 4)),
    "weights": (dl.weights, (3, 5, 4, 8), (2, 3, 5, 4, 8), (6, 4)),
    "neurons": (dl.neurons, (1, 1, 1, 8), (1, 1, 1, 1, 8), (1, 4)),
    "input_channels": (dl.input_channels, (1, 1, 4, 1), (1, 1, 1, 4, 1), (6, 1)),
    "slices": (dl.slices, (1, 1, 4, 8), (1, 1, 1, 4, 8), (6, 4)),
    "layers": (dl.layers, (1, 1, 1, 1), (1, 1, 1, 1, 1), (1, 1)),
    "rows": (dl.rows, None, None, (6, 1)),
    "columns": (dl.columns, None, None, (1, 4)),
    "blocks": (dl.blocks((2, 4)), (3, 5, 2, 2), (2, 3, 5, 2, 2), (3, 1)),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_structures_on_hwio_kernels(name):
    structure, conv, conv3d, dense = NAMED[name]
    shapes = {"a": (3, 5, 4, 8), "b": (2, 3, 5, 4, 8), "c": (6, 4)}
    for leaf in ("kernel", "w"):
        got = spec_of(structure, **{f"{key}__{leaf}": shape for key, shape in shapes.items()})
        assert got == {f"a/{leaf}": conv, f"b/{leaf}": conv3d, f"c/{leaf}": dense}


@pytest.mark.parametrize("name", [n for n in NAMED if n not in ("rows", "columns")])
def test_a_leaf_named_weight_is_the_same_structure_in_oihw(name):
    structure, conv, conv3d, dense = NAMED[name]
    (d, h, w, i, o), (h2, w2, i2, o2) = conv3d, conv
    shapes = {"a__weight": (8, 4, 3, 5), "b__weight": (8, 4, 2, 3, 5), "c__weight": (4, 6)}
    expected = {"a/weight": (o2, i2, h2, w2), "b/weight": (o, i, d, h, w), "c/weight": dense[::-1]}
    assert spec_of(structure, **shapes) == expected
    # The layout can be said where the name says otherwise, in both directions.
    torch_like = {key.replace("weight", "kernel"): shape for key, shape in shapes.items()}
    assert list(spec_of(structure.replace(layout="OIHW"), **torch_like).values()) == list(
        expected.values()
    )
    flax_like = {"a__weight": (3, 5, 4, 8), "b__weight": (2, 3, 5, 4, 8), "c__weight": (6, 4)}
    got = spec_of(structure.replace(layout="HWIO"), **flax_like)
    assert list(got.values()) == [conv, conv3d, dense]


def test_rows_and_columns_are_those_of_the_stored_array():
    for leaf in ("kernel", "weight"):
        assert spec_of(dl.rows, **{leaf: (6, 4)}) == {leaf: (6, 1)}
        assert spec_of(dl.columns, **{leaf: (6, 4)}) == {leaf: (1, 4)}


def test_a_printed_name_decides_nothing():
    kernel = ("k/kernel", (3, 3, 16, 32))
    assert dl.filters.replace(name="weights").counts(*kernel) == (1, 1, 1, 32)
    assert dl.filters.replace(name="layers").counts(*kernel) == (1, 1, 1, 32)
    assert dl.rows.replace(name="matrix rows").counts("k/weight", (4, 6)) == (4, 1)
    assert dl.columns.replace(name="matrix columns").counts("k/weight", (4, 6)) == (1, 6)
    for structure, attention in ((dl.weights, (2, 3, 4)), (dl.layers, (1, 1, 1))):
        renamed = structure.replace(name="mine")
        assert renamed.counts("k/kernel", (2, 3, 4)) == attention
        assert renamed.counts(*kernel) == structure.counts(*kernel)


def test_leaves_whose_axes_have_no_letters_take_all_or_none_of_them():
    with pytest.raises(ValueError, match=r"other must be '\*' .*, '' .* or None, got 'o'"):
        dl.filters.replace(other="o")


def test_what_named_structures_leave_dense_and_why():
    params = {
        "fc": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "norm": {"scale": jnp.ones(3), "kernel": jnp.ones(3)},
        "token_embed": {"kernel": jnp.ones((10, 3))},
        "attention": {"kernel": jnp.ones((2, 3, 4))},
        "table": {"kernel": jnp.ones((2, 3), jnp.int32)},
    }
    leaves = {leaf.path: leaf for leaf in resolve(dl.filters, params)}
    reasons = {path: leaf.reason for path, leaf in leaves.items() if leaf.counts is None}
    assert reasons == {
        "fc/bias": "not named kernel, w or weight",
        "norm/scale": "not named kernel, w or weight",
        "norm/kernel": "1 axis, no kernel",
        "token_embed/kernel": "an embedding",
        "attention/kernel": "'filters' has no meaning for 3 axes",
        "table/kernel": "holds int32",
    }
    expected = LeafGroups("fc/kernel", (2, 3), (2, 3), "weights", kind=dl.filters.kind)
    assert leaves["fc/kernel"] == expected


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple),
    data=st.data(),
)
def test_axes_index_the_groups_in_every_spelling(shape, data):
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    spelled = tuple(a - data.draw(st.sampled_from([0, len(shape)])) for a in axes)
    (leaf,) = dl.Rules([("", spelled)]).resolve(np.ones(shape))
    assert leaf.counts == tuple(n if a in axes else 1 for a, n in enumerate(shape))
    # A group for every combination of indices along those axes, all of one size.
    assert leaf.groups == len(list(itertools.product(*(range(shape[a]) for a in axes))))
    assert leaf.groups * leaf.group_size == leaf.size == np.ones(shape).size
    assert leaf.elementwise == (leaf.group_size == 1)


# Blocks and heads


def test_blocks_count_channels_and_keep_space_apart():
    blocks = dl.blocks((2, 4))
    assert spec_of(blocks, kernel=(6, 8)) == {"kernel": (3, 2)}
    assert spec_of(blocks, weight=(8, 6)) == {"weight": (2, 3)}
    assert spec_of(blocks, kernel=(3, 3, 6, 8)) == {"kernel": (3, 3, 3, 2)}
    assert spec_of(dl.blocks((2, 4), layout="OIHW"), kernel=(8, 6)) == {"kernel": (2, 3)}


def test_blocks_that_do_not_divide_stay_dense_or_are_an_error_in_a_rule():
    params = {"kernel": jnp.ones((6, 8)), "odd": {"kernel": jnp.ones((5, 8))}}
    leaves = {leaf.path: leaf for leaf in dl.blocks((2, 4)).resolve(params)}
    assert leaves["odd/kernel"].counts is None
    assert leaves["odd/kernel"].reason == "(5, 8) cannot be cut into blocks of 2x4"
    with pytest.raises(ValueError, match=r"odd/kernel .*\(5, 8\) cannot be cut into blocks of 2x4"):
        dl.Rules([("odd", dl.blocks((2, 4)))]).resolve(params)


@pytest.mark.parametrize("shape", [(2,), (2, 0), (2, -1), (2.0, 2), (1, 2, 3)])
def test_blocks_need_two_positive_lengths(shape):
    with pytest.raises(ValueError, match=r"two positive lengths \(inputs, outputs\), got \("):
        dl.blocks(shape)


def test_heads_of_flax_attention():
    attention = nnx.MultiHeadAttention(4, 12, rngs=nnx.Rngs(0), decode=False)
    leaves = {leaf.path: leaf for leaf in dl.heads(4).resolve(nnx.state(attention, nnx.Param))}
    counts = {path: leaf.counts for path, leaf in leaves.items() if leaf.counts is not None}
    assert counts == {
        "query/kernel": (1, 4, 1),
        "key/kernel": (1, 4, 1),
        "value/kernel": (1, 4, 1),
        "out/kernel": (4, 1, 1),
    }
    assert leaves["query/kernel"].shape == (12, 4, 3)


def test_heads_where_both_leading_axes_have_their_number():
    """(features, heads, size) by default; `inputs=True` says (heads, size, features)."""
    assert dl.heads(4).counts("query/kernel", (4, 4, 3)) == (1, 4, 1)
    assert dl.heads(4, inputs=True).counts("out/kernel", (4, 4, 3)) == (4, 1, 1)


def test_heads_of_plain_kernels_are_chosen_by_a_rule():
    shapes = {"qkv__kernel": (6, 8), "out__kernel": (8, 6)}
    rules = [("qkv", dl.heads(4)), ("out", dl.heads(4, inputs=True))]
    assert spec_of(rules, **shapes) == {"qkv/kernel": (1, 4), "out/kernel": (4, 1)}
    torch_like = {"qkv__weight": (8, 6), "out__weight": (6, 8)}
    assert spec_of(rules, **torch_like) == {"qkv/weight": (4, 1), "out/weight": (1, 4)}
    assert set(spec_of(dl.heads(4), **shapes).values()) == {None}


@pytest.mark.parametrize("shape", [(6, 7), (6, 5, 3), (2, 3, 4, 8)])
def test_heads_that_do_not_fit_are_an_error_in_a_rule(shape):
    with pytest.raises(ValueError, match=r"qkv/kernel .* has no axis of 4 heads"):
        spec_of([("qkv", dl.heads(4))], qkv__kernel=shape)


@pytest.mark.parametrize("n", [0, -1, 2.0, "4"])
def test_heads_need_a_positive_number(n):
    with pytest.raises(ValueError, match="positive number of heads, got"):
        dl.heads(n)


# Rules

NET = {
    "conv1__kernel": (3, 3, 1, 4),
    "conv1__bias": (4,),
    "fc1__kernel": (6, 5),
    "fc2__kernel": (5, 2),
}


def test_the_first_rule_that_matches_wins_and_the_rest_is_dense():
    rules = [("fc2", None), ("fc", dl.columns), (r"^conv\d/kernel$", (-2, -1))]
    assert spec_of(rules, **NET) == {
        "conv1/bias": None,
        "conv1/kernel": (1, 1, 1, 4),
        "fc1/kernel": (1, 5),
        "fc2/kernel": None,
    }


def test_rules_reach_leaves_that_named_structures_leave_out():
    rules = [("embed", (0,)), ("scale", dl.weights), ("bias", (0,))]
    got = spec_of(rules, embed__table=(10, 3), norm__scale=(4,), bias=(4,), kernel=(2, 2))
    assert got == {"bias": (4,), "embed/table": (10, 1), "kernel": None, "norm/scale": (4,)}


def test_rules_carry_their_own_lam_and_penalty():
    penalty = dl.sparse_group_lasso(0.3)
    rules = [("fc1", (1,), {"lam": 0.5, "penalty": penalty}), ("fc2", [0, 1], {"lam": 2})]
    leaves = {leaf.path: leaf for leaf in dl.Rules(rules).resolve(_net())}
    assert (leaves["fc1/kernel"].lam, leaves["fc1/kernel"].penalty) == (0.5, penalty)
    assert (leaves["fc2/kernel"].lam, leaves["fc2/kernel"].penalty) == (2, None)
    assert leaves["fc2/kernel"].elementwise
    assert leaves["conv1/kernel"].reason == "no rule names it"


def _net():
    params = {}
    for name, shape in NET.items():
        module, leaf = name.split("__")
        params.setdefault(module, {})[leaf] = jnp.ones(shape)
    return params


ALL_PATHS = "the paths are: conv1/bias, conv1/kernel, fc1/kernel, fc2/kernel"


def test_a_rule_that_matches_nothing_shows_the_paths():
    with pytest.raises(ValueError, match=f"rule 1 with pattern 'fc3' matches no leaf; {ALL_PATHS}"):
        dl.Rules([("fc1", dl.weights), ("fc3", dl.weights)]).resolve(_net())


def test_a_rule_wholly_hidden_by_earlier_ones_shows_the_paths():
    rules = [("conv1/kernel", dl.filters), ("fc", dl.weights), ("fc2", dl.columns)]
    message = f"rule 2 with pattern 'fc2' is hidden by earlier rules; {ALL_PATHS}"
    with pytest.raises(ValueError, match=message):
        dl.Rules(rules).resolve(_net())
    # In the other order it is only partly hidden, which is what first match wins is for.
    assert dl.Rules([rules[2], rules[1]]).resolve(_net())[3].spec == "columns"


def test_lenient_rules_may_match_nothing():
    rules = dl.Rules([("fc1", dl.weights), ("fc3", dl.weights)], strict=False)
    assert [leaf.counts for leaf in rules.resolve(_net())] == [None, None, (6, 5), None]


def test_rules_say_nothing_about_an_empty_tree():
    assert dl.Rules([("fc1", dl.weights)]).resolve({}) == []


@pytest.mark.parametrize("axes", [(2,), (0, 5), (-3,)])
def test_an_axis_out_of_range_names_leaf_axis_and_shape(axes):
    wrong = next(a for a in axes if not -2 <= a < 2)
    message = rf"axis {wrong} is out of range for fc1/kernel with shape \(6, 5\)"
    with pytest.raises(ValueError, match=message):
        dl.Rules([("fc1", axes)]).resolve(_net())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dl.filters, r"conv1/bias with shape \(4,\): 'filters' has no meaning for 1 axis"),
        (dl.columns, r"conv1/bias with shape \(4,\): 'columns' has no meaning for 1 axis"),
    ],
)
def test_a_structure_without_meaning_for_the_named_leaf(spec, message):
    with pytest.raises(ValueError, match=message):
        dl.Rules([("bias", spec)]).resolve(_net())


def test_rows_have_no_meaning_for_convolutions():
    with pytest.raises(ValueError, match=r"conv1/kernel .* 'rows' has no meaning for 4 axes"):
        dl.Rules([("conv1/kernel", dl.rows)]).resolve(_net())


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("fc1", TypeError, "a rule is .*, got 'fc1'"),
        (("fc1",), TypeError, r"a rule is .*, got \('fc1',\)"),
        ((1, dl.filters), TypeError, "the pattern must be a string, got 1"),
        (("fc1", "filters"), TypeError, "must be a named structure, axes or None, got 'filters'"),
        (("fc1", -1), TypeError, "must be a named structure, axes or None, got -1"),
        (("fc1", (True,)), TypeError, r"axes or None, got \(True,\)"),
        (("fc1", (0.0,)), TypeError, r"axes or None, got \(0.0,\)"),
        (("fc(", dl.filters), ValueError, r"'fc\(' is no regular expression"),
        (("fc1", (0,), {"lambda": 1.0}), ValueError, r"unknown option \['lambda'\] .*'fc1'"),
        (("fc1", (0,), {"lam": -1.0}), ValueError, "lam in the rule for 'fc1' .* got -1.0"),
        (("fc1", (0,), {"lam": 0}), ValueError, "lam in the rule for 'fc1' .* got 0"),
        (("fc1", (0,), {"lam": float("nan")}), ValueError, "lam in the rule for 'fc1' .* got nan"),
        (("fc1", (0,), {"lam": float("inf")}), ValueError, "lam in the rule for 'fc1' .* got inf"),
        (("fc1", (0,), {"lam": "1"}), ValueError, "lam in the rule for 'fc1' .* got '1'"),
    ],
)
def test_rules_of_another_form_are_refused_when_made(rule, error, message):
    with pytest.raises(error, match=message):
        dl.Rules([rule])


def test_a_rule_on_integers_or_on_no_elements_is_an_error():
    with pytest.raises(TypeError, match="ids holds int32; only real or complex leaves"):
        dl.Rules([("ids", (0,))]).resolve({"ids": jnp.ones((3, 2), jnp.int32)})
    with pytest.raises(ValueError, match=r"kernel with shape \(0, 2\) has no elements"):
        dl.Rules([("kernel", (0,))]).resolve({"kernel": jnp.ones((0, 2))})


# What may be given as a structure


def test_a_callable_from_the_parameters_to_specs():
    def by_shape(params):
        return jax.tree.map(lambda p: (0,) if p.ndim == 2 else None, params)

    got = {leaf.path: leaf.counts for leaf in resolve(by_shape, _net())}
    expected = {"fc1/kernel": (6, 1), "fc2/kernel": (5, 1)}
    assert got == {"conv1/bias": None, "conv1/kernel": None} | expected
    tree = {"a": {"kernel": dl.columns}, "b": [None, dl.weights]}
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": [jnp.ones(2), jnp.ones(4)]}
    assert [leaf.counts for leaf in resolve(lambda _: tree, params)] == [(1, 3), None, (4,)]


def test_a_callable_that_gives_nonsense_names_the_leaf():
    with pytest.raises(TypeError, match=r"the spec of fc1/kernel must be .* got 'filters'"):
        resolve(lambda p: jax.tree.map(lambda _: None, p) | {"fc1": {"kernel": "filters"}}, _net())


@pytest.mark.parametrize("structure", ["filters", None, 3, {"fc1": {"kernel": (0,)}}])
def test_what_is_no_structure_is_a_type_error(structure):
    name = type(structure).__name__
    with pytest.raises(TypeError, match=f"structure must be a named structure.*, got {name}"):
        as_structure(structure)


def test_a_tree_with_nothing_to_structure_lists_its_leaves_and_the_likely_cause():
    with pytest.raises(ValueError, match="every parameter dense") as caught:
        resolve(dl.filters, {"bias": jnp.ones(3), "kernel": jnp.ones(12)})
    message = str(caught.value)
    assert "bias (3,): not named kernel, w or weight" in message
    assert "kernel (12,): 1 axis" in message
    assert "optax.flatten" in message
    assert "[('.*', dl.weights)]" in message
    with pytest.raises(ValueError, match=r"\(root\) \(12,\)"):
        resolve(dl.filters, jnp.ones(12))


def test_an_empty_tree_gives_no_groups():
    assert resolve(dl.filters, {}) == []


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"layout must be one of \['HWIO', 'OIHW'\], got 'NCHW'"):
        dl.filters.replace(layout="NCHW")


# The table


def test_describe_prints_what_the_optimizer_will_do():
    params = _net() | {"head": {"kernel": jnp.ones((4, 8))}}
    rules = [
        ("conv1/kernel", (-1,), {"lam": 0.5}),
        ("head", dl.blocks((2, 4)), {"lam": 0.25}),
        ("fc", dl.weights),
    ]
    table = dl.describe(params, rules, lam="auto")
    assert [leaf.path for leaf in table.rows] == [path for path, _ in leaf_paths(params)]
    assert table.rows == tuple(resolve(rules, params))
    assert str(table).splitlines()[2:] == [
        "conv1/bias    4        dense: no rule names it",
        "conv1/kernel  3×3×1×4  axes (-1,)                    4        9  0.5",
        "fc1/kernel    6×5      weights                      30        1  auto",
        "fc2/kernel    5×2      weights                      10        1  auto",
        "head/kernel   4×8      blocks of 2x4                 4        8  0.25",
        "108 of 112 parameters in 48 groups",
    ]


def test_describe_takes_shapes_and_refuses_what_the_optimizer_refuses():
    shapes = jax.eval_shape(_net)
    assert dl.describe(shapes).rows == dl.describe(_net()).rows
    with pytest.raises(ValueError, match="matches no leaf"):
        dl.describe(shapes, [("fc3", dl.weights)])
    with pytest.raises(ValueError, match="every parameter dense"):
        dl.describe({"bias": jnp.ones(3)})


# Paths in the trees that people have


class Pair(NamedTuple):
    kernel: jax.Array
    value: jax.Array


def test_leaf_paths_of_plain_trees():
    params = {"b": [jnp.ones(1), jnp.ones(2)], "a": Pair(jnp.ones(3), jnp.ones(4))}
    assert [(path, leaf.size) for path, leaf in leaf_paths(params)] == [
        ("a/kernel", 3),
        ("a", 4),  # an attribute `value` holds what its owner is
        ("b/0", 1),
        ("b/1", 2),
    ]
    assert [path for path, _ in leaf_paths(jnp.ones(2))] == [""]


def test_paths_and_groups_in_flax_nnx_linen_and_equinox():
    """The same dense layer in three libraries: HWIO in Flax, OIHW in Equinox."""
    state = nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)
    linen = nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 6)))
    boxed = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, None))).init(
        jax.random.key(0), jnp.ones((1, 6))
    )
    equinox = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    expected = {
        "nnx": (state, "bias", "kernel", (1, 4)),
        "linen": (linen, "params/bias", "params/kernel", (1, 4)),
        "linen, boxed": (boxed, "params/bias", "params/kernel", (1, 4)),
        "equinox": (equinox, "bias", "weight", (4, 1)),
    }
    for name, (params, bias, kernel, counts) in expected.items():
        leaves = {leaf.path: leaf.counts for leaf in resolve(dl.neurons, params)}
        assert leaves == {bias: None, kernel: counts}, name


def test_a_name_decides_nothing_about_the_scale_of_an_automatic_lambda():
    params = {"a": {"kernel": jnp.ones((3, 3, 2, 4))}, "b": {"kernel": jnp.ones((3, 3, 4, 4))}}
    renamed = dl.filters.replace(name="outputs")
    one, other = resolve([("a", dl.filters), ("b", renamed)], params)
    assert one.spec != other.spec
    assert one.kind == other.kind != resolve([("a", dl.layers), ("b", renamed)], params)[0].kind


# --- kernels with other numbers of axes --------------------------------------------------------

THREE_AXES = {"conv": (5, 8, 16), "query": (16, 4, 4), "out": (4, 4, 16), "layers": (6, 16, 16)}


@pytest.mark.parametrize("name", THREE_AXES)
@pytest.mark.parametrize("leaf", ["kernel", "w", "weight"])
def test_weights_and_layers_take_every_kernel(name, leaf):
    path, shape = f"{name}/{leaf}", THREE_AXES[name]
    shapes = {f"{name}__{leaf}": shape, "fc__kernel": (2, 2)}
    assert spec_of(dl.weights, **shapes)[path] == shape
    assert spec_of(dl.layers, **shapes)[path] == (1, 1, 1)
    long = {f"{name}__{leaf}": (2, *shape, 3, 3)}
    assert spec_of(dl.weights, **long)[path] == (2, *shape, 3, 3)
    assert spec_of(dl.layers, **long)[path] == (1,) * 6


UNREAD = {
    # structure: what stays dense of 36 weights of kernels, in per cent
    "filters": (dl.filters, "66.7 %"),
    "neurons": (dl.neurons, "66.7 %"),
    "input channels": (dl.input_channels, "66.7 %"),
    "slices": (dl.slices, "66.7 %"),
    "blocks": (dl.blocks((3, 4)), "66.7 %"),
    "blocks that divide nothing else": (dl.blocks((1, 5)), "100 %"),
    "no stack": (dl.stacked(dl.neurons), "33.3 %"),
}


@pytest.mark.parametrize("structure", UNREAD)
def test_init_warns_of_kernels_whose_axes_it_cannot_tell(structure):
    params = {
        "fc": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(5)},
        "attn": {"kernel": jnp.ones((2, 3, 4))},
        "odd": {"kernel": jnp.ones((1, 5))},
        "embed_1": {"kernel": jnp.ones((7, 5, 3))},
    }
    chosen, share = UNREAD[structure]
    if chosen.block != (1, 5):
        del params["odd"]
    tx = dl.dessilbi(0.1, lam=0.1, structure=chosen)
    with pytest.warns(UserWarning, match=r"% of the weights of kernels stay dense") as caught:
        state = tx.init(params)
    (warning,) = caught
    assert warning.filename == __file__
    if chosen.block != (1, 5):
        assert share in str(warning.message)
    assert "attn/kernel (2, 3, 4)" in str(warning.message) or chosen.stacked
    tx.update(params, state, params)  # once is enough


@pytest.mark.parametrize(
    "structure",
    [
        dl.weights,
        dl.layers,
        dl.rows,
        dl.heads(3),
        [("attn", None), ("fc/kernel", dl.weights)],
        [("fc/kernel", dl.weights)],
        lambda params: {"attn": {"kernel": None}, "fc": {"bias": None, "kernel": (-1,)}},
    ],
)
def test_what_is_told_or_has_no_choice_is_no_warning(structure):
    params = {
        "fc": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(5)},
        "attn": {"kernel": jnp.ones((2, 3, 4))},
    }
    dl.dessilbi(0.1, lam=0.1, structure=structure).init(params)


def test_stacked_is_the_structure_of_every_layer():
    shapes = {"a__kernel": (6, 3, 3, 4, 8), "b__kernel": (6, 4, 8), "c__kernel": (6, 5, 4, 8)}
    assert spec_of(dl.stacked(dl.filters), **shapes) == {
        "a/kernel": (6, 1, 1, 1, 8), "b/kernel": (6, 4, 8), "c/kernel": None,
    }  # fmt: skip
    torch_like = dl.stacked(dl.neurons.replace(layout="OIHW"))
    assert torch_like.counts("x", (6, 8, 4)) == (6, 8, 1)
    assert dl.stacked(dl.heads(4)).counts("x", (6, 16, 4, 2)) == (6, 1, 4, 1)
    assert dl.stacked(dl.layers, 2).counts("x", (6, 3, 4, 8)) == (6, 3, 1, 1)
    assert dl.stacked(dl.stacked(dl.layers)).counts("x", (6, 3, 4, 8)) == (6, 3, 1, 1)
    assert dl.stacked(dl.blocks((2, 4))).counts("x", (6, 4, 8)) == (6, 2, 2)
    rules = [("b", dl.stacked(dl.neurons)), ("a", dl.stacked(dl.filters))]
    assert spec_of(rules, **shapes)["b/kernel"] == (6, 1, 8)


def test_a_stack_competes_with_the_layers_it_holds():
    """Selected by the same numbers as the layers are by themselves."""
    layers = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    layers[1] *= 2
    apart = {f"layer{i}": {"kernel": jnp.asarray(w)} for i, w in enumerate(layers)}
    together = {"layers": {"kernel": jnp.asarray(layers)}}
    lam = dl.auto(density=0.3, steps=40)

    def after(params, structure):
        tx = dl.dessilbi(0.05, lam=lam, structure=structure)
        state = tx.init(params)
        for _ in range(40):
            _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        return dl.support(state)

    one, many = after(together, dl.stacked(dl.neurons)), after(apart, dl.neurons)
    expected = np.stack([many[f"layer{i}"]["kernel"] for i in range(5)])
    np.testing.assert_array_equal(one["layers"]["kernel"], expected)
    assert 0.2 < expected.mean() < 0.4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((-1,),), TypeError, r"named structure .* got \(-1,\)"),
        ((dl.filters, 0), ValueError, "leading axes ≥ 1, got 0"),
        ((dl.filters, True), ValueError, "leading axes ≥ 1, got True"),
    ],
)
def test_stacked_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        dl.stacked(*arguments)


def test_a_stack_needs_axes_beside_its_layers():
    with pytest.raises(ValueError, match=r"x with shape \(6,\).* more than 1 axes"):
        dl.dessilbi(0.1, lam=1.0, structure=[("x", dl.stacked(dl.weights))]).init(
            {"x": jnp.ones(6)}
        )
    with pytest.raises(ValueError, match="stacked must be a number"):
        dl.filters.replace(stacked=-1)


# --- names, axes and leaves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "found"),
    [
        ("Embed_0", True), ("token_embedding", True), ("embedding", True), ("tokenEmbedding", True),
        ("patch_embed", True), ("embed2", True), ("EMBED", True), ("pos-embed", True),
        ("remembered", False), ("unembedded", False), ("fc", False), ("Membed", False),
    ],
)  # fmt: skip
def test_embeddings_are_known_by_a_word(component, found):
    params = {component: {"kernel": jnp.ones((2, 3))}, "fc1": {"kernel": jnp.ones((2, 3))}}
    counts = {leaf.path: leaf.counts for leaf in resolve(dl.weights, params)}
    assert counts[f"{component}/kernel"] == (None if found else (2, 3))


@pytest.mark.parametrize("axes", [(1, 1), (-1, 3), (0, 1, -4), (2, -2)])
def test_an_axis_given_twice_is_an_error(axes):
    params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}}
    with pytest.raises(ValueError, match=r"conv/kernel with shape .* name one axis twice"):
        resolve([("conv", axes)], params)
    with pytest.raises(ValueError, match="name one axis twice"):
        resolve(lambda p: {"conv": {"kernel": axes}}, params)


NUMBERS = {"a Python float": 0.5, "a 0-d array": jnp.float32(0.5), "a NumPy scalar": np.float32(2)}


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_among_the_leaves_are_dense_everywhere(number):
    kernel = jax.random.normal(jax.random.key(0), (4, 3))
    params = {"fc": {"kernel": kernel}, "temperature": NUMBERS[number]}
    for structure in (dl.weights, dl.filters, [("fc", dl.weights)]):
        tx = dl.dessilbi(
            0.1, lam=dl.auto(density=0.5, steps=20), structure=structure, momentum=0.9,
            weight_decay=0.1,
        )  # fmt: skip
        state, path = tx.init(params), dl.SolutionPath()
        for step in range(20):
            updates, state = tx.update(params, state, params)
            path.record(step + 1, state)
        new = optax.apply_updates(params, updates)
        assert float(new["temperature"]) != float(params["temperature"])
        ticket = path.ticket(groups=4)
        mask = ticket.mask(params)
        dl.keep_support(mask).update(updates, dl.keep_support(mask).init(params), params)
        assert float(dl.project(params, mask)["temperature"]) == float(params["temperature"])
        dl.gamma(state, params)
        dl.support(state, params)
        dl.diagnose(lambda p: jnp.float32(p["temperature"]), params, state, learning_rate=0.1)
        assert dl.calibrate(params, structure, 0.1, 20, density=0.5) > 0
        assert "temperature" in str(dl.describe(params, structure))
        ticket.transfer(params)
        dl.toolbox.prune_by_percent(params, dl.toolbox.prune_order(params, path), 50)
        dl.toolbox.extract(params, mask)
        dl.toolbox.reinitialise(params, mask, jax.random.key(0))


def test_a_rule_on_a_python_number_names_its_path():
    params = {"fc": jnp.ones((4, 3)), "temperature": 0.5}
    with pytest.raises(TypeError, match=r"temperature is a Python number, 0\.5"):
        resolve([("", dl.weights)], params)
    with pytest.raises(ValueError, match=r"axis -1 is out of range for temperature"):
        resolve([("", (-1,))], {**params, "temperature": jnp.float32(0.5)})
