"""The ways that a growing network is held against, in their seconds form."""

import dataclasses

import numpy as np
import pytest

from benchmarks import growing
from benchmarks.harness.cells import Runs
from dessilbi_jax import models, train
from dessilbi_jax.train import growth
from dessilbi_jax.train.data_facts import Where
from dessilbi_jax.train.devices.mesh import make_mesh
from dessilbi_jax.train.optim import trace_channels
from dessilbi_jax.train.prepare import prepare

TINY = dataclasses.replace(growing.CONFIGS["digits"], epochs=2, batch_size=256, lam=1e-3)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Rows of the ways by name, made when asked for."""
    monkeypatch.setitem(growing.CONFIGS, "digits", TINY)
    runs = Runs(tmp_path / "growing.jsonl")

    def row(way):
        return runs.get(f"digits {way} 0", lambda: growing.accuracy("digits", way, None, 0, runs))

    return row


def test_growth_at_random_places_adds_as_many_channels(rows):
    grown, random = rows("grown"), rows("random")
    [event] = grown["growths"]
    steps = event["step"]
    assert sum(random["widths"]) == sum(grown["widths"]) == 2 * 4 + 2 * 4
    small, large = (
        trace_channels(models.build("lenet300", input_shape=(8, 8, 1), widths=widths))
        for widths in (TINY.widths, grown["widths"])
    )
    of = [groups.flops_of(np.ones(groups.count, bool)) for groups in (small, large)]
    assert grown["trained_flops"] == steps * (of[0] + of[1])
    assert grown["share_of_final"] == pytest.approx((of[0] + of[1]) / (2 * of[1]))


def test_growth_afresh_keeps_the_old_block_and_nothing_else(monkeypatch):
    setup = prepare(TINY, Where(), make_mesh("one"))
    told = growth.begin(TINY, setup)
    state = setup.state._replace(step=setup.state.step + setup.facts.steps_per_epoch)
    sizes = {"fc1/kernel": 6, "fc2/kernel": 5}
    monkeypatch.setattr(train.growth.dl.Grower, "decide", lambda *_: (sizes, False))
    with growing.afresh():
        _, new, _, plan = growth.look(setup, TINY, told, state, make_mesh("one"))
    kernel, before = (np.asarray(s.params["fc2"]["kernel"]) for s in (new, state))
    assert plan.shape("fc2/kernel") == before.shape
    np.testing.assert_array_equal(kernel[:4, :4], before)
    assert (kernel[4:] != 0).all()
    assert (kernel[:, 4:] != 0).all()
    assert int(new.step) == int(state.step)
