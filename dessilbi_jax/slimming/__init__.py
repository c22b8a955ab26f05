"""From a ticket to a network that is physically smaller and computes the same.

`cut` takes channels out of parameters and statistics and proves the outputs equal,
`optimizer_state` out of the optimizer's state, `export` writes what needs this library no more.
"""

from dessilbi_jax.slimming.cut import Slim, slim
from dessilbi_jax.slimming.export import load_slim, save_slim

__all__ = [
    "Slim",
    "load_slim",
    "save_slim",
    "slim",
]
