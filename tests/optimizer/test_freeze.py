"""Steps that leave selected groups alone; test_reference.py holds them to the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import JOINED, QUICK, gradient, network, opened, trajectory

import dessilbi_jax as dl

OPTIONS = {"nu": 2.0, "lam": 0.3}
MAKERS = {
    "toolbox": lambda **k: dl.dessilbi(0.1, momentum=0.9, weight_decay=0.01, **OPTIONS, **k),
    "paper": lambda **k: dl.dessilbi(
        0.1, momentum=0.5, weight_decay=0.01, variant="paper", **OPTIONS, **k
    ),
    "lean": lambda **k: dl.dessilbi(0.1, lean=True, **OPTIONS, **k),
    "adamw": lambda **k: dl.wrap(optax.adamw(0.1), 0.1, **OPTIONS, **k),
    "joint": lambda **k: dl.dessilbi(0.1, nu=2.0, lam=1.3, structure=JOINED, **k),
    "sparse": lambda **k: dl.dessilbi(
        0.1, penalty=dl.sparse_group_lasso(0.1), structure=dl.neurons, **OPTIONS, **k
    ),
}
BEGIN, STEPS = 8, 14


def leaf(tree, layer):
    return np.asarray(tree[layer]["kernel"])


@pytest.mark.parametrize("name", MAKERS)
def test_selected_groups_stand_still_and_the_others_move(name):
    tx = MAKERS[name](freeze=lambda count: count >= BEGIN)
    run = trajectory(tx, network(), STEPS)
    w, v = leaf(run.params, "conv"), leaf(run.v, "conv")
    opened_at = leaf(run.support, "conv").any(axis=(1, 2, 3))  # by filter
    assert 0 < opened_at[BEGIN - 1].sum() < 16  # some were selected when freezing began
    for step in range(BEGIN, STEPS):
        still = opened_at[step - 1]
        for x in (w, v):
            moved = (x[step] != x[step - 1]).any(axis=(0, 1, 2))
            np.testing.assert_array_equal(moved, ~still)
    assert opened_at[-1].sum() > opened_at[BEGIN - 1].sum()  # and others could still enter
    if name not in ("joint", "sparse"):  # fc/kernel by single weight
        fc = leaf(run.params, "fc")
        assert leaf(run.support, "fc")[-2].any()
        assert (fc[-1] != fc[-2]).all()
    bias = np.asarray(run.params["fc"]["bias"])
    assert (bias[-1] != bias[-2]).any()


def test_momentum_goes_on():
    tx = MAKERS["toolbox"](freeze=True)
    params = network()
    state, before = tx.init(params), None
    step = jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(12):
        before = state
        updates, state = step(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    still = leaf(dl.support(before), "conv").any(axis=(0, 1, 2))
    assert 0 < still.sum() < 16
    old, new = (leaf(optax.tree.get(s, "trace"), "conv") for s in (before, state))
    assert (new != old).any(axis=(0, 1, 2))[still].all()
    assert (leaf(updates, "conv")[..., still] == 0).all()


def test_a_joint_group_is_frozen_in_all_its_members():
    tx = MAKERS["joint"](freeze=True)
    run = trajectory(tx, network(), STEPS)
    chosen = leaf(run.support, "fc")[-2].all(axis=1)
    assert 0 < chosen.sum() < 16
    for layer, axes in (("conv", (0, 1, 2)), ("fc", 1)):
        w = leaf(run.params, layer)
        np.testing.assert_array_equal((w[-1] != w[-2]).any(axis=axes), ~chosen)


def test_a_group_of_zero_weights_is_not_frozen():
    """As in the authors' code, what counts is W where Γ is open."""
    params = {"kernel": jnp.ones((1, 1, 2, 2))}
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.05, freeze=True)
    step = jax.jit(tx.update, compiler_options=QUICK)
    _, state = step(params, tx.init(params), params)
    assert dl.support(state)["kernel"].all()
    w = {"kernel": params["kernel"].at[..., 0].set(0.0)}
    updates, later = step(params, state, w)
    moved = (dl.get_state(later).v["kernel"] != dl.get_state(state).v["kernel"]).any(axis=(0, 1, 2))
    assert moved.tolist() == [True, False]
    assert (updates["kernel"] != 0).any(axis=(0, 1, 2)).tolist() == [True, False]


def test_automatic_lambda_counts_on_frozen_groups_standing_still():
    tx = dl.dessilbi(
        0.05, nu=5.0, lam=dl.auto(density=0.3, steps=200), structure=dl.neurons, freeze=True
    )
    support = dl.support(trajectory(tx, network(), 200).last_state)
    kernels = [support[layer]["kernel"] for layer in ("conv", "fc")]
    assert opened(kernels) == pytest.approx(0.3, abs=0.06)


def test_off_is_the_same_program():
    params = network()

    def program(**options):
        tx = dl.dessilbi(0.1, momentum=0.9, **OPTIONS, **options)
        return jax.jit(tx.update).lower(params, tx.init(params), params).as_text()

    assert program() == program(freeze=False)
    assert program() != program(freeze=True)


def test_it_can_be_switched_from_outside():
    tx = optax.inject_hyperparams(dl.dessilbi)(
        0.1, nu=1.0, lam=0.05, freeze=lambda count: count < 0
    )
    params = network()
    state = tx.init(params)
    step = jax.jit(tx.update, compiler_options=QUICK)
    for _ in range(2):
        updates, state = step(gradient(params), state, params)
    assert (leaf(updates, "conv") != 0).all()


@pytest.mark.parametrize("freeze", [None, 1, "yes"])
def test_anything_else_is_refused(freeze):
    with pytest.raises(TypeError, match="freeze must be True, False or a callable"):
        dl.dessilbi(0.1, lam=0.1, freeze=freeze)
    with pytest.raises(TypeError, match="freeze must be"):
        dl.wrap(optax.sgd(0.1), 0.1, lam=0.1, freeze=freeze)
