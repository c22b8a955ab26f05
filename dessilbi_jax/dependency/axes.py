"""Which positions of which axes are the same channel: the bookkeeping behind `channel_groups`.

Every axis that carries channels holds *labels*: an array of atoms, one a position. Atoms that must
be removed together are joined (union-find); atoms that must stay are pinned, with a reason. After
an axis has been split, as (features) into (heads, size), its labels lie over several axes at once,
and which of these can lose positions is decided by the first operation that needs to know; where
nothing comes of the choice, the walk is made anew with another one (`trace`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dessilbi_jax.dependency.reasons import DATA, Reason, Why

Atoms = np.ndarray  # int64, in any shape
Question: TypeAlias = tuple[int | str, ...]  # what is asked at which line, of which lengths


class Asked(NamedTuple):
    """A question: how many answers it has, and the labels that it was asked of."""

    options: int
    atoms: list[Atoms]


class Partition:
    """Atoms, joined into classes of which some are pinned (union-find)."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._size = 0
        self._pinned: dict[int, Why] = {}

    def fresh(self, count: int) -> Atoms:
        """New atoms, each a class of its own."""
        assert count >= 0, "a broadcast axis has no length"
        while self._size + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        atoms = np.arange(self._size, self._size + count)
        self._parent[atoms] = atoms
        self._size += count
        return atoms

    def find(self, atoms: Atoms) -> Atoms:
        """The representative of each atom's class."""
        root: Atoms = self._parent[atoms]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[atoms] = root
        return root

    def join(self, left: Atoms, right: Atoms) -> None:
        """Makes the atoms at the same positions one class; the two are broadcast."""
        left, right = np.broadcast_arrays(self.find(left), self.find(right))
        differ = left != right
        for a, b in np.unique(np.stack([left[differ], right[differ]], -1), axis=0):
            root, other = (int(self.find(np.array([x]))[0]) for x in (a, b))
            if root == other:
                continue
            self._parent[other] = root
            if other in self._pinned:
                self._pinned.setdefault(root, self._pinned.pop(other))

    def pin(self, atoms: Atoms, why: Why) -> None:
        """Keeps the classes of these atoms for ever; the first reason is the one that is told."""
        for root in np.unique(self.find(atoms)):
            self._pinned.setdefault(int(root), why)

    def pinned(self, atoms: Atoms) -> np.ndarray:
        """Whether each atom's class is pinned."""
        return np.isin(self.find(atoms), np.fromiter(self._pinned, np.int64, len(self._pinned)))

    def why(self, atoms: Atoms) -> Why | None:
        """Why the first pinned of these atoms is pinned; None where none is."""
        roots = self.find(np.ravel(atoms))
        return next((self._pinned[int(r)] for r in roots if int(r) in self._pinned), None)


class Labels:
    """Atoms over one or several axes of an array."""

    def __init__(self, atoms: Atoms, axes: Sequence["Axis"]) -> None:
        self.atoms = atoms
        self.axes = list(axes)
        for axis in axes:
            axis.labels = self


class Axis:
    """An axis of an array.

    It is *open* as long as nobody asked (an axis of a parameter before its first use), *labelled*,
    or *fixed*: none of its positions can be removed.

    Attributes:
        size: its length.
        labels: the labels it carries, maybe together with other axes.
        fixed: why it is fixed, or None.
        leaf: (path of the leaf, axis) where it is an axis of a leaf itself.
        origins: the axes of leaves that it comes from.
        summed: of a leaf's axis: whether the leaf sums over it, as a kernel over its inputs.
        makes: of a leaf's axis: whether it goes on as an axis of the data.
    """

    def __init__(
        self,
        size: int,
        fixed: Why | None = None,
        leaf: tuple[str, int] | None = None,
        origins: Sequence["Axis"] = (),
    ) -> None:
        self.size = size
        self.labels: Labels | None = None
        self.fixed = fixed
        self.leaf = leaf
        self.origins = (self,) if leaf else tuple(origins)
        self.summed = self.makes = False
        self._same: Axis | None = None

    def now(self) -> "Axis":
        """The axis that this one has been made one with."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    def follow(self, other: "Axis") -> None:
        """Makes two open axes one."""
        self._same = other
        other.origins = (*other.origins, *(o for o in self.origins if o not in other.origins))

    @property
    def reads(self) -> bool:
        """Of a leaf's axis: whether it only reads channels. One that makes them too is a maker."""
        return self.summed and not self.makes

    def mark_summed(self) -> None:
        """Notes on the leaves behind this axis that they sum over it."""
        for origin in self.origins:
            origin.summed = True

    def mark_made(self) -> None:
        """Notes on the leaves behind this axis that the data have it from them."""
        for origin in self.origins:
            origin.makes = True


# An axis made by broadcasting: the same for all positions, so it takes the length it is given.
WILD = Axis(-1)


class Axes:
    """The operations on axes that the rules of the primitives are made of."""

    def __init__(self, choices: Mapping[Question, int] | None = None) -> None:
        self.partition = Partition()
        self.choices = choices or {}
        self.asked: dict[Question, Asked] = {}

    def question(self, labels: Labels) -> Question:
        """What is asked where labels lie over several axes: of which lengths, and where."""
        return (*labels.atoms.shape,)

    def choice(self, question: Question, options: int, atoms: Atoms, usual: int = 0) -> int:
        """Which of some options is to be taken; the usual one, where nobody has chosen."""
        self.asked.setdefault(question, Asked(options, [])).atoms.append(atoms)
        return self.choices.get(question, usual)

    def label(self, axes: Sequence[Axis]) -> None:
        """Gives those of the axes that are still open labels of their own, over all of them."""
        unset = [a for a in unique(axes) if is_open(a)]
        if unset:
            shape = [a.size for a in unset]
            Labels(self.partition.fresh(int(np.prod(shape))).reshape(shape), unset)

    def _drop(self, axis: Axis, why: Why) -> None:
        """Takes one axis from its labels: what lies along it is removed together or not at all."""
        labels = axis.labels
        assert labels is not None
        at = labels.axes.index(axis)
        first = labels.atoms.take([0], axis=at)
        self.partition.join(labels.atoms, first)
        labels.atoms = first.squeeze(at)
        labels.axes.pop(at)
        axis.labels, axis.fixed = None, why

    def fix(self, axis: Axis, why: Why) -> None:
        """No position along this axis can be removed."""
        axis = axis.now()
        if axis is WILD or axis.fixed is not None:
            return
        if axis.labels is None:
            axis.fixed = why
        elif len(axis.labels.axes) > 1:
            self._drop(axis, why)
        else:
            self.partition.pin(axis.labels.atoms, why)

    def pin(self, axis: Axis, why: Why) -> None:
        """Nothing that this axis carries can be removed, along whichever axis it lies."""
        axis = axis.now()
        if axis.labels is not None:
            self.partition.pin(axis.labels.atoms, why)
        else:
            self.fix(axis, why)

    def _all_pinned(self, axis: Axis) -> bool:
        """Whether the axis has labels of its own, and all of them are pinned."""
        labels = axis.labels
        if labels is None or len(labels.axes) > 1:
            return False
        return bool(self.partition.pinned(labels.atoms).all())

    def keep_only(self, labels: Labels, axes: Sequence[Axis], why: Why) -> None:
        """Leaves the labels on the given axes only."""
        for axis in [a for a in labels.axes if a not in axes]:
            self._drop(axis, why)

    def decide(self, labels: Labels) -> None:
        """Brings labels over several axes to one: where they already agree, else as was chosen.

        The outermost by default; what was asked is noted, for those who try the others.
        """
        if len(labels.axes) < 2:
            return
        roots = self.partition.find(labels.atoms)
        uniform = []
        for at in range(roots.ndim):
            others = tuple(i for i in range(roots.ndim) if i != at)
            line = roots[tuple(slice(None) if i == at else slice(0, 1) for i in range(roots.ndim))]
            if np.array_equal(np.broadcast_to(line, roots.shape), roots) and others:
                uniform.append(at)
        at = uniform[0] if uniform else 0
        if not uniform:
            at = self.choice(self.question(labels), len(labels.axes), labels.atoms)
        chosen = labels.axes[at]
        self.keep_only(labels, [chosen], Why(Reason.ONE_BLOCK))

    def align(self, pairs: Sequence[tuple[Axis, Axis]], why: Why) -> None:
        """Makes axes that are laid over each other lose the same positions or none.

        Args:
            pairs: axes of equal length, or broadcast ones.
            why: what to tell where an axis is fixed because its partner is.
        """
        while self._align_once([(a.now(), b.now()) for a, b in pairs], why):
            pass

    def _align_once(self, pairs: Sequence[tuple[Axis, Axis]], why: Why) -> bool:
        """One step of `align`; whether another is needed."""
        for a, b in _both(pairs):  # a broadcast axis cannot tell which
            if b is WILD and a.labels is not None and len(a.labels.axes) > 1:
                partners = [y for x, y in _both(pairs) if x in a.labels.axes]
                if any(y is not WILD and y.fixed is None for y in partners):
                    self.decide(a.labels)
                    return True
        pairs = [(a, b) for a, b in pairs if a is not b and WILD not in (a, b)]
        for a, b in _both(pairs):
            if a.fixed is not None and b.fixed is None:
                if self._all_pinned(b):
                    continue
                self.fix(b, why if a.fixed.reason is Reason.DATA else a.fixed)
                return True
        pairs = [(a, b) for a, b in pairs if a.fixed is None and b.fixed is None]
        partner = dict(_both(pairs))
        for a, b in _both(pairs):
            if not is_open(a):
                continue
            if is_open(b):
                a.follow(b)
                return True
            assert b.labels is not None
            others = [partner.get(x) for x in b.labels.axes]
            if all(x is not None and is_open(x) for x in others):
                Labels(b.labels.atoms, [x for x in others if x is not None])
            else:
                self.decide(b.labels)
                if b.labels is not None:
                    Labels(b.labels.atoms, [a])
            return True
        for a, b in pairs:
            assert a.labels is not None
            assert b.labels is not None
            there = [partner.get(x) for x in a.labels.axes]
            if set(map(id, there)) == set(map(id, b.labels.axes)):
                order = [b.labels.axes.index(x) for x in there if x is not None]
                self.partition.join(a.labels.atoms, b.labels.atoms.transpose(order))
                continue
            common = [x for x in a.labels.axes if partner.get(x) in b.labels.axes]
            self.keep_only(a.labels, common, why)
            self.keep_only(b.labels, [partner[x] for x in common], why)
            return True
        return False

    def derived(self, atoms: Atoms, axes: Sequence[Sequence[Axis]]) -> list[Axis]:
        """New axes that carry the given atoms, in their shape; axes[i] are those behind axis i."""
        out = []
        for at, (size, behind) in enumerate(zip(atoms.shape, axes, strict=True)):
            first = atoms.take([0], axis=at)
            same = size == 1 or np.array_equal(np.broadcast_to(first, atoms.shape), atoms)
            origins = [o for axis in unique(behind) for o in axis.origins]
            out.append(Axis(size, DATA if same else None, origins=origins))
        varying = [axis for axis in out if axis.fixed is None]
        if varying:
            index = tuple(0 if axis.fixed else slice(None) for axis in out)
            Labels(atoms[index], varying)
        return out


def is_open(axis: Axis) -> bool:
    """Whether nothing has been said about the axis yet."""
    return axis is not WILD and axis.labels is None and axis.fixed is None


def unique(axes: Sequence[Axis]) -> list[Axis]:
    """The axes as they are now, each once."""
    return list({id(a.now()): a.now() for a in axes}.values())


def _both(pairs: Sequence[tuple[Axis, Axis]]) -> list[tuple[Axis, Axis]]:
    return [*pairs, *((b, a) for a, b in pairs)]
