"""Channel groups of whole networks: the expected table, and equality of cut and masked ones."""

import functools
import json
import re

import big_networks
import jax
import jax.numpy as jnp
import networks_equinox
import networks_linen
import networks_nnx
import networks_plain
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from dessilbi_jax.dependency import Reason

MODULES = {
    "nnx": networks_nnx,
    "linen": networks_linen,
    "equinox": networks_equinox,
    "plain": networks_plain,
}
NAMES = [(kind, name) for kind, module in MODULES.items() for name in module.CASES]


def case_of(kind, name):
    return MODULES[kind].CASES[name]()


@functools.cache
def traced(kind, name):
    case = case_of(kind, name)
    return dl.channel_groups(case.fn, case.params, *case.inputs)


@pytest.fixture(params=NAMES, ids="-".join)
def key(request):
    return request.param


def test_expected_axes_are_removable(key):
    case, groups = case_of(*key), traced(*key)
    found = {}
    for path, axis in case.expected:
        removable = groups.removable(path, axis)
        found[path, axis] = bool(removable.all()) if removable.all() or not removable.any() else "?"
    assert found == dict(case.expected)
    if case.units is not None:
        assert groups.count == case.units
    assert not groups.unknown


def random_choice(groups, rng):
    """Keeps each group by chance, and at least one of each layer's."""
    kept = rng.random(groups.count) < 0.6
    for each in groups.sets:
        if not kept[each.groups].any():
            kept[rng.choice(each.groups)] = True
    return kept


def flat(tree):
    """All numbers of a tree as one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def outputs_and_gradients(fn, params, inputs):
    """The network's outputs, and the gradients of a loss of theirs."""

    def loss(params):
        out = fn(params, *inputs)
        return jnp.mean((out - jnp.sin(jnp.arange(out.size)).reshape(out.shape)) ** 2), out

    grads, out = jax.grad(loss, has_aux=True)(params)
    return out, grads


@jax.jit
def _stepped(params, grads, trace, mu, nu):
    by_sgd, _ = optax.trace(0.9).update(grads, optax.TraceState(trace))
    state = optax.ScaleByAdamState(jnp.int32(3), mu, nu)
    by_adam, _ = optax.scale_by_adam().update(grads, state)
    return params - 0.01 * by_sgd, params - 0.01 * by_adam


def stepped(*vectors):
    """Parameters after one more step of SGD with momentum and of Adam, compiled once for all."""
    size = len(vectors[0])
    padded = [np.pad(v, (0, -size % 8192), constant_values=1) for v in vectors]
    return [np.asarray(v)[:size] for v in _stepped(*padded)]


@functools.cache
def fast_options():
    """Compiler options to compile quickly; compiling is what these tests' time goes into."""
    fast = {"xla_backend_optimization_level": 0}
    try:
        fewer = fast | {"xla_cpu_use_fusion_emitters": False}
        jax.jit(lambda: 0).lower().compile(compiler_options=fewer)
    except jax.errors.JaxRuntimeError:  # an option that other versions do not have
        return fast
    return fewer


def small_network(case, plan, small):
    """The smaller network's function and parameters: what `dl.slim` makes of a module."""
    if case.model is None:
        return (case.fn if case.rebuild is None else case.rebuild(small)), small
    cut = dl.slim(case.model, plan, *case.inputs, fn=case.call, check=False)
    fn, params = case.split(cut.model)
    return fn, jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(small))


def assert_close(got, wanted, what):
    scale = max(float(np.abs(wanted).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=what)


@pytest.mark.slow
def test_cut_network_is_the_masked_one(key):
    """Outputs, gradients of what is kept, and one more step of two optimizers."""
    case, groups = case_of(*key), traced(*key)
    rng = np.random.default_rng(sum(map(ord, "".join(key))))
    kept = random_choice(groups, rng)
    masks = dl.channels(groups).masks(case.params, kept)
    assert (groups.kept(masks) == kept).all()
    plan = groups.plan(masks)
    assert bool(plan.keep) == (not kept.all())

    masked = jax.tree.map(np.multiply, case.params, plan.mask(case.params))
    leaves, treedef = jax.tree.flatten(case.params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    places = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
    places = jax.tree.unflatten(
        treedef, [n.reshape(leaf.shape) for n, leaf in zip(places, leaves, strict=True)]
    )

    @functools.partial(jax.jit, compiler_options=fast_options())
    def on_masked(params, places):
        return *outputs_and_gradients(case.fn, params, case.inputs), plan.apply(places)

    wanted, grads, places = on_masked(masked, places)
    stay = flat(places)  # where in the vector of all numbers those of the smaller network are
    assert groups.params(masks) == len(stay)
    assert len(stay) < groups.params() or kept.all()
    small = jax.tree.map(lambda n: flat(masked)[np.asarray(n)], places)
    fn, small = small_network(case, plan, small)
    on_small = jax.jit(
        functools.partial(outputs_and_gradients, fn), compiler_options=fast_options()
    )
    got, small_grads = on_small(small, case.inputs)
    assert_close(got, wanted, "outputs")
    assert_close(flat(small_grads), flat(grads)[stay], "gradients")
    trace, mu, nu = rng.normal(size=(3, len(flat(grads)))).astype(np.float32)
    state = (trace, mu, 0.1 + nu * nu)
    for what, a, b in zip(
        ("SGD", "Adam"),
        stepped(flat(small), flat(small_grads), *(v[stay] for v in state)),
        stepped(flat(masked), flat(grads), *state),
        strict=True,
    ):
        assert_close(a, b[stay], what)
    assert np.abs(wanted).max() > 0.01  # a network that says nothing proves nothing
    assert np.abs(flat(grads)).max() > 1e-4


@pytest.mark.parametrize("primitive", networks_plain.STOPPED)
def test_what_cannot_be_followed_is_reported(primitive):
    case = networks_plain.STOPPED[primitive]()
    groups = dl.channel_groups(case.fn, case.params, *case.inputs)
    found = {place: bool(groups.removable(*place).any()) for place in case.expected}
    assert found == dict(case.expected)
    function = getattr(networks_plain, f"over_{primitive.removeprefix('pure_')}")
    line = function.__code__.co_firstlineno + 1
    told = str(groups)
    assert re.search(rf"first/kernel axis 1: .*networks_plain\.py:{line}\b", told), told
    if primitive == "pure_callback":
        assert re.search(rf"not followed:\n.*{primitive} at networks_plain\.py:{line}\b", told)


def simple():
    case = networks_plain.CASES["checkpoint"]()
    return case, traced("plain", "checkpoint")


def test_inputs_and_outputs_stay():
    case, groups = simple()
    masks = {path: np.ones(shape, bool) for path, shape in groups.shapes.items()}
    masks["first/kernel"][:3] = False  # all that reads three of the inputs
    masks["head/kernel"][:, 1] = masks["head/bias"][1] = False  # all that makes an output
    masks["second/kernel"][:, 2] = masks["second/bias"][2] = False
    plan = groups.plan(masks)
    small = plan.apply(case.params)
    assert small["first"]["kernel"].shape == (8, 6)
    assert small["second"]["kernel"].shape == (6, 6)
    assert small["head"]["kernel"].shape == (6, networks_plain.CLASSES)


def test_a_layer_without_channels_is_refused():
    _, groups = simple()
    masks = {"first/kernel": np.zeros((8, 6), bool), "first/bias": np.zeros(6, bool)}
    with pytest.raises(ValueError, match="first/kernel"):
        groups.plan(masks)


@pytest.mark.parametrize(
    ("path", "mask", "message"),
    [
        ("second/kernel", np.ones((6, 7), np.float32), "second/kernel"),
        ("second/kernel", np.ones((6, 8), bool), "second/kernel"),
        ("third/kernel", np.ones((6, 7), bool), "third/kernel"),
    ],
)
def test_masks_that_do_not_fit(path, mask, message):
    _, groups = simple()
    with pytest.raises(ValueError, match=message):
        groups.plan({path: mask})


KEEP = {
    "out of range": ({1: (0, 7)}, "7"),
    "negative": ({1: (-1, 2)}, "-1"),
    "twice": ({1: (0, 2, 2)}, "2"),
    "no such axis": ({2: (0,)}, "axis 2"),
    "nothing": ({1: ()}, "nothing"),
}


@pytest.mark.parametrize("name", KEEP)
def test_hand_edited_plans(name):
    """Made in Python or read from JSON, a plan with wrong indices names the leaf."""
    _, groups = simple()
    keep, told = KEEP[name]
    value = json.loads(json.dumps(groups.plan(None).to_json()))
    value["leaves"]["second/kernel"]["keep"] = {str(a): list(k) for a, k in keep.items()}
    for make in (lambda: dl.Plan(groups.shapes, {"second/kernel": keep}),
                 lambda: dl.Plan.from_json(value)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{told}.*second/kernel|second/kernel.*{told}"):
            make()


def test_plan_survives_json(tmp_path):
    case, groups = simple()
    masks = {"second/kernel": np.ones((6, 7), bool)}
    masks["second/kernel"][:, 2] = False
    plan = groups.plan(masks)
    plan.save(tmp_path / "plan.json")
    assert dl.Plan.load(tmp_path / "plan.json") == plan
    assert plan.apply(case.params)["second"]["bias"].shape == (6,)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_plan_for_another_architecture():
    case, groups = simple()
    plan = groups.plan(None)
    other = {**case.params, "second": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}}
    for use in (plan.apply, plan.mask):
        with pytest.raises(ValueError, match=r"second/(bias|kernel)"):
            use(other)
        with pytest.raises(ValueError, match="third"):
            use({**case.params, "third": jnp.ones(3)})


def with_side_effect(p, x):
    jax.debug.print("{}", x.sum())
    return x @ p["first"]["kernel"]


NOT_PURE = {
    "value in Python": lambda p, x: x if x.sum() > 0 else x @ p["first"]["kernel"],
    "shape by value": lambda p, x: x[x > 0],
    "side effect": with_side_effect,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_PURE)
def test_functions_that_cannot_be_traced(name):
    case, _ = simple()
    with pytest.raises(TypeError, match=r"pure function|side effects"):
        dl.channel_groups(NOT_PURE[name], case.params, *case.inputs)


def test_example_input_that_does_not_fit():
    case, _ = simple()
    with pytest.raises(TypeError, match=r"\(4, 9\)"):
        dl.channel_groups(case.fn, case.params, jnp.ones((4, 9)))


def test_shapes_are_enough():
    """Tracing needs neither the parameters' values nor the inputs'."""
    case, groups = simple()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), case.params)
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in case.inputs]
    again = dl.channel_groups(case.fn, shapes, *inputs)
    assert str(again) == str(groups)


def test_ignored_channels_stay():
    case = networks_plain.CASES["resnet"]()
    groups = dl.channel_groups(case.fn, case.params, *case.inputs, ignore=["^stem"])
    assert groups.count == 36 - 8
    assert not groups.removable("conv1b/kernel", 3).any()  # added to the stem's channels
    assert groups.removable("conv1b/kernel", 2).all()
    with pytest.raises(ValueError, match="steam"):
        dl.channel_groups(case.fn, case.params, *case.inputs, ignore=["steam"])


def test_rounded_widths():
    case, groups = networks_plain.CASES["resnet"](), traced("plain", "resnet")
    kept = np.random.default_rng(0).random(groups.count) < 0.4
    for each in groups.sets:
        kept[each.groups[0]] = True
    masks = dl.channels(groups).masks(case.params, kept)
    exact, rounded = groups.plan(masks), groups.plan(masks, round_to=4)
    for each in groups.sets:
        path, axis, *_ = each.members[0]
        small, wide = exact.shape(path)[axis], rounded.shape(path)[axis]
        assert wide == min(-(-small // 4) * 4, len(each.groups))
        kept_of = [plan.keep.get(path, {}).get(axis, range(99)) for plan in (exact, rounded)]
        assert set(kept_of[0]) <= set(kept_of[1]) or wide == len(each.groups)


@pytest.mark.slow
def test_flops_are_those_of_the_cut_network():
    """Counted under masks, and counted for the network that was cut: the same number."""
    for kind, name in (("plain", "mobilenet"), ("plain", "transformer"), ("plain", "densenet")):
        case, groups = case_of(kind, name), traced(kind, name)
        kept = random_choice(groups, np.random.default_rng(2))
        masks = dl.channels(groups).masks(case.params, kept)
        small = groups.plan(masks).apply(case.params)
        again = dl.channel_groups(case.fn, small, *case.inputs)
        assert groups.flops(masks) == again.flops() < groups.flops()
        assert groups.params(masks) == again.params()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "units"),
    [
        # stem; each stage two inner widths a block and the stream: 64, 2·3·64 + 256, …
        (big_networks.resnet50, 64 + 640 + 1536 + 4096 + 5120),
        # in each of 12 layers: heads, and hidden units
        (big_networks.transformer, 12 * (12 + 3072)),
    ],
)
def test_networks_of_the_usual_size(build, units):
    fn, params, inputs = build()
    groups = dl.channel_groups(fn, params, *inputs)
    assert groups.count == units
    assert not groups.unknown


def test_reasons_are_told_apart_by_identity_and_print_as_sentences():
    """What a reason means is `reason`; the sentence, with its line, is for the reader alone."""
    case, groups = simple()
    assert groups.reasons["first/kernel", 0] == Reason.INPUT.at()
    assert groups.reasons["head/kernel", 1].reason is Reason.OUTPUT
    assert "head/bias axis 0: an output of the network" in str(groups)
    dense = {leaf.path: leaf.reason for leaf in dl.channels(groups).resolve(case.params)}
    assert dense["head/kernel"] == "an output of the network"
    stopped = networks_plain.STOPPED["pure_callback"]()
    found = dl.channel_groups(stopped.fn, stopped.params, *stopped.inputs)
    why = next(w for w in found.reasons.values() if w.reason is Reason.NOT_FOLLOWED)
    assert why.details[0] == "pure_callback"
    assert str(why).startswith(
        "goes into pure_callback, which is not followed, at networks_plain.py:"
    )
