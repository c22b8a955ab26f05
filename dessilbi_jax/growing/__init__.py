"""From a network to a wider one that computes the same and goes on training.

`layout` says where new channels stand along each axis, `grow` makes the wider network and its
optimizer's state, `grower` decides from Γ what is too narrow.
"""

from dessilbi_jax.growing.grow import Grown, grow
from dessilbi_jax.growing.grower import Grower

__all__ = ["Grower", "Grown", "grow"]
