"""Networks of Flax NNX, Linen, Equinox and plain functions, as pure functions of their arrays.

`network` takes a network apart and puts it together around smaller arrays, for which `sizes` knows
what layers keep of their sizes; `linen` runs Linen modules at the widths of the variables they are
given. No framework is imported here: whoever made the network has done so.
"""

from dessilbi_jax.frameworks.linen import fitted
from dessilbi_jax.frameworks.network import Network, as_network, is_module

__all__ = ["Network", "as_network", "fitted", "is_module"]
