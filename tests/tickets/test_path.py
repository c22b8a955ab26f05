"""The solution path: exact supports, orders and sizes, and a file that is whole or refused."""

import contextlib
import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectories import gradient, network

import dessilbi_jax as dl

UNSEEN = "whether input and output are still connected was not looked at"
SHAPES = {"conv": {"kernel": (2, 2, 3, 5)}, "fc": {"kernel": (4, 6), "bias": (6,)}}
GROUPS = {"conv/kernel": (1, 1, 1, 5), "fc/kernel": (4, 6)}
GROUP_SIZE = {"conv/kernel": 12, "fc/kernel": 1}
ELEMENTS = 60 + 24


@jax.jit
def _state(v, lam):
    """A state whose V is what is given: one step of lr = κ = ν = 1 from zero sets it to W."""
    tx = dl.dessilbi(1.0, nu=1.0, lam=lam, structure=dl.filters)
    return tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)[1]


def make_v(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    v = jax.tree.map(
        lambda shape: scale * rng.normal(size=shape).astype(np.float32),
        SHAPES, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    v["conv"]["kernel"] /= 12**0.5  # groups of norm about 1
    return v


def norms(v):
    conv = np.sqrt(np.sum(np.square(v["conv"]["kernel"], dtype=np.float64), axis=(0, 1, 2)))
    return {"conv/kernel": conv.reshape(1, 1, 1, 5), "fc/kernel": np.abs(v["fc"]["kernel"])}


RECORDS = [(1, 0.3), (2, 0.5), (5, 0.7), (9, 1.1), (20, 0.9)]


def record(path, records=RECORDS, **metrics):
    for step, scale in records:
        path.record(step, _state(make_v(step, scale), 0.7), **metrics)
    return path


@pytest.fixture(scope="module")
def path():
    return record(dl.SolutionPath())


@pytest.fixture(scope="module")
def naive():
    """Step by step: which groups are selected, by NumPy alone, and the order of all groups."""
    chosen = {
        step: {p: n > 0.7 for p, n in norms(make_v(step, scale)).items()} for step, scale in RECORDS
    }
    order = []
    for p in GROUPS:
        for i in range(chosen[1][p].size):
            entry = [s for s in chosen if chosen[s][p].flat[i]]
            at = entry[0] if entry else RECORDS[-1][0]
            strength = norms(make_v(at, dict(RECORDS)[at]))[p].flat[i] / 0.7
            order.append((entry[0] if entry else 10**9, -strength, p, i))
    return chosen, sorted(order)


def test_supports_entries_and_densities_are_exact(path, naive):
    chosen, _ = naive
    assert path.steps.tolist() == [1, 2, 5, 9, 20]
    assert path.steps.dtype == np.int64
    assert len(path) == 5
    assert path.groups == GROUPS
    assert path.shapes == {"conv/kernel": (2, 2, 3, 5), "fc/bias": (6,), "fc/kernel": (4, 6)}
    for k, step in enumerate(chosen):
        masks = path.support(step)
        assert set(masks) == set(path.shapes)
        assert masks["fc/bias"].all()
        kept = 0
        for p, bits in chosen[step].items():
            assert masks[p].dtype == bool
            np.testing.assert_array_equal(masks[p], np.broadcast_to(bits, path.shapes[p]))
            assert path.layer_density()[p][k] == bits.mean()
            kept += bits.sum() * GROUP_SIZE[p]
        assert path.density()[k] == pytest.approx(kept / ELEMENTS, rel=1e-15)
    for p, entry in path.entry_steps().items():
        assert entry.shape == GROUPS[p]
        expected = np.full(GROUPS[p], -1)
        for step in reversed(list(chosen)):
            expected[chosen[step][p]] = step
        np.testing.assert_array_equal(entry, expected)
    entered = np.concatenate([e.ravel() for e in path.entry_steps().values()])
    assert {-1, 2, 5, 9} <= set(entered.tolist())  # the sample is not a trivial one
    back_out = any((chosen[9][p] & ~chosen[20][p]).any() for p in GROUPS)
    assert back_out  # entry stays where it was first, also of a group that left again


def test_support_is_that_of_the_state():
    v = make_v(3)
    state = _state(v, 0.7)
    path = dl.SolutionPath()
    path.record(7, state)
    chex.assert_trees_all_equal(path.support(7, v), dl.support(state))


def test_tickets_by_groups_hold_exactly_as_many_in_the_order_of_entry(path, naive):
    _, order = naive
    for k in range(1, len(order) + 1):
        ticket = path.ticket(groups=k, minimum=0)
        expected = {p: np.zeros(np.prod(shape), bool) for p, shape in GROUPS.items()}
        for _, _, p, i in order[:k]:
            expected[p][i] = True
        for p, shape in GROUPS.items():
            mask = expected[p].reshape(shape)
            np.testing.assert_array_equal(
                ticket.masks[p], np.broadcast_to(mask, path.shapes[p]), err_msg=f"{k} groups"
            )
        assert ticket.note == UNSEEN
        assert ticket.step == 20
        assert set(ticket.structured) == set(GROUPS)
        kept = sum(ticket.masks[p].sum() for p in GROUPS)
        assert ticket.density == kept / ELEMENTS


@given(density=st.floats(0.0001, 1.0))
@settings(deadline=None, max_examples=60)
def test_tickets_by_density_are_the_longest_prefix(path, naive, density):
    _, order = naive
    sizes = np.cumsum([GROUP_SIZE[p] for _, _, p, _ in order])
    take = int(np.sum(sizes <= density * ELEMENTS + 1e-9))
    if take == 0:
        with pytest.raises(ValueError, match="less than the first unit"):
            path.ticket(density=density, minimum=0)
        return
    ticket = path.ticket(density=density, minimum=0)
    expected = path.ticket(groups=take, minimum=0)
    for p in path.shapes:
        np.testing.assert_array_equal(ticket.masks[p], expected.masks[p])
    assert ticket.density <= density + 1e-12
    gap = density * ELEMENTS - sizes[take - 1]
    assert (f"{int(gap)} elements fewer" in ticket.note) == (gap >= 1 + 1e-9) or abs(gap - 1) < 1e-6


def test_a_density_that_is_met_exactly_is_met(path, naive):
    sizes = np.cumsum([GROUP_SIZE[p] for _, _, p, _ in naive[1]])
    for kept in sizes:
        assert path.ticket(density=int(kept) / ELEMENTS, minimum=0).density == kept / ELEMENTS
    assert path.ticket(density=1.0).density == 1.0


def test_a_ticket_of_a_recorded_step_is_the_support_then(path):
    ticket = path.ticket(at=5)
    assert ticket.step == 5
    for p, mask in path.support(5).items():
        np.testing.assert_array_equal(ticket.masks[p], mask)


def test_units_are_elements_where_the_penalty_thresholds_them():
    params = network()
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.1, penalty=dl.sparse_group_lasso(0.5))
    state, path = tx.init(params), dl.SolutionPath()
    for step in range(1, 9):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        if step % 4 == 0:
            path.record(step, state)
            chex.assert_trees_all_equal(path.support(step, params), dl.support(state))
    assert path.groups["conv/kernel"] == (3, 3, 8, 16)
    assert 0 < path.layer_density()["conv/kernel"][-1] < 1
    assert sum(m.sum() for p, m in path.ticket(groups=10).masks.items() if "kernel" in p) == 10


@pytest.mark.parametrize(
    ("structure", "units"),
    [
        (dl.blocks((4, 2)), (3, 3, 2, 8)),
        (dl.layers, (1, 1, 1, 1)),
        (dl.input_channels, (1, 1, 8, 1)),
        (dl.slices, (1, 1, 8, 16)),
    ],
    ids=["blocks", "layers", "input-channels", "slices"],
)
def test_every_kind_of_group(structure, units):
    params = network()
    tx = dl.dessilbi(1.0, nu=1.0, lam=0.05, structure=structure, lean=True)
    _, state = tx.update(params, tx.init(params), params)
    path = dl.SolutionPath()
    path.record(1, state)
    assert path.groups["conv/kernel"] == units
    chex.assert_trees_all_equal(path.support(1, params), dl.support(state))
    assert path.entry_steps()["conv/kernel"].shape == units


def test_lean_and_full_states_record_the_same():
    params, files = network(), []
    for lean in (False, True):
        path = dl.SolutionPath()
        tx = dl.dessilbi(1.0, nu=1.0, lam=1.0, lean=lean)
        path.record(1, tx.update(params, tx.init(params), params)[1])
        files.append(path)
    assert_same_path(*files)


def test_a_partition_is_recorded_as_a_whole():
    parts = {k: dl.dessilbi(1.0, nu=1.0, lam=0.7) for k in ("conv", "fc")}
    tx = optax.partition(parts, lambda p: {k: dict.fromkeys(p[k], k) for k in p})
    v = jax.tree.map(jnp.asarray, make_v(4))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)
    path, whole = dl.SolutionPath(), dl.SolutionPath()
    path.record(1, state)
    whole.record(1, _state(v, 0.7))
    assert_same_path(path, whole)


# --- metrics, truncation, errors ---------------------------------------------------------------


def test_metrics_are_nan_where_not_given():
    path = dl.SolutionPath()
    path.record(1, _state(make_v(1), 0.7), accuracy=0.5)
    path.record(2, _state(make_v(2), 0.7))
    path.record(3, _state(make_v(3), 0.7), accuracy=jnp.float32(0.75), loss=1)
    np.testing.assert_array_equal(path.metrics["accuracy"], [0.5, np.nan, 0.75])
    np.testing.assert_array_equal(path.metrics["loss"], [np.nan, np.nan, 1.0])
    assert path.metrics["loss"].dtype == np.float64


def assert_same_path(one, other):
    assert one.steps.tolist() == other.steps.tolist()
    assert (one.shapes, one.groups) == (other.shapes, other.groups)
    assert list(one.groups) == list(other.groups)
    assert one.metrics.keys() == other.metrics.keys()
    for name, values in one.metrics.items():
        np.testing.assert_array_equal(values, other.metrics[name])
    for p, entry in one.entry_steps().items():
        np.testing.assert_array_equal(entry, other.entry_steps()[p])
    for step in one.steps.tolist():
        for p, mask in one.support(step).items():
            np.testing.assert_array_equal(mask, other.support(step)[p])
    if len(one):
        for k in range(1, sum(e.size for e in one.entry_steps().values()) + 1):
            mine, its = one.ticket(groups=k, minimum=0), other.ticket(groups=k, minimum=0)
            for p in one.shapes:
                np.testing.assert_array_equal(mine.masks[p], its.masks[p])


@pytest.mark.parametrize("at", [0, 1, 4, 9, 30])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_truncated_and_recorded_again_is_as_if_never_stopped(at, through_a_file, path, tmp_path):
    resumed = record(dl.SolutionPath())
    resumed.truncate(at)
    assert resumed.steps.tolist() == [s for s, _ in RECORDS if s <= at]
    for p, entry in resumed.entry_steps().items():
        np.testing.assert_array_equal(
            entry, np.where(path.entry_steps()[p] > at, -1, path.entry_steps()[p])
        )
    if through_a_file:
        resumed.save(tmp_path / "path.npz")
        resumed = dl.SolutionPath.load(tmp_path / "path.npz")
    record(resumed, [r for r in RECORDS if r[0] > at])
    assert_same_path(resumed, path)


def test_an_empty_path_answers_and_saves(tmp_path):
    path = dl.SolutionPath()
    assert path.density().shape == (0,)
    assert path.entry_steps() == {}
    path.save(tmp_path / "path.npz")
    assert len(dl.SolutionPath.load(tmp_path / "path.npz")) == 0
    with pytest.raises(ValueError, match="nothing has been recorded"):
        path.ticket(density=0.5)


def test_errors_say_what_is_there(path):
    fresh = record(dl.SolutionPath(), RECORDS[:3])
    state = _state(make_v(5), 0.7)
    for step in (5, 4):
        with pytest.raises(ValueError, match=f"got {step} after 5.*truncate"):
            fresh.record(step, state)
    other = {"fc": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
    with pytest.raises(ValueError, match="differs from what this path has recorded"):
        fresh.record(6, dl.dessilbi(0.1, lam=0.1).init(other))
    with pytest.raises(ValueError, match="no SplitLBIState"):
        fresh.record(6, optax.sgd(0.1).init(other))
    assert fresh.steps.tolist() == [1, 2, 5]  # as it was
    with pytest.raises(ValueError, match="step 8 was not recorded; the nearest one is 9"):
        path.support(8)
    for none_or_two in ({}, {"density": 0.1, "groups": 3}):
        with pytest.raises(TypeError, match="exactly one"):
            path.ticket(**none_or_two)
    for bad in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="density must lie in"):
            path.ticket(density=bad)
    for bad in (0, 30, -1):
        with pytest.raises(ValueError, match="groups must lie between 1 and 29"):
            path.ticket(groups=bad)
    with pytest.raises(ValueError, match=r"does not fit fc/kernel.*another network"):
        path.ticket(groups=3).mask({**make_v(0), "fc": {"kernel": jnp.ones((2, 2))}})


# --- the file --------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(path, tmp_path):
    full = record(dl.SolutionPath(), accuracy=0.5)
    full.record(30, _state(make_v(30), 0.7), loss=0.1)
    full.save(tmp_path / "path.npz")
    loaded = dl.SolutionPath.load(tmp_path / "path.npz")
    assert_same_path(loaded, full)
    for each in (full, loaded):  # and it goes on in the same way
        each.record(31, _state(make_v(31, 1.5), 0.7))
    assert_same_path(loaded, full)


def test_the_file_holds_no_pickle_and_no_other_file_stays(path, tmp_path):
    file = tmp_path / "path.npz"
    path.save(str(file))
    with np.load(file, allow_pickle=False) as data:
        assert all(data[name].dtype != object for name in data.files)
        assert json.loads(str(data["header"]))["steps"] == path.steps.tolist()
    assert os.listdir(tmp_path) == ["path.npz"]
    path.save(file)
    assert sorted(os.listdir(tmp_path)) == ["path.npz", "path.npz.previous"]


def test_the_file_takes_one_bit_a_group_and_record(tmp_path):
    params = {"fc": {"kernel": jax.random.normal(jax.random.key(0), (250, 160))}}
    path = dl.SolutionPath()
    for step in range(1, 11):
        v = jax.tree.map(lambda p, s=step: jax.random.normal(jax.random.key(s), p.shape), params)
        path.record(step, _state(v, 0.7))  # half of the bits, at random: nothing to compress
    path.save(tmp_path / "path.npz")
    groups = 250 * 160
    assert path.density()[0] == pytest.approx(0.48, abs=0.02)
    entered = sum(int((entry >= 0).sum()) for entry in path.entry_steps().values())
    size = os.path.getsize(tmp_path / "path.npz")
    assert size <= 10 * groups / 8 + 4 * groups + 4 * entered + 4096


def test_a_crash_between_the_two_renames_loses_nothing(path, tmp_path, monkeypatch):
    file = tmp_path / "path.npz"
    record(dl.SolutionPath(), RECORDS[:2]).save(file)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("killed")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="killed"):
        path.save(file)
    with pytest.warns(UserWarning, match="previous"):
        assert dl.SolutionPath.load(file).steps.tolist() == [1, 2]


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        dl.SolutionPath.load(tmp_path / "nowhere.npz")


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """The bytes of a file and of its newer version."""
    file = tmp_path_factory.mktemp("path") / "path.npz"
    record(dl.SolutionPath(), RECORDS[:3], accuracy=0.5).save(file)
    old = file.read_bytes()
    record(dl.SolutionPath(), accuracy=0.25).save(file)
    return old, file.read_bytes()


def _load_damaged(damaged, previous):
    """The steps and a digest of all answers of what gets loaded, or None where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.npz"
        file.write_bytes(damaged)
        if previous is not None:
            file.with_name("path.npz.previous").write_bytes(previous)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if previous is None:
                with contextlib.suppress(ValueError):
                    path = dl.SolutionPath.load(file)
                    assert not caught
                    return path, False
                return None
            path = dl.SolutionPath.load(file)  # with a whole one beside it there is no error
        warned = [str(w.message) for w in caught]
        assert all(str(file) in message and "previous" in message for message in warned)
        return path, bool(warned)


def _check_damaged(damaged, versions, with_previous):
    result = _load_damaged(damaged, versions[0] if with_previous else None)
    if result is None:
        return
    path, warned = result
    expected = record(dl.SolutionPath(), RECORDS[:3], accuracy=0.5) if warned else None
    if expected is None:  # it was taken for whole: then it has to be what was saved
        expected = record(dl.SolutionPath(), accuracy=0.25)
    assert_same_path(path, expected)


@given(data=st.data(), with_previous=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_truncated_file_never_gives_wrong_data(versions, data, with_previous):
    length = data.draw(st.integers(0, len(versions[1]) - 1))
    damaged = versions[1][:length]
    _check_damaged(damaged, versions, with_previous)
    assert _load_damaged(damaged, None) is None  # a shorter file is never whole


@given(data=st.data(), with_previous=st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_flipped_bit_never_gives_wrong_data(versions, data, with_previous):
    damaged = bytearray(versions[1])
    where = data.draw(st.integers(0, len(damaged) - 1))
    damaged[where] ^= 1 << data.draw(st.integers(0, 7))
    _check_damaged(bytes(damaged), versions, with_previous)


def test_flipped_bits_of_the_data_are_noticed(versions, tmp_path):
    old, new = versions
    (tmp_path / "path.npz").write_bytes(new)
    with zipfile.ZipFile(tmp_path / "path.npz") as archive:
        members = archive.infolist()
    assert len(members) == 7
    for member in members:
        damaged = bytearray(new)
        damaged[member.header_offset + 60 + member.compress_size // 2] ^= 4
        path, warned = _load_damaged(bytes(damaged), old)
        assert warned
        assert path.steps.tolist() == [1, 2, 5]
        assert _load_damaged(bytes(damaged), None) is None


def test_what_is_no_path_at_all_is_refused(tmp_path):
    file = tmp_path / "path.npz"
    for content in (b"", b"not a zip file"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"path\.npz is no readable solution path"):
            dl.SolutionPath.load(file)
    np.savez(file, weights=np.ones(3))
    with pytest.raises(ValueError, match="no readable solution path"):
        dl.SolutionPath.load(file)
    file.unlink()
    record(dl.SolutionPath()).save(file)
    with np.load(file) as data:
        arrays = dict(data)
    header = json.loads(str(arrays["header"]))
    np.savez(file, **{**arrays, "header": np.array(json.dumps({**header, "format": 99}))})
    with pytest.raises(ValueError, match="format 99"):
        dl.SolutionPath.load(file)


def test_by_strength_the_order_is_that_of_v_at_the_last_record(tmp_path):
    params = {"kernel": jnp.array([[3.0, 0.1, 2.0, 1.0]])}
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.25)
    state, path = tx.init(params), dl.SolutionPath()
    for step in range(1, 4):
        if step == 3:  # the last to enter overtakes the others
            params = {"kernel": jnp.array([[3.0, 0.1, 2.0, 90.0]])}
        _, state = tx.update(params, state, params)
        path.record(step, state)
    assert path.entry_steps()["kernel"].tolist() == [[1, -1, 2, 3]]
    path.save(tmp_path / "path.npz")
    for each in (path, dl.SolutionPath.load(tmp_path / "path.npz")):
        assert each.ticket(weights=1).masks["kernel"].tolist() == [[True, False, False, False]]
        ticket = each.ticket(weights=1, rank="strength")
        assert ticket.masks["kernel"].tolist() == [[False, False, False, True]]
        assert "at the last record, largest first" in ticket.card["rule"]
    with pytest.raises(ValueError, match="rank must be one of entry, strength"):
        path.ticket(weights=1, rank="norm")
    with pytest.raises(TypeError, match="has no use with at="):
        path.ticket(at=3, rank="strength")


def test_with_lambda_zero_strength_orders_nothing_and_entry_does():
    params = {"kernel": jnp.array([[3.0, 0.0, 2.0, 1.0]])}
    tx = dl.dessilbi(0.1, nu=1.0, lam=lambda count: 0.0 * count)
    path = dl.SolutionPath()
    path.record(1, tx.update(params, tx.init(params), params)[1])
    with pytest.raises(ValueError, match="orders nothing at step 1: λ was 0"):
        path.ticket(weights=1, rank="strength")
    assert path.ticket(weights=3).masks["kernel"].tolist() == [[True, False, True, True]]


def test_before_the_first_estimate_of_lambda_there_is_no_order_to_take_a_ticket_by():
    params = {"kernel": jnp.ones((2, 4))}
    tx = dl.dessilbi(0.1, nu=5.0, lam=dl.auto(density=0.5, steps=100))
    path = dl.SolutionPath()
    path.record(1, tx.update(params, tx.init(params), params)[1])
    assert not path.ranked
    with pytest.raises(ValueError, match="nothing is ranked yet at step 1"):
        path.ticket(density=0.5)
