"""The step of DessiLBI itself: init and update of (V, Γ), and the checks of its arguments."""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from dessilbi_jax import _automatic as automatic
from dessilbi_jax.prox import Penalty, Shrink, apply_shrink
from dessilbi_jax.state import SplitLBIState, check_state, shrink_leaves, shrink_trees
from dessilbi_jax.structure import LeafGroups, StructureLike, as_structure, resolve

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]
Lam: TypeAlias = ScalarOrSchedule | Literal["auto"] | None


def split_lbi(
    learning_rate: ScalarOrSchedule,
    kappa: float | jax.Array,
    nu: float | jax.Array,
    lam: Lam,
    structure: StructureLike,
    lean: bool,
    penalty: Penalty | None,
    density: Any,
    group_density: Any,
    steps: Any,
    at: Any,
    finished: bool,
) -> optax.GradientTransformationExtraArgs:
    """The transformation; `finished` says that updates are already steps of W."""
    structure = as_structure(structure)
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate)
    check_number("kappa", kappa)
    check_number("nu", nu)
    if isinstance(lam, str) and lam != "auto":
        raise ValueError(f"lam must be a number, a schedule or 'auto', got {lam!r}")
    auto = isinstance(lam, str)
    target = _target(auto, density, group_density, steps, at)
    if not (auto or callable(lam) or lam is None):
        check_number("lam", lam)
    if lam is None and not _every_rule_has_lam(structure):
        raise TypeError(
            "lam is missing: give a number, a schedule, 'auto' with density= and steps=, or a "
            "lam in every rule; dl.calibrate suggests a number"
        )
    default_penalty = Penalty() if penalty is None else penalty

    def lam_at(count: jax.Array) -> jax.Array:
        value = lam(count) if callable(lam) else lam
        return jnp.asarray(jnp.inf if auto or value is None else value, jnp.float32)

    def leaf_lam(leaf: LeafGroups, lam: Any) -> Any:
        return lam if leaf.lam is None else leaf.lam

    def init(params: optax.Params) -> SplitLBIState:
        groups = resolve(structure, params)
        treedef = jax.tree.structure(params)
        # Twice, not shared: V and Γ as one array could not both be donated.
        v = [_zeros(leaf, p) for leaf, p in zip(groups, jax.tree.leaves(params), strict=True)]
        gamma = [_zeros(leaf, p) for leaf, p in zip(groups, jax.tree.leaves(params), strict=True)]
        lam0 = lam_at(jnp.zeros([], jnp.int32))
        shrink = [
            _nothing(leaf)
            if leaf.counts is None
            else (leaf.penalty or default_penalty).shrink(value, leaf, leaf_lam(leaf, lam0), kappa)
            for leaf, value in zip(groups, v, strict=True)
        ]
        structured = sum(leaf.counts is not None for leaf in groups)
        return SplitLBIState(
            count=jnp.zeros([], jnp.int32),
            v=jax.tree.unflatten(treedef, v),
            gamma=() if lean else jax.tree.unflatten(treedef, gamma),
            shrink=shrink_trees(treedef, shrink),
            lam=lam0,
            skipped=jnp.zeros([], jnp.int32),
            auto=automatic.init(structured) if auto else (),
        )

    def update(
        updates: optax.Updates, state: SplitLBIState, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, SplitLBIState]:
        if params is None:
            raise ValueError(
                "DessiLBI needs the parameters: call tx.update(updates, state, params)"
            )
        groups = resolve(structure, params)
        treedef = jax.tree.structure(params)
        check_state(groups, treedef, state, lean)
        w = treedef.flatten_up_to(params)
        u = treedef.flatten_up_to(updates)
        v = treedef.flatten_up_to(state.v)
        shrink = shrink_leaves(treedef, state.shrink)
        old = v if lean else treedef.flatten_up_to(state.gamma)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        coupling = -rate / nu if finished else 1 / nu
        pace = rate / (kappa * nu)
        open_ = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
        penalties = {i: groups[i].penalty or default_penalty for i in open_}
        speed: dict[int, jax.Array] = {}
        skipped = state.skipped
        for i in open_:
            gamma = apply_shrink(v[i], shrink[i]) if lean else old[i]
            difference = w[i].astype(v[i].dtype) - gamma
            u[i] = (u[i] + _cast(coupling, v[i]) * difference).astype(u[i].dtype)
            finite = jnp.isfinite(difference)
            skipped = skipped + jnp.sum(~finite, dtype=jnp.int32)
            speed[i] = jnp.where(finite, difference, 0)
            v[i] = v[i] + _cast(pace, v[i]) * speed[i]
        count = optax.safe_increment(state.count)
        found = state.auto
        new_lam = lam_at(state.count)
        scale = [1.0] * len(open_)
        if target is not None and open_:
            clock = functools.partial(automatic.travel, learning_rate, kappa=kappa, nu=nu)
            new_lam, found = automatic.estimate(
                state.auto, state.lam, [groups[i] for i in open_],
                [penalties[i] for i in open_], [v[i] for i in open_],
                [speed[i] for i in open_], count, target, clock,
            )  # fmt: skip
            scale = list(found.scale)
        new_gamma = list(old)
        for i, relative in zip(open_, scale, strict=True):
            lam_i = new_lam * relative if auto else leaf_lam(groups[i], new_lam)
            shrink[i] = penalties[i].shrink(v[i], groups[i], lam_i, kappa)
            if not lean:
                new_gamma[i] = apply_shrink(v[i], shrink[i])
        return jax.tree.unflatten(treedef, u), SplitLBIState(
            count=count,
            v=jax.tree.unflatten(treedef, v),
            gamma=() if lean else jax.tree.unflatten(treedef, new_gamma),
            shrink=shrink_trees(treedef, shrink),
            lam=new_lam,
            skipped=skipped,
            auto=found,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, low_allowed: bool = False
) -> None:
    """Bounds of plain numbers; traced ones (`inject_hyperparams`) cannot be looked at."""
    if isinstance(value, jax.core.Tracer | jax.Array):
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (low <= value if low_allowed else low < value) or not value < high:
        left = "[" if low_allowed else "("
        raise ValueError(f"{name} must be finite and lie in {left}{low:g}, {high:g}), got {value}")


def _target(
    auto: bool, density: Any, group_density: Any, steps: Any, at: Any
) -> automatic.Target | None:
    given = {"density": density, "group_density": group_density, "steps": steps}
    if not auto:
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise TypeError(f"{', '.join(extra)} can only be given together with lam='auto'")
        return None
    if (density is None) == (group_density is None) or steps is None:
        raise TypeError("lam='auto' needs steps= and exactly one of density= and group_density=")
    asked = group_density if density is None else density
    name = "group_density" if density is None else "density"
    if not isinstance(asked, jax.Array) and not (
        isinstance(asked, numbers.Real) and 0 < asked <= 1
    ):
        raise ValueError(f"{name} must lie in (0, 1], got {asked!r}")
    if not isinstance(at, jax.Array) and not (isinstance(at, numbers.Real) and 0 < at <= 1):
        raise ValueError(f"at must be a fraction of the steps in (0, 1], got {at!r}")
    if not isinstance(steps, jax.Array):
        if not isinstance(steps, numbers.Integral) or isinstance(steps, bool):
            raise TypeError(f"steps must be an integer, got {steps!r}")
        if not isinstance(at, jax.Array) and steps * at < 20:
            raise ValueError(
                f"lam='auto' needs at least 20 updates before the density is due, got "
                f"steps={steps} and at={at}"
            )
    step = jnp.round(jnp.asarray(at) * steps).astype(jnp.int32)
    if not isinstance(at, jax.Array) and not isinstance(steps, jax.Array):
        step = round(float(at) * int(steps))
    return automatic.Target(asked, density is None, step)


def _every_rule_has_lam(structure: Any) -> bool:
    rules: Sequence[Any] = getattr(structure, "rules", ())
    return bool(rules) and all(rule[1] is None or "lam" in rule[2] for rule in rules)


def _cast(scalar: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(scalar, jnp.real(like).dtype)


def _zeros(leaf: LeafGroups, p: Any) -> jax.Array:
    dtype = bool if leaf.counts is None else jnp.promote_types(p.dtype, jnp.float32)
    if isinstance(p, jax.Array):
        return jnp.zeros_like(p, dtype)  # keeps the sharding
    return jnp.zeros(p.shape, dtype)


def _nothing(leaf: LeafGroups) -> Shrink:
    """The `Shrink` of a dense leaf; three arrays, since one could not be donated thrice."""
    ones = (1,) * len(leaf.shape)
    return Shrink(jnp.zeros(ones, bool), jnp.zeros(ones, bool), jnp.zeros(ones, bool))
