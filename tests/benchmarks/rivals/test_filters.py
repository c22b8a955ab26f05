"""Rivals that remove filters: the defining property of each, and what all of them share."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dessilbi_jax as dl
from benchmarks.harness.work import Setting, Work
from benchmarks.rivals import cuts, filters
from dessilbi_jax import models

SETTING = Setting("vgg-small", "cifar10", 2, 0.05, batch=8, widths=(4, 8))
RESIDUAL = Setting("resnet-small", "cifar10", 1, 0.05, batch=32, widths=(3, 4, 5))


@pytest.fixture
def work(tmp_path_factory):
    return Work(SETTING, 0, folder=tmp_path_factory.getbasetemp() / "kept_filters")


def network(work, params, stats):
    model = nnx.merge(work.network.evaluating, params, stats)
    return jax.jit(lambda x: model(x))


def test_orders_and_beginnings_of_groups():
    groups = Work(RESIDUAL, 0).groups
    scores = np.random.default_rng(0).random(groups.count)
    order = cuts.in_each(groups, scores)
    assert sorted(order) == list(range(groups.count))
    for share in (0.3, 0.6):
        kept = cuts.beginning(groups, order, share)
        n = int(kept.sum())
        assert set(np.flatnonzero(kept)) == set(order[:n])
        more = kept.copy()
        more[order[n]] = True
        assert groups.flops_of(kept) <= share * groups.flops() < groups.flops_of(more)
        for each in groups.sets:  # the best of each set, as large a part of each
            left = int(kept[each.groups].sum())
            assert set(each.groups[kept[each.groups]]) == set(
                each.groups[np.argsort(-scores[each.groups])[:left]]
            )
            assert abs(left / len(each.groups) - n / groups.count) < 1 / len(each.groups) + 0.2
    order = cuts.everywhere(groups, scores)
    assert sorted(order) == list(range(groups.count))
    first, rest = order[: len(groups.sets)], order[len(groups.sets) :]
    assert all(np.isin(first, each.groups).sum() == 1 for each in groups.sets)
    assert (np.diff(scores[rest]) <= 0).all()
    with pytest.raises(ValueError, match="one channel in each layer"):
        cuts.beginning(groups, order, 0.001)


def test_scores_of_groups_are_those_of_plain_numpy():
    work = Work(SETTING, 0)
    groups = work.groups
    params = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), work.params
    )
    for power in (1, 2):
        found = cuts.norms(groups, params, power)
        for layer in ("conv1", "conv2"):
            kernel = np.asarray(params[layer]["kernel"])
            numbers = groups.numbers[f"{layer}/kernel", 3]
            np.testing.assert_allclose(
                found[numbers], (np.abs(kernel) ** power).sum((0, 1, 2)), rtol=1e-6
            )
    numbers = groups.numbers["conv2/kernel", 3]
    np.testing.assert_allclose(
        cuts.scales(groups, params)[numbers], np.abs(params["bn2"]["scale"]), rtol=1e-6
    )


def test_scores_of_the_residual_stream_take_all_that_make_it():
    work = Work(RESIDUAL, 0)
    groups = work.groups
    block = work.params["stage2_block1"]
    numbers = groups.numbers["stage2_block1/conv2/kernel", 3]
    expected = sum(
        np.abs(np.asarray(block[name]["kernel"])).sum((0, 1, 2)) for name in ("conv2", "shortcut")
    )
    np.testing.assert_allclose(cuts.norms(groups, work.params, 1)[numbers], expected, rtol=1e-5)


def test_a_cut_network_computes_what_the_masked_one_does():
    work = Work(RESIDUAL, 0)
    groups = work.groups
    kept = cuts.beginning(groups, cuts.in_each(groups, cuts.norms(groups, work.params, 1)), 0.5)
    masks = cuts.as_masks(groups, kept)
    small = cuts.cut(work, work.params, work.stats, masks)
    masked = dl.project(work.params, dl.Ticket(
        {k: v for k, v in masks.items() if "mean" not in k and "var" not in k}, 0,
        ("conv1/kernel",), 1.0,
    ).mask(work.params))  # fmt: skip
    x = work.arrays["test_x"][:3]
    np.testing.assert_allclose(
        network(small.work, small.params, small.stats)(x),
        network(work, masked, work.stats)(x),
        atol=1e-5,
    )
    assert small.flops == groups.flops_of(kept) / groups.flops()
    assert jax.tree.map(jnp.shape, small.params) == jax.tree.map(jnp.shape, small.work.params)


def test_every_method_has_four_trials_and_the_first_is_its_default():
    for rival in filters.RIVALS.values():
        assert len({str(given) for given in rival.trials}) == len(rival.trials) == 4
        defaults = inspect.signature(rival.find).parameters
        assert rival.trials[0] == {name: defaults[name].default for name in rival.trials[0]}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("L1-norm filters", {}),
        ("L1-norm filters", {"tuning": "run", "rate": 1.0}),
        ("network slimming", {"strength": 0.05}),
        ("soft filter pruning", {}),
        ("soft filter pruning", {"tuned": True}),
        ("DessiLBI", {}),
        ("DessiLBI", {"way": "init"}),
        ("DessiLBI", {"way": "end"}),
    ],
)
def test_a_method_ends_at_the_share_with_its_cost_counted(work, name, given):
    found = filters.RIVALS[name].find(work, 0.5, **given)
    assert found.cut.flops <= 0.5
    assert found.widths == models.widths(
        nnx.merge(found.cut.work.network.evaluating, found.params, found.stats)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    search = 0.5 if given.get("way") in ("init", "end") else 1.0
    after = {"soft filter pruning": 1.0 if given else 50 / 64,
             "DessiLBI": 0.5 if given.get("way") == "end" else 1.0,
             "L1-norm filters": 1.0 if given else 0.25}.get(name, 1.0)  # fmt: skip
    assert found.search == search
    assert found.training == pytest.approx(search + after * found.cut.flops, abs=1e-4)


def test_l1_cuts_the_smallest_filters_of_the_dense_run(work):
    whole = work.dense()
    found = filters.l1_norm(work, 0.5)
    kernel = np.asarray(whole["params"]["conv1"]["kernel"])
    stay = np.sort(np.argsort(-np.abs(kernel).sum((0, 1, 2)))[: found.widths[0]])
    assert found.cut.plan.keep["conv1/kernel"][3] == tuple(stay)
    np.testing.assert_array_equal(found.cut.params["conv1"]["kernel"], kernel[..., stay])


def test_the_penalty_of_network_slimming_is_l1_on_scales_only(work):
    penalty = filters.l1_of_scales(0.5)
    value, slope = jax.value_and_grad(penalty)(work.params)
    assert value == pytest.approx(0.5 * 12)  # four and eight scales, at one
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        expected = 0.5 if path[-1].key == "scale" else 0.0
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected))


def test_network_slimming_keeps_the_largest_scales_of_all_layers(work):
    found = filters.network_slimming(work, 0.5, strength=0.05)
    made = work.kept("network slimming strength=0.05", lambda: pytest.fail("it was not kept"))
    size = {layer: np.abs(made["params"][f"bn{layer}"]["scale"]) for layer in (1, 2)}
    left = {layer: np.array(found.cut.plan.keep.get(f"bn{layer}/scale", {0: range(len(s))})[0])
            for layer, s in size.items()}  # fmt: skip
    gone = [np.delete(size[layer], left[layer]) for layer in (1, 2)]
    kept = [np.delete(size[layer][left[layer]], size[layer][left[layer]].argmax())
            for layer in (1, 2)]  # fmt: skip
    assert np.concatenate(gone).max() <= np.concatenate(kept).min()
    assert np.mean(size[2]) < np.mean(np.abs(work.dense()["params"]["bn2"]["scale"]))


def test_soft_filter_pruning_zeroes_at_each_interval_and_filters_come_back(monkeypatch):
    work, seen, given = Work(SETTING, 0), [], []
    real = filters.softened

    def watched(groups, params, *rest):
        out, kept = real(groups, params, *rest)
        given.append(np.asarray(params["conv2"]["kernel"]))
        seen.append(np.asarray(out["conv2"]["kernel"]))
        return out, kept

    monkeypatch.setattr(filters, "softened", watched)
    found = filters.soft_filter_pruning(work, 0.5, interval=0.5)
    assert len(seen) == 2
    for k, zeroed in enumerate(seen):
        gone = ~zeroed.any((0, 1, 2))
        smallest = np.argsort((given[k] ** 2).sum((0, 1, 2)))[: gone.sum()]
        assert gone.any()
        assert set(np.flatnonzero(gone)) == set(smallest)
        if k:  # what was zeroed has trained on
            assert given[k][..., ~seen[k - 1].any((0, 1, 2))].any((0, 1, 2)).all()
    last = np.flatnonzero(seen[-1].any((0, 1, 2)))
    assert found.cut.plan.keep["conv2/kernel"][3] == tuple(last)
    filters.soft_filter_pruning(work, 0.5, interval=1.0)
    assert len(seen) == 3


def test_softening_zeroes_kernels_and_nothing_else():
    work = Work(SETTING, 0)
    groups = work.groups
    out, _ = filters.softened(groups, work.params, 0.5)
    for layer in ("bn1", "bn2"):
        jax.tree.map(np.testing.assert_array_equal, out[layer], work.params[layer])
    # Behind normalisation a zeroed filter gives its bias: where that passes, gradients come back.
    out["bn1"]["bias"] = jnp.full_like(out["bn1"]["bias"], 0.1)
    moved = work.train(optax.sgd(0.1), out, steps=1)
    gone = ~np.asarray(out["conv1"]["kernel"]).any((0, 1, 2))
    assert np.asarray(moved.params["conv1"]["kernel"])[..., gone].any((0, 1, 2)).all()


def test_dessilbi_at_the_end_goes_on_where_it_was_cut(work, monkeypatch):
    seen = {}
    real = Work.train

    def watched(self, tx, params=None, stats=None, state=None, **rest):
        if rest.get("first"):
            seen.update(state=state, **rest)
        return real(self, tx, params, stats, state, **rest)

    monkeypatch.setattr(Work, "train", watched)
    found = filters.dessilbi(work, 0.5, way="end")
    half = work.steps() // 2
    nu = f"{work.time(half) / 0.5:.3g}"
    name = f"DessiLBI until={half} nu={nu} group_density=0.5"
    made = work.kept(name, lambda: pytest.fail("it was not kept"))
    assert seen["first"] == half
    assert int(optax.tree_utils.tree_get(seen["state"], "count")) == half
    stay = found.cut.plan.keep["conv2/kernel"]
    for name, tree in (("momentum", optax.tree_utils.tree_get(seen["state"], "trace")),
                       ("params", found.cut.params)):  # fmt: skip
        whole = made[name]["conv2"]["kernel"]
        for axis, kept in stay.items():
            whole = np.take(whole, kept, axis)
        np.testing.assert_array_equal(tree["conv2"]["kernel"], whole)


def test_dessilbi_tuned_cuts_the_weights_after_a_whole_run(work):
    found = filters.dessilbi(work, 0.5, shrink=8.0)
    name = f"DessiLBI until={work.steps()} nu={work.time() / 8:.3g} group_density=0.5"
    made = work.kept(name, lambda: pytest.fail("it was not kept"))
    whole = made["params"]["conv2"]["kernel"]
    for axis, kept in found.cut.plan.keep["conv2/kernel"].items():
        whole = np.take(whole, kept, axis)
    np.testing.assert_array_equal(found.cut.params["conv2"]["kernel"], whole)


def test_dessilbi_from_the_start_cuts_the_first_weights(work):
    found = filters.dessilbi(work, 0.5, way="init")
    first = np.asarray(work.params["conv1"]["kernel"])
    stay = found.cut.plan.keep.get("conv1/kernel", {}).get(3, range(first.shape[3]))
    np.testing.assert_array_equal(found.cut.params["conv1"]["kernel"], first[..., list(stay)])


def test_controls_are_fresh_and_have_the_epochs_of_liu_et_al(work):
    found = filters.l1_norm(work, 0.5)
    fresh, _ = filters.scratch(work, found, "E")
    assert (fresh.setting.epochs, fresh.setting.widths) == (2, found.widths)
    assert not np.array_equal(fresh.params["conv1"]["kernel"], found.cut.params["conv1"]["kernel"])
    longer, _ = filters.scratch(work, found, "B")
    assert longer.setting.epochs == round(2 / found.cut.flops) > 2
    assert work.in_runs(longer.cost) == pytest.approx(1, rel=0.5 * found.cut.flops / 2)
    assert work.in_runs(fresh.cost) == pytest.approx(found.cut.flops, abs=1e-4)
    assert fresh.seed == longer.seed == found.cut.work.seed  # the same order of images
    assert filters.scratch(work, found, "E")[1]["params"].keys() == fresh.params.keys()
