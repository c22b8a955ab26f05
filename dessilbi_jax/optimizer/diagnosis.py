"""Is the run on its way? The augmented loss, the Lyapunov value, and warnings in words."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.optimizer import auto_lam
from dessilbi_jax.optimizer.reading import get_state, laid_on
from dessilbi_jax.optimizer.settings import NU
from dessilbi_jax.optimizer.state import has_lam, is_hidden, shrink_leaves, tie_leaves
from dessilbi_jax.prox.norms import group_norms, how_many
from dessilbi_jax.prox.shrink import Shrink, apply_shrink, fraction_of_threshold, select


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; print it to read it.

    Attributes:
        loss: L(W).
        augmented_loss: L̄ = L(W) + ‖W − Γ‖²/(2ν), over structured leaves.
        distance: ‖W − Γ‖.
        lyapunov: F (see `diagnose`), or None without a previous state.
        density: elements of Γ that are not zero over all elements of structured leaves.
        warnings: what is wrong, in plain words; empty when nothing is.
    """

    loss: float
    augmented_loss: float
    distance: float
    lyapunov: float | None
    density: float
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"loss {self.loss:.6g}, augmented loss {self.augmented_loss:.6g}, "
            f"‖W − Γ‖ {self.distance:.6g}, density of Γ {self.density:.2%}"
            + ("" if self.lyapunov is None else f", Lyapunov value {self.lyapunov:.8g}")
        ]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def diagnose(
    loss: Callable[[Any], jax.Array],
    params: Any,
    state: Any,
    previous_state: Any = None,
    *,
    learning_rate: Any,
    nu: float = NU,
    kappa: float = 1.0,
    steps: int | None = None,
) -> Diagnosis:
    """Measures one moment of a run and says what is wrong with it.

    The Lyapunov value is

        F = α·L̄(W, Γ) + Ω(Γ) − ⟨Γ, g_prev⟩,   g = V − Γ/κ ∈ ∂Ω(Γ),   α = learning_rate/κ,

    with g_prev that of the state one step before. For full-batch DessiLBI without momentum on a
    smooth loss it never rises while learning_rate < `step_size_bound` (Fu et al. 2020, Thm. 1).

    Args:
        loss: parameters → scalar, for instance on a fixed batch.
        params: W, as it is with `state`. Leaves that are hidden from it (`optax.partition`,
            `optax.masked`) count for the loss alone.
        state: optimizer state.
        previous_state: the one a step before, for the Lyapunov value.
        learning_rate, nu, kappa: those of the transformation.
        steps: updates in the run, to tell whether Γ can still open, and whether `dl.auto` was
            given as many.

    Raises:
        ValueError: if ν or κ is out of range, no state is found, or the loss is no scalar.

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020, Theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.full((2, 2), 0.1)}
        >>> tx = dl.dessilbi(0.1, nu=10.0, lam=1.0)
        >>> loss = lambda p: jnp.sum(p["kernel"] ** 2)
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> found = dl.diagnose(loss, params, state, learning_rate=0.1, nu=10.0, steps=100)
        >>> print(found)  # doctest: +NORMALIZE_WHITESPACE
        loss 0.04, augmented loss 0.042, ‖W − Γ‖ 0.2, density of Γ 0.00%
        warning: Γ cannot open within this run: at today's speed the largest ‖V‖ reaches 0.1 of
        its λ; try dl.auto, or λ below 0.1 of today's
    """
    for name, value in {"nu": nu, "kappa": kappa}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    now = get_state(state, merge=True)
    treedef: Any = jax.tree.structure(params)
    now = laid_on(now, params)
    rows = _rows(treedef, now)
    w = treedef.flatten_up_to(params)
    squared = inner = jnp.zeros([])
    nearest = 0.0
    chosen, total = 0.0, 0
    before = None
    if previous_state is not None:
        before = _rows(treedef, laid_on(get_state(previous_state, merge=True), params))
    count = int(now.count)
    left = 0.0
    if steps is not None:
        left = float(auto_lam.travel(learning_rate, count, steps, kappa, nu))
    moved = {}
    for i, (v, shrink) in rows.items():
        gamma = apply_shrink(v, shrink)
        difference = w[i].astype(v.dtype) - gamma
        squared += jnp.sum(jnp.abs(difference) ** 2)
        total += v.size
        units = select(v, shrink)
        chosen += float(how_many(units)) * (v.size // units.size)
        moved[i] = v + left * difference
        if before is not None:
            inner += _bregman(v, gamma, shrink, *before[i], kappa=kappa)
    norms = _joint_norms(tie_leaves(treedef, now.ties), rows, moved)
    for i, (v, shrink) in rows.items():
        at_end = fraction_of_threshold(moved[i], v, shrink, norms.get(i))
        nearest = max(nearest, float(jnp.max(at_end)))
    measured = loss(params)
    if jnp.shape(measured) != ():
        raise ValueError(
            f"loss must return one number, got shape {jnp.shape(measured)}: take its mean, as the "
            "gradient's loss does; a loss with auxiliary output needs [0]"
        )
    value = float(measured)
    distance = float(jnp.sqrt(squared))
    augmented = value + distance**2 / (2 * nu)
    lyapunov = None
    if before is not None:
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        lyapunov = float(rate) / kappa * augmented + float(inner)
    density = chosen / max(total, 1)
    warnings = _warnings(now, nearest, density, steps, learning_rate, nu)
    return Diagnosis(value, augmented, distance, lyapunov, density, warnings)


def _rows(treedef: Any, state: Any) -> dict[int, tuple[jax.Array, Shrink]]:
    """V and `Shrink` of the structured leaves that the state sees, by their place."""
    v = treedef.flatten_up_to(state.v)
    shrink = shrink_leaves(treedef, state.shrink)
    seen = [i for i, x in enumerate(v) if not is_hidden(x) and x.dtype != bool]
    return {i: (v[i], shrink[i]) for i in seen}


def _joint_norms(
    ties: Sequence[jax.Array | None],
    rows: dict[int, tuple[jax.Array, Shrink]],
    moved: dict[int, jax.Array],
) -> dict[int, tuple[jax.Array, jax.Array]]:
    """Group norms of the moved V and of V, for leaves with joint groups."""
    joint = {i: np.asarray(tie) for i, tie in enumerate(ties) if tie is not None}
    counts = [tie.shape for tie in joint.values()]
    numbers = [tie.reshape(-1) for tie in joint.values()]
    new = group_norms(counts, numbers, [moved[i] for i in joint])
    old = group_norms(counts, numbers, [rows[i][0] for i in joint])
    return dict(zip(joint, zip(new, old, strict=True), strict=True))


def _bregman(
    v: jax.Array, gamma: jax.Array, shrink: Shrink, v0: jax.Array, shrink0: Shrink, kappa: float
) -> jax.Array:
    """Ω(Γ) − ⟨Γ, g₀⟩ of one leaf.

    Ω is homogeneous but for (μ/2)‖Γ‖², so Ω(Γ) = ⟨Γ, g⟩ − (μ/2)‖Γ‖² with g ∈ ∂Ω(Γ), and μ is
    known from scale = κ/(1 + κμ).
    """
    g = v - gamma / kappa
    g0 = v0 - apply_shrink(v0, shrink0) / kappa
    mu = 1 / shrink.scale - 1 / kappa
    return jnp.sum(jnp.real(jnp.conj(gamma) * (g - g0)) - mu / 2 * jnp.abs(gamma) ** 2)


def _warnings(
    state: Any, nearest: float, density: float, steps: int | None, learning_rate: Any, nu: float
) -> tuple[str, ...]:
    out = []
    count = int(state.count)
    if state.auto != () and count > int(state.auto.planned):
        out.append(
            f"{count} updates of {int(state.auto.planned)} planned: dl.auto promises nothing "
            f"beyond its plan, and the density of Γ has become {density:.2%}; give it the number "
            "of optimizer updates as steps (not of epochs or batches)"
        )
    if state.auto != () and steps is not None and steps < int(state.auto.due):
        out.append(
            f"dl.auto lets Γ reach its density at update {int(state.auto.due)}, the run has "
            f"{steps}: Γ will not be as dense as asked; steps counts optimizer updates, with "
            "accumulation over k batches one for k of them"
        )
    if steps is not None and density == 0 and nearest <= 1 and has_lam(state):
        out.append(
            f"Γ cannot open within this run: at today's speed the largest ‖V‖ reaches "
            f"{nearest:.2g} of its λ; try dl.auto, or λ below {nearest:.2g} of today's"
        )
    if steps is not None:
        total = float(auto_lam.travel(learning_rate, 0, steps, 1.0, nu))
        if total > 1:
            out.append(
                f"until Γ opens, ν = {nu:g} acts as weight decay of {1 / nu:.2g}: over the run it "
                f"alone would shrink W by a factor of e^{total:.1f} (behind the momentum; before "
                "it, more); a larger ν weakens it"
            )
    if density > 0.95:
        out.append("Γ holds nearly everything: λ is too small, or the run too long, to select")
    if int(state.skipped):
        out.append(
            f"{int(state.skipped)} entries of W were not finite over {count} updates; V skipped "
            "them. Lower the learning rate, or use optax.apply_if_finite"
        )
    return tuple(out)
