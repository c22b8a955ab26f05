"""The monitor: stops on a settled ticket and no gain, not before; goes on after a resume."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dessilbi_jax as dl


def mask(*kept, size=20):
    bits = np.zeros(size, bool)
    bits[list(kept)] = True
    return {"fc/kernel": bits}


def feed(monitor, records, first=1):
    return [monitor.update(k, m, a) for k, (m, a) in enumerate(records, first)]


def test_it_waits_for_the_support_and_for_the_accuracy():
    settled, moving = mask(1, 2, 3, 4), [mask(k, k + 1, k + 2, k + 3) for k in range(6)]
    options = {"patience": 2, "support_tol": 0.0, "gain_tol": 0.0}
    assert feed(dl.TicketMonitor(**options), [(settled, 0.9)] * 4) == [False, False, True, True]
    assert not any(feed(dl.TicketMonitor(**options), [(m, 0.9) for m in moving]))
    rising = [(settled, 0.1 * k) for k in range(6)]
    assert not any(feed(dl.TicketMonitor(**options), rising))
    # A gain within the last `patience` records counts until they have passed.
    late = [(settled, a) for a in (0.5, 0.5, 0.6, 0.6, 0.6, 0.6)]
    assert feed(dl.TicketMonitor(**{**options, "patience": 3}), late)[-2:] == [False, True]
    assert feed(dl.TicketMonitor(patience=1, gain_tol=0.2), late)[1]


def test_overlap_is_shared_over_either_and_drift_adds_up():
    drifting = [(mask(*range(k, k + 10)), 0.9) for k in range(8)]
    monitor = dl.TicketMonitor(patience=3, support_tol=0.2)
    assert not any(feed(monitor, drifting))
    overlaps = [overlap for _, overlap, _ in monitor.history]
    assert math.isnan(overlaps[0])
    np.testing.assert_allclose(overlaps[1:4], [9 / 11, 8 / 12, 7 / 13])
    assert overlaps[4:] == [overlaps[3]] * 4
    # Against its neighbour alone every record would have passed.
    assert all(feed(dl.TicketMonitor(patience=1, support_tol=0.2), drifting)[1:])


def test_what_it_saved():
    monitor = dl.TicketMonitor(patience=1, steps_per_epoch=100)
    assert monitor.saved(10) == 0
    for step in (100, 250, 400):
        monitor.update(step, mask(1), 0.5)
    assert monitor.stopped_at == 250  # the first time, whatever comes after
    assert monitor.saved(10) == 7.5
    assert monitor.saved(2) == 0
    monitor.update(500, mask(2), 0.9)
    assert monitor.stopped_at == 250


@given(data=st.data(), at=st.integers(0, 12))
@settings(deadline=None, max_examples=40)
def test_a_resumed_monitor_is_one_that_never_stopped(data, at):
    records = [
        (mask(*data.draw(st.sets(st.integers(0, 19), min_size=1))), data.draw(st.floats(0, 1)))
        for _ in range(12)
    ]
    options = {"patience": 2, "support_tol": 0.8, "gain_tol": 0.2, "steps_per_epoch": 3}
    whole, first = dl.TicketMonitor(0.5, **options), dl.TicketMonitor(0.5, **options)
    expected = feed(whole, records)
    got = feed(first, records[:at])
    second = dl.TicketMonitor.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False)))
    got += feed(second, records[at:], first=at + 1)
    assert got == expected
    assert second.to_json() == whole.to_json()
    assert second.saved(12) == whole.saved(12)


SIZE = 40


def states(n):
    """V that grows towards W: Γ opens little by little, the order of importance is there early."""
    w = jnp.asarray(np.random.default_rng(0).permutation(SIZE), jnp.float32).reshape(5, 8) / SIZE
    tx = dl.dessilbi(1.0, nu=float(n), lam=0.6)
    state = tx.init({"kernel": w})
    update = jax.jit(tx.update)
    for _ in range(n):
        _, state = update({"kernel": jnp.zeros_like(w)}, state, {"kernel": w})
        yield state


def test_it_follows_a_path_that_is_still_opening():
    monitor, path = dl.TicketMonitor(0.5, patience=3), dl.SolutionPath()
    verdicts = []
    for step, state in enumerate(states(10), 1):
        path.record(step, state)
        verdicts.append(monitor.update(step, path, 0.9))
    assert path.density()[3] == 0  # the ticket of the final size is there before Γ opens
    assert 0 < path.density()[-1] < 0.5
    assert verdicts == [False] * 3 + [True] * 7
    # A ticket of its own making is taken as well, and dense leaves do not count.
    other = dl.TicketMonitor(patience=3)
    for step in (1, 2, 3, 4):
        settled = other.update(step, path.ticket(density=0.5), 0.9)
    assert settled
    assert other.to_json()["window"] == monitor.to_json()["window"]


def test_records_before_the_first_estimate_of_lambda_do_not_count():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)}
    tx = dl.dessilbi(0.1, nu=5.0, lam=dl.auto(density=0.5, steps=40))
    state, path, monitor = tx.init(params), dl.SolutionPath(), dl.TicketMonitor(0.5)
    update, zeros = jax.jit(tx.update), {"kernel": jnp.zeros((5, 8))}
    for step in range(1, 11):
        _, state = update(zeros, state, params)
        path.record(step, state)
        settled = monitor.update(step, path, 0.5)
        if not path.ranked:  # all alike, and so the same "ticket" as before
            assert not settled
    assert path.ranked
    assert settled
    assert monitor.stopped_at == 5  # λ is first estimated at step 4


def test_bad_input():
    for options, message in [
        ({"patience": 0}, "patience must be a whole number ≥ 1, got 0"),
        ({"steps_per_epoch": 1.5}, "steps_per_epoch must be a whole number"),
        ({"density": 1.5}, r"density must lie in \(0, 1\]"),
        ({"support_tol": 1.0}, r"support_tol must lie in \[0, 1\)"),
        ({"gain_tol": -1.0}, "gain_tol must be a finite number ≥ 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            dl.TicketMonitor(**options)
    monitor = dl.TicketMonitor()
    monitor.update(5, mask(1), 0.5)
    with pytest.raises(ValueError, match="steps must ascend: got 5 after 5"):
        monitor.update(5, mask(1), 0.5)
    with pytest.raises(ValueError, match="projected_accuracy must be a finite number, got nan"):
        monitor.update(6, mask(1), math.nan)
    with pytest.raises(ValueError, match="fc/kernel differs from the supports before it"):
        monitor.update(6, mask(1, size=21), 0.5)
    with pytest.raises(ValueError, match="support of w is float32, expected bool"):
        monitor.update(6, {"w": jnp.ones(3)}, 0.5)
    with pytest.raises(TypeError, match="give the monitor the density"):
        monitor.update(6, dl.SolutionPath(), 0.5)
    assert len(monitor.history) == 1  # as it was
    state = monitor.to_json()
    for damage in ({"window": ["AAAAAAAAAAAA"]}, {"window": ["?"]}, {"patience": 0}, {"sizes": 3}):
        with pytest.raises(ValueError, match="describes no TicketMonitor"):
            dl.TicketMonitor.from_json({**state, **damage})
    with pytest.raises(ValueError, match="describes no TicketMonitor"):
        dl.TicketMonitor.from_json({})
