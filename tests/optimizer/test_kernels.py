"""The fused step computes what the XLA form does, wherever it is taken, and lowers for devices."""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from test_sharding import RULES, parameters, pull, shard
from trajectories import JOINED, QUICK, assert_trees_close, gradient, network, opened

import dessilbi_jax as dl
from dessilbi_jax.optimizer.kernels import choice as kernels
from dessilbi_jax.optimizer.kernels import layout
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.tree import leaf_paths

pytestmark = pytest.mark.slow

# Every kind of group, with odd lengths, from one to five axes.
LEAVES = {
    "filters": ((3, 3, 5, 20), (-1,)),
    "thin": ((3, 3, 1, 20), (-1,)),
    "inputs": ((3, 3, 7, 33), (-2,)),
    "slices": ((3, 5, 7), (-2, -1)),
    "volume": ((2, 3, 3, 2, 6), (-1,)),
    "torch": ((9, 5, 3, 3), (0,)),
    "odd": ((2, 3, 4, 5), (1, 3)),
    "units": ((129, 257), (-1,)),
    "rows": ((130, 300), (0,)),
    "layer": ((3, 3, 4, 5), ()),
    "blocks": ((12, 22), dl.blocks((4, 2))),
    "cells": ((3, 3, 8, 6), dl.blocks((4, 2))),
    "outputs": ((17, 24), dl.heads(4)),
    "query": ((10, 4, 6), dl.heads(4)),
    "project": ((4, 6, 10), dl.heads(4)),
    "single": ((1, 1), (-1,)),
    "lasso": ((33, 70), dl.weights),
    "image": ((3, 3, 4, 5), dl.weights),
    "vector": ((7,), (0,)),
    "total": ((7,), ()),
}
STRUCTURE = [(f"{name}$", spec) for name, (_, spec) in LEAVES.items()]
SPARSE = dl.sparse_group_lasso(0.3, sqrt_size=True)
OPTIONS = {
    "paper lean": {"momentum": 0.9, "lam": 0.05, "variant": "paper", "lean": True},
    "paper nesterov decay": {
        "momentum": 0.9, "variant": "paper", "nesterov": True, "weight_decay": 1e-3,
    },
    "toolbox lean decay": {"momentum": 0.9, "weight_decay": 1e-2, "lean": True},
    "toolbox nesterov elastic net": {
        "momentum": 0.9, "nesterov": True, "kappa": 2.0, "penalty": dl.elastic_net(0.5),
    },
    "sparse groups, no momentum": {
        "penalty": SPARSE, "lam": lambda count: 0.02 + 0.005 * jnp.sin(count * 1.0),
    },
    "auto": {"lam": dl.auto(density=0.3, steps=20), "momentum": 0.9, "lean": True},
}  # fmt: skip
# Each leaf is once in the form for TPUs and once in that for GPUs.
THIRDS = [tuple(LEAVES)[i::3] for i in range(3)]
RUNS = [(name, "gpu" if i // 3 else "tpu", THIRDS[i % 3]) for i, name in enumerate(OPTIONS)]
STEPS = 14
BLOCKS = {"tpu": 2048, "gpu": 256}  # so that leaves have several


def tree(dtype=jnp.float32, names=tuple(LEAVES)):
    """Leaves whose elements grow along the last axis, and group norms by about 1."""
    out = {}
    for i, name in enumerate(names):
        shape = LEAVES[name][0]
        grow = jnp.linspace(0.1, 2.0, shape[-1])
        leaf = jnp.cos(7.0 * i + jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape)
        alone = LEAVES[name][1] in (dl.weights, (0,))
        size = 1.0 if alone else math.sqrt(math.prod(shape) / max(shape))
        out[name] = (leaf * grow / size).astype(dtype)
    return out


def taking(kernel, tx):
    """The transformation, traced with that kernel."""

    def update(*args):
        with kernels.taking(kernel):
            return tx.update(*args)

    return optax.GradientTransformation(tx.init, update)


def runner(tx, steps=STEPS):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda w: jnp.sin(3 * w) / 10, params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params, state, dl.gamma(state), dl.support(state)

    return run


@pytest.fixture
def taken(monkeypatch):
    """The paths of the leaves that took the kernel while a step was traced."""
    paths = []
    step = kernels.step

    def spy(leaf, *args):
        made = step(leaf, *args)
        if made is not None:
            paths.append(leaf.path)
        return made

    monkeypatch.setattr(kernels, "step", spy)
    return paths


def transformation(kernel, names=tuple(LEAVES), **options):
    structure = [rule for rule in STRUCTURE if rule[0][:-1] in names]
    defaults = {"nu": 1.0, "lam": 0.1, "structure": structure}
    return taking(kernel, dl.dessilbi(0.1, **defaults | options))


@pytest.mark.parametrize(("name", "platform", "names"), RUNS, ids=OPTIONS)
def test_every_structure_is_the_xla_form(name, platform, names, monkeypatch, taken):
    monkeypatch.setattr(layout, "BLOCK", BLOCKS)
    monkeypatch.setattr(layout, "INTERPRETED", platform)
    one, other = (
        runner(transformation(kernel, names, **OPTIONS[name]))(tree(names=names))
        for kernel in ("pallas", "xla")
    )
    assert set(taken) == set(names)
    assert_trees_close(one[0], other[0])
    # V is a sum over steps; Γ and strengths are made from the difference of its norm and λ.
    assert_trees_close(one[1], other[1], 3e-6)
    for leaf, mask in other[3].items():
        atol = 3e-6 * float(jnp.max(jnp.abs(dl.get_state(one[1]).v[leaf])))
        np.testing.assert_allclose(one[2][leaf], other[2][leaf], rtol=0, atol=atol, err_msg=leaf)
        np.testing.assert_array_equal(one[3][leaf], mask, err_msg=leaf)
    assert 0 < opened(one[3]) < 1


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (jnp.bfloat16, OPTIONS["toolbox lean decay"] | {"accumulator_dtype": jnp.float32}),
        (jnp.float16, OPTIONS["paper lean"]),
    ],
    ids=["bfloat16 with a wide momentum", "float16"],
)
def test_narrow_parameters(dtype, options, taken):
    names = ("filters", "inputs", "lasso", "blocks")
    one = runner(transformation("pallas", names, **options), 3)(tree(dtype, names))
    other = runner(transformation("xla", names, **options), 3)(tree(dtype, names))
    assert set(taken) == set(names)
    # The XLA form rounds to the narrow type at each operation, the kernel once.
    assert_trees_close(one[:2], other[:2], 8 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(("lean", "variant"), [(False, "paper"), (True, "toolbox")])
def test_what_is_not_finite_stays_and_is_counted(lean, variant, taken):
    names = ("filters", "rows", "lasso")
    params = tree(names=names)
    for name, value in [("filters", jnp.nan), ("rows", jnp.inf), ("lasso", -jnp.inf)]:
        params[name] = params[name].at[(0,) * params[name].ndim].set(value)
    options = {"momentum": 0.9, "lean": lean, "variant": variant}
    states = []
    for kernel in ("pallas", "xla"):
        tx = transformation(kernel, names, **options)
        state = tx.init(params)
        update = jax.jit(tx.update, compiler_options=QUICK)
        grads = jax.tree.map(jnp.ones_like, params)
        for _ in range(3):
            updates, state = update(grads, state, params)
        states.append((updates, state))
    assert taken
    assert int(dl.get_state(states[0][1]).skipped) == 9
    for name in names:
        assert jnp.ravel(dl.get_state(states[0][1]).v[name])[0] == 0
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["chain", "wrap", "joint", "freeze"])
def test_other_ways_in(kind, taken):
    def make(kind):
        common = {"nu": 1.0, "lam": 0.1}
        if kind == "chain":
            ours = dl.add_split_lbi(0.05, lean=True, **common)
            return optax.chain(optax.scale_by_adam(), ours, optax.scale_by_learning_rate(0.05))
        if kind == "wrap":
            return dl.wrap(optax.sgd(0.1, 0.9), 0.1, **common)
        if kind == "joint":
            return dl.dessilbi(0.1, structure=JOINED, momentum=0.9, **common)
        return dl.dessilbi(0.1, freeze=True, momentum=0.9, **common)

    def run(kernel):
        tx = taking(kernel, make(kind))

        @functools.partial(jax.jit, compiler_options=QUICK)
        def step(params, state):
            updates, state = tx.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        params = network()
        state = tx.init(params)
        for _ in range(STEPS):
            params, state = step(params, state)
        return params, state, dl.support(state)

    one, other = run("pallas"), run("xla")
    assert_trees_close(one[:2], other[:2], 3e-6)
    for a, b in zip(*(jax.tree.leaves(tree[2]) for tree in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(taken) == {"conv/kernel", "fc/kernel"} - (
        {"conv/kernel"} if kind == "freeze" else set()
    )
    assert opened(one[2]) > 0


def test_it_takes_over_a_state_at_any_time():
    """States have the same form, and one kernel goes on where the other stopped."""
    params = network()
    txs = [
        taking(kernel, dl.dessilbi(0.1, nu=1.0, lam=0.1, momentum=0.9, weight_decay=1e-3))
        for kernel in ("xla", "pallas", "auto")
    ]
    shapes = [jax.eval_shape(tx.update, params, txs[0].init(params), params) for tx in txs]
    assert shapes[0] == shapes[1] == shapes[2]


def test_what_it_is_not_for(taken, monkeypatch):
    def trace(params, kernel="pallas", **options):
        taken.clear()
        options = {"structure": dl.weights, "lam": 0.1} | options
        tx = taking(kernel, dl.dessilbi(0.1, **options))
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
        return taken

    f32 = {"kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32)}
    assert trace(f32) == ["kernel"]
    assert trace(f32, kernel="xla") == trace(f32, kernel="auto") == []
    assert trace({"kernel": jax.ShapeDtypeStruct((4, 6), jnp.complex64)}) == []
    assert trace({**f32, "more": {"kernel": jax.ShapeDtypeStruct((0, 6), jnp.float32)}}) == [
        "kernel"
    ]
    mixed = {"structure": dl.columns, "penalty": SPARSE}
    assert trace(f32, **mixed) == ["kernel"]
    assert trace(f32, **mixed, lam=dl.auto(density=0.1, steps=99)) == []
    # Chosen by itself where it was measured, and not where sharding would go unseen.
    measured = (jax.default_backend(), "lean")
    monkeypatch.setattr(kernels, "MEASURED_FASTER", frozenset({measured}))
    assert trace(f32, kernel="auto", lean=True) == []
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert trace(f32, kernel="auto", lean=True) == ["kernel"]
    assert trace(f32, kernel="auto", lean=False) == []
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))):
        assert trace(f32) == []


def test_float64_takes_the_xla_form(taken):
    with jax.enable_x64(True):
        params = {"wide": jnp.ones((4, 6), jnp.float64), "kernel": jnp.ones((4, 6), jnp.float32)}
        tx = taking("pallas", dl.dessilbi(0.1, lam=0.1, structure=[("", (-1,))], momentum=0.9))
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert taken == ["kernel"]


def test_an_unknown_kernel_is_an_error():
    with (
        pytest.raises(ValueError, match="kernel must be 'auto', 'xla' or 'pallas', got 'cuda'"),
        kernels.taking("cuda"),
    ):
        pass


def test_the_choice_ends_with_its_context():
    with kernels.taking("pallas"):
        with kernels.taking("xla"):
            assert not kernels.wanted(lean=True)
        assert kernels.wanted(lean=True)
    assert not kernels.wanted(lean=True)


def sharded(kernel, lean):
    options = {"nu": 1.0, "lam": 0.09, "momentum": 0.9, "lean": lean, "structure": RULES}
    tx = taking(kernel, dl.dessilbi(0.1, **options))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        updates, state = tx.update(pull(params), state, params)
        return optax.apply_updates(params, updates), state

    return tx, step


@functools.cache
def on_one_device(lean):
    tx, step = sharded("xla", lean)
    params = parameters()
    state = tx.init(params)
    for _ in range(10):
        params, state = step(params, state)
    return jax.device_get((params, dl.get_state(state).v, dl.support(state)))


@pytest.mark.parametrize(
    ("layout", "to_xla"),
    [
        # Whose groups end inside a shard: blocks of 16 outputs on 8 devices, 4 heads on 8.
        ("outputs", {"pieces", "heads"}),
        ("inputs", {"pieces"}),
        ("both", {"pieces"}),
    ],
)
def test_explicit_sharding(layout, to_xla, taken):
    """On eight devices as on one, and no leaf is put together on the way."""
    lean = layout != "both"
    tx, step = sharded("pallas", lean)
    mesh, start = shard(parameters(), layout, AxisType.Explicit)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(start)
        before = jax.tree.map(jax.typeof, state)
        compiled = step.lower(start, state).compile()
        assert set(taken) == {name for name, _ in RULES} - to_xla
        params = start
        for _ in range(10):
            params, state = compiled(params, state)
        assert str(jax.tree.map(jax.typeof, state)) == str(before)
    expected = on_one_device(lean)
    v, support = dl.get_state(state).v, dl.support(state)
    assert_trees_close(jax.device_get((params, v)), expected[:2])
    for name, mask in expected[2].items():
        np.testing.assert_array_equal(support[name], mask, err_msg=name)
        assert v[name].sharding.is_equivalent_to(start[name].sharding, v[name].ndim), name
    assert 0 < opened({name: expected[2][name] for name in taken}) < 1


# From JAX 0.12 on; its successor for GPUs is another language.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("paper lean", jnp.float32), ("toolbox nesterov elastic net", jnp.bfloat16)],
    ids=["float32", "bfloat16"],
)
def test_it_lowers_for_devices_that_are_not_here(name, dtype, platform):
    """Mosaic and Triton accept the blocks, the masks and the operations of every leaf."""
    # Cut along both axes.
    large = {"kernel": jax.ShapeDtypeStruct((3, 3, 512, 1100), dtype)}
    params = large | jax.eval_shape(lambda: tree(dtype))
    structure = [*STRUCTURE, ("kernel", dl.filters)]
    tx = transformation("pallas", **OPTIONS[name], structure=structure)
    state = jax.eval_shape(tx.init, params)

    def lowered():
        traced = jax.jit(tx.update).trace(params, state, params)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    device = getattr(jax.sharding, "AbstractDevice", None)
    if platform == "cuda" and "platform" in inspect.signature(device).parameters:
        # Newer JAX asks which GPU it is to be for.
        gpu = device("NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
        mesh = jax.sharding.AbstractMesh((1,), ("x",), (AxisType.Explicit,), abstract_device=gpu)
        with jax.sharding.use_abstract_mesh(mesh):
            text = lowered()
    else:
        text = lowered()
    target = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[platform]
    assert text.count(f"@{target}") == len(params)


@st.composite
def leaves(draw):
    pairs = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=5))
    kinds = draw(st.lists(st.sampled_from("gro"), min_size=len(pairs), max_size=len(pairs)))
    shape = tuple(a * b for a, b in pairs)
    each = zip(shape, pairs, kinds, strict=True)
    return shape, tuple({"g": n, "r": 1, "o": a}[kind] for n, (a, _), kind in each)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A structure of the one leaf there is, by its `counts`."""

    counts: tuple[int, ...]

    def resolve(self, params):
        return [LeafGroups(path, leaf.shape, self.counts) for path, leaf in leaf_paths(params)]


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(leaves(), st.booleans(), st.sampled_from(["tpu", "gpu"]))
def test_any_leaf_is_the_xla_form(leaf, lean, platform):
    shape, counts = leaf
    params = {"x": jnp.sin(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape)}
    outs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "INTERPRETED", platform)
        for kernel in ("pallas", "xla"):
            tx = transformation(kernel, structure=Cut(counts), lam=0.05, momentum=0.9, lean=lean)
            outs.append(runner(tx, 3)(params)[:2])
    assert_trees_close(*outs, 3e-6)
