"""Whether two runs are the same but for rounding, as on other devices."""

import json

import jax
import numpy as np
import pytest

import dessilbi_jax as dl
from dessilbi_jax import train


def lines(run):
    """The records of a run, without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def assert_close(found, expected):
    """Whether two mappings hold the same keys and about the same numbers."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-3, abs=3e-3), key
        else:
            assert found[key] == value, key


def assert_same_run(run, other):
    """Whether two runs are the same to rounding, and select the same."""
    assert len(lines(run)) == len(lines(other)) > 0
    for line, expected in zip(lines(run), lines(other), strict=True):
        assert_close(line, expected)
    for a, b in zip(*(jax.tree.leaves(train.load_params(r)) for r in (run, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)
    path, expected = (dl.SolutionPath.load(r / "path.npz") for r in (run, other))
    np.testing.assert_array_equal(path.steps, expected.steps)
    for step in expected.steps:
        for name, mask in expected.support(int(step)).items():
            np.testing.assert_array_equal(path.support(int(step))[name], mask)
    assert 0 < path.density()[-1] < 1
