"""Projection, masks that hold under every optimizer, and tickets as trees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl


def network():
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (2, 2, 1, 4), "bias": (4,)},
        "fc": {"kernel": (4, 3), "bias": (3,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def mask_of(params):
    """Two filters of four, every second weight, all biases; among the pruned some large ones."""
    filters = jnp.array([True, False, True, False])
    weights = (jnp.arange(12) % 2 == 0).reshape(4, 3)
    return {
        "conv": {
            "kernel": jnp.broadcast_to(filters, (2, 2, 1, 4)),
            "bias": jnp.ones(4, bool),
        },
        "fc": {"kernel": weights, "bias": jnp.ones(3, bool)},
    }


def loss(params, t):
    """Pulls every weight away from zero, differently at each step."""
    return sum(jnp.sum(jnp.sin(leaf * (1.3 + t) + 0.7)) for leaf in jax.tree.leaves(params))


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.05),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "coupled weight decay": lambda: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    "lion": lambda: optax.lion(0.01),
    "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 12), momentum=0.9),
    "dessilbi": lambda: dl.dessilbi(0.1, nu=2.0, lam=0.05, momentum=0.9, weight_decay=1e-3),
    "wrapped": lambda: dl.wrap(optax.adam(0.05), 0.05, nu=2.0, lam=0.05),
}


def outside(params, mask):
    """The weights outside the mask, in one array."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return np.concatenate([np.asarray(p)[~np.asarray(m)] for p, m in pairs])


def train(tx, params, steps=12):
    """The parameters after each step, by one jitted step."""

    @jax.jit
    def step(params, state, t):
        updates, state = tx.update(jax.grad(loss)(params, t), state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for t in range(steps):
        params, state = step(params, state, jnp.asarray(t, jnp.float32))
        seen.append(params)
    return seen, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_under_every_optimizer(name):
    params = network()
    mask = mask_of(params)
    seen, _ = train(optax.chain(OPTIMIZERS[name](), dl.keep_support(mask)), params)
    assert np.abs(outside(params, mask)).min() > 0
    for after in seen:  # from the first step on, and exactly
        assert (outside(after, mask) == 0).all()
    kept = jax.tree.map(jnp.logical_not, mask)
    assert not (outside(seen[-1], kept) == outside(params, kept)).any()
    # Without it the optimizer moves them: the transformation is what holds the zeros.
    free, _ = train(OPTIMIZERS[name](), dl.project(params, mask))
    assert (outside(free[-1], mask) != 0).all()


def test_inside_the_mask_nothing_changes():
    """Where the loss is separable, the kept weights go the way they would have gone alone."""
    params = network()
    mask = mask_of(params)
    masked, _ = train(optax.chain(optax.adam(0.05), dl.keep_support(mask)), params)
    free, _ = train(optax.adam(0.05), params)
    kept = jax.tree.map(jnp.logical_not, mask)
    np.testing.assert_allclose(outside(masked[-1], kept), outside(free[-1], kept), rtol=1e-5)


def test_momentum_from_before_the_pruning_moves_nothing():
    """A running optimizer: the buffers are full when the mask arrives."""
    params = network()
    mask = mask_of(params)
    tx = optax.sgd(0.1, momentum=0.9)
    seen, running = train(tx, params)
    assert (np.abs(outside(running[0].trace, mask)) > 0).all()
    pruned = optax.chain(tx, dl.keep_support(mask))
    params, state = seen[-1], (running, dl.keep_support(mask).init(params))
    update = jax.jit(
        lambda params, state: pruned.update(jax.grad(loss)(params, 0.0), state, params)
    )
    for _ in range(5):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
        assert (outside(params, mask) == 0).all()


@pytest.mark.parametrize("inside", [True, False], ids=["mask inside", "mask outside"])
def test_under_multi_steps(inside):
    """Between the accumulated steps nothing moves; inside, the zeros come with the first one."""
    params = network()
    mask = mask_of(params)
    tx = optax.sgd(0.1, momentum=0.9)
    if inside:
        tx = optax.MultiSteps(optax.chain(tx, dl.keep_support(mask)), 3).gradient_transformation()
    else:
        tx = optax.MultiSteps(tx, 3).gradient_transformation()
        tx = optax.chain(tx, dl.keep_support(mask))
    seen, _ = train(tx, params)
    for t, after in enumerate(seen):
        if t < 2:
            kept = jax.tree.map(jnp.logical_not, mask)
            np.testing.assert_array_equal(outside(after, kept), outside(params, kept))
        pruned = t >= 2 or not inside
        expected = 0 if pruned else outside(params, mask)
        np.testing.assert_array_equal(outside(after, mask), expected)


@pytest.mark.parametrize("given", ["tree", "callable"])
def test_jit_and_donation(given):
    """Parameters and state are donated; the mask handed in is not lost with them."""
    params = network()
    mask = mask_of(params)
    tx = optax.chain(optax.adam(0.05), dl.keep_support(mask if given == "tree" else mask_of))
    before = jax.tree.map(np.array, mask)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, 0.0), state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.tree.leaves((params, state))
    for _ in range(4):
        params, state = step(params, state)
    assert all(array.is_deleted() for array in donated)
    assert (outside(params, mask) == 0).all()
    assert step._cache_size() == 1
    for kept, was in zip(jax.tree.leaves(mask), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(kept, was)
    jax.jit(tx.init)(network())  # a second run may start from the same mask


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("gradient", [jnp.bfloat16, jnp.float32])
def test_zeros_are_exact_in_mixed_precision(dtype, gradient):
    """A −W rounded to the dtype of the gradient would leave a remainder."""
    params = {"w": jnp.asarray([1.2345678, -0.3333333, 3.1415927], dtype)}
    mask = {"w": jnp.array([True, False, False])}
    tx = optax.chain(optax.sgd(0.1), dl.keep_support(mask))
    updates, _ = tx.update({"w": jnp.ones(3, gradient)}, tx.init(params), params)
    after = optax.apply_updates(params, updates)["w"]
    assert after.dtype == dtype
    assert (after[1:] == 0).all()
    assert after[0] != 0


def test_bad_gradients_outside_the_mask_do_no_harm():
    params, mask = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([True, False, False])}
    tx = optax.chain(optax.sgd(0.1), dl.keep_support(mask))
    grads = {"w": jnp.array([1.0, jnp.nan, jnp.inf])}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], [0.9, 0.0, 0.0])


def test_the_support_of_a_run_as_the_mask():
    params = network()
    _, state = train(dl.dessilbi(0.1, nu=2.0, lam=0.6), params)
    mask = dl.support(state)
    open_filters = np.asarray(mask["conv"]["kernel"])
    assert 0 < open_filters.mean() < 1
    assert 0 < mask["fc"]["kernel"].mean() < 1
    assert (open_filters == open_filters[:1, :1]).all()  # whole filters
    assert mask["conv"]["bias"].all()
    ticket, _ = train(optax.chain(optax.sgd(0.1), dl.keep_support(mask)), params)
    assert (outside(ticket[-1], mask) == 0).all()


# project


def test_project_zeroes_what_is_outside():
    params = network()
    mask = mask_of(params)
    small = dl.project(params, mask)
    assert (outside(small, mask) == 0).all()
    kept = jax.tree.map(jnp.logical_not, mask)
    np.testing.assert_array_equal(outside(small, kept), outside(params, kept))
    assert jax.tree.structure(small) == jax.tree.structure(params)
    twice = dl.project(small, mask)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(twice), strict=True):
        np.testing.assert_array_equal(a, b)


def test_project_inside_jit_with_numpy_masks_and_every_dtype():
    mask = {"w": np.array([True, False])}
    for dtype in (jnp.bfloat16, jnp.float32, jnp.complex64, jnp.int32):
        got = jax.jit(dl.project)({"w": jnp.ones(2, dtype)}, mask)["w"]
        assert got.dtype == dtype
        assert got.tolist() == [1, 0]


def test_project_removes_what_is_not_finite():
    got = dl.project({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([True, False])})["w"]
    assert got.tolist() == [1.0, 0.0]


# Masks that do not fit

PARAMS = {"fc": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
FITTING = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
MISFITS = {
    "a leaf missing": ({"fc": {"kernel": FITTING["fc"]["kernel"]}}, r"fc/bias is not in both"),
    "a leaf too many": (FITTING | {"x": jnp.ones(1, bool)}, r"x is not in both; .* dl\.support"),
    "nothing": (None, r"fc/bias is not in both; make it with dl\.support\(opt_state, params\)"),
    "another shape": (
        {"fc": FITTING["fc"] | {"kernel": jnp.ones((3, 2), bool)}},
        r"fc/kernel: got bool\[3, 2\], expected bool\[2, 3\]",
    ),
    "one number a filter": (
        {"fc": FITTING["fc"] | {"kernel": jnp.ones((1, 3), bool)}},
        r"fc/kernel: got bool\[1, 3\], expected bool\[2, 3\]",
    ),
    "zeros and ones": (PARAMS, r"fc/bias: got float32\[3\], expected bool\[3\]"),
    "plain truth values": (
        {"fc": {"kernel": True, "bias": True}},
        r"fc/bias: got bool\[\], expected bool\[3\]",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_masks_that_do_not_fit_name_the_first_leaf(case):
    mask, message = MISFITS[case]
    message = "^the mask does not fit .*" + message if "both" in message else message
    with pytest.raises(ValueError, match=message):
        dl.project(PARAMS, mask)
    with pytest.raises(ValueError, match=message):
        dl.keep_support(mask).init(PARAMS)
    with pytest.raises(ValueError, match=message):
        dl.keep_support(lambda params: mask).init(PARAMS)


def test_keep_support_needs_the_parameters():
    tx = dl.keep_support(FITTING)
    with pytest.raises(ValueError, match=r"keep_support needs the parameters: tx\.update\("):
        tx.update(PARAMS, tx.init(PARAMS))


def test_keep_support_of_an_empty_tree():
    tx = dl.keep_support(FITTING)
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_the_mask_lies_in_the_state():
    """So that it is saved and restored with the optimizer, and can be mapped over."""
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), dl.keep_support(FITTING))
    state = tx.init(PARAMS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, optax.tree.get(state, "mask"), FITTING))
    doubled = optax.tree.map_params(tx, lambda leaf: jnp.concatenate([leaf, leaf]), state)
    assert optax.tree.get(doubled, "mask")["fc"]["kernel"].shape == (4, 3)


# Ticket


def ticket(**changes):
    masks = {"fc/kernel": np.eye(2, 3, dtype=bool), "fc/bias": np.ones(3, bool)}
    return dl.Ticket(masks | changes, step=7, structured=("fc/kernel",), density=2 / 6)


def test_a_ticket_gives_its_mask_as_a_tree_like_the_parameters():
    mask = ticket().mask(PARAMS)
    assert jax.tree.structure(mask) == jax.tree.structure(PARAMS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(mask))
    assert mask["fc"]["kernel"].tolist() == [[True, False, False], [False, True, False]]
    assert dl.project(PARAMS, mask)["fc"]["kernel"].sum() == 2
    assert ticket().note == ""


def test_the_method_itself_serves_as_the_mask_of_keep_support():
    tx = optax.chain(optax.adam(0.1), dl.keep_support(ticket().mask))
    seen = PARAMS
    state = tx.init(seen)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, seen)
        seen = optax.apply_updates(seen, updates)
    assert (seen["fc"]["kernel"] != 0).tolist() == [[True, False, False], [False, True, False]]


def test_a_ticket_for_another_network_names_the_leaf():
    with pytest.raises(
        ValueError, match=r"the ticket does not fit fc/kernel: .*\(2, 3\).*\(3, 3\)"
    ):
        ticket(**{"fc/kernel": np.ones((3, 3), bool)}).mask(PARAMS)
    more = PARAMS | {"head": {"kernel": jnp.ones((3, 1))}}
    with pytest.raises(
        ValueError, match=r"does not fit head/kernel: .*\(3, 1\), the ticket nothing"
    ):
        ticket().mask(more)
    with pytest.raises(ValueError, match=r"the ticket names old/kernel, which the parameters lack"):
        ticket(**{"old/kernel": np.ones(1, bool)}).mask(PARAMS)


def test_a_ticket_cannot_be_changed():
    with pytest.raises(AttributeError):
        ticket().step = 8
