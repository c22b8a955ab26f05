"""Numbers for filters, and for what goes with what. On the host, in NumPy.

Filters are arrays [filters, height, width, colours].
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

_PADDED = 16  # points of a spectrum along an axis, or more for larger filters


class SpectralShape(NamedTuple):
    """The spectral shape of filters.

    Attributes:
        frequency: [filters] mean spatial frequency, weighted by power, in cycles a pixel: 0 for an
            even filter, at most √½.
        orientation: [filters] in [0, 1]: 0 where power lies alike in all directions, 1 where it
            lies along one, as of an edge.
    """

    frequency: np.ndarray
    orientation: np.ndarray


class RankCorrelation(NamedTuple):
    """Spearman's ρ with its interval.

    Attributes:
        value: ρ, in [-1, 1]; NaN where one of the two is the same for all.
        low: lower end of the interval; NaN for fewer than four pairs.
        high: upper end.
        pairs: how many pairs of finite numbers it was taken over.
    """

    value: float
    low: float
    high: float
    pairs: int


def colour_saturation(filters: Any) -> np.ndarray:
    """The share of each filter's energy that is colour: ‖w − w̄‖² / ‖w‖², w̄ the mean over colours.

    0 for a filter that sees brightness alone, 1 for one that sees none of it; NaN for a filter of
    zeros, and for images of a single channel, which have no colour.

    Args:
        filters: [filters, height, width, colours].

    Raises:
        ValueError: an array of another shape.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.interpretation import colour_saturation
        >>> grey, red_against_green = np.ones((3, 3, 3)), np.ones((3, 3, 1)) * [1, -1, 0]
        >>> colour_saturation([grey, red_against_green]).tolist()
        [0.0, 1.0]
    """
    w = _checked(filters)
    energy = _over(np.square(w).sum(axis=(1, 2, 3)))
    if w.shape[3] == 1:
        return np.full(len(w), np.nan)
    grey = w.shape[3] * np.square(w.mean(axis=3)).sum(axis=(1, 2))
    share: np.ndarray = np.clip(1 - grey / energy, 0, 1)
    return share


def spectral_shape(filters: Any) -> SpectralShape:
    """Mean frequency and orientation of each filter's power spectrum, summed over colours.

    With the power p(f) at frequency f = (f₁, f₂) of the discrete Fourier transform, padded with
    zeros to 16 points an axis: frequency = Σ p |f| / Σ p, orientation = (μ₁ − μ₂)/(μ₁ + μ₂) of the
    eigenvalues μ₁ ≥ μ₂ of Σ p f fᵀ, the structure tensor. NaN for filters of zeros.

    Args:
        filters: [filters, height, width, colours].

    Raises:
        ValueError: an array of another shape.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.interpretation import spectral_shape
        >>> even = np.ones((5, 5, 1))
        >>> stripes = even * np.array([1, -1, 1, -1, 1]).reshape(1, 5, 1)
        >>> shape = spectral_shape([even, stripes])
        >>> shape.frequency.round(2).tolist(), shape.orientation.round(2).tolist()
        ([0.13, 0.44], [0.0, 0.86])
    """
    w = _checked(filters)
    size = [max(_PADDED, n) for n in w.shape[1:3]]
    power = np.square(np.abs(np.fft.fft2(w, s=size, axes=(1, 2)))).sum(axis=3)
    rows, columns = np.meshgrid(*map(np.fft.fftfreq, size), indexing="ij")
    total = _over(power.sum(axis=(1, 2)))
    frequency = (power * np.hypot(rows, columns)).sum(axis=(1, 2)) / total
    a, b, c = (
        (power * each).sum(axis=(1, 2)) / total for each in (rows**2, columns**2, rows * columns)
    )
    return SpectralShape(frequency, np.hypot(a - b, 2 * c) / (a + b))


def rank_correlation(x: Any, y: Any, level: float = 0.95) -> RankCorrelation:
    """Spearman's rank correlation of two lists of numbers, with an interval.

    Equal numbers share the mean of their ranks. The interval is Fisher's,
    tanh(atanh ρ ± z √((1 + ρ²/2)/(n − 3))), with the variance for ranks. Pairs in which a number is
    not finite are left out.

    Args:
        x: numbers.
        y: as many.
        level: of the interval.

    Raises:
        ValueError: lists of different lengths, or a level that is not within (0, 1).

    References:
        D. G. Bonett and T. A. Wright, "Sample Size Requirements for Estimating Pearson, Kendall and
        Spearman Correlations", Psychometrika 65, 2000.

    Example:
        >>> from dessilbi_jax.interpretation import rank_correlation
        >>> found = rank_correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])
        >>> [round(each, 2) for each in found]
        [0.94, 0.38, 1.0, 6]
    """
    a, b = (np.asarray(each, np.float64).ravel() for each in (x, y))
    if a.size != b.size:
        raise ValueError(f"as many numbers of both are needed, got {a.size} and {b.size}")
    if not 0 < level < 1:
        raise ValueError(f"level must be within (0, 1), got {level!r}")
    known = np.isfinite(a) & np.isfinite(b)
    n = int(known.sum())
    ranks = [_ranks(each[known]) - (n - 1) / 2 for each in (a, b)]
    spread = math.sqrt(math.prod(float(np.square(r).sum()) for r in ranks))
    if not spread:
        return RankCorrelation(math.nan, math.nan, math.nan, n)
    rho = float(np.clip((ranks[0] * ranks[1]).sum() / spread, -1, 1))
    if n < 4:
        return RankCorrelation(rho, math.nan, math.nan, n)
    width = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    middle = math.inf * rho if abs(rho) == 1 else math.atanh(rho)
    return RankCorrelation(rho, math.tanh(middle - width), math.tanh(middle + width), n)


def _checked(filters: Any) -> np.ndarray:
    w = np.asarray(filters, np.float64)
    if w.ndim != 4:
        raise ValueError(f"filters must be [filters, height, width, colours], got shape {w.shape}")
    return w


def _over(energy: np.ndarray) -> np.ndarray:
    """What to divide by: NaN in the place of 0."""
    return np.where(energy > 0, energy, np.nan)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal numbers share the mean of theirs."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: np.ndarray = last - (counts + 1) / 2
    return middle[place]
