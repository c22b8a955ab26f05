"""DessiLBI as an Optax gradient transformation.

One step, all right-hand sides old values (Fu et al., ICML 2020, Eq. 4, 6 and 7):

    G  = g + (W − Γ)/ν
    W' = W − learning_rate · direction(G)
    V' = V + learning_rate/(κν) · (W − Γ)
    Γ' = prox_{κΩ_λ}(κV'),  which is κ·prox_{Ω_λ}(V') for the lasso and the group lasso
"""

import functools
import numbers
from typing import Any, Literal

import jax
import optax

from dessilbi_jax.optimizer import step
from dessilbi_jax.optimizer.asked import Lam, ScalarOrSchedule, Settle, check_number
from dessilbi_jax.optimizer.chain import Freeze, around
from dessilbi_jax.optimizer.settings import NU, Settings
from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.structure.named import filters
from dessilbi_jax.structure.rules import StructureLike
from dessilbi_jax.tree import leaf_paths, shape_of, words


def add_split_lbi(
    learning_rate: ScalarOrSchedule,
    kappa: float | jax.Array = 1.0,
    nu: float | jax.Array = NU,
    lam: Lam = None,
    structure: StructureLike = filters,
    lean: bool = False,
    *,
    penalty: Penalty | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds (W − Γ)/ν to the updates and advances V and Γ.

    Stands anywhere in a chain before the sign is flipped. Before a momentum the coupling is
    accumulated with the gradient (the paper's Eq. 14; its steady state is 1/(1 − τ) times
    stronger), behind it only the gradient is (the authors' toolbox). Whatever scales updates
    behind it changes the step of W but not that of V.

    Args:
        learning_rate: the step of W, number or schedule: the same as is given to the later
            `optax.scale_by_learning_rate`. The paper's α is `learning_rate / kappa`.
        kappa: κ > 0, damping of Γ.
        nu: ν > 0, how loosely W is tied to Γ. Until Γ opens the coupling acts on structured
            leaves as weight decay of 1/ν.
        lam: λ > 0, a number, a schedule, or `dl.auto(density=…, steps=…)`, which finds it inside
            the run. May be left out only if every rule has its own.
        structure: what the groups are: a named structure, `dl.channels(groups)`, rules, or a
            callable from the parameters to a tree of specs.
        lean: keep no Γ in the state; it is rebuilt from V (4 bytes a parameter less).
        penalty: the penalty Ω; group lasso by default. A rule's own comes first.

    Returns:
        An Optax transformation with state `SplitLBIState`.

    Raises:
        ValueError: numbers out of range; at `init` and `update`, a structure that fits no
            leaf, parameters missing, or a state made for another structure.
        TypeError: λ missing, or an argument of another kind.

    An entry of W − Γ that is not finite leaves its entry of V unchanged and is counted in
    `skipped`; the update itself passes through. Under `optax.apply_if_finite` nothing changes.

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020, Eq. 4, 6 and 7.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.array([[1.0, 0.1], [1.0, 0.1]])}
        >>> tx = optax.chain(
        ...     optax.scale_by_adam(),
        ...     dl.add_split_lbi(0.1, nu=1.0, lam=0.15, structure=dl.neurons),
        ...     optax.scale_by_learning_rate(0.1))
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"kernel": jnp.zeros((2, 2))}, state, params)
        >>> dl.support(state)["kernel"].tolist()
        [[True, False], [True, False]]
    """
    settings = Settings(learning_rate, kappa, nu, lam, structure, lean, penalty)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        now = step.read(settings, state, params, updates)
        u, made = step.couple(now, updates)
        v = {i: each.v for i, each in made.items()}
        rest = [leaf for leaf in now.leaves if leaf.place not in v]
        pace = settings.pace_at(state.count)
        v |= {leaf.place: step.moved(leaf, pace) for leaf in rest}
        failed = sum((each.failed for each in made.values()), step.not_finite(rest))
        w = {leaf.place: leaf.w for leaf in now.leaves}
        return jax.tree.unflatten(now.treedef, u), step.advance(now, v, w, failed, made)

    init = functools.partial(step.init, settings)
    return optax.GradientTransformationExtraArgs(init, update)


def wrap(
    tx: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    kappa: float | jax.Array = 1.0,
    nu: float | jax.Array = NU,
    lam: Lam = None,
    structure: StructureLike = filters,
    lean: bool = False,
    *,
    penalty: Penalty | None = None,
    freeze: Freeze = False,
    settle: bool | Settle = False,
) -> optax.GradientTransformationExtraArgs:
    """DessiLBI around an optimizer that is already built, such as `optax.adamw(1e-3)`.

    Computes the optimizer's update minus learning_rate/ν·(W − Γ). Arguments and errors are
    those of `add_split_lbi`; `learning_rate` is the optimizer's own, and `freeze` and `settle` are
    those of `dessilbi`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import dessilbi_jax as dl
        >>> tx = dl.wrap(optax.lion(1e-3), 1e-3, lam=0.01, structure=dl.weights)
        >>> state = tx.init({"kernel": jnp.ones((2, 2))})
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {type(tx).__name__}")
    settings = Settings(
        learning_rate, kappa, nu, lam, structure, lean, penalty, finished=True, settle=settle
    )
    return around(settings, tx, freeze=freeze)


def dessilbi(
    learning_rate: ScalarOrSchedule,
    kappa: float | jax.Array = 1.0,
    nu: float | jax.Array = NU,
    lam: Lam = None,
    structure: StructureLike = filters,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    weight_decay: float | jax.Array = 0.0,
    variant: Literal["paper", "toolbox"] = "toolbox",
    lean: bool = False,
    *,
    penalty: Penalty | None = None,
    freeze: Freeze = False,
    settle: bool | Settle = False,
    weight_decay_mask: Any = None,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """DessiLBI on stochastic gradient descent; with ν → ∞ it is `optax.sgd`.

    With g the gradient, m the momentum and τ = `momentum`, one step is

        variant="paper" (Eq. 14 to 16)             variant="toolbox" (the authors' code)
        m' = τ m + g + (W − Γ)/ν                   m' = τ m + g + weight_decay·W
        W' = W − lr·m' − weight_decay·W            W' = W − lr·(m' + (W − Γ)/ν)
        V' = V + lr/(κν)·(W − Γ)                   V' = V + lr/(κν)·(W − Γ)

    The default keeps the coupling out of the momentum: on LeNet-300-100 (MNIST, 6 epochs, 5 seeds,
    held-out images; benchmarks/placement.py) W then stayed as accurate as plain training for ν
    from 20 to 500, where the paper's placement cost it 3.0 points at ν = 20 and 1.0 at ν = 100;
    5 % tickets retrained to 97.9 % at best (ν = 20) against 97.8 % (paper, ν = 100).

    The paper's weight decay is not multiplied by the learning rate: under a schedule that
    decays, it outgrows the gradient. The toolbox's is the usual L2 decay inside the momentum.

    Args:
        learning_rate, kappa, nu, lam, structure, lean, penalty: see `add_split_lbi`.
        momentum: τ in [0, 1), or None for none.
        nesterov: Nesterov's form, as in `optax.trace`.
        weight_decay: β ≥ 0.
        variant: where coupling and decay stand.
        freeze: True, or a callable from the count of updates made to a bool: whether the step
            leaves W and V of groups alone that are selected already. Momentum goes on; groups of
            single elements are never frozen.
        settle: True, or `dl.settle(…)`: whether the run ends with a network of exactly the budget:
            what leaves on the way is zero from then on. What follows in a chain could undo that.
        weight_decay_mask: tree or callable as for `optax.add_decayed_weights`. By default
            leaves with two axes or more; the toolbox also skips those with a `bn` in their path,
            as a word by itself (`bn1`, `layer_bn`, `BN_0`; not `subnet`).
        accumulator_dtype: dtype of the momentum, as in `optax.trace`.

    Returns:
        An Optax transformation; its state is found by `get_state`.

    Raises:
        ValueError: an unknown variant or a number out of range, and as `add_split_lbi`.
        TypeError: as `add_split_lbi`, or a `freeze` of another kind.

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020, Eq. 14 to 16.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.ones((4, 4))}
        >>> tx = dl.dessilbi(0.1, nu=10.0, lam=dl.auto(density=0.25, steps=100), momentum=0.9)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params)
        >>> int(dl.get_state(state).count)
        1
    """
    if variant not in ("paper", "toolbox"):
        raise ValueError(f"variant must be 'paper' or 'toolbox', got {variant!r}")
    check_number("weight_decay", weight_decay, low=0.0, low_allowed=True)
    if momentum is not None:
        check_number("momentum", momentum, low=0.0, high=1.0, low_allowed=True)
    elif nesterov:
        raise ValueError("nesterov=True needs a momentum")
    settings = Settings(learning_rate, kappa, nu, lam, structure, lean, penalty, settle=settle)
    trace, decay = optax.identity(), optax.identity()
    if momentum is not None:
        trace = optax.trace(momentum, nesterov, accumulator_dtype)
    if not (isinstance(weight_decay, numbers.Number) and weight_decay == 0):
        mask = weight_decay_mask
        if mask is None:
            mask = functools.partial(_decayed, skip="bn" if variant == "toolbox" else None)
        decay = optax.add_decayed_weights((-1 if variant == "paper" else 1) * weight_decay, mask)
    if variant == "paper":
        return around(settings, optax.identity(), trace, decay, freeze)
    return around(settings, optax.chain(decay, trace), freeze=freeze)


def _decayed(params: Any, skip: str | None) -> Any:
    """True for the leaves that are decayed: two axes or more, and no word `skip` in the path."""
    named = leaf_paths(params)
    flags = [len(shape_of(leaf)) >= 2 and skip not in words(path) for path, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(params), flags)
