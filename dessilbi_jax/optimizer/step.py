"""The step of DessiLBI itself: init and update of (V, Γ), and the checks of its arguments."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dessilbi_jax.optimizer import auto_lam, write_order
from dessilbi_jax.optimizer.kernels import choice as kernels
from dessilbi_jax.optimizer.settings import (
    Lam,
    ScalarOrSchedule,
    _every_rule_has_lam,
    _no_target,
    check_number,
)
from dessilbi_jax.optimizer.state import (
    SplitLBIState,
    check_state,
    shrink_leaves,
    shrink_trees,
    tie_trees,
)
from dessilbi_jax.prox.norms import expand, group_norms
from dessilbi_jax.prox.penalty import Penalty, shrink_all
from dessilbi_jax.prox.shrink import Shrink, apply_shrink
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.rules import StructureLike, as_structure, may_join, resolve

NOTHING_MADE: Mapping[int, kernels.Made] = MappingProxyType({})


class SplitLBI(NamedTuple):
    """The five pure functions that DessiLBI is made of.

    Attributes:
        init: parameters → state.
        couple: (updates, state, parameters) → updates with (W − Γ)/ν added.
        selected: (state, parameters) → for each leaf which of its groups hold elements with
            W ≠ 0 and Γ ≠ 0, in the shape of the groups; None for leaves that are dense or whose
            groups are single elements.
        advance: (state, parameters, read_before, frozen, made) → state with V and Γ one step on,
            and for each leaf the arrays that read W. Arrays of `read_before`, a tree like the
            parameters, are written before V is overwritten. V stays where `frozen`, a list like
            that of `selected`, is True. Leaves in `made` are done already.
        fused: (state, parameters, updates, coupled updates, frozen, momentum, trace) → what
            kernels make of the leaves that take them, by number of the leaf: the step with its
            coupling and, where given, its momentum. Of coupled updates it uses the dtypes.
    """

    init: Callable[[Any], SplitLBIState]
    couple: Callable[[Any, SplitLBIState, Any], Any]
    selected: Callable[[SplitLBIState, Any], list[jax.Array | None]]
    advance: Callable[..., tuple[SplitLBIState, list[tuple[jax.Array, ...]]]]
    fused: Callable[..., dict[int, kernels.Made]]


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
    kernel: kernels.Kernel,
    finished: bool,
) -> SplitLBI:
    """The parts of the transformation; `finished` says that updates are already steps of W."""
    if kernel not in ("auto", "xla", "pallas"):
        raise ValueError(f"kernel must be 'auto', 'xla' or 'pallas', got {kernel!r}")
    structure = as_structure(structure)
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate)
    check_number("kappa", kappa)
    check_number("nu", nu)
    if isinstance(lam, str) and lam != "auto":
        raise ValueError(f"lam must be a number, a schedule or 'auto', got {lam!r}")
    auto = isinstance(lam, str)
    target: auto_lam.Target | None = None
    if auto:
        target = auto_lam.target(density, group_density, steps, at)
    else:
        _no_target(density=density, group_density=group_density, steps=steps, at=at)
    if not (auto or callable(lam) or lam is None):
        check_number("lam", lam)
    if lam is None and not _every_rule_has_lam(structure):
        raise TypeError(
            "lam is missing: give a number, a schedule, 'auto' with density= and steps=, or a "
            "lam in every rule; dl.calibrate suggests a number"
        )
    if penalty is not None and not isinstance(penalty, Penalty):
        raise TypeError(
            f"penalty must be made by dl.group_lasso, dl.sparse_group_lasso or dl.elastic_net, "
            f"got {penalty!r}"
        )
    default_penalty = Penalty() if penalty is None else penalty

    def lam_at(count: jax.Array) -> Any:
        # As it was given: float64 leaves are thresholded at that, only the state rounds it.
        value = lam(count) if callable(lam) else lam
        return jnp.inf if auto or value is None else value

    def penalties_of(groups: Sequence[LeafGroups], which: Sequence[int]) -> list[Penalty]:
        return [groups[i].penalty or default_penalty for i in which]

    def shrinks(
        groups: Sequence[LeafGroups],
        which: Sequence[int],
        v: Sequence[jax.Array],
        lams: Any,
        made: Mapping[int, kernels.Made] = NOTHING_MADE,
    ) -> list[Shrink]:
        # With lam="auto", rules' own λ are already part of `lams`.
        leaves = [groups[i] for i in which]
        if not auto:
            lams = [
                x if leaf.lam is None else leaf.lam for leaf, x in zip(leaves, lams, strict=True)
            ]
        here = [v[i] for i in which]
        squares = [made[i].square if i in made else None for i in which]
        return shrink_all(leaves, penalties_of(groups, which), here, lams, kappa, squares)

    def init(params: optax.Params) -> SplitLBIState:
        groups = resolve(structure, params)
        treedef = jax.tree.structure(params)
        # Twice, not shared: V and Γ as one array could not both be donated.
        v = [_zeros(leaf, p) for leaf, p in zip(groups, jax.tree.leaves(params), strict=True)]
        gamma = [_zeros(leaf, p) for leaf, p in zip(groups, jax.tree.leaves(params), strict=True)]
        lam0 = lam_at(jnp.zeros([], jnp.int32))
        shrink = [_nothing(leaf) for leaf in groups]
        open_ = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
        for i, made in zip(open_, shrinks(groups, open_, v, [lam0] * len(open_)), strict=True):
            shrink[i] = made
        return SplitLBIState(
            count=jnp.zeros([], jnp.int32),
            v=jax.tree.unflatten(treedef, v),
            gamma=() if lean else jax.tree.unflatten(treedef, gamma),
            shrink=shrink_trees(treedef, shrink),
            lam=jnp.asarray(lam0, jnp.float32),
            skipped=jnp.zeros([], jnp.int32),
            auto=auto_lam.init(len(open_)) if auto else (),
            ties=tie_trees(treedef, groups, may_join(structure)),
        )

    def rebuilt(v: jax.Array, shrink: Shrink, gamma: jax.Array) -> jax.Array:
        # Where nothing fuses across results, rebuilding Γ is cheaper than reading it.
        return apply_shrink(v, shrink) if lean or write_order.matters(v) else gamma

    def leaves_of(
        state: SplitLBIState, params: optax.Params
    ) -> tuple[list[LeafGroups], Any, list[jax.Array], list[jax.Array], list[Shrink], list[Any]]:
        if params is None:
            raise ValueError(
                "DessiLBI needs the parameters: call tx.update(updates, state, params)"
            )
        groups = resolve(structure, params)
        treedef: Any = jax.tree.structure(params)
        check_state(groups, treedef, state, lean, auto)
        gamma = [None] * len(groups) if lean else treedef.flatten_up_to(state.gamma)
        return (
            groups, treedef, treedef.flatten_up_to(params), treedef.flatten_up_to(state.v),
            shrink_leaves(treedef, state.shrink), gamma,
        )  # fmt: skip

    def rate_at(state: SplitLBIState) -> Any:
        return learning_rate(state.count) if callable(learning_rate) else learning_rate

    def strength_at(state: SplitLBIState) -> Any:
        return -rate_at(state) / nu if finished else 1 / nu

    def couple(updates: optax.Updates, state: SplitLBIState, params: optax.Params) -> optax.Updates:
        groups, treedef, w, v, shrink, gamma = leaves_of(state, params)
        strength = strength_at(state)
        u = treedef.flatten_up_to(updates)
        for i, leaf in enumerate(groups):
            if leaf.counts is not None:
                difference = w[i].astype(v[i].dtype) - rebuilt(v[i], shrink[i], gamma[i])
                u[i] = (u[i] + _cast(strength, v[i]) * difference).astype(u[i].dtype)
        return jax.tree.unflatten(treedef, u)

    def selected(state: SplitLBIState, params: optax.Params) -> list[jax.Array | None]:
        groups, _, w, v, shrink, gamma = leaves_of(state, params)
        out: list[jax.Array | None] = [None] * len(v)
        which = [
            i for i, leaf in enumerate(groups) if leaf.counts is not None and not leaf.elementwise
        ]
        kept = [
            ((rebuilt(v[i], shrink[i], gamma[i]) != 0) & (w[i] != 0)).astype(jnp.float32)
            for i in which
        ]
        leaves = [groups[i] for i in which]
        norms = group_norms([leaf.counts or () for leaf in leaves], [x.joint for x in leaves], kept)
        for i, norm in zip(which, norms, strict=True):
            out[i] = norm > 0
        return out

    def advance(
        state: SplitLBIState,
        params: optax.Params,
        read_before: optax.Updates | None = None,
        frozen: Sequence[jax.Array | None] | None = None,
        made: Mapping[int, kernels.Made] = NOTHING_MADE,
    ) -> tuple[SplitLBIState, list[tuple[jax.Array, ...]]]:
        groups, treedef, w, v, shrink, gamma = leaves_of(state, params)
        frozen = [None] * len(v) if frozen is None else frozen
        first: list[tuple[jax.Array, ...]] = [()] * len(v)
        if read_before is not None:
            first = [(u,) for u in treedef.flatten_up_to(read_before)]
        open_ = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
        pace = rate_at(state) / (kappa * nu)
        readers: list[tuple[jax.Array, ...]] = [()] * len(v)
        for i in open_:
            if i in made:
                v[i] = made[i].v
                continue
            here, old = write_order.apart(w[i], v[i])
            difference = here.astype(old.dtype) - rebuilt(old, shrink[i], gamma[i])
            moves = jnp.isfinite(difference)
            stop = frozen[i]
            if stop is not None:
                moves &= ~expand(stop, difference.shape)
            speed = jnp.where(moves, difference, 0)
            v[i] = old + write_order.after(_cast(pace, old), *first[i]) * speed
        # Γ is finite since V is kept so: it is W that can fail.
        failed = _not_finite([w[i] for i in open_ if i not in made])
        failed = sum((done.failed for done in made.values()), failed)
        for i in open_:
            readers[i] = (v[i], failed)
        count = optax.safe_increment(state.count)
        found = state.auto
        new_lam = lam_at(state.count)
        scale: list[Any] = [1.0] * len(open_)
        if target is not None and open_:

            def speeds() -> list[jax.Array]:
                # Also of frozen groups: those that a new λ closes set off again.
                now = [w[i].astype(v[i].dtype) - apply_shrink(v[i], shrink[i]) for i in open_]
                return [jnp.where(jnp.isfinite(x), x, 0) for x in now]

            clock = functools.partial(auto_lam.travel, learning_rate, kappa=kappa, nu=nu)
            new_lam, found = auto_lam.estimate(
                state.auto, state.lam, [groups[i] for i in open_], penalties_of(groups, open_),
                [v[i] for i in open_], speeds, count, target, clock,
            )  # fmt: skip
            scale = list(found.scale)
            readers = [(*arrays, new_lam) for arrays in readers]
        # Γ' takes the place of the old Γ, which nothing may need by then.
        one = (
            1.0
            if lean
            else write_order.after(1.0, *(gamma[i] for i in open_ if write_order.matters(gamma[i])))
        )
        lams = [new_lam * relative if auto else new_lam for relative in scale]
        for i, new in zip(open_, shrinks(groups, open_, v, lams, made), strict=True):
            shrink[i] = new
            if i in made and made[i].gamma is not None:
                gamma[i] = made[i].gamma
            elif not lean:
                gamma[i] = _cast(one, v[i]) * apply_shrink(v[i], shrink[i])
        advanced = SplitLBIState(
            count=count,
            v=jax.tree.unflatten(treedef, v),
            gamma=() if lean else jax.tree.unflatten(treedef, gamma),
            shrink=shrink_trees(treedef, shrink),
            lam=jnp.asarray(new_lam, jnp.float32),
            skipped=state.skipped + failed,
            auto=found,
            ties=state.ties,
        )
        return advanced, readers

    def fused(
        state: SplitLBIState,
        params: optax.Params,
        updates: optax.Updates,
        coupled: optax.Updates,
        frozen: Sequence[jax.Array | None] | None = None,
        momentum: kernels.Momentum | None = None,
        trace: Any = None,
    ) -> dict[int, kernels.Made]:
        if not kernels.wanted(kernel, lean):
            return {}
        groups, treedef, w, v, shrink, _ = leaves_of(state, params)
        g, u = treedef.flatten_up_to(updates), treedef.flatten_up_to(coupled)
        m = [None] * len(v) if trace is None else treedef.flatten_up_to(trace)
        decays = [None] * len(v) if momentum is None else momentum.decays(updates)
        strength, pace = strength_at(state), rate_at(state) / (kappa * nu)
        new_lam = None if auto else lam_at(state.count)
        made = {}
        for i, leaf in enumerate(groups):
            if leaf.counts is None or (frozen is not None and frozen[i] is not None):
                continue
            lam_here = new_lam if leaf.lam is None or auto else leaf.lam
            numbers = kernels.Numbers(strength, pace, decays[i], lam_here, kappa)
            arrays = kernels.Arrays(w[i], g[i], m[i], v[i], u[i].dtype)
            penalty = penalties_of(groups, [i])[0]
            done = kernels.step(kernel, leaf, penalty, momentum, arrays, numbers, shrink[i], lean)
            if done is not None:
                made[i] = done
        return made

    return SplitLBI(init, couple, selected, advance, fused)


def replaced(tree: Any, made: Mapping[int, kernels.Made], field: str) -> Any:
    """A tree with the leaves that kernels have made, by number of the leaf, in their place."""
    if not made:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    new = [getattr(made[i], field) if i in made else leaf for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, new)


def _cast(scalar: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(scalar, jnp.real(like).dtype)


def _not_finite(w: Sequence[jax.Array]) -> jax.Array:
    """How many entries of W are not finite; they are only counted where there are any.

    Sums of squares tell whether there are: the one reduction that XLA does at the speed of
    memory on every backend.
    """

    def square(x: jax.Array) -> jax.Array:
        x = write_order.apart(x)[0].astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.sum(jnp.real(x * jnp.conj(x)))

    def count(w: Sequence[jax.Array]) -> jax.Array:
        return sum((jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in w), jnp.int32(0))

    if not w:
        return jnp.int32(0)
    finite = jnp.isfinite(jnp.stack([square(x) for x in w])).all()
    return jax.lax.cond(finite, lambda _: jnp.int32(0), count, w)


def _zeros(leaf: LeafGroups, p: Any) -> jax.Array:
    dtype = bool if leaf.counts is None else jnp.promote_types(p.dtype, jnp.float32)
    if isinstance(p, jax.Array):
        return jnp.zeros_like(p, dtype)  # keeps the sharding
    return jnp.zeros(p.shape, dtype)


def _nothing(leaf: LeafGroups) -> Shrink:
    """The `Shrink` of a dense leaf; three arrays, since one could not be donated thrice."""
    ones = (1,) * len(leaf.shape)
    return Shrink(jnp.zeros(ones, bool), jnp.zeros(ones, bool), jnp.zeros(ones, bool))
