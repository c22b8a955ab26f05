"""Channels that are a constant once their weights are zero: the constant goes into what reads it.

A channel of which all makers are masked need not be zero: a sigmoid makes a half of it, a
normalisation without a scale what its statistics say. The network under the masks is then run
beside the one whose slices of such channels are zero where they are read, equation by equation.
Where both differ and a leaf is added or subtracted next, as a bias or a running mean is, and the
difference is one that this leaf can hold, it is added to the leaf, and from there on both agree.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_INNER = """checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat
    remat2"""
_INLINED = frozenset(_INNER.split())
_VIEWS = "broadcast_in_dim convert_element_type copy copy_p reshape squeeze transpose"
_MOVES = frozenset(_VIEWS.split())
_CLOSE = 1e-6


class _Item(NamedTuple):
    """An array of the masked network.

    Attributes:
        value: the array.
        other: that of the network without the channels, None where it is the same.
        sources: numbers of the leaves that made the two differ.
        leaf: the number of the leaf that it is a view of, and how it is made of it.
    """

    value: Any
    other: Any = None
    sources: frozenset[int] = frozenset()
    leaf: tuple[int, Callable[[Any], Any]] | None = None

    @property
    def there(self) -> Any:
        return self.value if self.other is None else self.other


class NotFolded(Exception):
    """What was left different.

    Attributes:
        source: number of the first leaf whose slices read what is not zero.
    """

    def __init__(self, source: int) -> None:
        super().__init__(source)
        self.source = source


def fold(
    fn: Callable[..., Any], masked: Any, without: Any, inputs: Sequence[Any]
) -> tuple[Any, frozenset[int]]:
    """The masked tree with the constants of removed channels in the leaves that can hold them.

    Args:
        fn: `fn(tree, *inputs)`.
        masked: the tree under the ticket's masks.
        without: the same with zeros where removed channels are read.
        inputs: example inputs.

    Returns:
        The tree, and the numbers of the leaves that were changed.

    Raises:
        NotFolded: outputs that still differ, with the first leaf at fault.
    """
    closed = jax.make_jaxpr(fn)(masked, *inputs)
    leaves, treedef = jax.tree.flatten(masked)
    items = []
    for i, (a, b) in enumerate(zip(leaves, jax.tree.leaves(without), strict=True)):
        alike = a is b or bool((np.asarray(a) == np.asarray(b)).all())
        items.append(
            _Item(a, None if alike else b, frozenset() if alike else frozenset({i}), (i, _same))
        )
    items += [_Item(jnp.asarray(x)) for x in jax.tree.leaves(inputs)]
    walk = _Walk(leaves)
    out = walk.run(closed.jaxpr, closed.consts, items)
    left = [item for item in out if item.other is not None and not _close(item)]
    # A leaf that is used twice has to stay as it is.
    twice = [i for i in walk.added if walk.uses[i] > 1]
    if left or twice:
        blamed = frozenset().union(
            *(item.sources for item in left), *(walk.because[i] for i in twice)
        )
        raise NotFolded(min(blamed, key=walk.order.index))
    for i, change in walk.added.items():
        leaves[i] = (leaves[i] + change).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, leaves), frozenset(walk.added)


class _Walk:
    """One run of both networks."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self.leaves = leaves
        self.uses = [0] * len(leaves)
        self.order: list[int] = []  # of the leaves that made a difference, as they are used
        self.added: dict[int, Any] = {}
        self.because: dict[int, frozenset[int]] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[_Item]) -> list[_Item]:
        env: dict[Any, _Item] = dict(zip(jaxpr.constvars, map(_Item, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(var: Any) -> _Item:
            return _Item(var.val) if isinstance(var, Literal) else env[var]

        for eqn in jaxpr.eqns:
            ins = [read(var) for var in eqn.invars]
            env.update(zip(eqn.outvars, self._step(eqn, ins), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(self, eqn: Any, ins: list[_Item]) -> list[_Item]:
        name = eqn.primitive.name
        if name in _INLINED:
            inner = next(eqn.params[k] for k in _CALLS if k in eqn.params)
            consts = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), consts, ins)
        values = _bound(eqn, [x.value for x in ins])
        if name in _MOVES and ins[0].leaf is not None:
            number, made = ins[0].leaf

            def view(x: Any) -> Any:
                return _bound(eqn, [made(x)])[0]

            other = None if ins[0].other is None else _bound(eqn, [ins[0].other])[0]
            return [_Item(values[0], other, ins[0].sources, (number, view))]
        for item in ins:
            if item.leaf is not None:
                self.uses[item.leaf[0]] += 1
        sources = frozenset().union(*(x.sources for x in ins))
        if not sources or all(x.other is None for x in ins):
            return [_Item(v) for v in values]
        self.order += [i for i in sorted(sources) if i not in self.order]
        others = _bound(eqn, [x.there for x in ins])
        out = [_Item(v, o, sources) for v, o in zip(values, others, strict=True)]
        out = [_Item(x.value) if _close(x) else x for x in out]
        if name in ("add", "add_any", "sub") and out[0].other is not None:
            out = [self._given(eqn, ins, out[0])]
        return out

    def _given(self, eqn: Any, ins: list[_Item], out: _Item) -> _Item:
        """The result of an addition, with the difference given to a leaf where one can hold it."""
        apart = jnp.asarray(out.value) - jnp.asarray(out.other)
        for at, item in enumerate(ins):
            if item.leaf is None or item.other is not None or item.leaf[0] in self.added:
                continue
            number, view = item.leaf
            sign = -1.0 if eqn.primitive.name == "sub" and at == 1 else 1.0
            change = _held(view, self.leaves[number], sign * apart, out.value)
            if change is not None:
                self.added[number], self.because[number] = change, out.sources
                return _Item(out.value)
        return out


def _held(view: Callable[[Any], Any], leaf: Any, apart: Any, out: Any) -> Any:
    """The change of a leaf by which its view changes by `apart`; None where there is none.

    Args:
        view: how an array is made of the leaf: moved and repeated, so that it is linear.
        leaf: the leaf.
        apart: the change that is wanted.
        out: what it is a part of, for what is small.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.inexact) or not apart.ndim:
        return None
    made, back = jax.vjp(view, jnp.asarray(leaf))
    times = back(jnp.ones_like(made))[0]
    stretched = tuple(i for i, n in enumerate(made.shape) if n != apart.shape[i])
    mean = jnp.mean(apart, axis=stretched, keepdims=True)
    change = back(mean.astype(made.dtype))[0] / jnp.where(times == 0, 1, times)
    error = jnp.abs(view(change).astype(apart.dtype) - apart).max()
    scale = jnp.abs(out).max()
    return change if bool(error <= _CLOSE * 10 * scale) else None


def _same(x: Any) -> Any:
    return x


def _bound(eqn: Any, values: Sequence[Any]) -> list[Any]:
    out = eqn.primitive.bind(*values, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _close(item: _Item) -> bool:
    a, b = np.asarray(item.value), np.asarray(item.other)
    if not np.issubdtype(a.dtype, np.number) and a.dtype.kind != "V":
        return bool((a == b).all())
    x, y = a.astype(np.complex128), b.astype(np.complex128)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        return bool((same | (np.abs(x - y) <= _CLOSE * scale)).all())
