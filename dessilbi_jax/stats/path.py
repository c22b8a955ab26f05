"""One driver for every path of the statistics: linearized Bregman iteration of a small model.

The state is (u, V): u is not penalised (an intercept, β of a split model, thresholds), V is the
dual of Γ = κ·w·prox(V), with the prox of the deep optimizer. One step of length h, all right-hand
sides old values, is

    u ← Π(u − κh·P ∇_u L(u, Γ))
    V ← V − h·∇_Γ L(u, Γ) / w
    t ← t + h

It begins at the first entry, t₀ = 1 / max_g ‖∇_g L(u₀, 0)‖/w_g with V = −t₀∇_Γ L/w, where u₀ must
be the minimum of L(·, 0): nothing happens before. V moves on a line within a step, so the moment at
which a group enters is a root in closed form and not a multiple of the step, and a snapshot
between two steps is a shorter step.

A model is a `Model`: functions of (data, u, Γ), no more. `follow` is pure, so that `jax.vmap` runs
it over folds, seeds, κ or α; `run` is `follow` compiled; `finished` brings a trace to the host.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.stats.groups import Groups

Tree: TypeAlias = Any  # a pytree of arrays
_NO_LIMIT = np.iinfo(np.int32).max


def _same(u: Tree) -> Tree:
    return u


@dataclasses.dataclass(frozen=True)
class Model:
    """What a path is of. Hashable, so its functions are best those of a module.

    Attributes:
        gradients: (data, u, Γ) → (P ∇_u L, ∇_Γ L), in the shapes of u and Γ. P is a positive
            factor by which a part of u may move faster or slower than κh; 1 if there is no reason.
            Couplings (none, split, mean shift) are part of L.
        project: Π, onto the u that are allowed; all of them by default.
    """

    gradients: Callable[[Tree, Tree, jax.Array], tuple[Tree, jax.Array]]
    project: Callable[[Tree], Tree] = _same


@functools.cache
def of_loss(
    loss: Callable[[Tree, Tree, jax.Array], jax.Array], project: Callable[[Tree], Tree] = _same
) -> Model:
    """The model of a loss (data, u, Γ) → scalar, with gradients by autodiff and P = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from dessilbi_jax.stats import path
        >>> def loss(y, u, gamma):
        ...     return jnp.sum((y - u - gamma) ** 2) / 2
        >>> path.of_loss(loss).gradients(jnp.ones(2), jnp.ones(()), jnp.ones(2))[1].tolist()
        [1.0, 1.0]
    """
    return Model(jax.grad(loss, argnums=(1, 2)), project)


class Trace(NamedTuple):
    """What `follow` returns; of T snapshots, each with a leading axis T.

    Attributes:
        ts: their times.
        u, v, gamma: their states (Γ = κ·w·prox(V)). After a stop before the last snapshot, the
            state at the stop is repeated.
        entry_times: when the group of each cell first entered, inf if it did not; shape `cells`.
        entry_signs: signs of V at that moment, 0 if it did not come; shape of Γ.
        t0: the first entry.
        scores: ‖V_g‖/t of the group of each cell at the stop, for those that did not enter.
        end: (u, V, Γ) at the stop.
        stop_time: when it stopped: the time of the last snapshot, or earlier.
        n_iter: steps made.
    """

    ts: jax.Array
    u: Tree
    v: jax.Array
    gamma: jax.Array
    entry_times: jax.Array
    entry_signs: jax.Array
    t0: jax.Array
    scores: jax.Array
    end: tuple[Tree, jax.Array, jax.Array]
    stop_time: jax.Array
    n_iter: jax.Array


class _State(NamedTuple):
    u: Tree
    v: jax.Array
    steps: jax.Array
    entry: jax.Array
    signs: jax.Array
    going: jax.Array


def follow(
    model: Model,
    penalty: Groups,
    data: Tree,
    start: Tree,
    *,
    kappa: jax.Array | float,
    alpha: jax.Array | float,
    weights: jax.Array | float = 1.0,
    ts: jax.Array | None = None,
    nt: int = 100,
    ratio: jax.Array | float = 100.0,
    t_max: jax.Array | float = math.inf,
    max_support: jax.Array | int = _NO_LIMIT,
    max_entered: jax.Array | int = _NO_LIMIT,
    max_iter: jax.Array | int = _NO_LIMIT,
    floor: jax.Array | float = 0.0,
) -> Trace:
    """Follows the path of a model from the first entry on. Pure; everything is in Γ's dtype.

    Args:
        model, penalty: L, Π and Ω.
        data: what `model` reads; a tree of arrays.
        start: u₀ = argmin L(·, 0), a tree of arrays; () if there is no u. Γ is of the dtype of
            ∇_Γ L there.
        kappa, alpha: κ and the length of a step, α; see `step_length`.
        weights: w > 0, one for all or in the shape of Γ; the same within a group.
        ts: times of the snapshots, in order, also before the first entry. None: `nt` of them,
            t₀·ratio^{k/(nt − 1)} or, with a finite `t_max`, from t₀ to it (t₀ if it is earlier).
        nt, ratio, t_max: see `ts`.
        max_support: stop once so many groups are in Γ.
        max_entered: stop once so many groups have ever entered.
        max_iter: stop after so many steps.
        floor: a ‖∇_g L(u₀, 0)‖/w_g up to this counts as zero; where all do, nothing ever enters,
            and t₀ is 1.
    """
    once = penalty.once()

    def shrunk(v: jax.Array) -> jax.Array:
        return kappa * weights * penalty.prox(v)

    def slopes(u: Tree, v: jax.Array) -> tuple[Tree, jax.Array]:
        to_u, to_gamma = model.gradients(data, u, shrunk(v))
        return to_u, -to_gamma / weights

    _, d = slopes(start, jnp.zeros(penalty.shape, dtype=_dtype(model, data, start, penalty)))
    real = d.dtype
    kappa, alpha = jnp.asarray(kappa, real), jnp.asarray(alpha, real)
    steepest = jnp.max(penalty.norms(d))
    opens = steepest > floor
    t0 = jnp.where(opens, 1 / jnp.where(opens, steepest, 1), 1)
    if ts is None:
        end = jnp.where(jnp.isfinite(t_max), jnp.maximum(t_max, t0), t0 * ratio)
        ts = t0 * (end / t0) ** jnp.linspace(0, 1, nt, dtype=real)
        ts = ts.at[-1].set(end)
    ts = ts.astype(real)

    def time(s: _State) -> jax.Array:
        return t0 + s.steps.astype(real) * alpha

    def step(s: _State, h: jax.Array, steps: jax.Array) -> _State:
        to_u, d = slopes(s.u, s.v)
        u = model.project(jax.tree.map(lambda x, g: x - kappa * h * g, s.u, to_u))
        v = s.v + h * d
        new = jnp.isinf(s.entry) & (penalty.norms(v) > 1)
        entry = jnp.where(new, time(s) + jnp.minimum(penalty.crossing(s.v, d), h), s.entry)
        signs = jnp.where(penalty.spread(new), jnp.sign(v), s.signs)
        inside = jnp.sum(once & (penalty.norms(v) > 1))
        entered = jnp.sum(once & jnp.isfinite(entry))
        steps = s.steps + steps
        going = (inside < max_support) & (entered < max_entered) & (steps < max_iter)
        return _State(u, v, steps, entry, signs, going)

    def to(carry: tuple[_State, _State], t: jax.Array) -> tuple[Any, tuple[Tree, Any, Any]]:
        # Whole steps while they fit, and from there a shorter one that the path does not take: the
        # snapshot. One loop for both, since all that is in it is compiled once.
        def ahead(c: tuple[_State, _State, jax.Array]) -> tuple[_State, _State, jax.Array]:
            s = c[0]
            whole = (time(s) + alpha <= t) & s.going
            rest = jnp.where(s.going, t - time(s), 0)
            there = step(s, jnp.where(whole, alpha, rest), whole.astype(s.steps.dtype))
            return jax.tree.map(lambda x, y: jnp.where(whole, y, x), s, there), there, whole

        s, there, _ = jax.lax.while_loop(lambda c: c[2], ahead, (*carry, jnp.ones((), bool)))
        return (s, there), (there.u, there.v, shrunk(there.v))

    first = _State(
        start, jnp.where(opens, t0 * d, 0), jnp.zeros((), jnp.int32),
        jnp.full(penalty.cells, jnp.inf, real), jnp.zeros(penalty.shape, real), jnp.ones((), bool),
    )  # fmt: skip
    ends: Any
    ends, (us, vs, gammas) = jax.lax.scan(to, (first, first), ts)
    last, final = ends
    stop = jnp.where(last.going, ts[-1], time(last))
    return Trace(
        ts, us, vs, gammas, final.entry, final.signs, t0,
        penalty.norms(final.v) / stop, (final.u, final.v, gammas[-1]), stop, last.steps,
    )  # fmt: skip


def _dtype(model: Model, data: Tree, start: Tree, penalty: Groups) -> Any:
    """The dtype that ∇_Γ L has, whatever the numbers of Γ are."""
    gamma = jnp.zeros(penalty.shape, jnp.result_type(*jax.tree.leaves((data, start)), jnp.float32))
    return jax.eval_shape(model.gradients, data, start, gamma)[1].dtype


run = jax.jit(follow, static_argnames=("model", "penalty", "nt"))


def step_length(kappa: float, bound: float, alpha: float | None = None) -> float:
    """α = 1/(κΛ), or the one given if it is stable: κα < 2/Λ.

    Args:
        kappa: κ.
        bound: Λ, the largest eigenvalue of the Hessian of L in (u, Γ), or a bound of it.
        alpha: the length of a step, None for the default.

    Raises:
        ValueError: κ or α not positive and finite, or α too long.

    Example:
        >>> from dessilbi_jax.stats.path import step_length
        >>> step_length(10.0, 4.0)
        0.025
    """
    for name, value in (("kappa", kappa), ("alpha", 1.0 if alpha is None else alpha)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive finite number, got {value}")
    if alpha is None:
        return 1 / (kappa * bound) if bound > 0 else 1 / kappa
    if alpha * kappa * bound >= 2:
        raise ValueError(
            f"alpha={alpha:g} is too long a step: with kappa={kappa:g} the path diverges from "
            f"{2 / (kappa * bound):.6g} on; {1 / (kappa * bound):.6g} is the default"
        )
    return float(alpha)


def finished(trace: Trace) -> Trace:
    """A trace of one path as NumPy arrays; snapshots end at the stop, whose state is the last."""
    trace = jax.tree.map(np.asarray, trace)
    if trace.stop_time >= trace.ts[-1]:
        return trace
    kept = trace.ts < trace.stop_time
    u, v, gamma = jax.tree.map(
        lambda all_, end: np.concatenate([all_[kept], end[None]]),
        (trace.u, trace.v, trace.gamma), trace.end,
    )  # fmt: skip
    ts: Any = np.append(trace.ts[kept], trace.stop_time)
    return trace._replace(ts=ts, u=u, v=v, gamma=gamma)


def ranking(penalty: Groups, trace: Trace) -> np.ndarray:
    """Groups from the first that entered to the last, then the others by ‖V‖/t at the stop.

    Groups are counted in the order of their numbers, or of their cells.
    """
    times, scores = (
        np.asarray(x).reshape(-1)[penalty.firsts] for x in (trace.entry_times, trace.scores)
    )
    return np.lexsort((-scores, times))
