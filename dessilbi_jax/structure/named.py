"""What a group is: from parameter paths to groups of weights.

The groups of one leaf are described by a single tuple, `counts`: how many groups lie along each
axis. The leaf is cut along axis `i` into `counts[i]` equal, contiguous pieces; a group is one
cell of that grid. So an HWIO kernel of shape (3, 3, 16, 32) has

    output filters   counts (1, 1, 1, 32)      input channels   counts (1, 1, 16, 1)
    single weights   counts (3, 3, 16, 32)     kernel slices    counts (1, 1, 16, 32)
    whole layer      counts (1, 1, 1, 1)       4 x 4 blocks     counts (3, 3, 4, 8)

Cells of several leaves can be one group together (`LeafGroups.joint`): a filter with its bias, its
normalisation and the inputs it feeds, say.

Named structures (`filters`, `weights`, …) choose `counts` from a leaf's name and rank; the rules
of `rules.py` choose it by the leaf's path. Everything here is plain Python on shapes.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.tree import dtype_of, is_inexact, leaf_paths, shape_of, words

# The axes of a kernel by what they mean: h, w, d space, i input, o output.
_LAYOUTS = {
    "HWIO": {2: "io", 4: "hwio", 5: "dhwio"},
    "OIHW": {2: "oi", 4: "oihw", 5: "oidhw"},
}
_NAME_LAYOUT = {"kernel": "HWIO", "w": "HWIO", "weight": "OIHW"}


@dataclasses.dataclass(frozen=True)
class Structure:
    """A named choice of groups for whole networks, and a spec to use in rules.

    Applied to a parameter tree, it looks at leaves named `kernel` or `w` (axes HWIO; dense:
    inputs, outputs) and `weight` (axes OIHW; dense: outputs, inputs) with 2 axes or more. All
    other leaves, and those with a word such as `Embed_0` or `token_embedding` in their path, are
    dense. Inside a rule it applies to the leaf that the rule names, whatever that leaf is called.

    Four axes are always read as a convolution's and five as a 3-D one's. With any other number of
    axes a kernel may be many things (a 1-D convolution, attention, a stack of layers): where the
    groups depend on what the axes mean it stays dense, and `init` of the optimizer warns of it.
    Name such kernels by a rule, stacks of layers with `dl.stacked`.

    Attributes:
        name: printed name; it decides nothing.
        conv: the meanings (letters of `dhwio`) of the axes that index groups in convolution
            kernels; '*' stands for every axis, None leaves convolutions dense.
        dense: the same for kernels with two axes.
        other: the same for leaves with any other number of axes: '*' for every axis, '' for none,
            or None where that cannot be told without knowing what the axes mean.
        block: lengths of the blocks along (inputs, outputs), or None.
        heads: number of equal pieces the head axis is cut into, or 0.
        inputs: with `heads`, cut the input axis instead of the output axis.
        layout: 'HWIO' or 'OIHW' to override what a leaf's name says.
        as_stored: take kernels with two axes as matrices, their first axis for the inputs and their
            second for the outputs, whatever the layout.
        stacked: number of leading axes that count layers; groups lie inside of each layer.

    Raises:
        ValueError: another layout, letters in `other`, or a negative `stacked`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> [leaf.counts for leaf in dl.filters.resolve({"kernel": jnp.ones((3, 3, 16, 32))})]
        [(1, 1, 1, 32)]
        >>> torch_like = dl.filters.replace(layout="OIHW")
        >>> [leaf.counts for leaf in torch_like.resolve({"kernel": jnp.ones((32, 16, 3, 3))})]
        [(32, 1, 1, 1)]
    """

    name: str
    conv: str | None
    dense: str | None
    block: tuple[int, int] | None = None
    heads: int = 0
    inputs: bool = False
    layout: str | None = None
    other: str | None = None
    as_stored: bool = False
    stacked: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stacked, bool) or not isinstance(self.stacked, int) or self.stacked < 0:
            raise ValueError(f"stacked must be a number of leading axes ≥ 0, got {self.stacked!r}")
        if self.layout is not None and self.layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {sorted(_LAYOUTS)}, got {self.layout!r}")
        if self.other not in (None, "", "*"):
            raise ValueError(
                f"other must be '*' (every axis), '' (none) or None, got {self.other!r}: the axes "
                "of such leaves have no letters"
            )

    def replace(self, **changes: Any) -> "Structure":
        """A copy with the given attributes changed, for example `layout='OIHW'`."""
        return dataclasses.replace(self, **changes)

    @property
    def kind(self) -> "Structure":
        """What decides, without the name: equal for structures that choose alike."""
        return self.replace(name="")

    def counts(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Number of groups along each axis of a leaf.

        Raises:
            ValueError: where this structure has no meaning for a leaf of that shape.
        """
        if self.stacked:
            layers, one = shape[: self.stacked], shape[self.stacked :]
            if not one:
                raise ValueError(f"'{self.name}' needs more than {self.stacked} axes")
            return layers + self.replace(stacked=0).counts(path, one)
        if self.heads:
            return self._head_counts(path, shape)
        axes = self._axes(path, len(shape))
        by_rank = {2: self.dense, 4: self.conv, 5: self.conv}
        indexing = by_rank.get(len(shape), self.other)
        if indexing is None:
            raise ValueError(f"'{self.name}' has no meaning for {_axes(len(shape))}")
        if self.block is not None:
            return self._block_counts(axes, shape)
        return tuple(
            n if "*" in indexing or axis in indexing else 1
            for n, axis in zip(shape, axes, strict=True)
        )

    def _axes(self, path: str, rank: int) -> str:
        """A letter for each axis of a leaf; '?' where it has none."""
        layout = self.layout or _NAME_LAYOUT.get(path.rpartition("/")[2], "HWIO")
        if rank == 2 and self.as_stored:
            layout = "HWIO"
        return _LAYOUTS[layout].get(rank, "?" * rank)

    def _block_counts(self, axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        assert self.block is not None
        length = dict(zip("io", self.block, strict=True))
        if any(n % length.get(axis, 1) for n, axis in zip(shape, axes, strict=True)):
            raise ValueError(f"{shape} cannot be cut into {self.name}")
        return tuple(n // length.get(axis, 1) for n, axis in zip(shape, axes, strict=True))

    def _head_counts(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        counts = [1] * len(shape)
        if len(shape) == 3 and self.heads in shape[:2]:  # Flax: (d, n, h) in, (n, h, d) out
            counts[1 if shape[1] == self.heads and not self.inputs else 0] = self.heads
        elif len(shape) == 2:
            counts[self._axes(path, 2).index("i" if self.inputs else "o")] = self.heads
        if any(n % c for n, c in zip(shape, counts, strict=True)) or max(counts) != self.heads:
            raise ValueError(f"{shape} has no axis of {self.heads} heads")
        return tuple(counts)

    def resolve(self, params: Any) -> list[LeafGroups]:
        """The groups of every leaf of `params`, in the order of its leaves."""
        return [self._resolve_leaf(path, leaf) for path, leaf in leaf_paths(params)]

    def _resolve_leaf(self, path: str, leaf: Any) -> LeafGroups:
        shape = shape_of(leaf)
        rank = len(shape) - self.stacked

        def dense(reason: str, unread: bool = False) -> LeafGroups:
            return LeafGroups(path, shape, None, reason=reason, unread=unread)

        if not is_inexact(leaf):
            return dense(f"holds {dtype_of(leaf)}")
        if _embeds(path):
            return dense("an embedding")
        if path.rpartition("/")[2] not in _NAME_LAYOUT:
            return dense("not named kernel, w or weight")
        if rank < 2:
            layer = " inside of each layer" if self.stacked else ""
            return dense(f"{_axes(max(rank, 0))}{layer}, no kernel", unread=len(shape) > 1)
        if self.heads and rank != 3:
            return dense("heads of two-axis kernels are chosen by a rule")
        try:
            counts = self.counts(path, shape)
        except ValueError as error:
            ours = self.conv is not None and not self.heads  # not for matrices or heads alone
            unread = ours and (self.block is not None or rank not in _LAYOUTS["HWIO"])
            return dense(str(error), unread)
        name = "weights" if counts == shape else self.name
        return LeafGroups(path, shape, counts, name, kind=self.kind)


filters = Structure("filters", conv="o", dense="*")
weights = Structure("weights", conv="*", dense="*", other="*")
neurons = Structure("neurons", conv="o", dense="o")
input_channels = Structure("input channels", conv="i", dense="i")
slices = Structure("slices", conv="io", dense="*")
rows = Structure("rows", conv=None, dense="i", as_stored=True)
columns = Structure("columns", conv=None, dense="o", as_stored=True)
layers = Structure("layers", conv="", dense="", other="")


def stacked(structure: Structure, axes: int = 1) -> Structure:
    """The groups of a structure in every layer of a stack.

    Layers that are scanned over (`nnx.scan`, `nn.scan`, `jax.vmap` over initialisations) hold
    their weights in one leaf each, whose leading axes count the layers.

    Args:
        structure: the groups of one layer.
        axes: how many leading axes count layers.

    Raises:
        TypeError: for axes instead of a structure: those name the leading axes themselves.
        ValueError: fewer than one axis.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.stacked(dl.neurons).counts("layers/kernel", (12, 64, 32))
        (12, 1, 32)
    """
    if not isinstance(structure, Structure):
        raise TypeError(
            f"stacked takes a named structure such as dl.filters, got {structure!r}; to name axes "
            "give the leading ones too, as in (0, -1)"
        )
    if isinstance(axes, bool) or not isinstance(axes, int) or axes < 1:
        raise ValueError(f"axes must be a number of leading axes ≥ 1, got {axes!r}")
    return structure.replace(name=f"stacked {structure.name}", stacked=structure.stacked + axes)


def kernel_sizes(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """By path, the elements of the leaves that are kernels by name and number of axes.

    Args:
        shapes: (path, shape) of every leaf.
    """
    return {
        path: math.prod(shape)
        for path, shape in shapes
        if len(shape) > 1 and path.rpartition("/")[2] in _NAME_LAYOUT and not _embeds(path)
    }


def warn_of_unread(leaves: Sequence[LeafGroups]) -> None:
    """Warns of kernels that are dense only because their groups cannot be told.

    Rules are definite: whatever they leave dense is dense by what they say.
    """
    unread = [leaf for leaf in leaves if leaf.unread]
    if not unread:
        return
    every = sum(kernel_sizes([(leaf.path, leaf.shape) for leaf in leaves]).values())
    share = sum(leaf.size for leaf in unread) / max(every, 1)
    names = [f"{leaf.path} {leaf.shape}: {leaf.reason}" for leaf in unread[:4]]
    names += ["…"] * (len(unread) > 4)
    warnings.warn(
        f"{100 * share:.3g} % of the weights of kernels stay dense ({'; '.join(names)}). Name "
        f"them by a rule, as in [('{unread[0].path}', (-1,)), ('kernel$', dl.filters)]: with the "
        "axes that index the groups, with dl.stacked(…) for layers in one leaf, or with None to "
        "leave them dense; dl.weights takes every kernel",
        UserWarning,
        stacklevel=4,
    )


def _embeds(path: str) -> bool:
    return any(word.startswith("embed") for word in words(path))


def _axes(n: int) -> str:
    return f"{n} axis" if n == 1 else f"{n} axes"


def blocks(shape: tuple[int, int], layout: str | None = None) -> Structure:
    """Groups of `shape` = (inputs, outputs) neighbouring channels; space indexes groups too.

    A leaf that the shape does not divide stays dense (an error where a rule asks for it).

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.blocks((4, 2)).counts("fc/kernel", (8, 6))
        (2, 3)
    """
    if len(shape) != 2 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"blocks needs two positive lengths (inputs, outputs), got {shape!r}")
    name = f"blocks of {shape[0]}x{shape[1]}"
    return Structure(name, conv="*", dense="*", block=(shape[0], shape[1]), layout=layout)


def heads(n: int, *, inputs: bool = False, layout: str | None = None) -> Structure:
    """Groups of whole attention heads.

    Kernels with three axes are Flax's (features, heads, size) and (heads, size, features).
    Kernels with two axes are cut along their output axis into `n` equal pieces, or along the
    input axis with `inputs=True` (the projection behind the heads); these are chosen by a rule.

    Example:
        >>> import dessilbi_jax as dl
        >>> dl.heads(4).counts("query/kernel", (64, 4, 16))
        (1, 4, 1)
        >>> dl.heads(4, inputs=True).counts("proj/kernel", (64, 32))
        (4, 1)
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"heads needs a positive number of heads, got {n!r}")
    return Structure(f"{n} heads", conv=None, dense="o", heads=n, inputs=inputs, layout=layout)
