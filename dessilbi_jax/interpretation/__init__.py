"""What the filters of a network respond to.

`computation` reads a network's jaxpr without its calls, `relus` finds the ReLUs in it, `traced` and
`units` the output of the layer that a leaf belongs to; `guided` and `maximise` look at it, and
`measures` puts numbers to filters and to what they go with.
"""

from dessilbi_jax.interpretation.guided import guided_gradients
from dessilbi_jax.interpretation.maximise import Maximised, activation_maximisation
from dessilbi_jax.interpretation.measures import (
    RankCorrelation,
    SpectralShape,
    colour_saturation,
    rank_correlation,
    spectral_shape,
)
from dessilbi_jax.interpretation.units import Unit, unit_counts

__all__ = [
    "Maximised",
    "RankCorrelation",
    "SpectralShape",
    "Unit",
    "activation_maximisation",
    "colour_saturation",
    "guided_gradients",
    "rank_correlation",
    "spectral_shape",
    "unit_counts",
]
