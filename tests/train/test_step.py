import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dessilbi_jax as dl
from dessilbi_jax import data, models
from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.feeds import Rows, make_feed
from dessilbi_jax.train.optim import make_optimizer, make_schedule
from dessilbi_jax.train.run_folder.norm_sample import group_norms
from dessilbi_jax.train.run_folder.records import record_steps
from dessilbi_jax.train.step import first_state, make_evaluate, make_step, split_network

DIGITS = data.load("digits")


@functools.cache
def build(name="lenet300", widths=(6,)):
    model = models.build(name, input_shape=(8, 8, 1), widths=widths)
    return split_network(model, DIGITS.mean, DIGITS.std)


def rows_of(given, step):
    """What the step sees of (images, labels, order)."""
    images, labels, order = given
    rows = order[step % order.shape[0]]
    return images[rows], labels[rows]


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def test_leaf_paths_read_like_the_layers_and_stats_are_apart():
    _, params, stats = build("vgg-small")
    assert set(params) == {"conv1", "bn1", "fc"}
    assert params["fc"]["kernel"].shape == (6, 10)
    assert set(stats) == {"bn1"}


def test_a_step_is_the_optimizers_update_on_the_batch_of_that_step():
    network, params, stats = build()
    tx = dl.dessilbi(0.1, nu=10.0, lam=0.01, momentum=0.9)
    step = make_step(network, tx, rows_of)
    images, labels = jnp.asarray(DIGITS.train_images), jnp.asarray(DIGITS.train_labels)
    order = data.epoch_order(0, 0, len(labels), 32)
    state = first_state(copied(params), copied(stats), tx)

    @jax.jit
    @jax.value_and_grad
    def by_hand(p, x, y):
        h = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        logits = h @ p["fc2"]["kernel"] + p["fc2"]["bias"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    opt_state, losses, update = tx.init(params), [], jax.jit(tx.update)
    for rows in order[:3]:
        x = (DIGITS.train_images[rows] / 255.0 - DIGITS.mean) / DIGITS.std
        x = jnp.asarray(x.reshape(len(x), -1), jnp.float32)
        loss, grads = by_hand(params, x, DIGITS.train_labels[rows])
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
        state = step(state, (images, labels, jnp.asarray(order)))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, params)
    assert int(state.step) == int(state.loss_steps) == 3
    assert float(state.loss_sum) == pytest.approx(sum(losses), rel=1e-5)


def test_batch_statistics_move_in_training_and_not_in_evaluation():
    network, params, stats = build("vgg-small")
    images = jnp.asarray(DIGITS.train_images[:64])
    _, new = network.train(params, stats, network.normalise(images))
    assert not np.array_equal(new["bn1"]["mean"], stats["bn1"]["mean"])
    before = network.evaluate(params, stats, network.normalise(images))
    assert not np.allclose(before, network.evaluate(params, new, network.normalise(images)))
    alone = network.evaluate(params, stats, network.normalise(images[:5]))
    np.testing.assert_allclose(before[:5], alone, atol=1e-5)


def test_augmentation_depends_on_seed_and_step_alone():
    config = TrainConfig(network="lenet300", dataset="digits", epochs=1, batch_size=32, seed=3)
    order = jnp.tile(jnp.arange(32), (4, 1))  # the same batch again and again

    def images(augment, seed, *steps):
        changed = dataclasses.replace(config, augment=augment, seed=seed)
        feed = make_feed(DIGITS, changed, make_mesh("one"))
        arrays, _, key = feed.at(0)
        return [np.asarray(feed.pick((arrays, order, key), step)[0]) for step in steps]

    first, second, again = images(True, 3, 1, 2, 1)
    (other_seed,) = images(True, 4, 1)
    plain, plain_later = images(False, 3, 1, 3)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(plain, plain_later)
    np.testing.assert_array_equal(plain, DIGITS.train_images[:32])
    key = jax.random.fold_in(jax.random.key(3), 1)
    np.testing.assert_array_equal(first, data.augment(key, plain))
    assert len({x.tobytes() for x in (first, second, other_seed, plain)}) == 4


def test_a_view_and_a_penalty_of_what_is_trained():
    network, params, stats = build()
    tx = optax.sgd(0.5)
    step = make_step(
        network, tx, lambda given, _: given,
        view=lambda trained: jax.tree.map(lambda w: trained["scale"] * w, trained["params"]),
        penalty=lambda trained: 3.0 * trained["scale"],
    )  # fmt: skip
    x, y = jnp.asarray(DIGITS.train_images[:8]), jnp.asarray(DIGITS.train_labels[:8])

    def loss(scale):
        scaled = jax.tree.map(lambda w: scale * w, params)
        return network.loss(scaled, stats, network.normalise(x), y)[0] + 3.0 * scale

    value, slope = jax.value_and_grad(loss)(1.0)
    state = first_state({"params": copied(params), "scale": jnp.float32(1)}, copied(stats), tx)
    state = step(state, (x, y))
    assert float(state.loss_sum) == pytest.approx(float(value), rel=1e-5)
    assert float(state.params["scale"]) == pytest.approx(1 - 0.5 * float(slope), rel=1e-4)


def test_evaluation_counts_every_row_once():
    network, params, stats = build()
    evaluate = make_evaluate(network)
    logits = network.evaluate(params, stats, network.normalise(jnp.asarray(DIGITS.test_images)))
    right = np.argmax(logits, -1) == DIGITS.test_labels
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(360), DIGITS.test_labels]
    for rows in (1, 49, 50, 51, 360):
        part = data.ArrayPart(DIGITS.test_images[:rows], DIGITS.test_labels[:rows])
        batches = Rows(part, 50, make_mesh("one"))
        accuracy, loss = evaluate(params, stats, batches)
        assert accuracy == np.mean(right[:rows])
        assert loss == pytest.approx(np.mean(losses[:rows]), rel=1e-5)


def test_the_first_step_with_a_loss_not_finite_is_kept():
    network, params, stats = build()
    tx = optax.sgd(float("inf"))
    step = make_step(network, tx, rows_of)
    state = first_state(copied(params), copied(stats), tx)
    images, labels = jnp.asarray(DIGITS.train_images), jnp.asarray(DIGITS.train_labels)
    order = jnp.asarray(data.epoch_order(0, 0, len(labels), 32))
    seen = []
    for _ in range(3):
        state = step(state, (images, labels, order))
        seen.append(int(state.bad_step))
    assert seen == [-1, 2, 2]


def test_a_step_that_is_not_finite_can_be_left_out():
    network, params, stats = build("vgg-small")
    tx = dl.dessilbi(0.1, nu=10.0, lam=0.01, momentum=0.9)
    given = jnp.asarray(DIGITS.train_images), jnp.asarray(DIGITS.train_labels)

    def broken_at_1(given, step):
        images, labels = given
        x = images[:32].astype(jnp.float32)
        return jnp.where(step == 1, jnp.inf, x), labels[:32]

    step = make_step(network, tx, broken_at_1, skip=True)
    states = [first_state(copied(params), copied(stats), tx)]
    for _ in range(3):
        states.append(step(copied(states[-1]), given))
    assert [int(state.skipped) for state in states] == [0, 0, 1, 1]
    assert [int(state.loss_steps) for state in states] == [0, 1, 1, 2]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert {int(state.bad_step) for state in states} == {-1}

    def arrays(state):
        return [
            np.asarray(x).tobytes()
            for x in jax.tree.leaves((state.params, state.stats, state.opt_state))
        ]

    assert arrays(states[1]) == arrays(states[2]) != arrays(states[3])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[3].params))


def test_schedules():
    config = TrainConfig(network="lenet300", dataset="digits", epochs=1, learning_rate=0.2)
    constant = make_schedule(config, 100)
    assert float(constant(0)) == float(constant(99)) == pytest.approx(0.2)
    cosine = make_schedule(TrainConfig(**{**config.to_json(), "schedule": "cosine"}), 100)
    assert [float(cosine(s)) for s in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0])
    half = make_schedule(TrainConfig(**{**config.to_json(), "schedule": "half"}), 100)
    assert [float(half(s)) for s in (0, 50, 75, 100)] == pytest.approx([0.2, 0.2, 0.1, 0.0])
    warm = {**config.to_json(), "schedule": "cosine", "warmup": 0.2}
    rising = make_schedule(TrainConfig(**warm), 100)
    found = [float(rising(s)) for s in (0, 9, 19, 20, 60, 100)]
    assert found == pytest.approx([0.01, 0.1, 0.2, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_w_and_v_move_by_the_same_learning_rate(optimizer, schedule):
    config = TrainConfig(
        network="lenet300", dataset="digits", epochs=1, optimizer=optimizer, schedule=schedule,
        momentum=0.0, nu=4.0, kappa=2.0, lam=1.0, density=None, structure="weights",
    )  # fmt: skip
    tx, rate = make_optimizer(config, 10, dl.filters), make_schedule(config, 10)
    params = {"kernel": jnp.full((2, 2), 3.0)}
    state, v = tx.init(params), 0.0
    for k in range(3):
        v += float(rate(k)) / (2.0 * 4.0) * 3.0
        _, state = tx.update({"kernel": jnp.zeros((2, 2))}, state, params)
    np.testing.assert_allclose(dl.get_state(state).v["kernel"], v, rtol=1e-6)


def test_adam_decays_matrices_only():
    config = TrainConfig(
        network="lenet300", dataset="digits", epochs=1, optimizer="adam", weight_decay=0.5,
        nu=1e9, lam=1.0, density=None, learning_rate=0.1,
    )  # fmt: skip
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = make_optimizer(config, 10, dl.filters)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0.0)


@pytest.mark.parametrize(
    ("per_epoch", "epochs", "records", "expected"),
    [
        (1, 3, 1, [1, 2, 3]),
        (2, 2, 1, [1, 2, 4]),
        (10, 3, 1, [1, 3, 9, 10, 20, 30]),
        (9, 1, 1, [1, 3, 9]),
        (469, 2, 2, [1, 3, 9, 27, 81, 234, 243, 469, 704, 938]),
        (1, 2, 4, [1, 2]),
    ],
)
def test_records_are_early_then_even_and_end_every_epoch(per_epoch, epochs, records, expected):
    assert sorted(record_steps(per_epoch, epochs, records)) == expected


def test_group_norms_of_filters_weights_and_blocks():
    leaf = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    filters = [np.linalg.norm(leaf[..., i]) for i in range(4)]
    np.testing.assert_allclose(group_norms(leaf, (1, 1, 1, 4)), filters, rtol=1e-6)
    np.testing.assert_allclose(group_norms(leaf, leaf.shape), np.abs(leaf).ravel(), rtol=1e-6)
    matrix = leaf.reshape(9, 8)[:8]
    blocks = [np.linalg.norm(matrix[i : i + 4, j : j + 2]) for i in (0, 4) for j in range(0, 8, 2)]
    np.testing.assert_allclose(group_norms(matrix, (2, 4)), blocks, rtol=1e-6)
