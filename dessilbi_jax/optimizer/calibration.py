"""λ from the run's length and the density wanted, and the bound on the step size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dessilbi_jax.optimizer import auto_lam, levels
from dessilbi_jax.optimizer.asked import Auto
from dessilbi_jax.optimizer.reading import get_state, laid_on
from dessilbi_jax.optimizer.settings import NU
from dessilbi_jax.optimizer.state import is_hidden, shrink_leaves
from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.prox.shrink import apply_shrink
from dessilbi_jax.structure.rules import StructureLike, resolve


def calibrate(
    params: Any,
    structure: StructureLike,
    learning_rate: Any,
    steps: int,
    *,
    nu: float = NU,
    kappa: float = 1.0,
    density: float | None = None,
    group_density: float | None = None,
    at: float = 1.0,
    probe: Any = None,
    penalty: Penalty | None = None,
) -> float:
    """The λ with which Γ should hold a wanted density at a wanted moment of a run.

    With V's clock T, the sum of learning_rate/(κν) over the steps, and a W whose size falls as
    e^{−bT}, V ends at V_now + ρ·T_left·(W − Γ), ρ = (1 − e^{−bT_left})/(bT_left); λ is the level
    of that V which the wanted share of the elements exceeds.

    With a `probe`, V and T are those of a run that has gone some way, and b is measured from
    how far V has come against the speed it has now. From parameters alone, V starts at 0 and
    b = κ, the decay that the coupling causes by itself: a first guess that knows nothing of the
    training, without a promise of accuracy; it is also the b of a probe whose learning rate was
    zero so far. `dl.auto` does better than either, since it
    corrects itself on the way.

    Args:
        params: the parameters: at initialisation, or at the probe's moment.
        structure: as for `dl.dessilbi`; rules without λ of their own.
        learning_rate: number or schedule, the one of the run.
        steps: updates in the run.
        nu, kappa, penalty: those of the run.
        density: wanted share of the structured leaves' elements, in (0, 1].
        group_density: the same as a share of the groups; exactly one of the two.
        at: fraction of `steps` at which it is wanted.
        probe: optimizer state of a run with the same settings, ideally before Γ opened. Leaves
            that are hidden from it (`optax.partition`, `optax.masked`) do not count.

    Returns:
        λ.

    Raises:
        TypeError: unless exactly one of `density` and `group_density` is given.
        ValueError: numbers out of range, a probe past the moment asked for, rules that have λ
            of their own, or parameters that never move V (all zero).

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.linspace(0.01, 1.0, 100).reshape(10, 10)}
        >>> lam = dl.calibrate(params, dl.weights, 0.1, 1000, nu=100.0, density=0.25)
        >>> round(lam, 3)  # 1 - exp(-1) of the 0.75-quantile of the weights
        0.474
    """
    target = Auto(density=density, group_density=group_density, steps=steps, at=at)
    for name, value in {"nu": nu, "kappa": kappa}.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    leaves = resolve(structure, params)
    treedef: Any = jax.tree.structure(params)
    if any(leaf.lam is not None for leaf in leaves):
        raise ValueError(
            "calibrate finds one λ for all leaves, but a rule has its own; leave it out, or use "
            "dl.auto, which takes the rules' λ as relative weights"
        )
    state = None if probe is None else laid_on(get_state(probe, merge=True), params)
    seen = [True] * len(leaves)
    if state is not None:
        seen = [not is_hidden(v) for v in treedef.flatten_up_to(state.v)]
    kept = [i for i, leaf in enumerate(leaves) if leaf.counts is not None and seen[i]]
    groups = [leaves[i] for i in kept]
    penalties = [leaf.penalty or penalty or Penalty() for leaf in groups]
    w = [treedef.flatten_up_to(params)[i] for i in kept]
    one = [jnp.ones([])] * len(kept)

    def level(v: list[jax.Array]) -> jax.Array:
        return levels.level(groups, penalties, one, lambda: v, target.share, target.by_group)

    decay: Any = jnp.asarray(kappa, jnp.float32)
    if state is None:
        done = 0
        v = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in w]
        speed = [x.astype(a.dtype) for x, a in zip(w, v, strict=True)]
    else:
        done = int(state.count)
        if done >= target.due:
            raise ValueError(
                f"the probe has made {done} updates, the density is wanted at {target.due}"
            )
        shrink = shrink_leaves(treedef, state.shrink)
        all_v = treedef.flatten_up_to(state.v)
        v = [all_v[i] for i in kept]
        speed = [
            x.astype(a.dtype) - apply_shrink(a, shrink[i])
            for x, a, i in zip(w, v, kept, strict=True)
        ]
        so_far = auto_lam.travel(learning_rate, 0, done, kappa, nu)
        if so_far > 0:  # else nothing has moved that could be measured
            # Today's speed over the mean one until now is x/(eˣ − 1) for a decay of x,
            ratio = level(speed) * so_far / jnp.maximum(level(v), 1e-30)
            # which is the share kept over the same way backwards.
            decay = -auto_lam.measured_decay(1 / jnp.maximum(ratio, 1e-3), so_far)
    left = auto_lam.travel(learning_rate, done, target.due, kappa, nu)
    distance = left * auto_lam.kept_speed(decay, left)
    lam = float(level([a + distance.astype(a.dtype) * b for a, b in zip(v, speed, strict=True)]))
    if lam <= 1e-37:
        raise ValueError("the structured parameters are zero, so V would never move")
    return lam


def step_size_bound(
    loss: Callable[[Any], jax.Array],
    params: Any,
    nu: float,
    *,
    iterations: int = 30,
    seed: int = 0,
) -> float:
    """The learning rate below which full-batch DessiLBI descends: 2 / (Lip + 1/ν).

    That is Theorem 1 of Fu et al. (2020) in terms of the step of W, so that κ cancels. It holds
    without momentum, on the whole batch, where ∇L has the Lipschitz constant Lip. Lip is
    estimated at `params` as the largest modulus of the Hessian's eigenvalues, by power iteration
    on Hessian-vector products; along a path it changes with W.

    Args:
        loss: parameters → scalar.
        params: where to estimate; all leaves real.
        nu: ν > 0.
        iterations: Hessian-vector products to make, ≥ 1.
        seed: of the random start.

    Raises:
        ValueError: for ν or iterations out of range.

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020, Theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> scale = jnp.array([1.0, 3.0])
        >>> bound = dl.step_size_bound(lambda w: 0.5 * jnp.sum(scale * w**2), jnp.ones(2), nu=1.0)
        >>> round(bound, 3)
        0.5
    """
    if not 0 < nu < float("inf"):
        raise ValueError(f"nu must be positive and finite, got {nu}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    gradient = jax.grad(loss)

    def product(direction: Any) -> Any:
        return jax.jvp(gradient, (params,), (direction,))[1]

    def norm(tree: Any) -> jax.Array:
        return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))

    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    start = jax.tree.unflatten(
        treedef, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )

    @jax.jit
    def iterate(direction: Any) -> jax.Array:
        def step(_: Any, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            direction, size = carry
            size = jnp.maximum(size, jnp.finfo(size.dtype).tiny)
            unit = jax.tree.map(lambda x: (x / size).astype(x.dtype), direction)
            image = product(unit)
            return image, norm(image)

        _, size = jax.lax.fori_loop(0, iterations, step, (direction, norm(direction)))
        return jnp.asarray(size)

    return float(2 / (iterate(start) + 1 / nu))
