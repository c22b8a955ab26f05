"""One step of DessiLBI, from (W, V, Γ) to (W', V', Γ'), all right-hand sides old values.

    G  = g + (W − Γ)/ν                           `coupled`
    W' = W − learning_rate · direction(G)        the optimizer around the step (`chain`)
    V' = V + learning_rate/(κν) · (W − Γ)        `moved`
    Γ' = prox_{κΩ_λ}(κV')                        `closed`

on structured leaves; dense ones have no V and no Γ, and pass as they are. `read` makes the record
of leaves that the others work on, once an update; `couple` and `advance` go over all leaves.

References:
    Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity of
    Deep Networks via Differential Inclusion Paths", ICML 2020, Eq. 4, 6 and 7.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dessilbi_jax.optimizer import auto_lam, settling, write_order
from dessilbi_jax.optimizer.kernels import choice
from dessilbi_jax.optimizer.settings import CLOSED, Settings
from dessilbi_jax.optimizer.state import (
    SplitLBIState,
    check_state,
    shrink_leaves,
    shrink_trees,
    tie_trees,
)
from dessilbi_jax.prox.norms import expand, group_norms, how_many
from dessilbi_jax.prox.penalty import shrink_all
from dessilbi_jax.prox.shrink import Shrink, apply_shrink
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.named import warn_of_unread
from dessilbi_jax.structure.rules import may_join, resolve

_MOST = 2**31 - 128  # what float32 and int32 both hold


class Leaf(NamedTuple):
    """A structured leaf in one update.

    Attributes:
        place: its number among all leaves of the parameters.
        groups: its groups.
        w: W.
        v: V.
        gamma: Γ, as it is stored or rebuilt from V.
        shrink: how Γ follows from V.
    """

    place: int
    groups: LeafGroups
    w: jax.Array
    v: jax.Array
    gamma: jax.Array
    shrink: Shrink

    @property
    def difference(self) -> jax.Array:
        """W − Γ in the dtype of V."""
        return self.w.astype(self.v.dtype) - self.gamma


class Reading(NamedTuple):
    """The state and the parameters at the beginning of an update.

    Attributes:
        settings: of the transformation.
        state: of the transformation.
        groups: of all leaves of the parameters.
        treedef: the tree of the parameters.
        leaves: the structured ones among them.
    """

    settings: Settings
    state: SplitLBIState
    groups: list[LeafGroups]
    treedef: Any
    leaves: list[Leaf]

    @property
    def rate(self) -> Any:
        """The learning rate of this update."""
        return self.settings.rate_at(self.state.count)


def init(settings: Settings, params: optax.Params) -> SplitLBIState:
    """The state before the first update: V = 0 and Γ = 0."""
    groups = resolve(settings.structure, params)
    warn_of_unread(groups)
    treedef = jax.tree.structure(params)
    # Twice, not shared: V and Γ as one array could not both be donated.
    v, gamma = (
        [_zeros(leaf, p) for leaf, p in zip(groups, jax.tree.leaves(params), strict=True)]
        for _ in range(2)
    )
    lam = settings.lam_at(jnp.zeros([], jnp.int32))
    shrink = [_nothing(leaf) for leaf in groups]
    places = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
    some = [groups[i] for i in places]
    made = _shrinks(settings, some, [v[i] for i in places], [lam] * len(places))
    for i, new in zip(places, made, strict=True):
        shrink[i] = new
    return SplitLBIState(
        count=jnp.zeros([], jnp.int32),
        v=jax.tree.unflatten(treedef, v),
        gamma=() if settings.lean else jax.tree.unflatten(treedef, gamma),
        shrink=shrink_trees(treedef, shrink),
        lam=jnp.asarray(lam, jnp.float32),
        skipped=jnp.zeros([], jnp.int32),
        auto=auto_lam.init(len(places), settings.auto) if settings.auto else (),
        ties=tie_trees(treedef, groups, may_join(settings.structure)),
        settled=settling.init(settings, groups, params),
    )


def read(
    settings: Settings,
    state: SplitLBIState,
    params: optax.Params | None,
    updates: optax.Updates | None = None,
) -> Reading:
    """Lays parameters and state side by side, and checks that they and the updates fit.

    Raises:
        ValueError: no parameters, or a state or updates made for others.
        TypeError: a state of another transformation.
    """
    if params is None:
        raise ValueError("DessiLBI needs the parameters: call tx.update(updates, state, params)")
    groups = resolve(settings.structure, params)
    treedef: Any = jax.tree.structure(params)
    check_state(
        groups, treedef, state, settings.lean, settings.auto is not None,
        settings.settling is not None,
    )  # fmt: skip
    if updates is not None:
        _check_updates(groups, treedef, updates)
    w, v = treedef.flatten_up_to(params), treedef.flatten_up_to(state.v)
    shrink = shrink_leaves(treedef, state.shrink)
    places = [i for i, leaf in enumerate(groups) if leaf.counts is not None]
    if settings.lean:
        gamma = {i: apply_shrink(v[i], shrink[i]) for i in places}
    else:
        gamma = dict(enumerate(treedef.flatten_up_to(state.gamma)))
    leaves = [Leaf(i, groups[i], w[i], v[i], gamma[i], shrink[i]) for i in places]
    return Reading(settings, state, groups, treedef, leaves)


def _check_updates(groups: Sequence[LeafGroups], treedef: Any, updates: optax.Updates) -> None:
    """Raises unless the updates have the tree and the shapes of the parameters.

    Raises:
        ValueError: naming the first leaf that has not.
    """
    try:
        leaves = treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(f"the gradients have another tree than the parameters: {error}") from None
    for leaf, update in zip(groups, leaves, strict=True):
        shape = getattr(update, "shape", leaf.shape)
        if tuple(shape) != leaf.shape:
            raise ValueError(
                f"the gradient of {leaf.path or 'the parameters'} has shape {tuple(shape)}, the "
                f"parameter {leaf.shape}: take the gradient with respect to these parameters"
            )


def coupled(leaf: Leaf, g: jax.Array, strength: Any) -> jax.Array:
    """G of one leaf."""
    # G = g + (W − Γ)/ν
    return (g + _cast(strength, leaf.v) * leaf.difference).astype(g.dtype)


def moved(
    leaf: Leaf, pace: Any, frozen: jax.Array | None = None, difference: jax.Array | None = None
) -> jax.Array:
    """V' of one leaf; entries whose W − Γ is not finite stay, and so do frozen groups.

    Args:
        leaf: the leaf.
        pace: learning_rate/(κν).
        frozen: which groups do not move.
        difference: W − Γ, where W is not to be read from the leaf.
    """
    difference = leaf.difference if difference is None else difference
    moves = jnp.isfinite(difference)
    if frozen is not None:
        moves &= ~expand(frozen, difference.shape)
    # V' = V + learning_rate/(κν) · (W − Γ)
    return leaf.v + _cast(pace, leaf.v) * jnp.where(moves, difference, 0)


def closed(v: jax.Array, shrink: Shrink) -> jax.Array:
    """Γ' of one leaf from V'."""
    # Γ' = prox_{κΩ_λ}(κV'), which is κ · prox_{Ω_λ}(V') for the lasso and the group lasso
    return apply_shrink(v, shrink)


def couple(
    now: Reading, updates: optax.Updates, frozen: Sequence[jax.Array | None] | None = None
) -> tuple[list[jax.Array], dict[int, choice.Made]]:
    """The leaves of the updates with (W − Γ)/ν added.

    Args:
        now: the record of leaves.
        updates: a tree like the parameters.
        frozen: as in `advance`.

    Returns:
        The leaves, and what a kernel has made of some of them on the way, by place.
    """
    count, u = now.state.count, now.treedef.flatten_up_to(updates)
    strength = now.settings.strength_at(count)
    made: dict[int, choice.Made] = {}
    for leaf in now.leaves:
        i = leaf.place
        g, u[i] = u[i], coupled(leaf, u[i], strength)
        free = (frozen is None or frozen[i] is None) and now.settings.settling is None
        if free and choice.wanted(now.settings.lean):
            found = _by_kernel(now, leaf, g, strength)
            if found is not None:
                made[i], u[i] = found, found.update
    return u, made


def _by_kernel(now: Reading, leaf: Leaf, g: jax.Array, strength: Any) -> choice.Made | None:
    """G and V' of one leaf, and Γ' where its λ is known, in one pass; None where none serves."""
    settings, count = now.settings, now.state.count
    lam = settings.lam_at(count) if leaf.groups.lam is None else leaf.groups.lam
    numbers = choice.Numbers(
        strength, settings.pace_at(count), None if settings.auto else lam, settings.kappa
    )
    arrays = choice.Arrays(leaf.w, g, leaf.v)
    penalty = settings.penalty_of(leaf.groups)
    return choice.step(leaf.groups, penalty, arrays, numbers, leaf.shrink, settings.lean)


def advance(
    now: Reading,
    v: dict[int, jax.Array],
    w: dict[int, jax.Array],
    failed: jax.Array,
    made: dict[int, choice.Made] | None = None,
) -> SplitLBIState:
    """The state behind an update: λ, Γ' and all that counts.

    Args:
        now: the record of leaves.
        v: V' of the structured leaves, by place.
        w: their W as far as it is known, to tell the speed of V; in full updates it is W', and
            Γ' is written when W' is there.
        failed: how many entries of V stayed since W − Γ was not finite.
        made: leaves that a kernel has made.
    """
    settings, state, made = now.settings, now.state, made or {}
    count = optax.safe_increment(state.count)
    places = [leaf.place for leaf in now.leaves]
    groups = [leaf.groups for leaf in now.leaves]
    lam, found = settings.lam_at(state.count), state.auto
    lams: list[Any] = [lam] * len(places)
    if settings.auto is not None and places:
        penalties = tuple(settings.penalty_of(leaf) for leaf in groups)
        schedule = settings.learning_rate if callable(settings.learning_rate) else None
        lam, found = auto_lam.estimate(
            state.auto,
            state.lam,
            auto_lam.Frame(tuple(groups), penalties, settings.auto.by_group, schedule),
            auto_lam.Moment(
                [v[i] for i in places],
                [w[i] for i in places],
                [leaf.shrink for leaf in now.leaves],
                count,
                now.rate,
                settings.kappa,
                settings.nu,
                auto_lam.Plan.of(settings.auto),
            ),
        )
        if settings.settling is not None:
            # What is left is about as much as is asked for: an estimate would open all of it.
            kept = state.settled.done & (state.lam < CLOSED)
            lam, found = jax.tree.map(
                lambda old, new: jnp.where(kept, old, new), (state.lam, state.auto), (lam, found)
            )
        lams = [lam * relative for relative in found.scale]
    squares = [made[i].square if i in made else None for i in places]
    each = _shrinks(settings, groups, [v[i] for i in places], lams, squares)
    new = dict(zip(places, each, strict=True))
    shrink = [new.get(i, old) for i, old in enumerate(shrink_leaves(now.treedef, state.shrink))]
    gamma: Any = ()
    if not settings.lean:
        leaves = now.treedef.flatten_up_to(state.gamma)
        for i in places:
            if i in made and made[i].gamma is not None:
                leaves[i] = made[i].gamma
            else:
                # Γ' takes the place of the old Γ, which nothing may need by then.
                leaves[i] = write_order.after(1.0, w[i], like=v[i]) * closed(v[i], new[i])
        gamma = jax.tree.unflatten(now.treedef, leaves)
    all_v = now.treedef.flatten_up_to(state.v)
    return SplitLBIState(
        count=count,
        v=jax.tree.unflatten(now.treedef, [v.get(i, old) for i, old in enumerate(all_v)]),
        gamma=gamma,
        shrink=shrink_trees(now.treedef, shrink),
        lam=jnp.asarray(lam, jnp.float32),
        # Not beyond what an int32 holds.
        skipped=state.skipped + jnp.minimum(failed, _MOST - state.skipped),
        auto=found,
        ties=state.ties,
        settled=state.settled,
    )


def selected(now: Reading) -> list[jax.Array | None]:
    """For each leaf which of its groups hold elements with W ≠ 0 and Γ ≠ 0.

    In the shape of the groups; None for leaves that are dense or of single elements.
    """
    out: list[jax.Array | None] = [None] * len(now.groups)
    some = [leaf for leaf in now.leaves if not leaf.groups.elementwise]
    kept = [((leaf.gamma != 0) & (leaf.w != 0)).astype(jnp.float32) for leaf in some]
    counts = [leaf.groups.counts or () for leaf in some]
    norms = group_norms(counts, [leaf.groups.joint for leaf in some], kept)
    for leaf, norm in zip(some, norms, strict=True):
        out[leaf.place] = norm > 0
    return out


def not_finite(leaves: Sequence[Leaf]) -> jax.Array:
    """How many entries of V cannot move; they are only counted where there are any.

    Γ is finite since V is kept so: it is W that can fail. Sums of squares tell whether it has:
    the one reduction that XLA does at the speed of memory on every backend.
    """
    return _count_not_finite([leaf.w for leaf in leaves]) if leaves else jnp.zeros([], jnp.int32)


# By itself, so that outside of `jax.jit` it is compiled once and not in every update.
@functools.partial(jax.jit, inline=True)
def _count_not_finite(w: list[jax.Array]) -> jax.Array:
    def square(x: jax.Array) -> jax.Array:
        x = write_order.apart(x)[0].astype(jnp.promote_types(x.dtype, jnp.float32))
        whole: jax.Array = jnp.sum(jnp.real(x * jnp.conj(x)))
        return whole

    def count(w: Sequence[jax.Array]) -> jax.Array:
        bad = [~jnp.isfinite(x) for x in w]
        if any(write_order.matters(x) for x in w):  # one sum compiles sooner than many
            bad = [jnp.concatenate([x.ravel() for x in bad])]
        total = functools.reduce(jnp.add, map(how_many, bad))
        return jnp.minimum(total, _MOST).astype(jnp.int32)

    finite: jax.Array = jnp.isfinite(jnp.stack([square(x) for x in w])).all()
    failed: jax.Array = jax.lax.cond(finite, lambda _: jnp.int32(0), count, w)
    return failed


def _shrinks(
    settings: Settings,
    groups: Sequence[LeafGroups],
    v: Sequence[jax.Array],
    lams: Sequence[Any],
    squares: Sequence[jax.Array | None] | None = None,
) -> list[Shrink]:
    """How Γ follows from V in some leaves, with λ for all or each rule's own."""
    if settings.auto is None:  # else the rules' own λ are already part of `lams`
        lams = [x if leaf.lam is None else leaf.lam for leaf, x in zip(groups, lams, strict=True)]
    penalties = [settings.penalty_of(leaf) for leaf in groups]
    return shrink_all(groups, penalties, v, lams, settings.kappa, squares)


def _cast(scalar: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(scalar, jnp.real(like).dtype)


def _zeros(leaf: LeafGroups, p: Any) -> jax.Array:
    dtype = bool if leaf.counts is None else jnp.promote_types(p.dtype, jnp.float32)
    if isinstance(p, jax.Array):
        return jnp.zeros_like(p, dtype)  # keeps the sharding
    return jnp.zeros(leaf.shape, dtype)


def _nothing(leaf: LeafGroups) -> Shrink:
    """The `Shrink` of a dense leaf; three arrays, since one could not be donated thrice."""
    ones = (1,) * len(leaf.shape)
    return Shrink(jnp.zeros(ones, bool), jnp.zeros(ones, bool), jnp.zeros(ones, bool))
