"""The losses of linear models: slopes in the linear predictor, for the device and for the host.

η is (n,), or (C, n) for C classes; y is the response, labels ±1, or one-hot (C, n); w are weights
of the samples that sum to 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss Σ_i w_i ℓ(η_i, y_i) of the linear predictor.

    Attributes:
        name: the family.
        curvature: a bound of the second derivative of ℓ, so that Λ = curvature · ‖X‖².
        slope: (η, y) → ∂ℓ/∂η, for JAX.
        slope_on_host: the same for NumPy.
        value: (η, y) → ℓ of each sample, for NumPy; η may have further axes behind.
        with_intercept: whether the intercept moves along the path. Centring takes care of that of
            the Gaussian.
    """

    name: str
    curvature: float
    slope: Callable[[jax.Array, jax.Array], jax.Array]
    slope_on_host: Callable[[np.ndarray, np.ndarray], np.ndarray]
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    with_intercept: bool


def _difference(eta: Any, y: Any) -> Any:
    return eta - y


def _half_square(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (eta - _behind(y, eta)) ** 2 / 2


def _logistic(eta: jax.Array, y: jax.Array) -> jax.Array:
    return -y * jax.nn.sigmoid(-y * eta)


def _logistic_on_host(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -y * special.expit(-y * eta)


def _log_one_plus(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -_behind(y, eta) * eta)


def _softmax(eta: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.softmax(eta, axis=0) - y


def _softmax_on_host(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    return special.softmax(eta, axis=0) - y


def _cross_entropy(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.sum(special.log_softmax(eta, axis=0) * _behind(y, eta), axis=0)


def _behind(y: np.ndarray, eta: np.ndarray) -> np.ndarray:
    return y.reshape(y.shape + (1,) * (eta.ndim - y.ndim))


GAUSSIAN = Loss("gaussian", 1.0, _difference, _difference, _half_square, False)
BINOMIAL = Loss("binomial", 0.25, _logistic, _logistic_on_host, _log_one_plus, True)
MULTINOMIAL = Loss("multinomial", 0.5, _softmax, _softmax_on_host, _cross_entropy, True)
FAMILIES = {loss.name: loss for loss in (GAUSSIAN, BINOMIAL, MULTINOMIAL)}


def family(name: str) -> Loss:
    """A loss by its family.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> from dessilbi_jax.stats import losses
        >>> losses.family("binomial").curvature
        0.25
    """
    if name not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {name!r}")
    return FAMILIES[name]


def start_of_intercept(loss: Loss, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The intercept that fits best where all coefficients are zero: logit, or log of shares."""
    if loss is GAUSSIAN:
        return np.zeros(())
    if loss is BINOMIAL:
        share = w @ (y > 0)
        return np.asarray(np.log(share) - np.log1p(-share))
    logs: np.ndarray = np.log(y @ w)
    return logs - logs.mean()
