"""From whatever a user gives as `structure` to the groups of every leaf."""

import dataclasses
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeAlias

import jax

from dessilbi_jax.structure.joint import check_joint
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.named import Structure
from dessilbi_jax.tree import dtype_of, is_function, is_inexact, leaf_paths, shape_of


class Resolves(Protocol):
    """What a structure is in the end: it gives the groups of every leaf of a tree, in order."""

    def resolve(self, params: Any) -> list[LeafGroups]:
        """The groups of every leaf of `params`, in the order of its leaves."""


Rule: TypeAlias = tuple[Any, ...]  # (pattern, spec) or (pattern, spec, options)
StructureLike: TypeAlias = "Resolves | Sequence[Rule] | Callable[[Any], Any]"


@dataclasses.dataclass(frozen=True)
class Rules:
    """Groups chosen by rules on parameter paths; leaves that no rule names are dense.

    A rule is `(pattern, spec)` or `(pattern, spec, options)`. The pattern is a regular
    expression searched in the leaf's '/'-joined path, and the first match wins. The spec is a
    named structure, a tuple of the axes that index the groups, or None for dense. Options are
    `lam` (this leaf's λ; a relative weight when λ is automatic) and `penalty`.

    Attributes:
        rules: the rules.
        strict: whether a rule that names no leaf is an error. Give False where the tree is
            seen in parts, as under `optax.partition`.

    Raises:
        ValueError: a rule that matches nothing or is wholly hidden by earlier ones (the paths
            there are get listed), or an axis that is out of range or given twice.
        TypeError: a rule of another form.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}}
        >>> rules = dl.Rules([(r"conv/kernel", (-1,), {"lam": 0.5})])
        >>> [(leaf.path, leaf.counts, leaf.lam) for leaf in rules.resolve(params)]
        [('conv/bias', None, None), ('conv/kernel', (1, 1, 1, 8), 0.5)]
    """

    rules: tuple[Rule, ...]
    strict: bool = True

    def __init__(self, rules: Sequence[Rule], strict: bool = True) -> None:
        object.__setattr__(self, "rules", tuple(_checked_rule(rule) for rule in rules))
        object.__setattr__(self, "strict", strict)

    def resolve(self, params: Any) -> list[LeafGroups]:
        """The groups of every leaf of `params`, in the order of its leaves."""
        named = leaf_paths(params)
        matched = dict.fromkeys(range(len(self.rules)), 0)
        hidden = dict.fromkeys(range(len(self.rules)), 0)
        out = []
        for path, leaf in named:
            hits = [i for i, rule in enumerate(self.rules) if re.search(rule[0], path)]
            for i in hits[1:]:
                hidden[i] += 1
            if not hits:
                out.append(LeafGroups(path, shape_of(leaf), None, reason="no rule names it"))
                continue
            matched[hits[0]] += 1
            _, spec, options = self.rules[hits[0]]
            out.append(_leaf_from_spec(path, leaf, spec, options))
        if self.strict and named:
            for i, rule in enumerate(self.rules):
                if not matched[i]:
                    why = "is hidden by earlier rules" if hidden[i] else "matches no leaf"
                    raise ValueError(
                        f"rule {i} with pattern {rule[0]!r} {why}; the paths are: "
                        f"{', '.join(path for path, _ in named)}"
                    )
        return out


def as_structure(structure: StructureLike) -> Resolves:
    """Turns whatever a user may give as `structure` into an object with `.resolve(params)`.

    Raises:
        TypeError: for anything that is no structure, list of rules or callable.
    """
    if hasattr(structure, "resolve"):
        return structure
    if isinstance(structure, Sequence) and not isinstance(structure, str):
        return Rules(structure)
    if is_function(structure):
        return _FromCallable(structure)
    raise TypeError(
        "structure must be a named structure (dl.filters, dl.weights, …), a list of rules "
        "[(pattern, spec), …] or a callable from the parameters to a tree of specs, got "
        f"{type(structure).__name__}; wrap a fixed tree as `lambda params: tree`"
    )


@dataclasses.dataclass(frozen=True)
class _FromCallable:
    """A structure given as a callable from the parameters to a tree of specs."""

    function: Callable[[Any], Any]

    def resolve(self, params: Any) -> list[LeafGroups]:
        treedef: Any = jax.tree.structure(params)
        specs = treedef.flatten_up_to(self.function(params))
        named = leaf_paths(params)
        return [
            _leaf_from_spec(path, leaf, spec, {})
            for (path, leaf), spec in zip(named, specs, strict=True)
        ]


def may_join(structure: Any) -> bool:
    """Whether a structure could make groups that span leaves: ours make none."""
    return not isinstance(structure, Structure | Rules | _FromCallable)


def resolve(structure: StructureLike, params: Any) -> list[LeafGroups]:
    """The groups of every leaf of `params`, checked: something is structured, and joint groups fit.

    A tree without leaves gives an empty list (Optax asks for that in `tree.map_params`).

    Raises:
        ValueError: if no leaf at all is structured, or if members of one joint group are given
            different λ or penalties.
    """
    leaves: list[LeafGroups] = as_structure(structure).resolve(params)
    if leaves and all(leaf.counts is None for leaf in leaves):
        listing = "; ".join(
            f"{leaf.path or '(root)'} {leaf.shape}: {leaf.reason}" for leaf in leaves
        )
        raise ValueError(
            "the structure leaves every parameter dense, so nothing could become sparse "
            f"({listing}). Under `optax.flatten` there are no kernels left to recognise: put "
            "the transformation outside of it, or name the leaves by a rule such as "
            "[('.*', dl.weights)]"
        )
    check_joint(leaves)
    return leaves


def _checked_rule(rule: Any) -> Rule:
    form = "a rule is (pattern, spec) or (pattern, spec, {'lam': …, 'penalty': …})"
    if not isinstance(rule, tuple | list) or len(rule) not in (2, 3):
        raise TypeError(f"{form}, got {rule!r}")
    if not isinstance(rule[0], str):
        raise TypeError(f"{form}; the pattern must be a string, got {rule[0]!r}")
    try:
        re.compile(rule[0])
    except re.error as error:
        raise ValueError(f"pattern {rule[0]!r} is no regular expression: {error}") from None
    spec, options = rule[1], dict(rule[2]) if len(rule) == 3 else {}
    if not (spec is None or isinstance(spec, Structure) or _is_axes(spec)):
        raise TypeError(f"{form}; the spec must be a named structure, axes or None, got {spec!r}")
    unknown = set(options) - {"lam", "penalty"}
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)} in the rule for {rule[0]!r}; {form}")
    lam = options.get("lam")
    if lam is not None and not (isinstance(lam, int | float) and 0 < lam < float("inf")):
        raise ValueError(f"lam in the rule for {rule[0]!r} must be a positive number, got {lam!r}")
    penalty = options.get("penalty")
    if penalty is not None and not hasattr(penalty, "shrink"):
        raise TypeError(
            f"penalty in the rule for {rule[0]!r} must be made by dl.group_lasso, "
            f"dl.sparse_group_lasso or dl.elastic_net, got {penalty!r}"
        )
    return (rule[0], tuple(spec) if _is_axes(spec) else spec, options)


def _is_axes(spec: Any) -> bool:
    return isinstance(spec, tuple | list) and all(
        isinstance(axis, int) and not isinstance(axis, bool) for axis in spec
    )


def _leaf_from_spec(path: str, leaf: Any, spec: Any, options: dict[str, Any]) -> LeafGroups:
    shape = shape_of(leaf)
    kind: Hashable
    if spec is None:
        return LeafGroups(path, shape, None, reason="named dense")
    if not is_inexact(leaf):
        raise TypeError(
            f"{path} holds {dtype_of(leaf)}; only real or complex leaves can be structured"
        )
    if not hasattr(leaf, "dtype"):
        raise TypeError(f"{path} is a Python number, {leaf!r}; only arrays can be structured")
    if _is_axes(spec):
        wrong = [axis for axis in spec if not -len(shape) <= axis < len(shape)]
        if wrong:
            raise ValueError(f"axis {wrong[0]} is out of range for {path} with shape {shape}")
        chosen = [axis % len(shape) for axis in spec]
        twice = [axis for axis in spec if chosen.count(axis % len(shape)) > 1]
        if twice:
            raise ValueError(
                f"the axes {tuple(spec)} of {path} with shape {shape} name one axis twice "
                f"({' and '.join(map(str, twice))}); name each once"
            )
        counts = tuple(n if axis in chosen else 1 for axis, n in enumerate(shape))
        name, kind = f"axes {tuple(spec)}", tuple(spec)
    elif isinstance(spec, Structure):
        try:
            counts, name, kind = spec.counts(path, shape), spec.name, spec.kind
        except ValueError as error:
            raise ValueError(f"{path} with shape {shape}: {error}") from None
    else:
        raise TypeError(f"the spec of {path} must be a named structure, axes or None, got {spec!r}")
    if 0 in shape:
        raise ValueError(f"{path} with shape {shape} has no elements; leave it dense")
    given = (options.get("lam"), options.get("penalty"))
    return LeafGroups(path, shape, counts, name, *given, kind=kind)
