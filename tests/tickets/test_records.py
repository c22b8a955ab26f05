"""Records are made whole or not at all, and only of what went forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dessilbi_jax as dl
from dessilbi_jax.tickets import records, snapshot

W = {"kernel": jax.random.normal(jax.random.key(0), (6, 4)), "bias": jnp.ones(4)}
TX = dl.dessilbi(0.1, nu=1.0, lam=0.3, structure=dl.weights)


def states(n, w=W):
    state, out = TX.init(w), []
    for _ in range(n):
        _, state = jax.jit(TX.update)(w, state, w)
        out.append(state)
    return out


def whole(path):
    """Everything there is to see of a path."""
    return (
        path.steps.tolist(), {k: str(v) for k, v in path.metrics.items()}, path.shapes,
        path.groups, {k: v.tolist() for k, v in path.entry_steps().items()},
        path.density().tolist() if len(path) else [],
    )  # fmt: skip


class Broken:
    def __float__(self):
        raise RuntimeError("no number")


BAD = {
    "a metric that is no number": (TypeError, (3,), {"accuracy": "high"}, "accuracy must be"),
    "a metric that is an array": (TypeError, (3,), {"accuracy": np.ones(2)}, "accuracy must be"),
    "a metric that fails": (RuntimeError, (3,), {"accuracy": Broken()}, "no number"),
    "a float step": (TypeError, (3.0,), {}, r"whole number ≥ 0, got 3\.0"),
    "a broken step": (TypeError, (3.5,), {}, r"whole number ≥ 0, got 3\.5"),
    "a bool step": (TypeError, (True,), {}, "whole number ≥ 0, got True"),
    "a step in words": (TypeError, ("3",), {}, "whole number ≥ 0, got '3'"),
    "no step": (TypeError, (None,), {}, "whole number ≥ 0, got None"),
    "a negative step": (ValueError, (-1,), {}, "whole number ≥ 0, got -1"),
    "a step again": (ValueError, (2,), {}, "steps must ascend: got 2 after 2"),
}


@pytest.mark.parametrize("first", [True, False], ids=["at the beginning", "later"])
@pytest.mark.parametrize("fault", BAD)
def test_a_record_that_fails_leaves_nothing(fault, first, tmp_path):
    error, (step,), metrics, message = BAD[fault]
    path, (one, two, three) = dl.SolutionPath(), states(3)
    if not first:
        path.record(1, one, accuracy=0.5)
        path.record(2, two)
    elif fault == "a step again":
        return
    before = whole(path)
    with pytest.raises(error, match=message):
        path.record(step, three, **metrics)
    assert whole(path) == before
    path.record(3, three, accuracy=0.7)
    path.save(tmp_path / "path.npz")
    assert whole(dl.SolutionPath.load(tmp_path / "path.npz")) == whole(path)


def test_a_record_that_is_interrupted_leaves_nothing(monkeypatch):
    path, (one, two) = dl.SolutionPath(), states(2)
    path.record(1, one)
    before, packed, calls = whole(path), np.packbits, []

    def interrupted(bits):
        calls.append(bits)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "packbits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        path.record(2, two)
    monkeypatch.setattr(np, "packbits", packed)
    assert calls
    assert whole(path) == before
    path.record(2, two)
    assert path.steps.tolist() == [1, 2]


@pytest.mark.parametrize("step", [np.int64(4), np.uint8(4), jnp.int32(4)])
def test_integers_of_every_kind_are_steps(step):
    path = dl.SolutionPath()
    path.record(step, states(1)[0])
    assert path.steps.tolist() == [4]


def test_a_state_that_fell_back_is_not_recorded(tmp_path):
    path, (one, two, three) = dl.SolutionPath(), states(3)
    path.record(10, two)
    for lost, made in ((TX.init(W), 0), (one, 1)):
        with pytest.raises(ValueError, match=rf"step 20 has made {made} updates, at step 10 .* 2"):
            path.record(20, lost)
    path.save(tmp_path / "path.npz")
    loaded = dl.SolutionPath.load(tmp_path / "path.npz")
    with pytest.raises(ValueError, match="begun anew"):
        loaded.record(20, one)
    loaded.record(20, three)
    # Going back is said by truncating.
    loaded.truncate(10)
    loaded.record(11, two)
    loaded.truncate(0)
    loaded.record(1, one)
    assert loaded.steps.tolist() == [1]


def test_a_failed_first_record_leaves_the_path_open_for_any_network():
    path = dl.SolutionPath()
    with pytest.raises(TypeError):
        path.record(1, states(1)[0], accuracy="high")
    other = {"w": jnp.ones((3, 3))}
    tx = dl.dessilbi(0.1, lam=0.1, structure=dl.weights)
    path.record(1, tx.init(other))
    assert path.shapes == {"w": (3, 3)}


# --- weights that are not finite ---------------------------------------------------------------


def broken(value=jnp.nan):
    return {**W, "kernel": W["kernel"].at[0, 0].set(value)}


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_ticket_of_weights_that_are_not_finite_is_refused(value, tmp_path):
    path, (one, two) = dl.SolutionPath(), states(2)
    path.record(1, one)
    path.record(2, two)
    bad = broken(value)
    _, state = TX.update(bad, two, bad)
    path.record(3, state)
    path.save(tmp_path / "path.npz")
    for p in (path, dl.SolutionPath.load(tmp_path / "path.npz")):
        for size in ({"density": 0.5}, {"at": 3}):
            with pytest.raises(ValueError, match=r"not finite when step 3 .*1 entries of V"):
                p.ticket(**size)
        assert p.ticket(at=2).step == 2
        p.truncate(2)
        assert p.ticket(density=0.5).step == 2


def test_parameters_that_are_not_finite_are_not_recorded():
    path = dl.SolutionPath()
    with pytest.raises(ValueError, match="weights kernel are not finite"):
        path.record(1, states(1)[0], broken())
    assert len(path) == 0
    path.record(1, states(1)[0], {**W, "bias": jnp.full(4, jnp.nan)})  # has no V


def test_parameters_of_another_network_are_refused():
    path = dl.SolutionPath()
    with pytest.raises(ValueError, match="the parameters, with 1 leaves, do not fit the state"):
        path.record(1, states(1)[0], {"kernel": W["kernel"]})


# --- files of older versions -------------------------------------------------------------------


def test_files_without_the_newer_facts_can_be_read(tmp_path):
    """Counts, skipped entries, hidden leaves and zeros came later."""
    from dessilbi_jax.files import read, write

    path, (one, two) = dl.SolutionPath(), states(2)
    path.record(1, one)
    path.record(2, two, W)
    file = tmp_path / "path.npz"
    path.save(file)
    header, arrays = read(file, "solution path", (2,), records._sizes)
    for name in ("counts", "skipped", "hidden"):
        del header[name]
    write(file, header, {k: v for k, v in arrays.items() if not k.startswith("zero_")})
    old = dl.SolutionPath.load(file)
    assert whole(old) == whole(path)
    assert old.ticket(density=0.5).card["weights"] == path.ticket(density=0.5).card["weights"]
    # Nobody knows how many updates there were by then, and how many entries had been skipped.
    later = TX.init(W)
    later = later._replace(split=later.split._replace(skipped=jnp.int32(5)))
    old.record(3, later)
    assert old.ticket(at=2).step == 2
    assert old._records.lost(2) == 0
    old.record(4, later)
    assert old._records.lost(3) == 0


def test_observed_says_what_is_hidden():
    state = states(1)[0].split
    seen = snapshot.observe(state, W)
    assert (seen.count, seen.skipped, seen.hidden) == (1, 0, ())
    assert not seen.zero["kernel"].any()
