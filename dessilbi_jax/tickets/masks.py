"""What is done with masks: weights are projected and held at zero, and a run is rewound."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dessilbi_jax.optimizer.state import check_type, is_hidden
from dessilbi_jax.tree import dtype_of, is_function, leaf_paths, shape_of


class KeepSupportState(NamedTuple):
    """State of `keep_support`: the mask itself, so that it is saved with the optimizer."""

    mask: Any


def keep_support(mask: Any) -> optax.GradientTransformation:
    """Makes weights outside the mask become, and stay, exactly zero.

    Outside the mask the update becomes −W, so that `optax.apply_updates` lands on 0 whatever
    momentum, Adam or decay put into it before. Stands last in the chain. A leaf may be masked as
    a whole, as a layer that is gone is; so may all of them.

    Outside of `optax.partition` and `optax.masked`, which would hide leaves from it; inside of
    `optax.contrib.schedule_free`, which keeps averages of its own. Averages that were begun
    before the pruning are made sparse by `project`.

    Args:
        mask: tree of bool arrays like the parameters, True = kept; or a function that makes it
            from the parameters. A tree that can itself be called (Equinox) is a tree.

    Raises:
        ValueError: at `init`, a mask of another tree, shape or dtype, naming the first leaf, or
            one whose leaves are hidden here; at `update`, parameters missing.
        TypeError: at `update`, a state of another transformation.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import dessilbi_jax as dl
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> mask = {"w": jnp.array([True, False])}
        >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), dl.keep_support(mask))
        >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)
        {'w': Array([0.9, 0. ], dtype=float32)}
    """

    def init(params: optax.Params) -> KeepSupportState:
        if not jax.tree.leaves(params):  # a tree without leaves asks for the state's form
            return KeepSupportState(params)
        tree = mask(params) if is_function(mask) else mask
        if any(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden))) and (
            len(jax.tree.leaves(tree)) > len(jax.tree.leaves(params))
        ):
            raise ValueError(
                "the mask has leaves that are hidden from keep_support here, inside of "
                "optax.partition or optax.masked: let it stand outside, as in "
                "optax.chain(optax.partition(…), dl.keep_support(mask))"
            )
        w, treedef = jax.tree.flatten(params)
        # Copies that lie on the devices as the parameters do: may be donated.
        leaves = [
            jnp.zeros_like(p, dtype=bool) | m
            for p, m in zip(w, mask_leaves(params, tree), strict=True)
        ]
        return KeepSupportState(jax.tree.unflatten(treedef, leaves))

    def update(
        updates: optax.Updates, state: KeepSupportState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, KeepSupportState]:
        if params is None:
            raise ValueError("keep_support needs the parameters: tx.update(updates, state, params)")
        check_type(state, KeepSupportState)

        def zeroing(m: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
            dtype = jnp.promote_types(dtype_of(u), dtype_of(p))  # a rounded −W would not land on 0
            return jnp.where(m, jnp.asarray(u, dtype), -jnp.asarray(p, dtype))

        return jax.tree.map(zeroing, state.mask, updates, params), state

    return optax.GradientTransformation(init, update)


def project(params: Any, mask: Any) -> Any:
    """The parameters with zeros outside the mask: W on the support of Γ.

    Args:
        params: the parameters.
        mask: tree of bool arrays, as `support` gives.

    Raises:
        ValueError: where trees or shapes differ, naming the first leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> dl.project({"w": jnp.ones(2)}, {"w": jnp.array([True, False])})
        {'w': Array([1., 0.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(params)
    masks = mask_leaves(params, mask)
    return jax.tree.unflatten(
        treedef, [jnp.where(m, p, jnp.zeros_like(p)) for p, m in zip(leaves, masks, strict=True)]
    )


def mask_leaves(params: Any, mask: Any) -> list[jax.Array]:
    """The leaves of a mask in the order of the parameters' leaves, checked against them.

    Raises:
        ValueError: where trees, shapes or dtypes differ, naming the first leaf.
    """
    named = leaf_paths(params)
    given = leaf_paths(mask)
    if [path for path, _ in named] != [path for path, _ in given]:
        here, there = dict(named), dict(given)
        odd = [p for p in here if p not in there] or [p for p in there if p not in here]
        raise ValueError(
            f"the mask does not fit the parameters: {odd[0] if odd else named[0][0]} is not in "
            "both; make it with dl.support(opt_state, params)"
        )
    for (path, p), (_, m) in zip(named, given, strict=True):
        dtype = str(getattr(m, "dtype", type(m).__name__))
        if shape_of(p) != shape_of(m) or dtype != "bool":
            raise ValueError(
                f"the mask does not fit {path}: got {dtype}{list(shape_of(m))}, expected "
                f"bool{list(shape_of(p))}"
            )
    return [m for _, m in given]


def rewind(checkpoints: Any, step: int | str) -> Any:
    """The parameters of a recorded moment, to retrain a ticket from.

    Args:
        checkpoints: parameters by step: a dict, or anything with `keys` and `[step]`.
        step: 'init' for the first there is, 'end' for the last, or a step.

    Raises:
        ValueError: no checkpoints, or none of that step (the nearest is named).

    References:
        J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; J. Frankle, G.
        Dziugaite, D. Roy and M. Carbin, "Linear Mode Connectivity and the Lottery Ticket
        Hypothesis", ICML 2020, for steps other than the first.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.rewind({0: "initial", 100: "trained"}, "init")
        'initial'
    """
    steps = sorted(checkpoints.keys())
    if not steps:
        raise ValueError("there are no checkpoints to rewind to")
    if step == "init":
        return checkpoints[steps[0]]
    if step == "end":
        return checkpoints[steps[-1]]
    if isinstance(step, str):
        raise ValueError(f"step must be 'init', 'end' or a number, got {step!r}")
    if step not in steps:
        near = min(steps, key=lambda s: abs(s - step))
        raise ValueError(f"there is no checkpoint of step {step}; the nearest one is {near}")
    return checkpoints[step]
