"""The toolbox's services: its prune orders to the digit, and what its own versions lack."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dessilbi_jax as dl
from dessilbi_jax import toolbox

FILE = pathlib.Path(__file__).parents[1] / "reference" / "toolbox_prune_order.npz"
LEAVES = {"conv1/weight": (6, 1, 1, 1), "fc/weight": (5, 8)}


@functools.cache
def reference():
    with np.load(FILE, allow_pickle=False) as data:
        return {name.replace(".", "/"): data[name] for name in data.files}


def nested(flat):
    tree = {}
    for path, value in flat.items():
        module, leaf = path.split("/")
        tree.setdefault(module, {})[leaf] = value
    return tree


@functools.cache
def run(precision):
    """W and the path at the end of each epoch of the toolbox's own run."""
    data = reference()
    with jax.enable_x64(precision == "f64"):
        dtype = jnp.float64 if precision == "f64" else jnp.float32
        start, grads = (
            nested({k[len(b) :]: jnp.asarray(v, dtype) for k, v in data.items() if k.startswith(b)})
            for b in ("W0_", "grad_")
        )
        structure = [(r"conv1/weight$", (0,)), (r"fc/weight$", (0, 1))]
        tx = dl.dessilbi(
            0.1, 1.0, 8.0, 1.0, structure, variant="toolbox", momentum=0.9, weight_decay=1e-4
        )

        @jax.jit
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params, state, path, epochs = start, tx.init(start), dl.SolutionPath(), []
        for t in range(60):
            params, state = step(params, state, jax.tree.map(lambda g, t=t: g[t], grads))
            if (t + 1) % 10 == 0:
                path.record(t + 1, state)
                orders = [
                    toolbox.prune_order(params, path),
                    toolbox.prune_order(params, path, **EPOCH),
                ]
                epochs.append((jax.tree.map(np.asarray, params), orders))
    return epochs


EPOCH = {"steps_per_epoch": 10}


@pytest.mark.parametrize(("precision", "atol"), [("f64", 1e-10), ("f32", 3e-4)])
def test_prune_orders_are_those_of_the_toolbox(precision, atol):
    never = set()
    for epoch, (_, orders) in enumerate(run(precision)):
        for order in orders:
            assert {p: o.shape for p, o in order.items()} == LEAVES
            for path, values in order.items():
                expected = reference()[f"{precision}_prune_order_{path}"][epoch]
                np.testing.assert_allclose(
                    values.reshape(expected.shape), expected, rtol=0, atol=atol
                )
                assert values.dtype == np.float64
                never.update((expected < -1000).ravel().tolist())
    assert never == {False, True}


def test_prune_orders_from_entry_epochs():
    data = reference()
    for epoch in range(6):
        params = nested({p: data[f"f64_epochW_{p}"][epoch] for p in LEAVES})
        record = {p: data[f"f64_epoch_record_{p}"][epoch] for p in LEAVES}
        entry = {p: np.where(r == 2000, -1, r) for p, r in record.items()}
        entry["conv1/weight"] = record["conv1/weight"].min(axis=(1, 2, 3), keepdims=True)
        for path, values in toolbox.prune_order(params, entry).items():
            expected = data[f"f64_prune_order_{path}"][epoch]
            np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("percent", [30, 60, 90])
@pytest.mark.parametrize("epoch", [2, 5])
def test_pruning_leaves_what_the_toolbox_leaves(epoch, percent):
    data, (params, (order, _)) = reference(), run("f64")[epoch]
    begin = f"f64_e{epoch}_p{percent}_"
    before = jax.tree.map(np.copy, params)
    for layer in ("conv1", "fc"):
        with jax.enable_x64(True):
            trees = toolbox.prune_by_percent(params, order, percent, [layer])
            pruned, mask = jax.tree.map(np.asarray, trees)
        path = f"{layer}/weight"
        threshold = np.percentile(order[path], percent)
        assert threshold == pytest.approx(float(data[f"{begin}threshold_{path}"]), abs=1e-10)
        for name in ("weight", "bias"):
            expected = data[f"{begin}W_{layer}/{name}"]
            np.testing.assert_allclose(pruned[layer][name], expected, rtol=0, atol=1e-10)
            np.testing.assert_array_equal(pruned[layer][name] == 0, expected == 0)
            np.testing.assert_array_equal(~mask[layer][name] & (expected != 0), False)
        other = "fc" if layer == "conv1" else "conv1"
        assert mask[other]["weight"].all()
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)  # nothing given is changed


def kernels(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(2, 2, 3, 4))), "bias": jnp.ones(4)},
        "fc": {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.ones(4)},
    }


def test_percentages_by_layer_and_biases():
    params = kernels()
    entry = {"conv/kernel": -np.ones((1, 1, 1, 4)), "fc/kernel": np.zeros((3, 4))}
    order = toolbox.prune_order(params, entry)
    pruned, mask = toolbox.prune_by_percent(
        params, order, {"conv": 50, "fc/kernel": 25}, ("conv", "fc/kernel")
    )
    assert int(mask["conv"]["kernel"].any(axis=(0, 1, 2)).sum()) == 2
    np.testing.assert_array_equal(mask["conv"]["bias"], mask["conv"]["kernel"].all(axis=(0, 1, 2)))
    assert int(mask["fc"]["kernel"].sum()) == 9
    assert mask["fc"]["bias"].all()  # single weights leave the biases alone
    np.testing.assert_array_equal(pruned["conv"]["bias"], mask["conv"]["bias"])
    _, mask = toolbox.prune_by_percent(params, order, 50, biases=False)
    assert mask["conv"]["bias"].all()
    assert int(mask["fc"]["kernel"].sum()) == 6
    # Input channels empty no output: as many as there are outputs or not, no bias goes.
    square = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    _, mask = toolbox.prune_by_percent(
        square, {"kernel": np.arange(4.0).reshape(4, 1)}, 50, "kernel"
    )
    assert mask["bias"].all()
    assert mask["kernel"].all(axis=1).tolist() == [False, False, True, True]


def test_errors_of_orders_and_pruning():
    params = kernels()
    order = {"conv/kernel": np.arange(4.0).reshape(1, 1, 1, 4), "fc/kernel": np.zeros((3, 4))}
    with pytest.raises(ValueError, match="layer 'con' is none of conv/kernel, fc/kernel"):
        toolbox.prune_by_percent(params, order, 50, "con")
    with pytest.raises(ValueError, match="layer 'a' could be a/v, a/w"):
        toolbox.prune_by_percent(params, {"a/v": 0, "a/w": 0}, 50, "a")
    with pytest.raises(ValueError, match=r"percent must lie in \[0, 100\], got 101 for conv"):
        toolbox.prune_by_percent(params, order, 101, "conv")
    with pytest.raises(ValueError, match="percent gives no number for conv; it has fc"):
        toolbox.prune_by_percent(params, order, {"fc": 3}, "conv")
    with pytest.raises(ValueError, match="50 % would empty fc/kernel"):
        toolbox.prune_by_percent(params, order, 50, "fc")
    with pytest.raises(ValueError, match="the order names old/kernel, which the parameters lack"):
        toolbox.prune_by_percent(params, {"old/kernel": np.zeros(3)}, 50)
    with pytest.raises(ValueError, match=r"order of fc/kernel has shape \(2, 4\)"):
        toolbox.prune_by_percent(params, {"fc/kernel": np.zeros((2, 4))}, 50)
    with pytest.raises(ValueError, match="entries name old/kernel"):
        toolbox.prune_order(params, {"old/kernel": np.zeros(3)})
    for shape in ((4,), (1, 1, 1, 3), (0, 1, 1, 4)):
        with pytest.raises(ValueError, match="entries of conv/kernel have shape"):
            toolbox.prune_order(params, {"conv/kernel": np.zeros(shape)})
    with pytest.raises(ValueError, match="nothing has been recorded"):
        toolbox.prune_order(params, dl.SolutionPath())


def test_recover_brings_back_what_was_pruned():
    params = kernels()
    mask = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(1).random(p.shape) < 0.5), params
    )
    tuned = jax.tree.map(lambda p: 3 * p, dl.project(params, mask))
    back = toolbox.recover(tuned, params, mask)
    for b, p, m in zip(*map(jax.tree.leaves, (back, params, mask)), strict=True):
        np.testing.assert_array_equal(b, np.where(m, 3 * p, p))
    with pytest.raises(ValueError, match="does not fit fc/kernel"):
        toolbox.recover(
            tuned, {**params, "fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(4)}}, mask
        )


@given(seed=st.integers(0, 2**16), shape=st.sampled_from([(3, 4), (2, 2, 3, 4), (6,), (1, 5)]))
@settings(deadline=None, max_examples=40)
def test_what_is_extracted_can_be_put_back(seed, shape):
    rng = np.random.default_rng(seed)
    kept = rng.random(shape) < rng.random()
    if rng.random() < 0.5:  # whole outputs
        kept = np.broadcast_to(kept[(0,) * (len(shape) - 1)], shape)
    leaf = rng.normal(size=shape)
    values, indices = toolbox.extract({"w": leaf}, {"w": kept})["w"]
    assert values.size == kept.sum()
    back = np.zeros(shape)
    back[indices] = values
    np.testing.assert_array_equal(back, np.where(kept, leaf, 0))


def test_extracted_filters_keep_their_axes():
    params = kernels()
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    mask["conv"]["kernel"] = mask["conv"]["kernel"].at[..., 1].set(False).at[:, :, 2].set(False)
    out = toolbox.extract(params, mask)
    assert out["conv/kernel"].values.shape == (2, 2, 2, 3)
    assert out["fc/kernel"].values.shape == (3, 4)
    mask["fc"]["kernel"] = mask["fc"]["kernel"].at[0, 0].set(False)
    assert toolbox.extract(params, mask)["fc/kernel"].values.shape == (11,)


@pytest.mark.parametrize("name", ["kernel", "weight"])
@pytest.mark.parametrize("gone", [1, 5, 8], ids=["one", "some", "all"])
def test_new_filters_are_orthogonal_to_the_kept_ones(name, gone):
    rng = np.random.default_rng(gone)
    rows = rng.normal(size=(8, 12))
    shape = (8, 3, 2, 2) if name == "weight" else (2, 2, 3, 8)

    def leaf(rows):
        return jnp.asarray((rows if name == "weight" else rows.T).reshape(shape), jnp.float32)

    def flat(array):
        return (
            np.asarray(array).reshape(8, 12)
            if name == "weight"
            else np.asarray(array).reshape(12, 8).T
        )

    fresh = np.arange(8) < gone
    params = {"c": {name: leaf(rows), "bias": jnp.ones(8)}}
    mask = {"c": {name: leaf(np.repeat(~fresh[:, None], 12, 1)) > 0, "bias": jnp.ones(8, bool)}}
    new = toolbox.reinitialise(params, mask, jax.random.key(1))
    got = flat(new["c"][name])
    np.testing.assert_array_equal(got[~fresh], flat(params["c"][name])[~fresh])
    np.testing.assert_array_equal(new["c"]["bias"], 1)
    others = rows if gone == 8 else rows[~fresh]
    norm = np.linalg.norm(others, axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(got[fresh], axis=1), norm, rtol=1e-5)
    room = 12 - (8 - gone)
    assert room >= gone
    np.testing.assert_allclose(got[fresh] @ got[~fresh].T, 0, atol=1e-4)
    np.testing.assert_allclose(got[fresh] @ got[fresh].T, norm**2 * np.eye(gone), atol=1e-4)
    again = toolbox.reinitialise(params, mask, jax.random.key(2))
    assert (flat(again["c"][name])[fresh] != got[fresh]).all()


def test_new_filters_where_the_space_is_exhausted():
    """Eight filters of three numbers: one is free to be orthogonal to two kept, five are not."""
    rows = np.random.default_rng(0).normal(size=(8, 3))
    params, kept = {"kernel": jnp.asarray(rows.T)}, np.arange(8) < 2
    mask = {"kernel": jnp.broadcast_to(kept, (3, 8))}
    got = np.asarray(toolbox.reinitialise(params, mask, jax.random.key(0))["kernel"]).T
    np.testing.assert_allclose(got[2] @ got[:2].T, 0, atol=1e-6)
    norm = np.linalg.norm(rows[:2], axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(got[2:], axis=1), norm, rtol=1e-5)
    assert (np.abs(got[3:] @ got[:2].T) > 1e-3).any(axis=1).all()


def test_filters_kept_in_part_stay_and_complex_leaves_are_refused():
    params = {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}
    mask = {"kernel": jnp.array([[True, False, True], [False, False, True]])}
    new = toolbox.reinitialise(params, mask, jax.random.key(0))["kernel"]
    np.testing.assert_array_equal(new[:, [0, 2]], params["kernel"][:, [0, 2]])
    assert (new[:, 1] != params["kernel"][:, 1]).all()
    with pytest.raises(ValueError, match="kernel is complex"):
        toolbox.reinitialise({"kernel": params["kernel"] * 1j}, mask, jax.random.key(0))
