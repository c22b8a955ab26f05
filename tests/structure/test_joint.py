"""Groups that span leaves, against a naive program over explicit lists of their members."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trajectories import (
    JOINED,
    QUICK,
    Channels,
    assert_trees_close,
    gradient,
    network,
    opened,
    trajectory,
)

import dessilbi_jax as dl
from dessilbi_jax.optimizer import levels
from dessilbi_jax.prox.joint import joint_sums
from dessilbi_jax.prox.norms import group_norms
from dessilbi_jax.prox.penalty import Penalty, shrink_all
from dessilbi_jax.prox.shrink import apply_shrink
from dessilbi_jax.structure.joint import count_groups
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.rules import resolve
from dessilbi_jax.tree import leaf_paths

PENALTIES = {
    "group": dl.group_lasso(),
    "size": dl.group_lasso(sqrt_size=True),
    "sparse": dl.sparse_group_lasso(0.3, sqrt_size=True),
    "net": dl.elastic_net(0.5),
}
# (shape, counts): channels, blocks, single elements, a whole leaf.
GRIDS = [((2, 3, 4), (1, 1, 4)), ((4, 6), (2, 3)), ((5,), (5,)), ((3, 2), (1, 1)), ((2, 2), (2, 2))]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A structure that says for each leaf path what its groups are."""

    leaves: tuple[LeafGroups, ...]

    def resolve(self, params):
        by_path = {leaf.path: leaf for leaf in self.leaves}
        return [by_path[path] for path, _ in leaf_paths(params)]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def update(tx, updates, state, params):
    return tx.update(updates, state, params)


def members(leaves):
    """By group: the list of (leaf, index) of all its elements."""
    out = {}
    for i, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            lengths = [n // c for n, c in zip(leaf.shape, leaf.counts, strict=True)]
            cell = tuple(a // m for a, m in zip(index, lengths, strict=True))
            key = (i, cell)
            if leaf.joint is not None:
                key = leaf.joint[int(np.ravel_multi_index(cell, leaf.counts))]
            out.setdefault(key, []).append((i, index))
    return out


def naive(leaves, penalty, v, lam, kappa):
    """Γ, which groups are selected, and ‖V_g‖/(w λ) at every element: one number at a time."""
    gamma = [np.zeros_like(x) for x in v]
    strength = [np.zeros_like(x) for x in v]
    selected = {}
    for key, elements in members(leaves).items():
        lasso = all(leaves[i].elementwise for i, _ in elements)
        mix = 0.0 if lasso else penalty.mix
        weight = 1.0 if lasso or not penalty.sqrt_size else math.sqrt(len(elements))
        inner = {
            (i, at): math.copysign(max(abs(v[i][at]) - mix * lam, 0.0), v[i][at])
            for i, at in elements
        }
        norm = math.sqrt(sum(x * x for x in inner.values()))
        beyond = norm / ((1 - mix) * weight * lam)
        selected[key] = beyond > 1
        for (i, at), x in inner.items():
            strength[i][at] = beyond
            if beyond > 1:
                gamma[i][at] = kappa / (1 + kappa * penalty.mu) * x * (1 - 1 / beyond)
    return gamma, selected, strength


@st.composite
def ties(draw):
    """Leaves of every grid, most of them with joint groups that cross leaves and repeat in one."""
    leaves = []
    for i, (shape, counts) in enumerate(GRIDS):
        cells = math.prod(counts)
        joint = None
        if i == 0 or draw(st.integers(0, 3)):
            joint = tuple(draw(st.lists(st.integers(-1, 6), min_size=cells, max_size=cells)))
        leaves.append(LeafGroups(f"leaf{i}", shape, counts, joint=joint))
    return leaves


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    ties(), st.sampled_from(sorted(PENALTIES)), st.floats(0.3, 3.0), st.sampled_from([1.0, 2.5]),
    st.integers(0, 1000),
)  # fmt: skip
def test_gamma_of_random_ties_equals_the_naive_one(leaves, name, lam, kappa, seed):
    random = np.random.default_rng(seed)
    v = [random.normal(size=leaf.shape) * random.choice([0.0, 0.5, 2.0]) for leaf in leaves]
    penalties, n = [PENALTIES[name]] * len(leaves), len(leaves)
    gamma, selected, strength = naive(leaves, PENALTIES[name], v, lam, kappa)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(v):
        shrinks = shrink_all(leaves, penalties, v, [lam] * n, kappa)
        gamma = [apply_shrink(x, shrink) for x, shrink in zip(v, shrinks, strict=True)]
        return shrinks, gamma, levels.fractions(leaves, penalties, v, [lam] * n)

    with jax.enable_x64(True):
        shrinks, got, (by_element, by_group) = jax.device_get(compute(v))
    for leaf, a, b, s, expected in zip(leaves, got, gamma, shrinks, strength, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(a == 0, b == 0)
        if not leaf.elementwise:
            assert s.strength.shape == leaf.counts
            size = [n // c for n, c in zip(leaf.shape, leaf.counts, strict=True)]
            np.testing.assert_allclose(np.kron(s.strength, np.ones(size)), expected, rtol=1e-10)
    if name != "sparse":  # there elements are selected one by one
        groups = members(leaves)
        chosen = sum(len(groups[key]) for key, on in selected.items() if on)
        assert float(by_element) == pytest.approx(chosen / sum(x.size for x in v), rel=1e-6)
        assert float(by_group) == pytest.approx(sum(selected.values()) / len(groups), rel=1e-6)
        assert count_groups(leaves) == len(groups)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lean"),
    [("group", False), ("group", True), ("size", True), ("sparse", False), ("net", True)],
)
def test_a_run_equals_the_naive_one(name, lean):
    """The whole step on filters and the rows that read them: 16 groups of two leaves."""
    steps, lr, nu, kappa, lam = 8, 0.1, 0.5, 1.5, 0.2 if name in ("size", "sparse") else 2.0
    with jax.enable_x64(True):
        params = network(jnp.float64)
        tx = dl.dessilbi(
            lr, kappa, nu, lam, JOINED, lean=lean, penalty=PENALTIES[name], variant="paper"
        )
        run = trajectory(tx, params, steps)
        leaves = [leaf for leaf in resolve(JOINED, params) if leaf.counts is not None]
        w = [np.array(params["conv"]["kernel"]), np.array(params["fc"]["kernel"])]
        v, gamma = ([np.zeros_like(x) for x in w] for _ in range(2))
        for _ in range(steps):
            g = gradient({"conv": jnp.asarray(w[0]), "fc": jnp.asarray(w[1])})
            pull = [(x - y) / nu for x, y in zip(w, gamma, strict=True)]
            v = [x + lr / kappa * p for x, p in zip(v, pull, strict=True)]
            w = [x - lr * (np.asarray(g[key]) + p) for x, key, p in zip(w, g, pull, strict=True)]
            gamma, selected, _ = naive(leaves, PENALTIES[name], v, lam, kappa)
    assert 0 < sum(selected.values()) < len(selected) == 16
    for layer, a, b, c in zip(("conv", "fc"), w, v, gamma, strict=True):
        for tree, expected in ((run.params, a), (run.v, b), (run.gamma, c)):
            got = np.asarray(tree[layer]["kernel"][-1])
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
        mask = run.support[layer]["kernel"][-1]
        np.testing.assert_array_equal(mask, c != 0)


@pytest.mark.slow
def test_the_members_of_a_group_enter_together():
    run = trajectory(dl.dessilbi(0.1, nu=0.5, lam=2.0, structure=JOINED), network(), 20)
    conv = run.support["conv"]["kernel"].any(axis=(1, 2, 3))
    rows = run.support["fc"]["kernel"].any(axis=2)
    np.testing.assert_array_equal(conv, rows)
    assert len(np.unique(conv.sum(axis=1))) > 3  # they entered one after the other
    assert run.support["fc"]["bias"].all()
    strength = dl.get_state(run.last_state).shrink.strength
    np.testing.assert_array_equal(
        strength["conv"]["kernel"].ravel(), strength["fc"]["kernel"].ravel()
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lean": True, "momentum": 0.9, "variant": "paper"}])
def test_joint_groups_of_one_cell_are_the_leafs_own(options):
    untied = [("conv/kernel", (-1,)), ("fc/kernel", (0,))]
    leaves = resolve(untied, network())
    numbers = iter(range(100))
    alone = Fixed(
        tuple(
            leaf
            if leaf.counts is None
            else dataclasses.replace(leaf, joint=tuple(next(numbers) for _ in range(leaf.groups)))
            for leaf in leaves
        )
    )
    one, other = (
        trajectory(dl.dessilbi(0.1, nu=0.5, lam=0.5, structure=s, **options), network(), 15)
        for s in (untied, alone)
    )
    assert 0 < opened(one.support["conv"]["kernel"][-1]) < 1
    for a, b in zip(jax.tree.leaves(one[:5]), jax.tree.leaves(other[:5]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_one_group_of_all_filters_of_two_leaves_is_one_leaf():
    a, b = (jax.random.normal(k, (3, 3, 2, 4)) for k in jax.random.split(jax.random.key(0)))
    leaf = LeafGroups("", a.shape, (1, 1, 1, 4), "filters", joint=(7,) * 4)
    tied = Fixed(tuple(dataclasses.replace(leaf, path=path) for path in ("a", "b")))
    options = {"nu": 0.2, "lam": 0.3, "penalty": dl.group_lasso(sqrt_size=True)}

    def run(structure, params):
        tx = dl.dessilbi(0.1, structure=structure, **options)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def steps(params, state):
            for _ in range(4):
                updates, state = tx.update(params, state, params)
            return updates, dl.gamma(state)

        return steps(params, tx.init(params))

    u, gamma = run(tied, {"a": a, "b": b})
    other_u, other_gamma = run([("kernel", dl.layers)], {"kernel": jnp.stack([a, b])})
    assert float(jnp.abs(gamma["a"]).max()) > 0
    np.testing.assert_allclose(
        jnp.stack([gamma["a"], gamma["b"]]), other_gamma["kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(jnp.stack([u["a"], u["b"]]), other_u["kernel"], rtol=1e-5)


def test_a_zero_group_gives_zero_and_a_zero_gradient():
    leaves = [LeafGroups(p, (2, 2), (1, 2), joint=(0, 1)) for p in ("a", "b")]
    v = [jnp.array([[0.0, 3.0], [0.0, 0.0]]), jnp.array([[0.0, 4.0], [0.0, 0.0]])]

    def total(v):
        shrinks = shrink_all(leaves, [Penalty()] * 2, v, [2.5] * 2, 1.0)
        return sum(jnp.sum(apply_shrink(x, s)) for x, s in zip(v, shrinks, strict=True))

    slope = jax.jit(jax.grad(total))(v)
    assert float(total(v)) == 3.5  # (3 + 4) · (1 − 2.5/5)
    assert all(np.isfinite(g).all() and (g[:, 0] == 0).all() for g in slope)

    def total_norm(v):
        return sum(x.sum() for x in group_norms([(1, 2)] * 2, [(0, 1)] * 2, v))

    slope = jax.jit(jax.grad(total_norm))(v)
    assert all((g[:, 0] == 0).all() for g in slope)
    np.testing.assert_allclose(slope[1][0, 1], 2 * 0.8, rtol=1e-6)  # it is in both leaves' cells


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 100])
def test_sums_over_groups_of_very_different_sizes(count):
    random = np.random.default_rng(count)
    numbers = [[*([0] * count), 1, 2, 2], random.integers(0, 9, 12).tolist()]
    cells = [random.normal(size=count + 3), random.normal(size=(3, 4))]
    with jax.enable_x64(True):
        sums = jax.jit(functools.partial(joint_sums, [*numbers, None]))
        got = sums([*map(jnp.asarray, cells), jnp.ones(2)])
    flat, row = np.concatenate([x.ravel() for x in cells]), np.concatenate(numbers)
    expected = np.array([flat[row == n].sum() for n in row])
    np.testing.assert_allclose(np.concatenate([x.ravel() for x in got[:2]]), expected, atol=1e-12)
    np.testing.assert_array_equal(got[2], 1)


# --- the state -------------------------------------------------------------------------------


@pytest.mark.slow
def test_ties_are_recorded_in_the_state_and_only_there_where_there_are_any():
    params = network()
    assert dl.get_state(dl.dessilbi(0.1, lam=0.1).init(params)).ties == ()
    tx = dl.dessilbi(0.1, lam=0.1, structure=JOINED)
    state = tx.init(params)
    _, later = update(tx, params, state, params)
    for each in (state, later):
        found = dl.get_state(each).ties
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert found["conv"]["kernel"].shape == (1, 1, 1, 16)
        assert found["fc"]["kernel"].shape == (16, 1)
        for layer in ("conv", "fc"):
            assert found[layer]["kernel"].dtype == jnp.int32
            np.testing.assert_array_equal(found[layer]["kernel"].ravel(), np.arange(16))
            assert found[layer]["bias"].dtype == bool
            assert found[layer]["bias"].shape == (1,)


@pytest.mark.parametrize("lean", [False, True])
def test_the_state_can_be_donated(lean):
    tx = dl.dessilbi(0.1, lam=0.1, structure=JOINED, lean=lean, momentum=0.9, freeze=True)
    params, state = network(), None
    step = jax.jit(tx.update, donate_argnums=(0, 1), compiler_options=QUICK)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(params)
        for _ in range(2):
            _, state = step(gradient(params), state, params)
        assert int(dl.get_state(state).count) == 2


def test_map_params_with_a_tree_beside_the_state():
    params = network()
    for structure in (JOINED, dl.filters):
        tx = dl.dessilbi(0.1, lam=0.1, structure=structure)
        state = tx.init(params)
        names = jax.tree.map(lambda x: "p", params)
        marked = optax.tree.map_params(tx, lambda x, name: name, state, names)
        assert jax.tree.structure(marked) == jax.tree.structure(state)
        assert set(jax.tree.leaves(dl.get_state(marked).ties)) <= {"p"}


def test_a_state_for_other_ties_is_refused():
    params = network()
    own = [("conv/kernel", (-1,)), ("fc/kernel", (0,))]
    joint, untied = (dl.dessilbi(0.1, lam=0.1, structure=s) for s in (JOINED, own))
    with pytest.raises(ValueError, match="conv/kernel: the leaf's groups are its own in the state"):
        joint.update(params, untied.init(params), params)
    with pytest.raises(ValueError, match="are joint in the state, its own in the structure"):
        untied.update(params, joint.init(params), params)


def test_merged_states_keep_their_groups_apart():
    params = network()
    labels = {layer: {"kernel": layer, "bias": "rest"} for layer in params}
    filters = Channels((("conv/kernel", -1),))
    rows = Channels((("fc/kernel", 0),))
    for second, joint in ((rows, True), ([("fc/kernel", (0,))], False)):
        tx = optax.partition(
            {
                "conv": dl.dessilbi(0.1, lam=0.1, structure=filters),
                "fc": dl.dessilbi(0.1, lam=0.1, structure=second),
                "rest": optax.sgd(0.1),
            },
            labels,
        )
        _, state = update(tx, params, tx.init(params), params)
        merged = dl.get_state(state, merge=True).ties
        np.testing.assert_array_equal(merged["conv"]["kernel"].ravel(), np.arange(16))
        if joint:
            np.testing.assert_array_equal(merged["fc"]["kernel"].ravel(), np.arange(16, 32))
        else:
            assert merged["fc"]["kernel"].dtype == bool
        dl.support(state, params, merge=True)


def test_masked_leaves_take_no_part():
    params = network()
    tx = dl.dessilbi(0.1, nu=0.5, lam=0.3, structure=JOINED)
    kernels = jax.tree.map(lambda x: x.ndim > 1, params)
    one = trajectory(tx, params, 5)
    masked = optax.masked(tx, kernels)
    other, state = params, masked.init(params)
    for _ in range(5):
        updates, state = update(masked, gradient(other), state, other)
        other = optax.apply_updates(other, updates)
    got = dl.gamma(state, other)
    for layer in ("conv", "fc"):
        expected = one.gamma[layer]["kernel"][-1]
        np.testing.assert_allclose(got[layer]["kernel"], expected, atol=1e-6)


# --- what counts groups ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["density", "group_density"])
def test_automatic_lambda_reaches_the_density(asked):
    # All leaves but the last bias are tied, with different numbers of elements a group.
    structure = Channels((("conv", -1), ("fc/kernel", 0)))
    options = {"nu": 5.0, "lam": dl.auto(**{asked: 0.25}, steps=100)}
    run = trajectory(dl.dessilbi(0.1, structure=structure, **options), network(), 100)
    mask = jax.tree.map(lambda x: x[-1], run.support)
    assert float(jnp.mean(mask["conv"]["bias"])) == pytest.approx(0.25, abs=0.0626)
    np.testing.assert_array_equal(mask["conv"]["bias"], mask["fc"]["kernel"][:, 0])
    scale = dl.get_state(run.last_state).auto.scale
    np.testing.assert_array_equal(scale, scale[0])


def test_relative_scale_is_one_for_leaves_that_share_groups():
    leaves = [
        LeafGroups("a", (4, 3), (1, 3), joint=(0, 1, 2), kind="filters"),
        LeafGroups("b", (3,), (3,), joint=(1, 2, 3), kind="units"),
        LeafGroups("c", (3, 2), (3, 1), kind="units"),
        LeafGroups("d", (2, 2), (2, 2), "weights"),
        LeafGroups("e", (2,), (2,), joint=(3, 3), kind="tail"),
    ]
    rng = np.random.default_rng(0)
    v = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    got = levels.relative_scale(leaves, v)
    every = members(leaves)
    norms = {
        key: math.sqrt(sum(float(v[i][at]) ** 2 for i, at in elements))
        for key, elements in every.items()
    }
    single = np.mean([n for key, n in norms.items() if key in [(3, at) for at in np.ndindex(2, 2)]])
    # b is of the same kind as c, so that a, b, c and e are all of one family.
    group = np.mean([n for key, n in norms.items() if not (isinstance(key, tuple) and key[0] == 3)])
    np.testing.assert_allclose(got, [1, 1, 1, single / group, 1], rtol=1e-5)


@pytest.mark.parametrize("asked", ["density", "group_density"])
def test_calibration_counts_a_group_once(asked):
    params = network()
    share = 5 / 16
    lam = dl.calibrate(params, JOINED, 0.1, 200, nu=100.0, **{asked: share})
    # From parameters alone V is a multiple of W: λ lies between the fifth and sixth norm of W.
    square = (params["conv"]["kernel"] ** 2).sum((0, 1, 2)) + (params["fc"]["kernel"] ** 2).sum(1)
    norms = np.sort(np.sqrt(square))[::-1]
    reach = 1 - math.exp(-0.1 * 200 / 100)
    assert norms[5] * reach * 0.999 <= lam <= norms[4] * reach * 1.001
    assert norms[5] < 0.999 * norms[4]


def test_diagnosis_judges_a_group_by_all_its_members():
    """Half of the group moves and half stands still: the joint norm tells when it opens."""
    leaves = tuple(LeafGroups(p, (1,), (1,), joint=(0,)) for p in ("a", "b"))
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx = dl.dessilbi(0.1, nu=10.0, lam=100.0, structure=Fixed(leaves))
    _, state = update(tx, params, tx.init(params), params)
    found = dl.diagnose(
        lambda p: jnp.sum(p["a"]), {"a": params["a"], "b": jnp.zeros(1)}, state,
        learning_rate=0.1, nu=10.0, steps=101,
    )  # fmt: skip
    # V goes from (0.03, 0.04) by 100 steps of (0.03, 0) to (3.03, 0.04).
    assert f"reaches {math.hypot(3.03, 0.04) / 100:.2g} of" in found.warnings[0]


def test_description_counts_a_group_once():
    assert str(dl.describe(network(), JOINED)).endswith("in 16 groups")


# --- bad input -------------------------------------------------------------------------------


def test_joint_numbers_must_fit_the_grid():
    with pytest.raises(ValueError, match="one number for each of the 3 cells of kernel"):
        LeafGroups("kernel", (2, 3), (1, 3), joint=(0, 1))
    with pytest.raises(ValueError, match="0 cells of bias"):
        LeafGroups("bias", (2,), None, joint=(0, 1))


@pytest.mark.parametrize("other", [{"lam": 0.5}, {"penalty": dl.elastic_net(0.1)}])
def test_members_of_a_group_are_shrunk_alike(other):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    first = LeafGroups("a", (2,), (2,), joint=(0, 1))
    structure = Fixed((first, LeafGroups("b", (2,), (2,), joint=(1, 2), **other)))
    with pytest.raises(ValueError, match="a and b share joint group 1, but their λ and penalty"):
        dl.dessilbi(0.1, lam=0.1, structure=structure).init(params)
    apart = Fixed((first, LeafGroups("b", (2,), (2,), joint=(3, 2), **other)))
    dl.dessilbi(0.1, lam=0.1, structure=apart).init(params)


# --- sharding --------------------------------------------------------------------------------

SHARDED = Channels((("conv", -1), ("fc/kernel", 0)))
OPTIONS = {
    "full": {"nu": 1.0, "lam": 2.5, "momentum": 0.9},
    "lean": {"nu": 1.0, "lam": 2.5, "lean": True, "freeze": True},
    "auto": {"nu": 1.0, "lam": dl.auto(group_density=0.5, steps=20)},
    "size": {"nu": 1.0, "lam": 0.3, "penalty": dl.group_lasso(sqrt_size=True)},
}
# Channels on the devices, in all members or in one; or other axes, or nothing at all.
LAYOUTS = {
    "channels": {"conv": P(None, None, None, "x"), "fc": P("x", None), "bias": P("x")},
    "mixed": {"conv": P(None, None, "x", None), "fc": P("x", None), "bias": P(None)},
    "one": {"conv": P(None, None, None, "x"), "fc": P(None, None), "bias": P(None)},
}


def train(tx, params, state):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        pull = jax.tree.map(lambda w: 0.1 * w, params)
        updates, state = tx.update(pull, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(12):
        params, state = step(params, state)
    return params, state


@functools.cache
def on_one_device(name):
    tx = dl.dessilbi(0.1, structure=SHARDED, **OPTIONS[name])
    params, state = train(tx, network(), tx.init(network()))
    assert 0 < opened(dl.support(state)["conv"]["kernel"]) < 1
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        ("full", "channels", AxisType.Explicit),
        ("lean", "mixed", AxisType.Explicit),
        ("auto", "channels", AxisType.Explicit),
        ("lean", "channels", AxisType.Auto),
        ("size", "one", AxisType.Auto),
    ],
)
def test_sharded(name, layout, kind):
    expected, expected_state = on_one_device(name)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    specs = LAYOUTS[layout]
    placed = {
        layer: {
            leaf: jax.device_put(
                x, NamedSharding(mesh, specs[layer if leaf == "kernel" else "bias"])
            )
            for leaf, x in leaves.items()
        }
        for layer, leaves in network().items()
    }
    tx = dl.dessilbi(0.1, structure=SHARDED, **OPTIONS[name])
    with jax.set_mesh(mesh):
        params, state = train(tx, placed, tx.init(placed))
        got, mask = dl.gamma(state), dl.support(state)
    assert_trees_close(jax.device_get(params), jax.device_get(expected))
    mine, its = dl.get_state(state), dl.get_state(expected_state)
    assert_trees_close(jax.device_get(mine.v), jax.device_get(its.v))
    assert_trees_close(jax.device_get(mine.shrink), jax.device_get(its.shrink), 3e-6)
    assert_trees_close(jax.device_get(got), jax.device_get(dl.gamma(expected_state)), 1e-5)
    for a, b in zip(
        jax.tree.leaves(mask), jax.tree.leaves(dl.support(expected_state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for tree in (params, mine.v):  # where a leaf lies is not up to the others of its groups
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
