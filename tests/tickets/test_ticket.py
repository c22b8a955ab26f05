"""Projection, masks that hold under every optimizer; tickets as trees, tables and files."""

import functools
import json
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dessilbi_jax as dl
from dessilbi_jax import files


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


def test_a_hand_edited_ticket_is_refused():
    for odd in (np.ones((2, 3), int), np.ones((2, 3), np.float32), [[True] * 3] * 2):
        with pytest.raises(ValueError, match=r"mask of fc/kernel is .*, expected an array of bool"):
            ticket(**{"fc/kernel": odd})
    edited = ticket()
    edited.masks["fc/kernel"] = np.ones((2, 3), np.uint8)
    with pytest.raises(ValueError, match="mask of fc/kernel is uint8"):
        edited.mask(PARAMS)
    with pytest.raises(ValueError, match="mask of fc/kernel is uint8"):
        edited.save("nowhere.npz")
    with pytest.raises(ValueError, match="no mask of its structured leaf gone"):
        dl.Ticket({"w": np.ones(1, bool)}, 1, ("gone",), 1.0)


def test_an_empty_ticket_is_refused_and_an_empty_mask_is_not():
    """A ticket that keeps nothing is a mistake; a mask says no more than where zeros are to be."""
    with pytest.raises(ValueError, match="the ticket is empty"):
        ticket(**{"fc/kernel": np.zeros((2, 3), bool)})
    tx = optax.chain(optax.adam(0.1), dl.keep_support(jax.tree.map(jnp.zeros_like, FITTING)))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(optax.apply_updates(PARAMS, updates)))


def test_a_ticket_prints_as_a_table():
    masks = {"a/kernel": np.arange(1200) < 60, "b": np.arange(8) < 2, "bias": np.ones(4, bool)}
    lines = str(dl.Ticket(masks, 9, ("a/kernel", "b"), 62 / 1208, note="one short")).splitlines()
    assert lines == [
        "ticket of step 9: 62 of 1,208 structured weights (5.13 %), 66 of 1,212 parameters",
        "layer     kept     of  share",
        "a/kernel    60  1,200    5 %",
        "b            2      8   25 %",
        "note: one short",
    ]
    assert "note" not in str(ticket())


def test_more_on_the_card():
    made = ticket().with_card(seed=3, accuracy=0.98).with_card(accuracy=0.97)
    assert made.card == {"seed": 3, "accuracy": 0.97}
    assert ticket().card == {}


# Another head


def test_a_ticket_is_transferred_to_another_head():
    other = {
        "fc": PARAMS["fc"],
        "head": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)},
        "extra": jnp.ones(2),
    }
    old = ticket(**{"head/kernel": np.eye(3, 2, dtype=bool), "old": np.ones(1, bool)})
    old = dl.Ticket(old.masks, 7, ("fc/kernel", "head/kernel"), 4 / 12, "a note")
    moved = old.transfer(other, drop=("^head", "^extra$", "^old$"))
    assert moved.structured == ("fc/kernel",)
    assert moved.density == 2 / 6
    assert (moved.step, moved.note) == (7, "a note")
    assert moved.card["transferred"]["dropped"] == ["extra", "head/bias", "head/kernel", "old"]
    mask = moved.mask(other)
    assert mask["head"]["kernel"].all()
    np.testing.assert_array_equal(mask["fc"]["kernel"], old.masks["fc/kernel"])
    # What fits and is not dropped stays; what fits and is dropped is dense.
    assert ticket().transfer(PARAMS).masks.keys() == ticket().masks.keys()
    same = {"fc": PARAMS["fc"], "head": {"kernel": jnp.ones((3, 2))}, "old": jnp.ones(1)}
    assert old.transfer(same, drop="head").masks["head/kernel"].all()
    assert old.transfer(same).structured == old.structured
    for drop, message in [
        ((), r"does not fit extra: .*\(2,\), the ticket nothing.*name it by drop="),
        ("extra", "does not fit head/bias"),
        (("head", "extra"), "names old, which the parameters lack; name it by drop="),
        (("head", "extra", "old", "gone"), "drop: 'gone' matches no leaf"),
        ("", "drop leaves nothing of the ticket"),
    ]:
        with pytest.raises(ValueError, match=message):
            old.transfer(other, drop=drop)


# The file


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_saved_and_loaded_is_the_same(data):
    shapes = data.draw(st.lists(hnp.array_shapes(max_dims=4, max_side=5), min_size=1, max_size=4))
    masks = {
        f"layer{i}/kernel": data.draw(hnp.arrays(bool, shape)) for i, shape in enumerate(shapes)
    }
    masks["layer0/kernel"].flat[0] = True
    card = {"seed": data.draw(st.integers()), "list": [1, None], "γ": data.draw(st.text())}
    made = dl.Ticket(masks, 3, tuple(masks)[:1], data.draw(st.floats(0, 1)), "note ∞", card)
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/t.npz")
        loaded = dl.Ticket.load(f"{folder}/t.npz")
        assert os.listdir(folder) == ["t.npz"]
    for name in ("step", "structured", "density", "note", "card"):
        assert getattr(loaded, name) == getattr(made, name)
    assert list(loaded.masks) == list(masks)
    for path, mask in masks.items():
        assert loaded.masks[path].dtype == bool
        np.testing.assert_array_equal(loaded.masks[path], mask)


def test_the_file_takes_one_bit_an_element_and_no_pickle(tmp_path):
    masks = {"w": np.random.default_rng(0).random((300, 400)) < 0.5}
    dl.Ticket(masks, 1, ("w",), 0.5).save(tmp_path / "t.npz")
    assert os.path.getsize(tmp_path / "t.npz") < 300 * 400 / 8 + 1500
    with np.load(tmp_path / "t.npz", allow_pickle=False) as data:
        assert all(data[name].dtype != object for name in data.files)
        assert json.loads(str(data["header"]))["shapes"] == {"w": [300, 400]}


def test_a_file_of_the_first_format_is_read(tmp_path):
    """Which held a mask by element of every leaf."""
    old = ticket(**{"fc/bias": np.array([True, False, True])})
    header = {
        "kind": "ticket", "format": 1, "step": 7, "structured": ["fc/kernel"], "density": 2 / 6,
        "note": "", "card": {"seed": 1},
        "shapes": {path: list(mask.shape) for path, mask in old.masks.items()},
    }  # fmt: skip
    masks = {f"mask_{i}": np.packbits(mask) for i, mask in enumerate(old.masks.values())}
    files.write(tmp_path / "t.npz", header, masks)
    loaded = dl.Ticket.load(tmp_path / "t.npz")
    assert str(loaded) == str(old)
    assert loaded.card == {"seed": 1}
    for path, mask in old.masks.items():
        np.testing.assert_array_equal(loaded.masks[path], mask)


def test_damaged_files_and_other_files_are_refused(tmp_path):
    file = tmp_path / "t.npz"
    with pytest.raises(FileNotFoundError, match="no ticket at"):
        dl.Ticket.load(file)
    ticket().save(file)
    whole = file.read_bytes()
    for damaged in (b"", whole[:-10], whole[: len(whole) // 2], b"x" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no readable ticket"):
            dl.Ticket.load(file)
    file.unlink()
    dl.SolutionPath().save(file)
    with pytest.raises(ValueError, match="it holds a solution path, expected a ticket"):
        dl.Ticket.load(file)
    file.unlink()
    ticket().save(file)
    with pytest.raises(ValueError, match="it holds a ticket, expected a solution path"):
        dl.SolutionPath.load(file)
    with np.load(file) as data:
        arrays = dict(data)
    header = json.loads(str(arrays["header"]))
    edits = [
        ({"format": 3}, {}, "format 3, expected 2"),
        ({"groups": {"fc/kernel": [20, 3]}}, {}, "no mask of shape"),
        ({"shapes": {**header["shapes"], "fc/kernel": [21, 3]}}, {}, "cuts .21, 3. into equal"),
        ({"shapes": {"fc/bias": [3]}}, {}, "group bits of fc/kernel, which has no shape"),
        ({"structured": ["fc/gone"]}, {}, "no mask of its structured leaf fc/gone"),
        ({}, {"bits_0": np.ones(6)}, "no mask of shape"),
        ({}, {"bits_0": np.zeros(1, np.uint8)}, "the ticket is empty"),
        ({}, {"ties_0": np.zeros(2, np.int32)}, "shared groups of fc/kernel do not fit"),
    ]
    for changed, more, message in edits:
        text = np.array(json.dumps({**header, **changed}))
        np.savez(file, **{**arrays, **more, "header": text})
        with pytest.raises(ValueError, match=f"is no readable ticket .*{message}"):
            dl.Ticket.load(file)


def test_a_card_that_json_cannot_hold_leaves_what_was_there(tmp_path):
    file = tmp_path / "t.npz"
    ticket().save(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"t\.npz was not written: .*JSON"):
        ticket().with_card(network=object()).save(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.npz"]


# Rewinding, and zeros through a resume


def test_rewinding_takes_the_first_the_last_or_a_named_checkpoint():
    checkpoints = {200: "c", 0: "a", 100: "b"}
    assert dl.rewind(checkpoints, "init") == "a"
    assert dl.rewind(checkpoints, "end") == "c"
    assert dl.rewind(checkpoints, 100) == "b"
    with pytest.raises(ValueError, match="no checkpoint of step 120; the nearest one is 100"):
        dl.rewind(checkpoints, 120)
    with pytest.raises(ValueError, match="step must be 'init', 'end' or a number, got 'start'"):
        dl.rewind(checkpoints, "start")
    with pytest.raises(ValueError, match="no checkpoints"):
        dl.rewind({}, "end")

    class Lazy:
        def keys(self):
            return iter((3, 1))

        def __getitem__(self, step):
            return -step

    assert [dl.rewind(Lazy(), step) for step in ("init", "end", 3)] == [-1, -3, -3]


@pytest.mark.parametrize("name", ["momentum", "adamw", "accumulated"])
def test_zeros_stay_zero_through_a_resume(name, tmp_path):
    """Parameters and optimizer state through a file, and a transformation with another mask."""
    params = network()
    mask = mask_of(params)
    made = {**OPTIMIZERS, "accumulated": lambda: optax.adam(0.05)}[name]

    def transformation(mask):
        tx = optax.chain(made(), dl.keep_support(mask))
        return optax.MultiSteps(tx, 2).gradient_transformation() if name == "accumulated" else tx

    tx = transformation(mask)
    step = jax.jit(lambda params, state: tx.update(jax.grad(loss)(params, 0.0), state, params))
    state = tx.init(params)
    for _ in range(5):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    leaves, treedef = jax.tree.flatten((params, state))
    np.savez(tmp_path / "run.npz", *leaves)
    with np.load(tmp_path / "run.npz") as data:
        read = [jnp.asarray(data[f"arr_{i}"]) for i in range(len(leaves))]
    resumed, state = jax.tree.unflatten(treedef, read)
    tx = transformation(FITTING)  # the mask that holds is the one in the state
    step = jax.jit(lambda params, state: tx.update(jax.grad(loss)(params, 1.0), state, params))
    for _ in range(5):
        updates, state = step(resumed, state)
        resumed = optax.apply_updates(resumed, updates)
        assert (outside(resumed, mask) == 0).all()
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), resumed, params))
