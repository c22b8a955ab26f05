"""The trajectories of the authors' code and of the paper's equations; see reference/README.md."""

import functools
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax.tree import leaf_paths

HERE = pathlib.Path(__file__).parents[1] / "reference"
COUPLED = ("conv1/weight", "fc/weight")
# conv1 by output filter, fc by single weight; head.weight stays dense.
FILTERS = [(r"^(conv1|fc)/weight$", dl.filters)]
# The same groups, by the axes that index them in PyTorch's layout.
AXES = [(r"^conv1/weight$", (0,)), (r"^fc/weight$", (0, 1))]


def paper(lr, kappa, nu, lam=1.0, structure=FILTERS, variant="paper", **options):
    """The paper's α is `learning_rate / kappa`."""
    options |= {"variant": variant}
    return lambda lean: dl.dessilbi(lr * kappa, kappa, nu, lam, structure, lean=lean, **options)


def toolbox(lr, kappa, mu, **options):
    return paper(lr, kappa, mu, structure=AXES, variant="toolbox", **options)


def lottery(lr, nu, structure):
    """The authors' two lottery programs: every leaf decays but the biases, Nesterov momentum."""

    def not_bias(params):
        return jax.tree_util.tree_map_with_path(lambda keys, _: keys[-1].key != "bias", params)

    return lambda lean: optax.chain(
        optax.add_decayed_weights(0.001, mask=not_bias),
        optax.trace(0.9, nesterov=True),
        dl.add_split_lbi(lr, nu=nu, structure=structure, lean=lean),
        optax.scale_by_learning_rate(lr),
    )


def freezing(count):
    """Whether the step after `count` updates is one that froze in the reference."""
    return jnp.asarray(load("toolbox_freeze")["mode"] == 1)[count]


by_size = dl.group_lasso(sqrt_size=True)
TRAJECTORIES = {
    "toolbox_naive": toolbox(0.1, 1.0, 5.0),
    "toolbox_momentum": toolbox(0.1, 1.0, 10.0, momentum=0.9),
    "toolbox_momentum_wd": toolbox(0.05, 2.0, 6.0, momentum=0.9, weight_decay=1e-4),
    "toolbox_large_kappa": toolbox(0.1, 5.0, 20.0, momentum=0.9),
    "toolbox_freeze": toolbox(0.1, 1.5, 7.0, momentum=0.9, weight_decay=1e-3, freeze=freezing),
    "paper_naive": paper(0.1, 1.0, 5.0),
    "paper_mom": paper(0.1, 1.0, 10.0, momentum=0.9),
    "paper_momwd": paper(0.1, 1.0, 8.0, momentum=0.9, weight_decay=1e-4),
    "paper_nesterov": paper(0.1, 1.0, 12.0, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "paper_lasso_lambda": paper(
        0.1, 1.0, 100.0, 0.05, dl.weights, momentum=0.9, nesterov=True, weight_decay=1e-4
    ),
    "paper_group_lambda_kappa": paper(0.02, 5.0, 20.0, 0.1, momentum=0.9, weight_decay=1e-4),
    "variant_lottery_group": lottery(
        0.1,
        20.0,
        [
            ("conv1/weight", dl.filters, {"lam": 0.1, "penalty": by_size}),
            ("fc/weight", dl.weights, {"lam": 1.0}),
        ],
    ),
    "variant_lottery_lasso": lottery(
        0.1, 100.0, [("(conv1|fc)/weight", dl.weights, {"lam": 0.05})]
    ),
}
TOLERANCE = {"f64": 1e-10, "f32": 1e-5}


class Run(NamedTuple):
    """What one run went through: arrays by leaf path, first axis the step, 0 = the start."""

    w: dict[str, np.ndarray]
    v: dict[str, np.ndarray]
    gamma: dict[str, np.ndarray]
    support: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray]  # at the end only


@functools.cache
def load(name):
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return {key.replace(".", "/"): file[key] for key in file.files}


def nested(flat):
    tree = {}
    for path, value in flat.items():
        module, leaf = path.split("/")
        tree.setdefault(module, {})[leaf] = value
    return tree


def flat(tree):
    return {f"{m}/{n}": np.asarray(x) for m, leaves in tree.items() for n, x in leaves.items()}


def enable_x64(precision):
    return jax.enable_x64(precision == "f64")


@functools.cache
def run(name, precision):
    """The whole trajectory, Γ stored and lean: two `Run`s."""
    return follow(load(name), [TRAJECTORIES[name](lean) for lean in (False, True)], precision)


def follow(data, transformations, precision):
    """What each transformation makes of the reference's start and gradients.

    The float32 runs compile in the form for a single CPU device, the float64 runs in that for
    several, which is what the tests have.
    """
    with enable_x64(precision), pytest.MonkeyPatch.context() as patch:
        patch.setattr("dessilbi_jax.optimizer.write_order.matters", lambda _: precision == "f32")
        dtype = jnp.float64 if precision == "f64" else jnp.float32
        start, grads = (
            nested(
                {
                    k[len(begin) :]: jnp.asarray(v, dtype)
                    for k, v in data.items()
                    if k.startswith(begin)
                }
            )
            for begin in ("f64_W_", "grad_")
        )
        start = jax.tree.map(lambda w: w[0], start)

        def observe(params, state):
            core = dl.get_state(state)
            return params, core.v, dl.gamma(state), dl.support(state)

        def step(carry, grad):
            out = []
            for tx, (params, state) in zip(transformations, carry, strict=True):
                updates, state = tx.update(grad, state, params)
                out.append((optax.apply_updates(params, updates), state))
            return out, [observe(*each) for each in out]

        first = [(start, tx.init(start)) for tx in transformations]
        last, seen = jax.jit(lambda grads: jax.lax.scan(step, first, grads))(grads)
        runs = []
        for before, (_, state), after in zip(first, last, seen, strict=True):
            columns = jax.tree.map(
                lambda a, b: np.concatenate([np.asarray(a)[None], b]), observe(*before), after
            )
            traces = [m for m in jax.tree.leaves(state, is_leaf=is_trace) if is_trace(m)]
            momentum = flat(traces[0].trace) if traces else {}
            runs.append(Run(*map(flat, columns), momentum))
    return runs


def is_trace(x):
    return isinstance(x, optax.TraceState)


def deviation(got, expected):
    """Largest difference, relative to the largest magnitude of the expected array."""
    assert got.shape == expected.shape
    return np.max(np.abs(got - expected)) / max(np.max(np.abs(expected)), 1e-300)


@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory(name, precision, lean):
    data, got = load(name), run(name, precision)[lean]
    # Where the reference has no float32 run, ours is held to its float64 run.
    source = precision if f"{precision}_W_fc/weight" in data else "f64"
    compared = 0
    for key, expected in data.items():
        match = re.fullmatch(f"{source}_(W|V|Gamma|momentum)_(.*)", key)
        if match is None:
            continue
        quantity, path = match.groups()
        if quantity == "momentum":
            actual = got.momentum[path]
        else:
            actual = {"W": got.w, "V": got.v, "Gamma": got.gamma}[quantity][path][data["steps"]]
        assert actual.dtype == (np.float64 if precision == "f64" else np.float32), key
        assert deviation(actual, expected) < TOLERANCE[precision], key
        compared += 1
    leaves = len(got.w)
    assert compared == leaves + 2 * len(COUPLED) + len(got.momentum)
    assert len(got.momentum) == (0 if "naive" in name else leaves)


@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_supports_are_identical_at_every_step(name, precision, lean):
    data, got = load(name), run(name, precision)[lean]
    for path, support in got.support.items():
        if path not in COUPLED:
            assert support.all()
            assert got.v[path].dtype == bool  # dense: no V, a byte an element at most
            continue
        packed = data[f"support_{path}"]
        size = support[0].size
        expected = np.unpackbits(packed, axis=1, count=size).astype(bool).reshape(support.shape)
        np.testing.assert_array_equal(support, expected, err_msg=path)
        np.testing.assert_array_equal(got.gamma[path] != 0, expected, err_msg=path)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_trajectories_open_groups_and_leave_zeros_closed(name):
    """The comparison above would be empty if Γ never opened, or if it opened everywhere."""
    full = run(name, "f64")[0]
    for path in COUPLED:
        support = full.support[path]
        ever = support.any(axis=0)
        assert not support[0].any()
        assert 0 < ever.sum() < ever.size
        assert len(np.unique(support.argmax(axis=0)[ever])) > 1  # entered at different steps
    assert (full.gamma["conv1/weight"][:, 2] == 0).all()  # a filter of zeros, never NaN
    assert (full.gamma["fc/weight"][:, 1, 3] == 0).all()


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_lean_agrees_with_stored_gamma(name, precision):
    full, lean = run(name, precision)
    tolerance = 1e-14 if precision == "f64" else 1e-6
    for path in COUPLED:
        for a, b in ((full.w, lean.w), (full.v, lean.v), (full.gamma, lean.gamma)):
            assert deviation(b[path], a[path]) < tolerance


# What each variant must not be: every wrong reading moves W far beyond the tolerances above.
WRONG = {
    "coupling outside the momentum": (
        "paper_mom",
        paper(0.1, 1.0, 10.0, momentum=0.9, variant="toolbox"),
    ),
    "coupling inside the momentum": (
        "toolbox_momentum",
        paper(0.1, 1.0, 10.0, momentum=0.9),
    ),
    "decay outside the momentum": (
        "toolbox_momentum_wd",
        lambda lean: optax.chain(
            optax.trace(0.9),
            optax.add_decayed_weights(1e-4, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            dl.add_split_lbi(0.1, 2.0, 6.0, 1.0, AXES, lean),
            optax.scale_by_learning_rate(0.1),
        ),
    ),
    "nothing frozen": (
        "toolbox_freeze",
        toolbox(0.1, 1.5, 7.0, momentum=0.9, weight_decay=1e-3),
    ),
    "frozen throughout": (
        "toolbox_freeze",
        toolbox(0.1, 1.5, 7.0, momentum=0.9, weight_decay=1e-3, freeze=True),
    ),
    "groups by input channel": (
        "toolbox_naive",
        paper(0.1, 1.0, 5.0, structure=[("conv1/weight", (1,)), ("fc/weight", (0, 1))]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_the_references_separate_the_variants(wrong):
    name, transformation = WRONG[wrong]
    data = load(name)
    (got,) = follow(data, [transformation(False)], "f64")
    worst = max(deviation(got.w[path][data["steps"]], data[f"f64_W_{path}"]) for path in COUPLED)
    assert worst > 1e-4


class LeNet(nnx.Module):
    """The network of reference/README.md in Flax's layouts: NHWC images, HWIO kernels."""

    def __init__(self, dtype, rngs):
        same = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        # At full precision also where the machine's default is a lower one.
        same["precision"] = jax.lax.Precision.HIGHEST
        self.conv1 = nnx.Conv(1, 4, (3, 3), padding="VALID", **same)
        self.conv2 = nnx.Conv(4, 6, (2, 2), padding="VALID", **same)
        self.fc1 = nnx.Linear(24, 10, **same)
        self.fc2 = nnx.Linear(10, 5, **same)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        x = nnx.relu(self.fc1(x.reshape(len(x), -1)))
        return jax.nn.log_softmax(self.fc2(x))


def to_flax(path, array):
    """A weight from PyTorch's layout to Flax's: OIHW to HWIO, (outputs, inputs) transposed."""
    if path == "fc1/weight":  # inputs flattened from (channel, height, width), here (h, w, c)
        return array.reshape(10, 6, 2, 2).transpose(2, 3, 1, 0).reshape(24, 10)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


@functools.cache
def lenet_run(precision, lean):
    data = load("toolbox_lenet_autodiff")
    with enable_x64(precision):
        dtype = jnp.float64 if precision == "f64" else jnp.float32
        graph, blank = nnx.split(nnx.eval_shape(lambda: LeNet(dtype, nnx.Rngs(0))))
        names = [torch_leaf(path) for path, _ in leaf_paths(blank)]
        start = [jnp.asarray(to_flax(name, data[f"W0_{name}"]), dtype) for name in names]
        params = jax.tree.unflatten(jax.tree.structure(blank), start)
        images = jnp.asarray(data["X"].transpose(0, 2, 3, 1), dtype)
        labels = jnp.asarray(data["y"])
        tx = dl.dessilbi(
            0.05, nu=0.6, lam=1.0, momentum=0.9, weight_decay=1e-4, variant="toolbox", lean=lean
        )

        def loss(params):
            logp = nnx.merge(graph, params)(images)
            return -jnp.mean(jnp.take_along_axis(logp, labels[:, None], axis=1)), logp

        @jax.jit
        def step(params, state):
            (value, logp), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            seen = {"loss": value, "logp0": logp, "grad0": grads, "W": params}
            seen |= {"Gamma": dl.gamma(state), "V": dl.get_state(state).v}
            seen |= {"M": optax.tree.get(state, "trace"), "support": dl.support(state)}
            return params, state, seen

        # One more step than is compared: its loss is the one after the last.
        state = jax.jit(tx.init)(params)
        steps = []
        for _ in range(31):
            params, state, seen = step(params, state)
            steps.append(jax.tree.map(np.asarray, seen))
    trees = ("W", "V", "Gamma", "M", "grad0", "support")
    return [
        {k: dict(leaf_paths(x)) if k in trees else x for k, x in seen.items()} for seen in steps
    ]


def torch_leaf(path):
    return path.replace("kernel", "weight")


def residue(step):
    pairs = [(step["W"][path], step["Gamma"][path]) for path in KERNELS]
    return sum(np.sum((w - gamma) ** 2) for w, gamma in pairs) / (2 * 0.6)


def selected(support):
    """Number of filters of a convolution, each selected whole or not at all, or of weights."""
    if support.ndim == 2:
        return support.sum()
    assert (support.any(axis=(0, 1, 2)) == support.all(axis=(0, 1, 2))).all()
    return support.all(axis=(0, 1, 2)).sum()


KERNELS = ("conv1/kernel", "conv2/kernel", "fc1/kernel", "fc2/kernel")


@pytest.mark.slow
@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_lenet_with_real_gradients(precision, lean):
    """A Flax network, its own gradients, `dl.filters` on HWIO kernels."""
    data, run = load("toolbox_lenet_autodiff"), lenet_run(precision, lean)
    first, last = run[0], run[29]
    curves = {
        "loss": np.array([step["loss"] for step in run[:30]]),
        "final_loss": run[30]["loss"],
        "residue": np.array([residue(step) for step in run[:30]]),
        "logp0": first["logp0"],
    }
    tolerance = {"f64": 1e-9, "f32": 1e-4}[precision]
    compared = 0
    for key, expected in data.items():
        if not key.startswith(f"{precision}_"):
            continue
        quantity, _, name = key[4:].partition("_")
        path = name.replace("weight", "kernel")
        if key[4:] in curves:
            assert deviation(curves[key[4:]], expected) < tolerance, key
        elif quantity == "selected":
            counts = [selected(step["support"][path]) for step in run[:30]]
            np.testing.assert_array_equal(counts, expected, err_msg=key)
        else:
            actual = (first if quantity == "grad0" else last)[quantity][path]
            assert actual.dtype == expected.dtype
            assert deviation(actual, to_flax(name, expected)) < tolerance, key
        compared += 1
    # The curves; the selected counts; W, M and the first gradient; V and Γ.
    assert compared == len(curves) + 4 + 3 * 8 + 2 * 4
    assert [selected(last["support"][path]) for path in KERNELS] == [3, 4, 3, 5]
