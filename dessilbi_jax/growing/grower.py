"""When a network is too narrow: where Γ has selected nearly all of a layer."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from dessilbi_jax.dependency.groups import ChannelGroups
from dessilbi_jax.optimizer.reading import gamma
from dessilbi_jax.tree import leaf_paths, to_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grower:
    """Decides from Γ which sets of channels grow, and when it is over.

    At every `every`-th update, each set of n channels of which Γ has selected at least `threshold`
    grows to max(n + add, ⌊factor·n⌋), at most to `limit`. The first look at which nothing grows,
    once Γ has selected anything, is the last: the path no longer asks for more. It keeps no state
    of its own.

    Attributes:
        every: updates between two looks.
        threshold: share of a set's channels that Γ has selected, in (0, 1].
        add: fewest channels that a set grows by, at least 1.
        factor: by which it grows, at least 1.
        limit: most channels of a set: a number for all, or by name; None: there is none.

    Raises:
        ValueError, TypeError: numbers out of range or of another kind.

    References:
        The rule and its defaults are those of the authors' toolbox for VGG, which looks every 10
        epochs (Fu et al., "Exploring Structural Sparsity of Deep Networks via Inverse Scale
        Spaces", IEEE TPAMI 2023).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))}
        >>> groups = dl.channel_groups(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
        >>> tx = dl.dessilbi(1.0, nu=1.0, lam=0.1, structure=dl.channels(groups))
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        >>> dl.Grower(every=10).decide(state, groups, 20)
        ({'a': 10}, False)
    """

    every: int
    threshold: float = 0.8
    add: int = 8
    factor: float = 1.1
    limit: int | Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name, low in (("every", 1), ("add", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        for name in ("threshold", "factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold}")
        if not (self.factor >= 1 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be finite and at least 1, got {self.factor}")

    def decide(
        self, opt_state: Any, groups: ChannelGroups, step: int, params: Any = None
    ) -> tuple[dict[str, int], bool]:
        """What is to grow now, and whether growing is over.

        Args:
            opt_state: any Optax state that holds a `SplitLBIState`.
            groups: the channels of the network, from `dl.channel_groups`.
            step: updates made.
            params: the parameters, where the state hides some of them.

        Returns:
            By the name of each set that is to grow its new size, as `dl.grow` takes it; and whether
            this was a look at which nothing grew. Between looks ({}, False).
        """
        if step % self.every or not step:
            return {}, False
        found = to_host(gamma(opt_state, params))
        chosen = selected(groups, found)
        sizes = {}
        for each in groups.sets:
            n = len(each.groups)
            limit = self.limit.get(each.name) if isinstance(self.limit, Mapping) else self.limit
            wanted = max(n + self.add, math.floor(self.factor * n))
            wanted = wanted if limit is None else min(wanted, limit)
            if chosen[each.groups].mean() >= self.threshold and wanted > n:
                sizes[each.name] = int(wanted)
        # While Γ is empty the path has not begun, and nothing is known of what it will ask for.
        return sizes, not sizes and bool(chosen.any())


def selected(groups: ChannelGroups, gamma: Any) -> np.ndarray:
    """Which channels Γ has selected: those with anything nonzero in a slice that makes them.

    Args:
        groups: the channels.
        gamma: Γ as a tree of arrays, as `dl.gamma` gives it.
    """
    out = np.zeros(groups.count, bool)
    for path, leaf in leaf_paths(gamma):
        array = np.asarray(leaf)
        if array.dtype == bool:  # dense: there is no Γ
            continue
        for axis in range(array.ndim):
            numbers_here = groups.numbers.get((path, axis))
            if numbers_here is None or (path, axis) in groups.reads:
                continue
            others = tuple(i for i in range(array.ndim) if i != axis)
            there = (array != 0).any(axis=others)
            out[np.unique(numbers_here[there & (numbers_here >= 0)])] = True
    return out
