"""When a network grows: the authors' rule, on the host, without a state of its own."""

import jax
import jax.numpy as jnp
import pytest

import dessilbi_jax as dl
from dessilbi_jax.growing.grower import selected

X = jnp.ones((1, 4))
PARAMS = {"a": jnp.ones((4, 10)), "b": jnp.ones((10, 20)), "c": jnp.ones((20, 3))}
GROUPS = dl.channel_groups(lambda p, x: x @ p["a"] @ p["b"] @ p["c"], PARAMS, X)


def state_with(a, b, lean=False):
    """A state whose Γ has so many of the first and of the second layer's channels."""
    tx = dl.dessilbi(1.0, nu=1.0, lam=0.5, structure=dl.channels(GROUPS), lean=lean)
    params = {
        "a": PARAMS["a"] * (jnp.arange(10) < a), "b": PARAMS["b"] * (jnp.arange(20) < b),
        "c": PARAMS["c"],
    }  # fmt: skip
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return state


@pytest.mark.parametrize("lean", [False, True])
def test_sets_of_which_four_fifths_are_selected_grow(lean):
    grower = dl.Grower(every=10)
    assert grower.decide(state_with(8, 15, lean), GROUPS, 20) == ({"a": 18}, False)
    assert grower.decide(state_with(7, 16, lean), GROUPS, 20) == ({"b": 28}, False)
    assert grower.decide(state_with(7, 15, lean), GROUPS, 20) == ({}, True)


def test_between_two_looks_nothing_is_decided():
    state = state_with(10, 20)
    for step in (0, 1, 9, 11):
        assert dl.Grower(every=10).decide(state, GROUPS, step) == ({}, False)
    assert dl.Grower(every=10).decide(state, GROUPS, 10)[0]


def test_factor_and_limits():
    state = state_with(10, 20)
    many = dl.Grower(every=1, add=1, factor=1.5)
    assert many.decide(state, GROUPS, 1)[0] == {"a": 15, "b": 30}
    assert dl.Grower(every=1, limit=12).decide(state, GROUPS, 1) == ({"a": 12}, False)
    by_name = dl.Grower(every=1, limit={"a": 10, "b": 21})
    assert by_name.decide(state, GROUPS, 1) == ({"b": 21}, False)
    assert dl.Grower(every=1, limit=10).decide(state, GROUPS, 1) == ({}, True)


def test_while_gamma_is_empty_nothing_grows_and_it_is_not_over():
    tx = dl.dessilbi(0.1, lam=dl.auto(density=0.5, steps=100), structure=dl.channels(GROUPS))
    assert dl.Grower(every=1).decide(tx.init(PARAMS), GROUPS, 1) == ({}, False)
    assert selected(GROUPS, PARAMS).all()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be an integer, got 1.5"),
        ({"every": 1, "add": 0}, ValueError, "add must be at least 1"),
        ({"every": 1, "threshold": 0.0}, ValueError, "threshold must lie in"),
        ({"every": 1, "factor": 0.9}, ValueError, "factor must be finite and at least 1"),
        ({"every": 1, "factor": "2"}, TypeError, "factor must be a number"),
    ],
)
def test_settings_that_cannot_be(given, kind, message):
    with pytest.raises(kind, match=message):
        dl.Grower(**given)
