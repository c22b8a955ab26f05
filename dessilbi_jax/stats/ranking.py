"""Paired comparisons: their design, their graph, and users who differ (iSplit LBI with ties)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, sparse, special
from scipy.sparse import csgraph

from dessilbi_jax.stats import path
from dessilbi_jax.stats.design import padded, top_eigenvalue
from dessilbi_jax.stats.groups import Groups
from dessilbi_jax.stats.linear import Limits, tell_unfinished
from dessilbi_jax.stats.precision import LEAST_ROWS, padded_size, precision_of

_LEAST_TIE = 1e-3  # λ^u stays above


def numbered(pairs: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Places of the items of each pair, (m, 2), among the sorted items.

    Raises:
        ValueError: an item is not among them, or is compared with itself.
    """
    place = np.minimum(np.searchsorted(items, pairs), len(items) - 1)
    unknown = items[place] != pairs
    if unknown.any():
        raise ValueError(f"item {pairs[unknown].tolist()[0]!r} was not among the compared items")
    same = np.flatnonzero(place[:, 0] == place[:, 1])
    if len(same):
        item = pairs.tolist()[same[0]][0]
        raise ValueError(
            f"comparison {same[0]} is of item {item!r} with itself ({len(same)} of {len(pairs)} "
            "are such): leave these out"
        )
    return np.asarray(place)


def incidence(place: np.ndarray, n: int) -> np.ndarray:
    """C (m, n): 1 at the first item of each comparison and −1 at the second.

    Example:
        >>> import numpy as np
        >>> from dessilbi_jax.stats.ranking import incidence
        >>> incidence(np.array([[0, 2]]), 3)
        array([[ 1.,  0., -1.]])
    """
    out = np.zeros((len(place), n))
    rows = np.arange(len(place))
    out[rows, place[:, 0]], out[rows, place[:, 1]] = 1, -1
    return out


def components(place: np.ndarray, n: int) -> np.ndarray:
    """The number of the connected component of the comparison graph that each item is in, (n,)."""
    graph = sparse.coo_array((np.ones(len(place)), (place[:, 0], place[:, 1])), shape=(n, n))
    return np.asarray(csgraph.connected_components(graph, directed=False)[1])


class Votes(NamedTuple):
    """Data of iSplit LBI: differences x, votes y ∈ {1, 0, −1}, users, weights of sum 1, and 1/ν."""

    x: Any
    y: Any
    user: Any
    w: Any
    pull: Any


def log_likelihood(delta: Any, tie: Any, y: Any, xp: Any = np, log_ndtr: Any = None) -> Any:
    """log P(y): P(1) = 1 − Φ(λ − Δ), P(−1) = Φ(−λ − Δ), P(0) the rest.

    Args:
        delta: Δ, difference of the scores.
        tie: λ > 0.
        y: 1, 0 or −1.
        xp: NumPy or jax.numpy, and `log_ndtr` its log Φ.

    Example:
        >>> from dessilbi_jax.stats.ranking import log_likelihood
        >>> import numpy as np
        >>> np.exp([log_likelihood(0.0, 1.0, y) for y in (1, 0, -1)]).round(3)
        array([0.159, 0.683, 0.159])
    """
    log_ndtr = log_ndtr or special.log_ndtr
    decided = log_ndtr(xp.where(y < 0, -delta, delta) - tie)
    far = xp.abs(delta)  # P(0) is even in Δ; in the lower tail nothing cancels
    upper, lower = log_ndtr(tie - far), log_ndtr(-tie - far)
    gap = xp.minimum(lower - upper, -1e-12)
    return xp.where(y == 0, upper + xp.log(-xp.expm1(gap)), decided)


def _loss(data: Votes, u: Any, gamma: jax.Array) -> jax.Array:
    """Mean −log P(y) under s^u = c + p^u, λ^u = c_λ + p_λ^u, and ‖p − γ‖²/(2ν)."""
    common, tie, own = u
    own_s, own_tie = own[:, :-1], own[:, -1]
    delta = data.x @ common + jnp.sum(data.x * own_s[data.user], axis=-1)
    ties = jnp.maximum(tie + own_tie, _LEAST_TIE)[data.user]
    fit = log_likelihood(delta, ties, data.y, jnp, jax.scipy.special.log_ndtr)
    return -jnp.sum(data.w * fit) + data.pull * jnp.sum((own - gamma) ** 2) / 2


def _positive(u: Any) -> Any:
    """The nearest thresholds that leave each user's λ^u positive."""
    common, tie, own = u
    tie = jnp.maximum(tie, _LEAST_TIE)
    return common, tie, own.at[:, -1].set(jnp.maximum(own[:, -1], _LEAST_TIE - tie))


MODEL = path.of_loss(_loss, _positive)
_value = jax.jit(jax.value_and_grad(_loss, argnums=1))


@dataclasses.dataclass(frozen=True)
class UserPath:
    """The path of users' deviations; T snapshots first.

    Attributes:
        ts: (T,), times.
        common: (T, q), c.
        ties: (T,), c_λ.
        own: (T, U, q + 1), p^u and p_λ^u, dense.
        gammas: (T, U, q + 1), the sparse ones: 0 for users who vote as all do.
        entry_times: (U,), when each user first deviated, inf if never.
        n_iter: steps made.
    """

    ts: np.ndarray
    common: np.ndarray
    ties: np.ndarray
    own: np.ndarray
    gammas: np.ndarray
    entry_times: np.ndarray
    n_iter: int


def follow_users(
    x: np.ndarray,
    y: np.ndarray,
    user: np.ndarray,
    w: np.ndarray,
    *,
    kappa: float,
    nu: float,
    alpha: float | None = None,
    limits: Limits,
) -> UserPath:
    """iSplit LBI: the path of each user's deviation (p^u, p_λ^u), a group a user.

    Of L = −Σ w log P(y) + ‖(p, p_λ) − γ‖²/(2ν), λ^u projected on what is positive.

    Args:
        x: (m, q), differences of the compared.
        y: (m,), 1, 0 or −1.
        user: (m,), numbers from 0.
        w: (m,), not negative.
        kappa, nu, alpha, limits: κ, ν, α (None: 1/(κΛ)) and where the path ends.

    Raises:
        ValueError: κ, ν or α out of range.
    """
    if not 0 < nu < np.inf:
        raise ValueError(f"nu must be a positive finite number, got {nu}")
    m, q = x.shape
    users = int(user.max()) + 1
    rows, wide, tall = padded_size(m, LEAST_ROWS), padded_size(q), padded_size(users)
    w = w / w.sum()
    data = Votes(padded(x, (rows, wide)), padded(y, (rows,)), padded(user, (rows,)),
                 padded(w, (rows,)), np.asarray(1 / nu))  # fmt: skip
    penalty = Groups((tall, wide + 1), (tall, 1))
    with precision_of(np.float64):
        data = Votes(*(jnp.asarray(part) for part in data))
        start = _start(data, penalty.shape)
        ties = np.maximum(start[1] + start[2][:, -1], _LEAST_TIE)
        tied = w * (y == 0) / ties[user] ** 2
        each = np.column_stack([x, np.ones(m)]) * np.sqrt(w + tied)[:, None]
        size = top_eigenvalue(each.T @ each)
        own = max(top_eigenvalue(each[user == k].T @ each[user == k]) for k in np.unique(user))
        alpha = path.step_length(kappa, size + own + 2 / nu, alpha)
        trace = path.finished(
            path.run(
                MODEL, penalty, data, jax.tree.map(jnp.asarray, start), kappa=float(kappa),
                alpha=alpha, floor=1e-7 / nu, **limits.arguments(False, users),
            )
        )  # fmt: skip
    tell_unfinished(trace, limits)
    kept = [*range(q), wide]
    return UserPath(
        np.asarray(trace.ts), trace.u[0][:, :q], trace.u[1], trace.u[2][:, :users][..., kept],
        np.asarray(trace.gamma)[:, :users][..., kept],
        np.asarray(trace.entry_times)[:users, 0], int(trace.n_iter),
    )  # fmt: skip


def _start(data: Votes, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """argmin L(·, 0) by L-BFGS-B in c, c_λ, p and λ^u: in these λ^u > 0 is a bound."""
    tall, wide = shape[0], shape[1] - 1
    gamma = jnp.zeros(shape)

    def parts(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = z[wide + 1 :].reshape(tall, wide + 1).copy()
        own[:, -1] -= z[wide]
        return z[:wide], z[wide], own

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        out, (common, tie, own) = _value(data, parts(z), gamma)
        own = np.asarray(own)
        return float(out), np.concatenate(
            [common, [float(tie) - own[:, -1].sum()], own.reshape(-1)]
        )

    ties = wide + np.arange(tall + 1) * (wide + 1)  # places of c_λ and of each λ^u
    first = np.zeros((tall + 1) * (wide + 1))
    first[ties] = 1
    low = np.full(len(first), -np.inf)
    low[ties] = _LEAST_TIE
    options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-9, "ftol": 1e-14}
    bounds = optimize.Bounds(low, np.inf)
    found = optimize.minimize(
        value, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return parts(found.x)


def log_probabilities(x: np.ndarray, common: np.ndarray, tie: Any, own: np.ndarray) -> np.ndarray:
    """log P of −1, 0 and 1 for each comparison, (m, 3).

    Args:
        x: (m, q).
        common, tie: c (q,) and c_λ.
        own: (m, q + 1), (p^u, p_λ^u) of the user of each comparison.
    """
    delta = x @ common + np.sum(x * own[:, :-1], axis=1)
    ties = np.maximum(tie + own[:, -1], _LEAST_TIE)
    likely = functools.partial(log_likelihood, delta, ties)
    return np.stack([likely(np.full(len(x), y)) for y in (-1, 0, 1)], axis=1)
