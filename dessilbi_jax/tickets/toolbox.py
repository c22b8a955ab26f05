"""Services of the authors' toolbox: prune orders, pruning by percentage, extraction, new filters.

Nothing given is changed: every function returns new trees.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.tickets.masks import mask_leaves, project
from dessilbi_jax.tickets.path import SolutionPath
from dessilbi_jax.tree import leaf_paths, shape_of


def prune_order(
    params: Any,
    entry: SolutionPath | Mapping[str, np.ndarray],
    *,
    steps_per_epoch: int | None = None,
    never: int = 2000,
) -> dict[str, np.ndarray]:
    """How important each group is: ‖W_g‖₂ minus the epoch in which it entered, large = important.

    The order of the authors' toolbox, which subtracts 2000 for groups that never entered. It is
    computed in float64: in float32 the norms of those groups are rounded to steps of 1.2e-4.

    Args:
        params: the parameters W.
        entry: the recorded path; or by leaf path the epoch of entry of every group, in the shape
            of the groups as `SolutionPath.groups` has it, negative = never.
        steps_per_epoch: with a path, steps 1 to this many are epoch 0, and so on; by default
            every record is an epoch.
        never: epoch that counts for groups that never entered.

    Returns:
        By leaf path, float64 in the shape of the groups. A group that spans leaves has one number
        for the part in each.

    Raises:
        ValueError: an empty path, or a leaf of the entries that the parameters lack or whose
            groups do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]])}
        >>> dl.toolbox.prune_order(params, {"kernel": [[2, -1]]})["kernel"].tolist()
        [[3.0, -1999.0]]
    """
    if isinstance(entry, SolutionPath):
        entry = _entry_epochs(entry, steps_per_epoch)
    leaves, orders = dict(leaf_paths(params)), {}
    for path, given in entry.items():
        epochs = np.asarray(given)
        if path not in leaves:
            raise ValueError(f"the entries name {path}, which the parameters lack")
        shape = shape_of(leaves[path])
        if not _cuts(epochs.shape, shape):
            raise ValueError(
                f"the entries of {path} have shape {epochs.shape}, which cuts no {shape} into "
                "groups; expected one number a group, as SolutionPath.entry_steps gives"
            )
        norm = _group_norm(np.asarray(leaves[path]), epochs.shape)
        orders[path] = norm - np.where(epochs < 0, never, epochs)
    return orders


def _cuts(counts: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether `counts` cuts a leaf of that shape into equal groups."""
    return len(counts) == len(shape) and not any(
        n % max(c, 1) or c < 1 for n, c in zip(shape, counts, strict=True)
    )


def _entry_epochs(path: SolutionPath, steps_per_epoch: int | None) -> dict[str, np.ndarray]:
    if not len(path):
        raise ValueError("nothing has been recorded on this path yet")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be positive, got {steps_per_epoch}")
    out = {}
    for name, steps in path.entry_steps().items():
        if steps_per_epoch is None:
            epochs = np.searchsorted(path.steps, steps)
        else:
            epochs = np.maximum(steps - 1, 0) // steps_per_epoch
        out[name] = np.where(steps < 0, -1, epochs)
    return out


def _group_norm(w: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    cut = [n for size, c in zip(w.shape, counts, strict=True) for n in (c, size // c)]
    square = np.square(np.abs(w).astype(np.float64)).reshape(cut)
    norm: np.ndarray = np.sqrt(square.sum(axis=tuple(range(1, 2 * w.ndim, 2))))
    return norm


def prune_by_percent(
    params: Any,
    order: Mapping[str, np.ndarray],
    percent: float | Mapping[str, float],
    layers: str | Sequence[str] | None = None,
    *,
    biases: bool = True,
) -> tuple[Any, Any]:
    """Sets the least important groups of some layers to zero, each layer by itself.

    As in the authors' toolbox, the threshold of a layer is the percentile of its order with
    linear interpolation between neighbours. Groups strictly below it are pruned; where groups are
    single weights, only those strictly above it are kept. The bias of an output that loses all
    its weights as whole groups goes with it.

    Args:
        params: the parameters; they stay as they are, so that to recover is to go on with them.
        order: by leaf path, a number a group (`prune_order`).
        percent: share of each layer to prune, in [0, 100]; a dict gives each layer its own.
        layers: the leaves, by path (`conv1/kernel`) or by what holds them (`conv1`); all of
            `order` by default.
        biases: whether the biases of pruned outputs are pruned too.

    Returns:
        The pruned parameters, and the mask (True = kept) as a tree like them.

    Raises:
        ValueError: an unknown layer, a percentage out of range or missing, an order that does
            not fit, or a layer that would be emptied although less than 100 % was asked.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"conv": {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2)}}
        >>> order = {"conv/kernel": jnp.array([-1998.0, 2.0]).reshape(1, 1, 1, 2)}
        >>> pruned, mask = dl.toolbox.prune_by_percent(params, order, 50, "conv")
        >>> pruned["conv"]["bias"].tolist()
        [0.0, 1.0]
    """
    named = leaf_paths(params)
    masks = {path: np.ones(shape_of(leaf), bool) for path, leaf in named}
    names = order if layers is None else [layers] if isinstance(layers, str) else layers
    for name in names:
        path = _layer(name, order)
        if isinstance(percent, Mapping) and name not in percent:
            raise ValueError(f"percent gives no number for {name}; it has {', '.join(percent)}")
        share = percent[name] if isinstance(percent, Mapping) else percent
        if not 0 <= share <= 100:
            raise ValueError(f"percent must lie in [0, 100], got {share} for {name}")
        if path not in masks:
            raise ValueError(f"the order names {path}, which the parameters lack")
        shape, values = masks[path].shape, np.asarray(order[path], np.float64)
        if not _cuts(values.shape, shape):
            raise ValueError(
                f"the order of {path} has shape {values.shape}, which does not fit {shape}"
            )
        threshold = np.percentile(values, share)
        alone = values.shape == shape
        kept = values > threshold if alone else values >= threshold
        if not kept.any() and share < 100:
            raise ValueError(
                f"{share} % would empty {path}, whose largest numbers are equal; prune less"
            )
        for axis, n in enumerate(shape):
            kept = np.repeat(kept, n // kept.shape[axis], axis=axis)
        masks[path] = kept
        if biases and not alone:
            _prune_bias(masks, path)
    mask = jax.tree.unflatten(jax.tree.structure(params), [jnp.asarray(masks[p]) for p, _ in named])
    return project(params, mask), mask


def _layer(name: str, order: Mapping[str, Any]) -> str:
    found = [path for path in order if path == name or path.rpartition("/")[0] == name]
    if len(found) != 1:
        what = f"could be {', '.join(found)}" if found else f"is none of {', '.join(order)}"
        raise ValueError(f"layer {name!r} {what}")
    return found[0]


def _output_axis(path: str) -> int:
    """Of `weight` the first axis, as PyTorch has it, else the last."""
    return 0 if path.rpartition("/")[2] == "weight" else -1


def _prune_bias(masks: dict[str, np.ndarray], path: str) -> None:
    kernel, above = masks[path], path.rpartition("/")[0]
    outputs = np.moveaxis(kernel, _output_axis(path), 0).reshape(
        kernel.shape[_output_axis(path)], -1
    )
    for name in ("bias", "b"):
        bias = f"{above}/{name}" if above else name
        if bias in masks and masks[bias].shape == (len(outputs),):
            masks[bias] = masks[bias] & outputs.any(axis=1)


def recover(pruned: Any, original: Any, mask: Any) -> Any:
    """Brings pruned weights back at their old values, beside what was trained meanwhile.

    Args:
        pruned: parameters that are kept where the mask is True.
        original: parameters that come back elsewhere.
        mask: tree of bool arrays.

    Raises:
        ValueError: trees or shapes that differ, naming the first leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> mask = {"w": jnp.array([True, False])}
        >>> dl.toolbox.recover({"w": jnp.array([5.0, 0.0])}, {"w": jnp.array([1.0, 2.0])}, mask)
        {'w': Array([5., 2.], dtype=float32)}
    """
    mask_leaves(original, mask)
    masks = jax.tree.unflatten(jax.tree.structure(pruned), mask_leaves(pruned, mask))
    return jax.tree.map(jnp.where, masks, pruned, original)


class Extracted(NamedTuple):
    """The kept weights of one leaf.

    Attributes:
        values: the kept weights.
        indices: where they stand: `leaf[indices]` are the values, and
            `zeros.at[indices].set(values)` puts them back.
    """

    values: np.ndarray
    indices: tuple[np.ndarray, ...]


def extract(params: Any, mask: Any) -> dict[str, Extracted]:
    """The kept weights of every leaf, in compact arrays.

    Where whole slices are kept, as with filters, input channels or all of a leaf, the values are
    the leaf without the others, with as many axes; where single weights are kept they are in one
    axis, row by row. This only reads weights out: networks are made smaller by `slim`.

    Args:
        params: the parameters.
        mask: tree of bool arrays, True = kept.

    Returns:
        By leaf path, an `Extracted`.

    Raises:
        ValueError: a mask that does not fit, naming the first leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
        >>> mask = {"kernel": jnp.array([[True, False, True]] * 2)}
        >>> dl.toolbox.extract(params, mask)["kernel"].values.tolist()
        [[1.0, 3.0], [4.0, 6.0]]
    """
    out = {}
    for (path, leaf), m in zip(leaf_paths(params), mask_leaves(params, mask), strict=True):
        kept = np.asarray(m)
        along = [
            np.flatnonzero(kept.any(axis=tuple(a for a in range(kept.ndim) if a != axis)))
            for axis in range(kept.ndim)
        ]
        whole = math.prod(map(len, along)) == np.count_nonzero(kept)
        indices = np.ix_(*along) if whole else np.nonzero(kept)
        out[path] = Extracted(np.asarray(leaf)[indices], indices)
    return out


def reinitialise(params: Any, mask: Any, key: jax.Array) -> Any:
    """Draws the unselected filters anew, orthogonal to the selected ones of their leaf.

    A filter is what belongs to one output: a slice of the last axis, or of the first of a
    leaf named `weight`. In every leaf of two axes or more, filters of which the mask keeps
    nothing are replaced by random directions, orthogonal to the span of all other filters and to
    each other, with the mean norm of the others (of the filters themselves where none is left).
    Where the space of a filter has no dimension left, the rest get random directions that are
    not orthogonal. Filters that are kept in part, and leaves of one axis, stay as they are.

    Args:
        params: the parameters.
        mask: tree of bool arrays, True = kept.
        key: random key.

    Raises:
        ValueError: a mask that does not fit, naming the first leaf; a complex leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"kernel": jnp.array([[2.0, 1.0], [0.0, 1.0]])}
        >>> mask = {"kernel": jnp.array([[True, False]] * 2)}
        >>> dl.toolbox.reinitialise(params, mask, jax.random.key(0))["kernel"][0].tolist()
        [2.0, 0.0]
    """
    leaves = []
    masks = mask_leaves(params, mask)
    for i, ((path, leaf), m) in enumerate(zip(leaf_paths(params), masks, strict=True)):
        kept = np.asarray(m)
        if kept.ndim < 2 or kept.all():
            leaves.append(leaf)
            continue
        if jnp.iscomplexobj(leaf):
            raise ValueError(f"{path} is complex; reinitialise draws real filters only")
        axis = _output_axis(path)
        w = np.moveaxis(np.asarray(leaf).astype(np.float64), axis, 0)
        fresh = ~np.moveaxis(kept, axis, 0).reshape(len(w), -1).any(axis=1)
        rows = w.reshape(len(w), -1)
        draw = jax.random.normal(jax.random.fold_in(key, i), (int(fresh.sum()), rows.shape[1]))
        others = rows if fresh.all() else rows[~fresh]
        norm = np.linalg.norm(others, axis=1).mean()
        rows = rows.copy()
        rows[fresh] = norm * _orthogonal(np.asarray(draw, np.float64), rows[~fresh])
        new = np.moveaxis(rows.reshape(w.shape), 0, axis)
        leaves.append(jnp.asarray(new, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _orthogonal(draw: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Unit rows from random ones: orthogonal to `others` and each other while there is room."""
    basis = np.linalg.svd(others, full_matrices=False)
    rank = np.count_nonzero(1e-7 * basis.S.max(initial=0) < basis.S)
    directions = basis.Vh[:rank]  # singular values descend
    room = max(draw.shape[1] - len(directions), 0)
    out = draw.copy()
    free = draw[:room] - draw[:room] @ directions.T @ directions
    out[:room] = np.linalg.qr(free.T).Q.T
    out[:room] -= out[:room] @ directions.T @ directions  # what rounding left
    unit: np.ndarray = out / np.linalg.norm(out, axis=1, keepdims=True)
    return unit
