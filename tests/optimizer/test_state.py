"""Finding the state of DessiLBI, and reading Γ and its support from it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import QUICK, assert_trees_close, gradient, network, opened

import dessilbi_jax as dl

OPTIONS = {"nu": 1.0, "lam": 0.1, "structure": dl.weights}

NESTS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e3), optax.chain(tx)),
    "multi steps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply if finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject": lambda tx: optax.inject_hyperparams(
        lambda scale: optax.chain(optax.scale(scale), tx)
    )(scale=1.0),
    "partition": lambda tx: optax.partition(
        {"all": tx}, lambda p: jax.tree.map(lambda _: "all", p)
    ),
    "masked": lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda _: True, p)),
    "wrap": lambda tx: dl.wrap(optax.sgd(0.1), 0.1, **OPTIONS),
    "conditional": lambda tx: optax.transforms.conditionally_transform(tx, lambda step: True),
    "all of it": lambda tx: optax.apply_if_finite(
        optax.MultiSteps(
            optax.masked(optax.chain(tx), lambda p: jax.tree.map(lambda _: True, p)), 1
        ).gradient_transformation(),
        2,
    ),
}


@pytest.fixture(scope="module")
def expected():
    return _after_two_steps(dl.dessilbi(0.1, **OPTIONS))


def _after_two_steps(tx):
    params = network()
    state = tx.init(params)
    update = jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(2):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("nest", NESTS)
def test_found_wherever_it_is_nested(nest, expected):
    params, state = _after_two_steps(NESTS[nest](dl.dessilbi(0.1, **OPTIONS)))
    assert isinstance(dl.get_state(state), dl.SplitLBIState)
    assert int(dl.get_state(state).count) == 2
    assert_trees_close(dl.gamma(state), dl.gamma(expected[1]), 1e-6)
    chex.assert_trees_all_equal(dl.support(state, params), dl.support(expected[1]))
    assert 0.1 < opened(dl.support(state)["fc"]["kernel"]) < 0.9


def test_a_state_itself_will_do(expected):
    inner = dl.get_state(expected[1])
    assert dl.get_state(inner) is inner
    chex.assert_trees_all_equal(dl.gamma(inner), dl.gamma(expected[1]))


def test_supports_are_bool_and_dense_leaves_all_true(expected):
    params, state = expected
    mask = dl.support(state)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for leaf, p in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True):
        assert (leaf.shape, leaf.dtype) == (p.shape, bool)
    assert np.all(mask["conv"]["bias"])
    assert np.all(mask["fc"]["bias"])
    np.testing.assert_array_equal(mask["fc"]["kernel"], dl.gamma(state)["fc"]["kernel"] != 0)


def test_gamma_of_dense_leaves_is_the_parameters_where_given(expected):
    params, state = expected
    sparse = dl.gamma(state, params)
    np.testing.assert_array_equal(sparse["fc"]["bias"], params["fc"]["bias"])
    np.testing.assert_array_equal(sparse["fc"]["kernel"], dl.gamma(state)["fc"]["kernel"])
    without = dl.gamma(state)["fc"]["bias"]
    assert without.dtype == bool
    assert not np.any(without)


def test_reading_works_under_jit(expected):
    params, state = expected
    jitted = jax.jit(lambda s, p: (dl.gamma(s, p), dl.support(s, p)))(state, params)
    chex.assert_trees_all_equal(jitted, (dl.gamma(state, params), dl.support(state, params)))


def test_no_state_is_an_error_that_says_where_one_comes_from():
    with pytest.raises(ValueError, match=r"no SplitLBIState.*dl\.dessilbi"):
        dl.get_state(optax.adam(0.1).init(network()))
    with pytest.raises(ValueError, match="no SplitLBIState"):
        dl.support(())


def test_several_states_are_an_error_that_lists_them():
    tx = optax.chain(dl.add_split_lbi(0.1, **OPTIONS), dl.add_split_lbi(0.1, **OPTIONS))
    state = tx.init(network())
    with pytest.raises(ValueError, match=r"2 SplitLBIStates.*\[0\].*\[1\].*merge=True"):
        dl.gamma(state)
    assert dl.get_state(state[1]) is state[1]


def _partitioned(**options):
    """Convolutions and dense kernels under two transformations, biases under a third."""

    def labels(params):
        return {
            layer: {name: layer if name == "kernel" else "dense" for name in leaves}
            for layer, leaves in params.items()
        }

    parts = {
        "conv": dl.dessilbi(0.1, **OPTIONS, **options),
        "fc": dl.dessilbi(0.1, **OPTIONS, **options),
        "dense": optax.sgd(0.1),
    }
    return optax.partition(parts, labels)


@pytest.mark.parametrize("lean", [False, True])
def test_states_of_a_partition_merge_into_the_state_of_the_whole(lean, expected):
    params, state = _after_two_steps(_partitioned(lean=lean))
    assert_trees_close(params, expected[0])
    with pytest.raises(ValueError, match="merge=True"):
        dl.support(state, params)
    assert_trees_close(dl.gamma(state, params, merge=True), dl.gamma(expected[1], expected[0]))
    chex.assert_trees_all_equal(
        dl.support(state, params, merge=True), dl.support(expected[1], expected[0])
    )
    merged = dl.get_state(state, merge=True)
    assert_trees_close(merged.v["fc"]["kernel"], dl.get_state(expected[1]).v["fc"]["kernel"])


def test_hidden_leaves_need_the_parameters():
    params, state = _after_two_steps(_partitioned())
    for read in (dl.gamma, dl.support):
        with pytest.raises(ValueError, match="params="):
            read(state, merge=True)
    masks = dl.support(state, params, merge=True)
    assert np.all(masks["conv"]["bias"])
    assert masks["conv"]["bias"].shape == params["conv"]["bias"].shape
    sparse = dl.gamma(state, params, merge=True)
    np.testing.assert_array_equal(sparse["conv"]["bias"], params["conv"]["bias"])


def test_states_of_different_trees_do_not_merge():
    tx = dl.dessilbi(0.1, **OPTIONS)
    states = (tx.init(network()), tx.init({"kernel": jnp.ones((2, 2))}))
    with pytest.raises(ValueError, match="different parameter trees"):
        dl.get_state(states, merge=True)


def test_parameters_of_another_network_are_an_error(expected):
    with pytest.raises(ValueError, match=r"1 leaves.*4"):
        dl.gamma(expected[1], {"kernel": jnp.ones((2, 2))})


WRONG_STATES = {
    "another structure": (lambda: (dl.neurons, network()), "conv/kernel"),
    "another shape": (lambda: (dl.weights, network(out=8)), "fc"),
    "another tree": (lambda: (dl.weights, {"kernel": jnp.ones((2, 2))}), "does not fit"),
}


@pytest.mark.parametrize("which", WRONG_STATES)
@pytest.mark.parametrize("lean", [False, True])
def test_a_state_made_for_something_else_is_an_error(which, lean):
    made_for, message = WRONG_STATES[which]
    structure, params = made_for()
    state = dl.dessilbi(0.1, nu=1.0, lam=0.3, structure=structure, lean=lean).init(params)
    tx, mine = dl.dessilbi(0.1, **OPTIONS, lean=lean), network()
    with pytest.raises(ValueError, match=rf"(?s){message}.*call init again"):
        tx.update(gradient(mine), state, mine)


@pytest.mark.parametrize("lean", [False, True])
def test_a_state_of_the_other_form_is_an_error(lean):
    params = network()
    state = dl.dessilbi(0.1, **OPTIONS, lean=not lean).init(params)
    with pytest.raises(ValueError, match=f"lean={not lean}"):
        dl.dessilbi(0.1, **OPTIONS, lean=lean).update(params, state, params)


@pytest.mark.parametrize(
    "tx", [dl.dessilbi(0.1, **OPTIONS), dl.wrap(optax.sgd(0.1), 0.1, **OPTIONS)]
)
def test_update_without_parameters_is_an_error(tx):
    params = network()
    with pytest.raises(ValueError, match=r"tx\.update\(updates, state, params\)"):
        tx.update(params, tx.init(params))
