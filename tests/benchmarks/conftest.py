"""What the tests of the benchmarks share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def every_benchmark_in_haste(compiled_in_haste):
    """They run a few steps of small networks."""
