"""What the optimizer refuses, when, and whether the message helps."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl

PARAMS = {"fc": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
AUTO = {"lam": dl.auto(density=0.1, steps=100)}
BAD_NUMBERS = [0, 0.0, -1.0, math.nan, math.inf, -math.inf, np.float32(-2.0), np.int64(-3)]
NO_NUMBERS = [None, "0.1", True, [0.1], {"kernel": 0.1}]


def dessilbi(**options):
    return dl.dessilbi(**({"learning_rate": 0.1, "lam": 0.1} | options))


def add_split_lbi(**options):
    return dl.add_split_lbi(**({"learning_rate": 0.1, "lam": 0.1} | options))


def wrap(**options):
    return dl.wrap(optax.adam(0.1), **({"learning_rate": 0.1, "lam": 0.1} | options))


every_maker = pytest.mark.parametrize("make", [dessilbi, add_split_lbi, wrap])


# Numbers


@every_maker
@pytest.mark.parametrize("name", ["learning_rate", "kappa", "nu", "lam"])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_numbers_must_be_positive_and_finite(make, name, value):
    with pytest.raises(
        ValueError, match=rf"^{name} must be finite and lie in \(0, inf\), got"
    ) as e:
        make(**{name: value})
    assert str(value) in str(e.value)


@every_maker
@pytest.mark.parametrize("name", ["learning_rate", "kappa", "nu"])
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_a_type_error(make, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got") as caught:
        make(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_momentum_and_decay_out_of_range(name, value):
    high = {"momentum": "1", "weight_decay": "inf"}[name]
    message = rf"^{name} must be finite and lie in \[0, {high}\), got {value}"
    with pytest.raises(ValueError, match=message):
        dessilbi(**{name: value})


def test_a_momentum_of_one_never_forgets():
    with pytest.raises(ValueError, match=r"^momentum must be finite and lie in \[0, 1\), got 1"):
        dessilbi(momentum=1)


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize("value", ["0.9", True])
def test_momentum_and_decay_must_be_numbers(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got {value!r}"):
        dessilbi(**{name: value})


def test_numbers_at_the_edge_are_accepted():
    dessilbi(momentum=0.0, weight_decay=0, kappa=np.float32(0.5), nu=np.int64(3), learning_rate=1)
    dessilbi(lam=jnp.asarray(0.1), kappa=jnp.asarray(1.0))
    dessilbi(lam=dl.auto(density=1, steps=20, at=1))


def test_nesterov_without_momentum():
    with pytest.raises(ValueError, match="nesterov=True needs a momentum"):
        dessilbi(nesterov=True)


@pytest.mark.parametrize("variant", ["Paper", "tool box", None, ""])
def test_an_unknown_variant(variant):
    message = f"^variant must be 'paper' or 'toolbox', got {variant!r}"
    with pytest.raises(ValueError, match=message):
        dessilbi(variant=variant)


# λ and its automatic choice


@every_maker
def test_lam_missing_says_what_can_be_given(make):
    with pytest.raises(TypeError, match=r"^lam is missing") as caught:
        make(lam=None)
    for choice in ("number", "schedule", "dl.auto", "density=", "steps=", "rule", "dl.calibrate"):
        assert choice in str(caught.value)


def test_lam_may_be_left_to_the_rules_only_if_every_rule_has_it():
    rules = [("fc", dl.weights, {"lam": 0.1}), ("head", dl.weights)]
    with pytest.raises(TypeError, match=r"^lam is missing"):
        dessilbi(lam=None, structure=rules)
    with pytest.raises(TypeError, match=r"^lam is missing"):
        dessilbi(lam=None, structure=lambda params: params)
    with pytest.raises(TypeError, match=r"^lam is missing"):
        dessilbi(lam=None, structure=[("fc", dl.weights, {"lam": None})])
    dessilbi(lam=None, structure=[rules[0], ("head", None)])


@every_maker
@pytest.mark.parametrize("lam", ["auto", "0.1", ""])
def test_a_word_for_lam(make, lam):
    message = rf"^lam must be a number, a schedule or dl\.auto\(.*\), got {lam!r}"
    with pytest.raises(TypeError, match=message):
        make(lam=lam)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 100}, "exactly one of density= and group_density=, got neither"),
        ({"density": 0.1}, "steps"),
        ({}, "steps"),
        ({"density": 0.1, "group_density": 0.1, "steps": 100}, "exactly one .*, got both"),
    ],
    ids=str,
)
def test_auto_needs_steps_and_one_share(given, message):
    with pytest.raises(TypeError, match=message):
        dl.auto(**given)


@every_maker
def test_auto_has_arguments_of_its_own(make):
    with pytest.raises(TypeError, match="density"):
        make(density=0.1)


@pytest.mark.parametrize("name", ["density", "group_density"])
@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.0001, 5, math.nan, math.inf, "5%", True])
def test_shares_lie_in_the_half_open_unit_interval(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \(0, 1\], got") as caught:
        dl.auto(steps=100, **{name: value})
    assert repr(value) in str(caught.value)


def test_auto_is_a_frozen_value():
    one = dl.auto(density=0.1, steps=100)
    assert one == dl.auto(density=0.1, steps=100) != dl.auto(group_density=0.1, steps=100)
    assert len({one, dl.auto(density=0.1, steps=100)}) == 1
    assert not callable(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.steps = 5
    share = jnp.float32(0.1)
    traced = dl.auto(density=share, steps=jnp.int32(100))
    assert traced != one
    assert hash(traced) == hash(dl.auto(density=share, steps=traced.steps))


@pytest.mark.parametrize("at", [0, -0.5, 1.5, math.nan, "half", None])
def test_at_is_a_fraction(at):
    with pytest.raises(ValueError, match=r"^at must lie in \(0, 1\], got"):
        dl.auto(density=0.1, steps=100, at=at)


@pytest.mark.parametrize("steps", [100.0, "100", math.nan, True])
def test_steps_is_an_integer(steps):
    with pytest.raises(TypeError, match=r"^steps must be an integer, got"):
        dl.auto(density=0.1, steps=steps)


@pytest.mark.parametrize(("steps", "at"), [(0, 1.0), (-100, 1.0), (19, 1.0), (100, 0.19)])
def test_a_run_too_short_for_auto_says_so(steps, at):
    message = f"at least 20 updates before the density is due, got steps={steps} and at={at}"
    with pytest.raises(ValueError, match=message):
        dl.auto(density=0.1, steps=steps, at=at)


@pytest.mark.parametrize("penalty", ["lasso", dl.group_lasso, 0.5])
def test_what_is_no_penalty(penalty):
    with pytest.raises(TypeError, match=r"^penalty must be made by dl.group_lasso, .* got"):
        dessilbi(penalty=penalty)
    with pytest.raises(TypeError, match=r"^penalty in the rule for 'fc' must be made by"):
        dl.Rules([("fc", (0,), {"penalty": penalty})])


@pytest.mark.parametrize("tx", [None, 0.1, optax.adam])
def test_wrap_needs_a_transformation(tx):
    message = f"tx must be an Optax transformation, got {type(tx).__name__}"
    with pytest.raises(TypeError, match=message):
        dl.wrap(tx, 0.1, lam=0.1)


# Structure and parameters, at init


@every_maker
def test_a_structure_that_matches_nothing(make):
    with pytest.raises(ValueError, match=r"rule 0 with pattern 'fc2' matches no leaf") as caught:
        make(structure=[("fc2", dl.weights)]).init(PARAMS)
    assert "the paths are: fc/bias, fc/kernel" in str(caught.value)


@every_maker
def test_a_hidden_rule(make):
    rules = [("fc", dl.weights), ("kernel", dl.columns)]
    with pytest.raises(ValueError, match=r"rule 1 with pattern 'kernel' is hidden by") as caught:
        make(structure=rules).init(PARAMS)
    assert "the paths are: fc/bias, fc/kernel" in str(caught.value)


@every_maker
def test_an_axis_out_of_range(make):
    message = r"axis 2 is out of range for fc/kernel with shape \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        make(structure=[("kernel", (0, 2))]).init(PARAMS)


@every_maker
def test_what_is_no_structure(make):
    with pytest.raises(TypeError, match=r"structure must be a named structure .* got str"):
        make(structure="filters")


@every_maker
@pytest.mark.parametrize("structure", [dl.filters, []], ids=["named", "no rules"])
def test_nothing_structured_at_all(make, structure):
    with pytest.raises(ValueError, match="leaves every parameter dense") as caught:
        make(structure=structure).init({"bias": jnp.ones(3)})
    assert "bias (3,)" in str(caught.value)
    assert "a rule such as" in str(caught.value)


def test_flattened_parameters_name_the_cause():
    with pytest.raises(ValueError, match=r"Under `optax\.flatten` there are no kernels"):
        optax.flatten(dessilbi()).init(PARAMS)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, bool])
def test_integer_parameters(dtype):
    params = {"kernel": jnp.ones((2, 2), dtype)}
    name = jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"kernel \(2, 2\): holds {name}"):
        dessilbi().init(params)
    with pytest.raises(TypeError, match=f"kernel holds {name}; only real or complex leaves"):
        dessilbi(structure=[("kernel", dl.weights)]).init(params)


def test_integer_leaves_among_others_stay_dense():
    params = {"kernel": jnp.ones((2, 2)), "table": {"kernel": jnp.ones((2, 2), jnp.int32)}}
    tx = add_split_lbi(structure=dl.weights)
    updates = jax.tree.map(jnp.ones_like, params)
    out, state = tx.update(updates, tx.init(params), params)
    assert out["table"]["kernel"].dtype == jnp.int32
    assert (out["table"]["kernel"] == 1).all()
    assert state.v["table"]["kernel"].dtype == bool


@pytest.mark.parametrize("empty", [{}, (), [], {"fc": {}}], ids=str)
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("options", [{}, AUTO], ids=["given", "auto"])
def test_empty_parameter_trees_pass_through(empty, lean, options):
    """Optax asks for them: `tree.map_params`, and labels without leaves under `partition`."""
    tx = dessilbi(lean=lean, **options)
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert int(dl.get_state(state).count) == 1
    assert dl.gamma(state) == dl.support(state) == empty


# The state and the parameters, at update


def gradients(params):
    return jax.tree.map(jnp.ones_like, params)


@every_maker
def test_parameters_missing_at_update(make):
    tx = make()
    with pytest.raises(
        ValueError, match=r"the parameters: call tx\.update\(updates, state, params\)"
    ):
        tx.update(gradients(PARAMS), tx.init(PARAMS))


def test_parameters_missing_behind_other_links():
    tx = dessilbi(variant="toolbox", weight_decay=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="parameters"):
        tx.update(gradients(PARAMS), tx.init(PARAMS))


OTHERS = {
    "other groups": (
        {"structure": dl.neurons},
        {"structure": dl.weights},
        PARAMS,
        r"fc/kernel: it holds groups \(1, 3\) .* expected groups \(4, 3\) in shape \(4, 3\)",
    ),
    "groups along another axis": (
        {"structure": dl.rows},
        {"structure": dl.columns},
        PARAMS,
        r"fc/kernel: it holds groups \(4, 1\) .* expected groups \(1, 3\)",
    ),
    "structured, then dense": (
        {"structure": [("fc", (0,))]},
        {"structure": [("kernel", (0,))]},
        PARAMS,
        r"fc/bias: it holds groups \(3,\) .* expected a dense leaf",
    ),
    "dense, then structured": (
        {"structure": [("kernel", (0,))]},
        {"structure": [("fc", (0,))]},
        PARAMS,
        r"fc/bias: it holds a dense leaf .* expected groups \(3,\)",
    ),
    "another width": (
        {},
        {},
        {"fc": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}},
        r"fc/kernel: it holds .* shape \(4, 3\), expected groups \(5, 3\) in shape \(5, 3\)",
    ),
    "another width of a dense leaf": (
        {"structure": [("kernel", (0,))]},
        {"structure": [("kernel", (0,))]},
        {"fc": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(2)}},
        r"fc/bias: it holds a dense leaf in shape \(3,\), expected a dense leaf in shape \(2,\)",
    ),
    "another name": ({}, {}, {"fc1": PARAMS["fc"]}, r"does not fit the parameters: .*'fc1'.*'fc'"),
    "fewer leaves": ({}, {}, {"fc": {"kernel": jnp.ones((4, 3))}}, "does not fit the parameters"),
    "auto, then given": (AUTO, {}, PARAMS, r"made with dl\.auto, the transformation not"),
    "given, then auto": ({}, AUTO, PARAMS, r"made with a given λ, the transformation not"),
}


@pytest.mark.parametrize("make", [dessilbi, add_split_lbi])
@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_state_from_another_structure(case, make, lean):
    made_with, used_with, params, message = OTHERS[case]
    state = make(lean=lean, **made_with).init(PARAMS)
    with pytest.raises(ValueError, match=message) as caught:
        make(lean=lean, **used_with).update(gradients(params), state, params)
    assert str(caught.value).startswith("the state ")
    assert "call init again" in str(caught.value)


@pytest.mark.parametrize("make", [dessilbi, add_split_lbi])
@pytest.mark.parametrize("lean", [False, True], ids=["stored, then lean", "lean, then stored"])
def test_a_state_of_the_other_form(make, lean):
    state = make(lean=lean).init(PARAMS)
    message = f"the state was made with lean={lean}, the transformation with lean={not lean}; call"
    with pytest.raises(ValueError, match=message):
        make(lean=not lean).update(gradients(PARAMS), state, PARAMS)


def test_a_state_of_another_structure_is_refused_inside_jit():
    tx, other = add_split_lbi(structure=dl.rows), add_split_lbi(structure=dl.columns)
    with pytest.raises(ValueError, match="the state does not fit fc/kernel"):
        jax.jit(tx.update)(gradients(PARAMS), other.init(PARAMS), PARAMS)


@pytest.mark.parametrize("state", [optax.EmptyState(), (), None])
def test_a_state_of_another_transformation(state):
    message = f"expected a SplitLBIState, got {type(state).__name__}: give the state that init"
    with pytest.raises(TypeError, match=message):
        add_split_lbi().update(gradients(PARAMS), state, PARAMS)


def test_what_was_there_is_left_intact():
    """A refused update has changed neither the state nor the parameters."""
    tx, other = (
        dessilbi(structure=dl.rows, momentum=0.9),
        dessilbi(structure=dl.columns, momentum=0.9),
    )
    state = other.init(PARAMS)
    before = jax.tree.map(np.array, (PARAMS, state))
    with pytest.raises(ValueError, match="does not fit"):
        jax.jit(tx.update, donate_argnums=1)(gradients(PARAMS), state, PARAMS)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves((PARAMS, state)), strict=True):
        np.testing.assert_array_equal(a, b)


# Numbers that cannot be looked at


def test_traced_numbers_pass_the_checks():
    """Under `inject_hyperparams` the numbers are arrays; their values come later."""
    tx = optax.inject_hyperparams(dl.dessilbi)(0.1, lam=0.1, nu=5.0, kappa=2.0, momentum=0.9)
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(gradients(PARAMS), state, PARAMS)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert float(state.hyperparams["nu"]) == 5.0


@every_maker
def test_a_gradient_of_another_shape_names_its_leaf(make):
    tx = make()
    state = tx.init(PARAMS)
    bad = {"fc": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match=r"gradient of fc/kernel has shape \(3, 4\), the param"):
        tx.update(bad, state, PARAMS)
    with pytest.raises(ValueError, match="the gradients have another tree than the parameters"):
        tx.update({"fc": {"kernel": jnp.ones((4, 3))}}, state, PARAMS)


def test_a_loss_that_is_no_number_is_named():
    tx = dessilbi(nu=10.0)
    with pytest.raises(ValueError, match=r"loss must return one number, got shape \(4,\)"):
        dl.diagnose(
            lambda p: p["fc"]["kernel"].sum(1), PARAMS, tx.init(PARAMS), learning_rate=0.1, nu=10.0
        )


@pytest.mark.parametrize(
    "use",
    [
        lambda bad: dl.channel_groups(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 2))},
                                      jnp.ones((1, 2)), ignore=(bad,)),
        lambda bad: dl.Ticket({"w": np.ones(2, bool)}, 1, ("w",), 1.0).transfer(
            {"w": jnp.ones(2)}, drop=bad),
        lambda bad: dl.Rules([(bad, dl.weights)]),
    ],
    ids=["ignore", "drop", "rules"],
)  # fmt: skip
def test_a_bad_regular_expression_is_named(use):
    with pytest.raises(ValueError, match=r"'fc\(' is no regular expression"):
        use("fc(")
