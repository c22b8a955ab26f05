"""What the tests of the benchmarks share."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_in_haste():
    """A few steps of small networks: optimising the programs would take longer than those."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
