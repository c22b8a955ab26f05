"""The state of DessiLBI: its form, and whether one fits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dessilbi_jax.optimizer.settings import CLOSED
from dessilbi_jax.prox.shrink import Shrink
from dessilbi_jax.structure.leaf import LeafGroups


class SplitLBIState(NamedTuple):
    """State of DessiLBI.

    All trees have the parameters' structure. Dense leaves hold bool arrays (one byte an element
    in `v` and in a stored `gamma`) and are told apart by that dtype.

    `tx.init(params)`, called outside of `jax.jit`, lays V and Γ on the devices as the parameters
    lie; so does `jax.jit(tx.init)` under `jax.set_mesh` with Explicit axes. On Auto axes a
    compiled `init` does not see where the parameters lie, and what it makes is on one device:
    there call it outside, or give `out_shardings`.

    Attributes:
        count: updates made, int32.
        v: V, in the parameters' shapes, float32 or wider.
        gamma: Γ, likewise; the empty tuple when lean.
        shrink: `Shrink` of trees: what the step that made V used to turn it into Γ. Its reduced
            axes have length 1: shardings of the parameters apply to `v` and `gamma`, not to it.
        lam: λ now in force, float32; 2^96, which no V reaches, where there is none: before the
            first automatic estimate, and where every rule has its own.
        skipped: entries of V left unchanged so far because W − Γ was not finite, int32.
        auto: `Automatic`, the estimates of λ so far; the empty tuple when λ is given.
        ties: the groups that span leaves, for whoever reads the state: int32 arrays in the shape
            of the groups, equal numbers being one group; bool arrays with all axes of length 1
            for leaves without. The empty tuple where there are none.
        settled: `Settled`, what may be nonzero; the empty tuple where nothing settles.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    v: Any
    gamma: Any
    shrink: Shrink
    lam: jax.Array
    skipped: jax.Array
    auto: Any
    ties: Any = ()
    settled: Any = ()


RESTORE = (
    "a state that was restored without a target has lost its types: restore onto "
    "jax.eval_shape(tx.init, params)"
)


def has_lam(state: SplitLBIState) -> Any:
    """Whether there is a λ by which Γ can open: there is none before the first estimate."""
    return True if state.auto == () else state.lam < CLOSED


def tie_leaves(treedef: Any, ties: Any) -> list[jax.Array | None]:
    """The joint group numbers of each leaf, from the `ties` of a state; None where it has none."""
    if isinstance(ties, tuple) and ties == ():
        return [None] * treedef.num_leaves
    flat = treedef.flatten_up_to(ties)
    return [None if is_hidden(tie) or tie.dtype == bool else tie for tie in flat]


def tie_trees(treedef: Any, leaves: Sequence[LeafGroups], may_join: bool) -> Any:
    """The inverse of `tie_leaves`: the `ties` of a state.

    Args:
        treedef: the tree of the parameters.
        leaves: the groups of each leaf.
        may_join: whether there could be joint groups; it decides for trees without leaves, with
            which Optax's `tree.map_params` asks for the form of the state.
    """
    joined = any(leaf.joint is not None for leaf in leaves) if leaves else may_join
    if not joined:
        return ()
    ties = [
        jnp.zeros((1,) * len(leaf.shape), bool)
        if leaf.joint is None or leaf.counts is None
        else jnp.array(leaf.joint, jnp.int32).reshape(leaf.counts)
        for leaf in leaves
    ]
    return jax.tree.unflatten(treedef, ties)


def shrink_leaves(treedef: Any, trees: Shrink) -> list[Shrink]:
    """The `Shrink` of each leaf, from the `Shrink` of trees that the state holds."""
    return [Shrink(*leaf) for leaf in zip(*map(treedef.flatten_up_to, trees), strict=True)]


def shrink_trees(treedef: Any, leaves: Sequence[Shrink]) -> Shrink:
    """The inverse of `shrink_leaves`."""
    return Shrink(*(jax.tree.unflatten(treedef, [s[k] for s in leaves]) for k in range(3)))


def check_type(state: Any, expected: type) -> None:
    """A state of another transformation, or one that lost its types on the disk, is an error.

    Raises:
        TypeError: saying what to do.
    """
    if not isinstance(state, expected):
        raise TypeError(
            f"expected a {expected.__name__}, got {type(state).__name__}: give the state that "
            f"init of this same transformation made; {RESTORE}"
        )


def check_state(
    groups: Sequence[LeafGroups],
    treedef: Any,
    state: SplitLBIState,
    lean: bool,
    auto: bool,
    settles: bool = False,
) -> None:
    """A state made for another structure is an error at once, not a wrong number later.

    Raises:
        ValueError: naming the first leaf that differs.
        TypeError: for a state of another transformation.
    """
    check_type(state, SplitLBIState)
    hint = "it was made for other parameters or another structure; call init again"
    try:
        v = treedef.flatten_up_to(state.v)
        shrink = shrink_leaves(treedef, state.shrink)
        ties = tie_leaves(treedef, state.ties)
    except ValueError as error:
        raise ValueError(f"the state does not fit the parameters: {hint} ({error})") from None
    # An empty tuple of parameters has an empty tuple for its Γ, lean or not.
    if groups and lean != (isinstance(state.gamma, tuple) and state.gamma == ()):
        raise ValueError(
            f"the state was made with lean={not lean}, the transformation with lean={lean}; call "
            "init again"
        )
    if auto != (state.auto != ()):
        made = "a given λ" if auto else "dl.auto"
        raise ValueError(f"the state was made with {made}, the transformation not; call init again")
    if groups and settles != (not (isinstance(state.settled, tuple) and state.settled == ())):
        raise ValueError(
            f"the state was made with settle={not settles}, the transformation with "
            f"settle={settles}; call init again"
        )
    for leaf, value, (strength, _, _), tie in zip(groups, v, shrink, ties, strict=True):
        expected = "a dense leaf" if leaf.counts is None else f"groups {leaf.counts}"
        got = "a dense leaf"
        if value.dtype != bool:
            got = f"groups {value.shape if strength.dtype == bool else strength.shape}"
        if value.shape != leaf.shape or got != expected:
            raise ValueError(
                f"the state does not fit {leaf.path or 'the parameters'}: it holds {got} in shape "
                f"{value.shape}, expected {expected} in shape {leaf.shape}; {hint}"
            )
        if (tie is None) != (leaf.joint is None):
            held, asked = ("its own", "joint") if tie is None else ("joint", "its own")
            raise ValueError(
                f"the state does not fit {leaf.path}: the leaf's groups are {held} in the state, "
                f"{asked} in the structure; {hint}"
            )


def is_hidden(x: Any) -> bool:
    """Whether a leaf, or all of a branch, was hidden from a transformation by `optax.masked`."""
    return isinstance(x, optax.MaskedNode)
