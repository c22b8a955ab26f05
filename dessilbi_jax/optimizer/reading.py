"""Finding the state of DessiLBI wherever it is nested, and what can be read off it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dessilbi_jax.optimizer.state import RESTORE, SplitLBIState, is_hidden
from dessilbi_jax.prox.norms import expand
from dessilbi_jax.prox.shrink import Shrink, apply_shrink, select


def get_state(opt_state: Any, *, merge: bool = False) -> SplitLBIState:
    """The `SplitLBIState` inside an optimizer state, wherever it is nested.

    Args:
        opt_state: any Optax state.
        merge: with several states (`optax.partition`), the one whose trees take every leaf from
            the state that holds it; its scalars are those of the first.

    Raises:
        ValueError: if there is none, or more than one and `merge` is False.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import dessilbi_jax as dl
        >>> tx = optax.chain(optax.clip(1.0), dl.dessilbi(0.1, lam=0.1))
        >>> int(dl.get_state(tx.init({"kernel": jnp.ones((2, 2))})).count)
        0
    """
    found: list[tuple[str, SplitLBIState]] = [
        (jax.tree_util.keystr(keys), _bare(leaf))
        for keys, leaf in jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_is_state)[0]
        if _is_state(leaf)
    ]
    if not found:
        raise ValueError(
            "no SplitLBIState in this optimizer state; was it made by dl.dessilbi, "
            f"dl.add_split_lbi or dl.wrap? {RESTORE.capitalize()}"
        )
    if len(found) == 1:
        return found[0][1]
    if not merge:
        raise ValueError(
            f"{len(found)} SplitLBIStates in this optimizer state, at "
            f"{', '.join(where for where, _ in found)}: give merge=True to join them, or pick one"
        )
    states = [state for _, state in found]
    return states[0]._replace(
        ties=_overlay_ties(states),
        settled=_overlay_settled(states),
        v=_overlay([s.v for s in states]),
        gamma=_overlay([s.gamma for s in states]),
        shrink=Shrink(*(_overlay([s.shrink[k] for s in states]) for k in range(3))),
    )


def gamma(opt_state: Any, params: Any = None, *, merge: bool = False) -> Any:
    """Γ as a tree, rebuilt from V when the state is lean.

    Dense leaves have no Γ: they hold the parameters where `params` is given (so that the
    result is the sparse network), else bool zeros.

    Args:
        opt_state: any Optax state that holds a `SplitLBIState`, or that state itself.
        params: the parameters; needed under `optax.masked` and `optax.partition`, which hide
            leaves from the state.
        merge: join several states; see `get_state`.

    Raises:
        ValueError: no state or several, or `params` needed and not given.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
        >>> state = dl.dessilbi(0.1, lam=0.1, lean=True).init(params)
        >>> dl.gamma(state, params)
        {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([[0., 0.]], dtype=float32)}
    """

    def leaf_gamma(v: jax.Array, stored: Any, shrink: Shrink, p: Any) -> Any:
        if v.dtype == bool:
            return jnp.zeros_like(v) if p is None else p
        return apply_shrink(v, shrink) if stored is None else stored

    return _map_leaves(leaf_gamma, get_state(opt_state, merge=merge), params, lambda p: p)


def support(opt_state: Any, params: Any = None, *, merge: bool = False) -> Any:
    """The support of Γ as a tree of bool arrays: True = selected; dense leaves are all True.

    A selected group is True as a whole, also where single entries of its V happen to be 0. Where
    the run has settled (`dl.settle`) it is the support of W itself: all that may be nonzero.

    Arguments and errors are those of `gamma`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> state = dl.dessilbi(0.1, lam=0.1).init({"kernel": jnp.ones((1, 2))})
        >>> dl.support(state)
        {'kernel': Array([[False, False]], dtype=bool)}
    """

    def leaf_support(v: jax.Array, stored: Any, shrink: Shrink, _: Any) -> Any:
        if v.dtype == bool:
            return jnp.ones_like(v)
        # Made like V, the mask of whole groups lies on the devices as V does.
        return jnp.zeros_like(v, dtype=bool) | expand(select(v, shrink), v.shape)

    def hidden(p: jax.Array) -> jax.Array:
        return jnp.ones_like(p, dtype=bool)

    state = get_state(opt_state, merge=merge)
    out = _map_leaves(leaf_support, state, params, hidden)
    if isinstance(state.settled, tuple) and state.settled == ():
        return out
    done, allowed = state.settled.done, state.settled.allowed
    if params is not None:
        allowed = laid_on(state, params).settled.allowed
    masks = jax.tree.leaves(allowed, is_leaf=is_hidden)
    leaves, treedef = jax.tree.flatten(out)
    final = [
        x
        if is_hidden(mask)
        else jnp.where(done, jnp.broadcast_to(expand(mask, x.shape), x.shape), x)
        for x, mask in zip(leaves, masks, strict=True)
    ]
    return jax.tree.unflatten(treedef, final)


def _is_state(x: Any) -> bool:
    return isinstance(x, SplitLBIState)


def _bare(state: SplitLBIState) -> SplitLBIState:
    """The state with its numbers out of the boxes that `nnx.Optimizer` puts arrays into."""

    def unboxed(x: Any) -> Any:
        leaves = jax.tree.leaves(x)
        return leaves[0] if len(leaves) == 1 else x

    if unboxed(state.count) is state.count:
        return state
    auto, settled = state.auto, state.settled
    if settled != ():
        settled = settled._replace(budget=unboxed(settled.budget), done=unboxed(settled.done))
    return state._replace(
        settled=settled,
        count=unboxed(state.count),
        lam=unboxed(state.lam),
        skipped=unboxed(state.skipped),
        auto=auto if auto == () else type(auto)(*map(unboxed, auto)),
    )


def laid_on(state: SplitLBIState, params: Any) -> SplitLBIState:
    """The state with trees that hide leaf by leaf what they hide of the parameters.

    Where `optax.partition` or `optax.masked` is given labels of whole branches, one node stands
    for all the leaves of a branch.

    Raises:
        ValueError: parameters of another tree.
    """

    def spread(tree: Any) -> Any:
        if isinstance(tree, tuple) and tree == ():
            return tree
        return jax.tree.map(
            lambda x, branch: jax.tree.map(lambda _: x, branch) if is_hidden(x) else x,
            tree, params, is_leaf=is_hidden,
        )  # fmt: skip

    try:
        return state._replace(
            v=spread(state.v),
            gamma=spread(state.gamma),
            shrink=Shrink(*map(spread, state.shrink)),
            ties=spread(state.ties),
            settled=state.settled
            if isinstance(state.settled, tuple) and state.settled == ()
            else state.settled._replace(allowed=spread(state.settled.allowed)),
        )
    except ValueError as error:
        here, there = jax.tree.leaves(params), jax.tree.leaves(state.v, is_leaf=is_hidden)
        raise ValueError(
            f"the parameters, with {len(here)} leaves, do not fit the state, which was made for "
            f"{len(there)}: give those that it belongs to ({error})"
        ) from None


def _overlay(trees: Sequence[Any]) -> Any:
    """Every leaf from the first tree that does not hide it."""
    flat: list[tuple[list[Any], Any]] = [
        jax.tree.flatten(tree, is_leaf=is_hidden) for tree in trees
    ]
    if any(treedef != flat[0][1] for _, treedef in flat):
        raise ValueError("states of different parameter trees cannot be merged; pick one")
    leaves = [
        next((x for x in column if not is_hidden(x)), column[0])
        for column in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return jax.tree.unflatten(flat[0][1], leaves)


def _overlay_ties(states: Sequence[SplitLBIState]) -> Any:
    """The ties of several states: groups of different states stay different groups."""
    if all(isinstance(s.ties, tuple) and s.ties == () for s in states):
        return ()
    trees, start = [], jnp.int32(0)
    for state in states:
        v, treedef = jax.tree.flatten(state.v, is_leaf=is_hidden)
        ties = jax.tree.leaves(state.ties, is_leaf=is_hidden) or [
            x if is_hidden(x) else jnp.zeros((1,) * x.ndim, bool) for x in v
        ]
        joint = [x for x in ties if not is_hidden(x) and x.dtype != bool]
        shift = start - functools.reduce(jnp.minimum, [jnp.min(x) for x in joint], start)
        ties = [x if is_hidden(x) or x.dtype == bool else x + shift for x in ties]
        start = functools.reduce(jnp.maximum, [jnp.max(x) + shift + 1 for x in joint], start)
        trees.append(jax.tree.unflatten(treedef, ties))
    return _overlay(trees)


def _overlay_settled(states: Sequence[SplitLBIState]) -> Any:
    """What several states allow, each of its leaves; all have to settle, or none."""
    settled = [s.settled for s in states]
    if any(isinstance(s, tuple) and s == () for s in settled):
        return ()
    return settled[0]._replace(
        allowed=_overlay([s.allowed for s in settled]),
        budget=sum(s.budget for s in settled),
        done=functools.reduce(jnp.logical_and, [s.done for s in settled]),
    )


def _map_leaves(
    function: Callable[..., Any], state: SplitLBIState, params: Any, hidden: Callable[[Any], Any]
) -> Any:
    """`function(v, stored Γ or None, Shrink, parameter or None)` over the leaves of a state."""
    if params is not None:
        state = laid_on(state, params)
    v, treedef = jax.tree.flatten(state.v, is_leaf=is_hidden)
    if params is None:
        if any(is_hidden(leaf) for leaf in v):
            raise ValueError(
                "some leaves are hidden from this state (optax.masked or optax.partition); give "
                "the parameters as params= to fill them in"
            )
        given = [None] * len(v)
    else:
        given, treedef = jax.tree.flatten(params)
    flat = [jax.tree.leaves(tree, is_leaf=is_hidden) for tree in state.shrink]
    stored = jax.tree.leaves(state.gamma, is_leaf=is_hidden) or [None] * len(v)
    out = [
        hidden(p) if is_hidden(leaf) else function(leaf, g, Shrink(*s), p)
        for leaf, g, s, p in zip(v, stored, zip(*flat, strict=True), given, strict=True)
    ]
    return jax.tree.unflatten(treedef, out)
