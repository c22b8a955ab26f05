"""Slimming the networks of the zoo, with what trains them, and what is said of wrong plans."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dessilbi_jax as dl
from dessilbi_jax import models
from dessilbi_jax.slimming import cut, smaller
from dessilbi_jax.tree import leaf_paths

ZOO = {
    "lenet300": ((8, 8, 1), (16, 12)),
    "lenet5": ((16, 16, 1), (6, 8, 10)),
    "vgg-small": ((8, 8, 3), (6, 8, 8, 10)),
    "resnet-small": ((8, 8, 3), (6, 8)),
}


@functools.cache
def network(name):
    """(model in training mode, images, channel groups)."""
    shape, widths = ZOO[name]
    model = models.build(name, input_shape=shape, widths=widths, classes=4, seed=1)
    x = jax.random.normal(jax.random.key(3), (5, *shape))
    if name in ("vgg-small", "resnet-small"):
        model.train()
        model(x)  # running statistics that are not those of the start
    return model, x, dl.channel_groups(model, x)


def random_masks(groups, params, seed, share=0.5):
    """Masks that empty some channel groups, never all of a set, and which groups they keep."""
    rng = np.random.default_rng(seed)
    gone = rng.random(groups.count) < share
    for each in groups.sets:
        gone[rng.choice(each.groups)] = False
    masks = {path: np.ones(np.shape(leaf), bool) for path, leaf in leaf_paths(params)}
    for (path, axis), numbers in groups.numbers.items():
        if (path, axis) not in groups.reads:
            masks[path][(slice(None),) * axis + (np.append(gone, False)[numbers],)] = False
    return masks, ~gone


def parts(model):
    """(graph, parameters, other state) in evaluation mode, as pure trees."""
    model = nnx.clone(model)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def loss_of(graph, rest, x):
    return lambda params: jnp.sum(nnx.merge(graph, {**merged(params, rest)})(x) ** 2)


def merged(a, b):
    """Two trees of dicts as one."""
    return {
        k: merged(a[k], b[k]) if k in a and k in b else a[k] if k in a else b[k] for k in {**a, **b}
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_channel_but_those_of_inputs_and_outputs_is_removable(name):
    model, _, groups = network(name)
    for path, leaf in leaf_paths(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        if path.endswith("kernel"):
            is_head = path.startswith("fc") and leaf.shape[-1] == 4  # no other layer has 4
            assert set(groups.removable(path, -1)) == {not is_head}, f"{path}\n{groups}"
    assert not groups.unknown


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ZOO)
def test_outputs_gradients_and_steps_of_the_small_network_are_those_of_the_masked_one(name, seed):
    model, x, groups = network(name)
    graph, params, rest = parts(model)
    masks, kept = random_masks(groups, merged(params, rest), seed)
    tx = optax.chain(
        optax.scale_by_adam(),
        dl.add_split_lbi(0.1, nu=10.0, lam=1e-3, structure=dl.filters),
        optax.trace(0.9),
        optax.scale_by_learning_rate(0.1),
    )
    state = tx.init(params)
    grads = jax.jit(jax.grad(loss_of(graph, rest, x)))(params)
    _, state = jax.jit(tx.update)(grads, state, params)  # moments, momentum, V and Γ of one step
    small = dl.slim(model, masks, x, opt_state=state)
    assert small.difference < 1e-5
    np.testing.assert_array_equal(small.groups.kept_by(small.plan), kept)

    small_graph, small_params, small_rest = parts(small.model)
    chex.assert_trees_all_equal_shapes(small.plan.apply(params), small_params)
    # The masks alone, as a user has them: what reads a removed channel keeps its weights.
    zeroed, zero_rest = (
        jax.tree.unflatten(
            jax.tree.structure(tree),
            [jnp.where(masks[path], leaf, 0) for path, leaf in leaf_paths(tree)],
        )
        for tree in (params, rest)
    )
    g_masked = jax.jit(jax.grad(loss_of(graph, zero_rest, x)))(zeroed)
    g_small = jax.jit(jax.grad(loss_of(small_graph, small_rest, x)))(small_params)
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=2e-5)
    close(small.plan.apply(g_masked), g_small)

    u_masked, _ = jax.jit(tx.update)(g_masked, state, zeroed)
    u_small, s_small = jax.jit(tx.update)(g_small, small.opt_state, small_params)
    close(small.plan.apply(optax.apply_updates(zeroed, u_masked)),
          optax.apply_updates(small_params, u_small))  # fmt: skip
    chex.assert_trees_all_equal_shapes(s_small, small.opt_state)


@pytest.mark.slow
def test_joint_groups_train_to_a_ticket_that_is_cut_with_its_state_and_trains_on():
    model, x, groups = network("resnet-small")
    graph, params, rest = parts(model)
    tx = dl.dessilbi(1e-3, nu=0.1, lam=dl.auto(group_density=0.5, steps=40), momentum=0.9,
                     structure=dl.channels(groups))  # fmt: skip
    loss = loss_of(graph, rest, x)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, path = tx.init(params), dl.SolutionPath()
    for i in range(1, 41):
        params, state = step(params, state)
        path.record(i, state)
    total = groups.count
    ticket = path.ticket(groups=total // 2, minimum=2)
    assert groups.kept(ticket).sum() == total // 2
    budget = 0.4 * groups.flops()
    within = path.ticket(flops=budget, count=groups.flops)
    assert groups.flops(within) <= budget
    trained = nnx.clone(model)
    nnx.update(trained, params)
    small = dl.slim(trained, ticket, x, opt_state=state)
    again = dl.channel_groups(small.model, x)
    assert again.count == total // 2
    tx = dl.dessilbi(0.05, nu=5.0, lam=0.1, momentum=0.9, structure=dl.channels(again))
    small_graph, small_params, small_rest = parts(small.model)
    smaller = tx.init(small_params)
    put = {"v": dl.get_state(small.opt_state).v}
    chex.assert_trees_all_equal_shapes(dl.get_state(smaller).v, put["v"])
    ties = [t for t in jax.tree.leaves(dl.get_state(small.opt_state).ties) if t.dtype != bool]
    assert max(int(t.max()) for t in ties) < again.count
    g = jax.jit(jax.grad(loss_of(small_graph, small_rest, x)))(small_params)
    jax.jit(tx.update)(g, smaller, small_params)


@pytest.mark.slow
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_rounded_up_by_the_channels_of_largest_norm(round_to):
    model, x, groups = network("vgg-small")
    _, params, rest = parts(model)
    masks, kept = random_masks(groups, merged(params, rest), 3, share=0.8)
    small = dl.slim(model, masks, x, round_to=round_to)
    more = groups.kept_by(small.plan)
    assert (more >= kept).all()
    for each in groups.sets:
        n, before = int(more[each.groups].sum()), int(kept[each.groups].sum())
        assert n % round_to == 0 or n == len(each.groups)
        assert n - before < round_to
        added = each.groups[more[each.groups] & ~kept[each.groups]]
        left = each.groups[~more[each.groups]]
        norms = groups._norms(merged(params, rest))
        assert not added.size or not left.size or norms[added].min() >= norms[left].max()


@pytest.mark.slow
def test_a_plan_goes_through_json_and_fits_fresh_parameters(tmp_path):
    model, x, groups = network("lenet5")
    params = parts(model)[1]
    masks, _ = random_masks(groups, params, 5)
    plan = groups.plan(masks)
    plan.save(tmp_path / "plan.json")
    assert dl.Plan.load(tmp_path / "plan.json") == plan
    shape, widths = ZOO["lenet5"]
    fresh = models.build("lenet5", input_shape=shape, widths=widths, classes=4, seed=9)
    small = dl.slim(fresh, plan, x)
    chex.assert_trees_all_equal_shapes(parts(small.model)[1], plan.apply(params))


def test_a_plan_in_torch_layout_cuts_the_same_numbers():
    _, _, groups = network("lenet5")
    params = parts(network("lenet5")[0])[1]
    masks, _ = random_masks(groups, params, 6)
    plan = groups.plan(masks)
    torch = plan.oihw(flattened={"fc1/kernel": (1, 1)})
    kernel = params["conv2"]["kernel"]
    cut = torch.cut("conv2.weight", jnp.transpose(kernel, (3, 2, 0, 1)))
    here = plan.apply(params)["conv2"]["kernel"]
    np.testing.assert_array_equal(cut, jnp.transpose(here, (3, 2, 0, 1)))
    # Behind a flattened 2x3 image with 4 channels: (h, w, c) here, (c, h, w) there.
    wide = dl.Plan({"fc/kernel": (24, 2)}, {"fc/kernel": {0: tuple(i for i in range(24) if i % 4)}})
    x = np.arange(48).reshape(24, 2)
    there = np.moveaxis(x.reshape(2, 3, 4, 2), 2, 0).reshape(24, 2).T
    got = wide.oihw(flattened={"fc/kernel": (2, 3)}).cut("fc.weight", there)
    expected = np.moveaxis(np.asarray(wide.cut("fc/kernel", x)).reshape(2, 3, 3, 2), 2, 0)
    np.testing.assert_array_equal(got, expected.reshape(18, 2).T)


@pytest.mark.process
def test_a_saved_network_is_read_again_and_runs_without_the_library(tmp_path):
    model, x, groups = network("resnet-small")
    masks, _ = random_masks(groups, merged(*parts(model)[1:]), 2)
    small = dl.slim(model, masks, x)
    dl.save_slim(small, tmp_path / "small", x, card={"seed": 1})
    arrays, plan, card = dl.load_slim(tmp_path / "small")
    assert plan == small.plan
    assert card["seed"] == 1
    assert card["batch"] == "any"
    for path, leaf in leaf_paths(merged(*parts(small.model)[1:])):
        np.testing.assert_array_equal(arrays[path], leaf)
    np.save(tmp_path / "x.npy", np.concatenate([x, x]))
    script = """if True:
        import pathlib, sys
        sys.modules["dessilbi_jax"] = None  # an import of it would fail
        import jax, numpy as np
        here = pathlib.Path(sys.argv[1])
        net = jax.export.deserialize(bytearray((here / "small/forward.jaxexport").read_bytes()))
        np.save(here / "y.npy", net.call(np.load(here / "x.npy")))
    """
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    small.model.eval()
    y = np.load(tmp_path / "y.npy")
    assert len(y) == 2 * len(x)
    np.testing.assert_allclose(y[: len(x)], small.model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(FileExistsError, match="is there already"):
        dl.save_slim(small, tmp_path / "small", x)
    (tmp_path / "small" / "params.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        dl.load_slim(tmp_path / "small")
    with pytest.raises(FileNotFoundError, match="no slimmed network"):
        dl.load_slim(tmp_path)


@pytest.mark.slow
def test_nothing_is_left_of_a_save_that_fails(tmp_path):
    model, x, groups = network("lenet300")
    masks, _ = random_masks(groups, parts(model)[1], 2)
    small = dl.slim(model, masks, x)
    with pytest.raises(ValueError, match="card cannot be written"):
        dl.save_slim(small, tmp_path / "small", x, card={"x": float("nan")})
    assert not list(tmp_path.iterdir())


# --- bad input ---


def test_a_ticket_of_another_network_names_the_leaf():
    model, x, _ = network("lenet300")
    other = {"fc1/kernel": np.zeros((3, 3), bool)}
    with pytest.raises(ValueError, match=r"does not fit fc1/kernel: got bool\[3, 3\]"):
        dl.slim(model, other, x)
    with pytest.raises(ValueError, match="conv9/kernel is not a leaf of this network"):
        dl.slim(model, {"conv9/kernel": np.zeros((3, 3), bool)}, x)


def test_masks_of_numbers_are_refused():
    model, x, groups = network("lenet300")
    masks, _ = random_masks(groups, parts(model)[1], 2)
    masks["fc1/kernel"] = masks["fc1/kernel"].astype(np.float32)
    with pytest.raises(ValueError, match="got float32"):
        dl.slim(model, masks, x)


def test_a_layer_without_channels_is_refused():
    model, x, _ = network("lenet300")
    masks = {p: np.ones(np.shape(v), bool) for p, v in leaf_paths(parts(model)[1])}
    masks["fc2/kernel"][:] = False
    with pytest.raises(ValueError, match="no channel of fc"):
        dl.slim(model, masks, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaf: leaf["keep"].update({"1": [0, 99]}), "index 99 of fc1/kernel"),
        (lambda leaf: leaf["keep"].update({"1": [0, 0, 1]}), "must ascend"),
        (lambda leaf: leaf["keep"].update({"7": [0]}), "names axis 7"),
        (lambda leaf: leaf["keep"].update({"1": []}), "keeps nothing of fc1/kernel"),
        (lambda leaf: leaf["keep"].update({"1": [0.5]}), "no plan"),
        (lambda leaf: leaf.pop("shape"), "no plan"),
    ],
)
def test_a_plan_edited_by_hand_is_checked(change, message):
    model, _, groups = network("lenet300")
    masks, _ = random_masks(groups, parts(model)[1], 2)
    value = json.loads(json.dumps(groups.plan(masks).to_json()))
    change(value["leaves"]["fc1/kernel"])
    with pytest.raises(ValueError, match=message):
        dl.Plan.from_json(value)


@pytest.mark.parametrize(
    ("path", "axis", "message"),
    [
        ("fc1/kernel", 0, "an input of the network"),
        ("fc3/kernel", 1, "an output of the network"),
        ("fc1/kernel", 1, "other parts of the same channel"),
    ],
)
def test_a_plan_that_takes_inputs_outputs_or_half_a_channel_is_refused(path, axis, message):
    model, x, groups = network("lenet300")
    n = groups.shapes[path][axis]
    plan = dl.Plan(groups.shapes, {path: {axis: tuple(range(n - 1))}})
    with pytest.raises(ValueError, match=message):
        dl.slim(model, plan, x)


def test_a_plan_for_other_shapes_is_refused():
    model, x, _ = network("lenet300")
    with pytest.raises(ValueError, match="does not fit fc1/kernel"):
        dl.slim(model, dl.Plan({"fc1/kernel": (9, 9)}, {}), x)
    with pytest.raises(ValueError, match="does not fit a"):
        dl.Plan({"a": (4,)}, {"a": {0: (1,)}}).apply({"a": jnp.ones(5)})


def test_an_input_that_does_not_fit_is_told():
    model, _, _ = network("lenet300")
    with pytest.raises(TypeError, match=r"cannot be traced on inputs of shape \(2, 9, 9, 1\)"):
        dl.channel_groups(model, jnp.ones((2, 9, 9, 1)))


@pytest.mark.slow
def test_side_effects_and_shapes_that_depend_on_values_are_told():
    p, x = jnp.ones((2, 2)), jnp.ones((1, 2))

    def shouting(p, x):
        jax.debug.print("{}", x)
        return x @ p

    with pytest.raises(TypeError, match="do not depend on their values"):
        dl.channel_groups(lambda p, x: x[x[:, 0] > 0] @ p, p, x)
    with pytest.raises(TypeError, match="side effects"):
        dl.channel_groups(shouting, p, x)


def test_code_that_keeps_sizes_of_its_own_is_told_and_can_be_corrected():
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}

    def net(p, x, width=8):
        return jax.nn.relu(x @ p["a"]).reshape(-1, width) @ p["b"]

    masks = {"a": np.broadcast_to(np.arange(8) < 6, (4, 8)), "b": np.ones((8, 3), bool)}
    x = jnp.ones((4, 4))
    with pytest.raises(TypeError, match="keep sizes of its own"):
        dl.slim(params, masks, x, fn=net)
    small = dl.slim(params, masks, x, fn=net, rebuild=lambda p: functools.partial(net, width=6))
    assert small.model["b"].shape == (6, 3)


def test_a_small_network_with_other_outputs_is_refused():
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}

    def net(p, x):  # the number of channels is part of what it computes
        return jax.nn.relu(x @ p["a"]) @ p["b"] / p["a"].shape[1]

    masks = {"a": np.broadcast_to(np.arange(8) < 6, (4, 8)), "b": np.ones((8, 3), bool)}
    with pytest.raises(ValueError, match="outputs differ"):
        dl.slim(params, masks, jnp.ones((4, 4)), fn=net)


def test_a_tree_needs_a_function():
    with pytest.raises(TypeError, match="give the network's function as fn="):
        dl.slim({"a": jnp.ones((2, 2))}, {"a": np.ones((2, 2), bool)}, jnp.ones((1, 2)))


def test_ignored_channels_stay_and_unknown_patterns_are_told():
    model, x, _ = network("lenet300")
    groups = dl.channel_groups(model, x, ignore=["fc1"])
    assert not groups.removable("fc1/kernel", 1).any()
    assert groups.removable("fc2/kernel", 1).all()
    assert "named by ignore" in str(groups)
    with pytest.raises(ValueError, match="matches no leaf"):
        dl.channel_groups(model, x, ignore=["fc7"])


def test_groups_that_were_traced_are_used_again(monkeypatch):
    model, x, groups = network("lenet300")
    masks, kept = random_masks(groups, parts(model)[1], 2)
    expected = dl.slim(model, masks, x, check=False)
    for module in (cut, smaller):  # which look it up by themselves
        monkeypatch.setattr(
            module, "channel_groups", lambda *args, **options: pytest.fail("traced")
        )
    small = dl.slim(model, masks, x, groups=groups, check=False)
    assert (small.plan, small.flops) == (expected.plan, expected.flops)
    np.testing.assert_array_equal(groups.kept_by(small.plan), kept)


def test_groups_of_another_network_are_refused():
    model, x, groups = network("lenet300")
    masks, _ = random_masks(groups, parts(model)[1], 2)
    wider = models.build("lenet300", input_shape=(8, 8, 1), widths=(16, 13), classes=4)
    with pytest.raises(ValueError, match=r"another network: of fc2/bias they know \(13,\), .*12"):
        dl.slim(model, masks, x, groups=dl.channel_groups(wider, x))
    few = dataclasses.replace(groups, shapes={"fc1/bias": (16,)})
    with pytest.raises(ValueError, match="they know no such leaf, this network has"):
        dl.slim(model, masks, x, groups=few)
    with pytest.raises(TypeError, match="ignore= has no use with groups="):
        dl.slim(model, masks, x, groups=groups, ignore=["fc1"])
    # Of the same shapes, but another function: what is cut has to pass the comparison.
    tree = {"a": jnp.eye(4), "b": jnp.ones((4, 3))}
    dead = {"a": np.broadcast_to(np.arange(4) > 0, (4, 4)), "b": np.ones((4, 3), bool)}

    def net(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    found = dl.channel_groups(net, tree, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="outputs differ from the masked one's"):
        dl.slim(tree, dead, jnp.ones((1, 4)), fn=lambda p, x: net(p, x) + p["a"].size, groups=found)


def test_state_over_a_part_of_the_traced_tree_is_cut_too():
    variables = {
        "params": {"a": {"kernel": jnp.ones((4, 8))}, "b": {"a": {"kernel": jnp.ones((8, 3))}}},
        "batch_stats": {"a": {"mean": jnp.ones(8)}},
    }

    def net(v, x):
        x = jax.nn.relu(x @ v["params"]["a"]["kernel"] - v["batch_stats"]["a"]["mean"])
        return x @ v["params"]["b"]["a"]["kernel"]

    masks = {"params/a/kernel": np.broadcast_to(np.arange(8) < 5, (4, 8))}
    tx = optax.chain(optax.adamw(0.1), optax.trace(0.9))
    state = tx.init(variables["params"])
    small = dl.slim(variables, masks, jnp.ones((2, 4)), fn=net, opt_state=state)
    assert small.model["batch_stats"]["a"]["mean"].shape == (5,)
    chex.assert_trees_all_equal_shapes(small.opt_state, tx.init(small.model["params"]))
    masked = optax.masked(optax.trace(0.9), {"a": True, "b": False}).init(variables["params"])
    cut = dl.slim(variables, masks, jnp.ones((2, 4)), fn=net, opt_state=masked).opt_state
    assert jax.tree.leaves(cut)[0].shape == (4, 5)


def test_donating_the_small_network_and_its_state_leaves_the_other_whole():
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3)), "scale": jnp.ones(3)}

    def net(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"] * p["scale"]

    state = optax.sgd(0.1, momentum=0.9).init(params)
    masks = {"a": np.broadcast_to(np.arange(8) < 5, (4, 8))}
    small = dl.slim(params, masks, jnp.ones((2, 4)), fn=net, opt_state=state)
    given = small.model, small.opt_state
    jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(given)
    assert float(params["scale"].sum() + jax.tree.leaves(state)[-1].sum()) == 3


def test_heads_are_rounded_by_their_size():
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 4, 8), "k": (6, 4, 8), "v": (6, 4, 8), "o": (4, 8, 6)}
    params = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}

    def attention(p, x):
        q, k, v = (jnp.einsum("btd,dnh->btnh", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
        return jnp.einsum("btnh,nhd->btd", jnp.einsum("bnts,bsnh->btnh", weights, v), p["o"])

    masks = {n: np.ones(s, bool) for n, s in shapes.items()}
    for name in "qkv":
        masks[name][:, 1:] = False
    x = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    small = dl.slim(params, masks, x, fn=attention, round_to=8)  # one head is 8 wide already
    assert small.model["q"].shape == (6, 1, 8)


def test_no_ticket_is_refused():
    model, x, _ = network("lenet300")
    with pytest.raises(ValueError, match="there is no ticket, so nothing to cut out"):
        dl.slim(model, None, x)


def _mlp(*widths):
    return {
        f"fc{i}": {"kernel": jnp.ones(pair), "bias": jnp.ones(pair[1])}
        for i, pair in enumerate(itertools.pairwise(widths))
    }


def _run_mlp(params, x):
    for name in sorted(params):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x


STATES = {
    "adam": optax.adam(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "dessilbi": dl.dessilbi(0.1, lam=0.1, momentum=0.9),
    "automatic": dl.wrap(optax.adam(0.1), 0.1, lam=dl.auto(density=0.1, steps=20)),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_mlp(4, 6, 3), "does not fit fc0/"),
        (_mlp(4, 8, 3, 3), "another network: it has .*fc2/"),
        ({"conv": {"kernel": jnp.ones((3, 3))}}, "another network: .*conv/kernel is none of fc0/"),
        ({"fc0": jnp.ones((4, 8)), "fc1": jnp.ones((8, 3))}, "another network|not fit"),
    ],
    ids=["widths", "a layer more", "others", "names"],
)
def test_a_state_over_another_network_is_refused(kind, other, message):
    params, x = _mlp(4, 8, 3), jnp.ones((2, 4))
    masks = {"fc0/kernel": np.broadcast_to(np.arange(8) < 5, (4, 8))}
    tx = STATES[kind]
    if "dessi" in kind or "auto" in kind:
        other = other if isinstance(next(iter(other.values())), dict) else _mlp(4, 9, 3)
    own = dl.slim(params, masks, x, fn=_run_mlp, opt_state=tx.init(params), check=False)
    chex.assert_trees_all_equal_shapes(own.opt_state, tx.init(own.model))
    with pytest.raises(ValueError, match=f"{message}|does not fit"):
        dl.slim(params, masks, x, fn=_run_mlp, opt_state=tx.init(other), check=False)
    # A state of scalars alone belongs to every network.
    scalars = optax.scale_by_schedule(lambda _: 1.0).init(params)
    dl.slim(params, masks, x, fn=_run_mlp, opt_state=scalars, check=False)
