"""Tickets of every kind of size: exact, nested, never an empty layer, and joint groups whole."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dessilbi_jax as dl

UNSEEN = "whether input and output are still connected was not looked at"
SHAPES = {
    "conv": {"kernel": (2, 2, 3, 5), "bias": (5,)},
    "fc": {"kernel": (4, 6), "bias": (6,)},
    "out": {"kernel": (6, 3)},
}
KERNELS = {"conv/kernel": 60, "fc/kernel": 24, "out/kernel": 18}
CELL = {"conv/kernel": 12, "fc/kernel": 1, "out/kernel": 1}
ELEMENTS, DENSE, GROUPS = 102, 11, 5 + 24 + 18


def make_v(seed, scale):
    rng = np.random.default_rng(seed)
    v = jax.tree.map(
        lambda shape: scale * rng.normal(size=shape).astype(np.float32),
        SHAPES, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    v["conv"]["kernel"] /= 12**0.5
    v["out"]["kernel"] /= 9  # a weak layer: last in the order
    return v


def record(structure):
    """A path of three records of V as given: one step of lr = κ = ν = 1 from zero sets it to W."""
    tx = dl.dessilbi(1.0, nu=1.0, lam=0.7, structure=structure)

    @jax.jit
    def state_of(v):
        return tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)[1]

    path = dl.SolutionPath()
    for step, scale in ((10, 0.2), (20, 0.5), (30, 0.9)):
        v = make_v(step, scale)
        path.record(step, state_of(v), accuracy=step / 100)
    return path


JOINT = {
    "conv/kernel": (0, 1, 2, 3, 4),
    "conv/bias": (0, 1, 2, 3, 4),
    "fc/kernel": (0, 0, 1, 9),
}
JOINT_COUNTS = {"conv/bias": (5,), "fc/kernel": (4, 1)}


class Tied:
    """`filters`, with each filter of conv tied to its bias, two of them also to rows of fc."""

    def __init__(self, joint=JOINT):
        self.joint = joint

    def resolve(self, params):
        return [
            dataclasses.replace(
                leaf, counts=JOINT_COUNTS.get(leaf.path, leaf.counts), joint=self.joint[leaf.path]
            )
            if leaf.path in self.joint
            else leaf
            for leaf in dl.filters.resolve(params)
        ]


@pytest.fixture(scope="module")
def path():
    return record(dl.filters)


@pytest.fixture(scope="module")
def tied():
    return record(Tied())


def kept(ticket):
    """Groups kept in each kernel."""
    return {p: int(ticket.masks[p].sum()) // CELL[p] for p in KERNELS}


def inside(small, large):
    return all(not (small.masks[p] & ~large.masks[p]).any() for p in large.masks)


# --- sizes ---------------------------------------------------------------------------------------


@given(k=st.integers(3, GROUPS))
@settings(deadline=None, max_examples=40)
def test_groups_are_exact_and_no_layer_is_empty(path, k):
    ticket = path.ticket(groups=k)
    assert sum(kept(ticket).values()) == k
    assert min(kept(ticket).values()) >= 1
    assert ticket.card["groups"] == [k, GROUPS]
    plain = path.ticket(groups=k, minimum=0)
    if min(kept(plain).values()) >= 1:  # the minimum changes nothing where it is met anyway
        assert inside(plain, ticket)
        assert ticket.note == UNSEEN
    else:
        assert re.search("[0-9] kept out of turn in .*kernel for minimum=1", ticket.note)


@given(
    sizes=st.tuples(st.integers(20, ELEMENTS), st.integers(20, ELEMENTS)),
    minimum=st.integers(0, 3),
    per_layer=st.sampled_from([False, True, {"conv": 0.2, "": 0.6}]),
    kind=st.sampled_from(["weights", "density", "params", "groups", "flops"]),
)
@settings(deadline=None, max_examples=80)
def test_tickets_of_growing_size_are_nested_and_within(path, sizes, minimum, per_layer, kind):
    def ask(size):
        more = {"minimum": minimum, "per_layer": per_layer}
        if kind == "density":
            return path.ticket(density=size / ELEMENTS, **more)
        if kind == "groups":
            return path.ticket(groups=min(size, GROUPS), **more)
        if kind == "params":
            return path.ticket(params=size + DENSE, **more)
        if kind == "flops":
            return path.ticket(flops=4 * size, count=flops, **more)
        return path.ticket(weights=size, **more)

    def flops(masks):
        return 4 * sum(int(masks[p].sum()) for p in KERNELS)

    if kind != "groups" and 14 * minimum > min(sizes):  # a filter and two weights for each
        with pytest.raises(ValueError, match=f"cannot keep minimum={minimum} groups in each of 3"):
            ask(min(sizes))
        return
    small, large = (ask(size) for size in sorted(sizes))
    assert inside(small, large)
    for ticket, size in zip((small, large), sorted(sizes), strict=True):
        elements = sum(int(ticket.masks[p].sum()) for p in KERNELS)
        assert min(kept(ticket).values()) >= minimum
        assert ticket.density == elements / ELEMENTS
        if kind != "groups":
            assert size - 12 < elements <= size
            gap = (size - elements) * (4 if kind == "flops" else 1)
            assert (f"{gap} " in ticket.note and "fewer than asked" in ticket.note) == (gap > 0)


def test_what_is_left_is_counted_with_the_dense_leaves(path):
    ticket = path.ticket(params=DENSE + 30)
    left = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert left == ticket.card["params"][0] <= DENSE + 30
    assert ticket.card["params"][1] == ELEMENTS + DENSE
    assert ticket.masks["fc/bias"].all()
    by_weights = path.ticket(weights=30)
    assert kept(by_weights) == kept(ticket)


def test_a_count_is_asked_with_masks_of_every_leaf_and_bisected(path):
    """Operations that fall only with whole filters: the largest prefix of the same cost."""
    asked = []

    def count(masks):
        assert {p: m.shape for p, m in masks.items()} == path.shapes
        asked.append(masks)
        return 100 * int(masks["conv/kernel"].any(axis=(0, 1, 2)).sum())

    ticket = path.ticket(flops=350, count=count)
    assert kept(ticket)["conv/kernel"] == 3
    assert "50 FLOPs fewer than asked" in ticket.note
    assert len(asked) <= 3 + math.ceil(math.log2(GROUPS))
    more = path.ticket(groups=ticket.card["groups"][0] + 1)
    assert kept(more)["conv/kernel"] == 4  # there was no larger one within
    with pytest.raises(ValueError, match="count gave nan, expected a finite number"):
        path.ticket(flops=1, count=lambda masks: math.nan)


# --- shares and the minimum ----------------------------------------------------------------------


def test_the_same_share_in_each_layer(path):
    ticket = path.ticket(density=0.5, per_layer=True)
    shares = [ticket.masks[p].sum() / size for p, size in KERNELS.items()]
    assert max(shares) - min(shares) <= 12 / 60  # one filter of five
    assert 0.5 - 12 / ELEMENTS < ticket.density <= 0.5
    uniform = path.ticket(per_layer={"": 0.5})
    assert kept(uniform) == {"conv/kernel": 2, "fc/kernel": 12, "out/kernel": 9}
    assert kept(path.ticket(groups=GROUPS, per_layer=True)) == {
        p: size // CELL[p] for p, size in KERNELS.items()
    }
    # Within a layer, the order stays that of entry.
    alone = path.ticket(groups=GROUPS - 1)
    assert set(kept(alone)) == set(kept(ticket))
    for p in KERNELS:
        for k in range(3, GROUPS):
            other = path.ticket(groups=k)
            if kept(other)[p] == kept(ticket)[p]:
                np.testing.assert_array_equal(other.masks[p], ticket.masks[p])


def test_a_share_for_each_layer(path):
    ticket = path.ticket(per_layer={"fc": 0.25, "out/kernel": 1 / 3, "": 0.45})
    assert kept(ticket) == {"conv/kernel": 2, "fc/kernel": 6, "out/kernel": 6}
    short = "3 elements fewer than the shares: the next group would exceed one"
    assert ticket.note == f"{short}; {UNSEEN}"
    assert ticket.card["request"]["per_layer"] == {"fc": 0.25, "out/kernel": 1 / 3, "": 0.45}
    # An exact path wins over a pattern that stands before it.
    ticket = path.ticket(per_layer={"kernel": 0.2, "fc/kernel": 1.0})
    assert kept(ticket) == {"conv/kernel": 1, "fc/kernel": 24, "out/kernel": 3}
    # A share of nothing keeps the minimum all the same, and says so.
    ticket = path.ticket(per_layer={"out": 0, "": 1.0})
    assert kept(ticket)["out/kernel"] == 1
    assert ticket.note.startswith("1 kept out of turn in out/kernel for minimum=1;")
    assert kept(path.ticket(per_layer={"out": 0, "": 1.0}, minimum=0))["out/kernel"] == 0
    # With a size, the shares are proportions.
    ticket = path.ticket(groups=8, per_layer={"conv": 0, "fc": 0.1, "out": 0.2}, minimum=0)
    assert kept(ticket) == {"conv/kernel": 0, "fc/kernel": 3, "out/kernel": 5}


def test_a_minimum_in_every_layer(path):
    assert min(kept(path.ticket(groups=9, minimum=3)).values()) == 3
    assert kept(path.ticket(groups=9, minimum=0))["out/kernel"] == 0
    ticket = path.ticket(groups=20, minimum=6)
    assert kept(ticket)["conv/kernel"] == 5
    assert "fewer groups than minimum=6 in conv/kernel (5): all are kept" in ticket.note


# --- joint groups --------------------------------------------------------------------------------


def parts(ticket):
    """For each joint group, whether its cells are kept; one verdict, or the group was split."""
    seen = {}
    for p, numbers in JOINT.items():
        mask = ticket.masks[p]
        cells = mask.all(axis=1) if p == "fc/kernel" else mask.reshape(-1, 5).all(axis=0)
        some = mask.any(axis=1) if p == "fc/kernel" else mask.reshape(-1, 5).any(axis=0)
        for number, a, b in zip(numbers, cells.tolist(), some.tolist(), strict=True):
            seen.setdefault(number, set()).update({a, b})
    return seen


@given(k=st.integers(3, 24), per_layer=st.booleans())
@settings(deadline=None, max_examples=30)
def test_joint_groups_are_counted_once_and_never_split(tied, k, per_layer):
    ticket = tied.ticket(groups=k, per_layer=per_layer)
    whole = parts(ticket)
    assert set(whole) == {0, 1, 2, 3, 4, 9}
    assert all(len(verdict) == 1 for verdict in whole.values())
    joint = sum(True in verdict for verdict in whole.values())
    assert joint + int(ticket.masks["out/kernel"].sum()) == k
    assert ticket.card["groups"] == [k, 6 + 18]
    for p in (*JOINT, "out/kernel"):
        assert ticket.masks[p].any()
    assert inside(ticket, tied.ticket(groups=min(k + 1, 24), per_layer=per_layer))


@given(density=st.floats(0.3, 1.0))
@settings(deadline=None, max_examples=30)
def test_density_counts_the_elements_of_joint_groups(tied, density):
    ticket = tied.ticket(density=density)
    total = 60 + 5 + 24 + 18
    elements = sum(int(ticket.masks[p].sum()) for p in ticket.structured)
    assert ticket.density == elements / total <= density + 1e-12
    assert all(len(verdict) == 1 for verdict in parts(ticket).values())
    more = ticket.card["groups"][0] + 1
    if more <= 24:
        assert tied.ticket(groups=more).density > density


def test_joint_groups_go_through_the_file_and_must_not_change(tied, path, tmp_path):
    tied.save(tmp_path / "path.npz")
    loaded = dl.SolutionPath.load(tmp_path / "path.npz")
    for k in range(3, 25):
        mine, its = tied.ticket(groups=k), loaded.ticket(groups=k)
        assert inside(mine, its)
        assert inside(its, mine)
    v = make_v(40, 1.0)
    other = Tied({**JOINT, "fc/kernel": (0, 1, 1, 9)})
    state = dl.dessilbi(1.0, nu=1.0, lam=0.7, structure=other).init(v)
    with pytest.raises(ValueError, match="groups that span leaves differ"):
        loaded.record(40, state)
    loaded.truncate(0)
    loaded.record(40, state)  # nothing is left of before
    assert len(loaded) == 1


def test_a_file_of_before_joint_groups_still_loads(path, tmp_path):
    path.save(tmp_path / "path.npz")
    with np.load(tmp_path / "path.npz") as data:
        arrays = dict(data)
    header = json.loads(str(arrays["header"]))
    del header["kind"]
    arrays["header"] = np.array(json.dumps({**header, "format": 1}))
    np.savez(tmp_path / "old.npz", **arrays)
    loaded = dl.SolutionPath.load(tmp_path / "old.npz")
    assert inside(loaded.ticket(groups=9), path.ticket(groups=9))
    assert loaded.ticket(groups=9).card["metrics"] == {"accuracy": 0.3}


# --- recorded steps, the card and errors ---------------------------------------------------------


def test_an_empty_record_is_an_error_that_names_the_first_that_is_not(path):
    short = dl.SolutionPath()
    tx = dl.dessilbi(1.0, nu=1.0, lam=1.0)
    short.record(1, tx.init(make_v(0, 1.0)))
    with pytest.raises(ValueError, match=r"step 1 is empty: no recorded step.*density="):
        short.ticket(at=1)
    assert not short.support(1)["fc/kernel"].any()  # what was selected can still be looked at
    v = make_v(0, 3.0)
    short.record(2, tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)[1])
    with pytest.raises(ValueError, match="the first recorded step with anything selected is 2"):
        short.ticket(at=1)
    assert short.ticket(at=2, minimum=100).note == UNSEEN  # the minimum has no say


def test_the_card_says_where_the_ticket_came_from(path):
    card = path.ticket(at=20).card
    assert card["request"] == {"at": 20}
    assert card["metrics"] == {"accuracy": 0.2}
    assert card["records"] == {"number": 3, "steps": [10, 30]}
    assert card["versions"]["jax"] == jax.__version__
    card = path.ticket(density=0.5).card
    assert card["request"] == {"density": 0.5, "per_layer": False, "minimum": 1}
    assert "entry step" in card["rule"]
    assert card["weights"] == [path.ticket(density=0.5).density * ELEMENTS, ELEMENTS]
    json.dumps(card, allow_nan=False)


BAD = [
    ({}, TypeError, "give exactly one of at=, groups=.*got none"),
    ({"groups": 3, "density": 0.1}, TypeError, "got groups, density"),
    ({"at": 10, "per_layer": True}, TypeError, "per_layer= has no use with at="),
    ({"per_layer": True}, TypeError, "exactly one"),
    ({"groups": 3, "per_layer": 0.1}, TypeError, "per_layer must be True or a dict"),
    ({"flops": 10}, TypeError, "flops= needs count="),
    ({"weights": 10, "count": len}, TypeError, "count= serves params= and flops="),
    ({"weights": "ten"}, TypeError, "weights must be a number, got 'ten'"),
    ({"groups": True}, TypeError, "groups must be a number, got True"),
    ({"groups": 3.5}, ValueError, "groups must be a whole number, got 3.5"),
    ({"groups": 3, "minimum": -1}, ValueError, "minimum must be a whole number ≥ 0, got -1"),
    ({"groups": 48}, ValueError, "groups must lie between 1 and 47, got 48"),
    ({"groups": 2}, ValueError, "minimum=1 groups in each of 3 layers; the nearest.*groups=3"),
    ({"weights": 103}, ValueError, "weights must lie between 1 and 102"),
    ({"params": 114}, ValueError, "params must lie between 1 and 113"),
    (
        {"params": 12},
        ValueError,
        r"params=25 .25 parameters, 11 of which stay as they are., or ",
    ),
    ({"weights": 0, "minimum": 0}, ValueError, "weights must lie between"),
    ({"flops": 1000, "count": lambda m: 900.0}, ValueError, "flops must lie between 1 and 900"),
    ({"per_layer": {"fc": 0.1}}, ValueError, "no share for conv/kernel; name it"),
    ({"per_layer": {"gc": 0.1, "": 1}}, ValueError, "'gc' matches no structured leaf.*fc/kernel"),
    ({"per_layer": {"": 1.1}}, ValueError, r"share of '' must lie in \[0, 1\], got 1.1"),
    ({"per_layer": {"(": 0.1}}, ValueError, r"'\(' is no regular expression"),
    ({"per_layer": {"": 0}, "minimum": 0}, ValueError, "leave an empty ticket"),
]


@pytest.mark.parametrize(("request_", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_requests(path, request_, error, message):
    with pytest.raises(error, match=message):
        path.ticket(**request_)


def test_the_nearest_that_is_named_can_be_had(path):
    with pytest.raises(ValueError, match="cannot keep minimum=1") as caught:
        path.ticket(density=0.01)
    nearest = float(re.search(r"density=([0-9.]+) \(", str(caught.value))[1])
    assert path.ticket(density=nearest).density == 14 / ELEMENTS
    with pytest.raises(ValueError, match="less than the first unit") as caught:
        path.ticket(density=0.001, minimum=0)
    nearest = float(re.search(r"density=([0-9.]+)$", str(caught.value))[1])
    assert path.ticket(density=nearest, minimum=0).density > 0
