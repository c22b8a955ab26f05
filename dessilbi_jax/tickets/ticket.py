"""Tickets: a support to prune to, as a table, a file and a tree of masks."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dessilbi_jax.files import read, why, write
from dessilbi_jax.structure.named import kernel_sizes
from dessilbi_jax.text import check_pattern, columns
from dessilbi_jax.tickets.group_masks import GroupMasks, check_parameters
from dessilbi_jax.tree import leaf_paths, shape_of

_KIND = "ticket"
_FORMATS = (1, 2)  # 2 holds bits by group instead of masks by element


@dataclasses.dataclass(frozen=True)
class Ticket:
    """A support of Γ to prune to.

    `str(ticket)` is a table by layer.

    Attributes:
        masks: bool array of each leaf by its path, True = kept; dense leaves are all True. A path
            gives `GroupMasks`, which make them from group bits; of plain masks, as in tickets
            made by hand, every element is a group.
        step: step of the newest record that the ticket draws on.
        structured: paths of the leaves that were selected in.
        density: kept elements of the structured leaves over all of theirs.
        note: what has to be said of the ticket, in words: what the request could not be met with,
            and whether a path from input to output is left.
        card: where the ticket came from, as JSON can hold it: the request, the rule by which
            units entered, how many are kept, metrics of the step, versions. Add to it by
            `with_card`.
        hidden: leaves and branches that `optax.partition` or `optax.masked` hid from the run, and
            whose shapes it does not know; they are kept whole.

    Raises:
        ValueError: masks that are not bool arrays, a structured leaf without one, or a ticket
            that keeps nothing of its structured leaves.

    Example:
        >>> import numpy as np
        >>> import dessilbi_jax as dl
        >>> masks = {"fc/kernel": np.eye(2, dtype=bool), "fc/bias": np.ones(2, bool)}
        >>> print(dl.Ticket(masks, 10, ("fc/kernel",), 0.5))
        ticket of step 10: 2 of 4 structured weights (50 %), 4 of 6 parameters
        layer      kept  of  share
        fc/kernel     2   4   50 %
    """

    masks: Mapping[str, np.ndarray]
    step: int
    structured: tuple[str, ...]
    density: float
    note: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_masks(self.masks)
        for path in self.structured:
            if path not in self.masks:
                raise ValueError(f"the ticket has no mask of its structured leaf {path}")
        if self.structured and not any(self._groups.size(p)[0] for p in self.structured):
            raise ValueError("the ticket is empty: it keeps nothing of its structured leaves")

    @property
    def _groups(self) -> GroupMasks:
        if isinstance(self.masks, GroupMasks):
            return self.masks
        _check_masks(self.masks)
        return GroupMasks({path: mask.shape for path, mask in self.masks.items()}, self.masks)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every leaf by its path."""
        return self._groups.shapes

    @property
    def bits(self) -> Mapping[str, np.ndarray]:
        """Which groups are kept, by leaf path, in the shape of the grid of groups.

        Leaves that are not named are whole.
        """
        return self._groups.bits

    @property
    def ties(self) -> Mapping[str, np.ndarray]:
        """Of leaves that share groups with others, the number of each group, as `bits` lie."""
        return self._groups.ties

    def __str__(self) -> str:
        groups = self._groups
        rows = [(path, *groups.size(path)) for path in self.structured]
        table = [("layer", "kept", "of", "share")]
        table += [(p, f"{n:,}", f"{of:,}", f"{100 * n / max(of, 1):.3g} %") for p, n, of in rows]
        kept, total = sum(n for _, n, _ in rows), sum(of for _, _, of in rows)
        left, every = map(sum, zip(*map(groups.size, groups), strict=True))
        lines = [
            f"ticket of step {self.step}: {kept:,} of {total:,} structured weights "
            f"({100 * self.density:.3g} %), {left:,} of {every:,} parameters"
        ]
        lines.append(columns(table, right={1, 2, 3}))
        kernels = kernel_sizes(list(groups.shapes.items()))
        dense = [path for path in kernels if path not in self.structured]
        if dense:
            share = sum(kernels[path] for path in dense) / max(sum(kernels.values()), 1)
            names = ", ".join(dense[:4] + ["…"] * (len(dense) > 4))
            lines.append(f"dense: {100 * share:.3g} % of the weights of kernels ({names})")
        return "\n".join(lines + ([f"note: {self.note}"] if self.note else []))

    def mask(self, params: Any) -> Any:
        """The masks as a tree like `params`.

        Raises:
            ValueError: where a leaf is missing or of another shape, naming the first; masks
                that were edited to another dtype.
        """
        return masks_like(self.masks, params, self.hidden)

    def with_card(self, **facts: Any) -> "Ticket":
        """The same ticket with more on its card, for example `seed=0, accuracy=0.98`."""
        return dataclasses.replace(self, card={**self.card, **facts})

    def transfer(self, params: Any, *, drop: str | Sequence[str] = ()) -> "Ticket":
        """The ticket for a network that differs in some leaves, such as one with another head.

        Args:
            params: the other network's parameters.
            drop: regular expressions searched in leaf paths. What they match is dense in the
                result, whatever this ticket says of it; every other leaf must fit.

        Raises:
            ValueError: a leaf that does not fit and is not dropped, a pattern that matches
                nothing, or nothing selected left.

        Example:
            >>> import jax.numpy as jnp, numpy as np
            >>> import dessilbi_jax as dl
            >>> masks = {"fc": np.eye(2, dtype=bool), "head": np.ones((2, 10), bool)}
            >>> ticket = dl.Ticket(masks, 10, ("fc", "head"), 22 / 24)
            >>> other = {"fc": jnp.ones((2, 2)), "head": jnp.ones((2, 3))}
            >>> ticket.transfer(other, drop="head").masks["head"].shape
            (2, 3)
        """
        patterns = (drop,) if isinstance(drop, str) else tuple(drop)
        shapes = {path: shape_of(leaf) for path, leaf in leaf_paths(params)}
        hidden = {p for p in shapes if _under(p, self.hidden)}
        known = set(shapes) | set(self.masks)
        for pattern in patterns:
            check_pattern(pattern, "drop")
            if not any(re.search(pattern, path) for path in known):
                raise ValueError(
                    f"drop: {pattern!r} matches no leaf of the ticket or of the parameters"
                )
        dropped = {path for path in known if any(re.search(p, path) for p in patterns)}
        _check_fit({p: m for p, m in self.masks.items() if p not in dropped}, {
            p: shape for p, shape in shapes.items() if p not in dropped | hidden
        }, "; name it by drop= to leave it dense")  # fmt: skip
        groups = self._groups
        bits, ties = (
            {path: x for path, x in known.items() if path not in dropped}
            for known in (groups.bits, groups.ties)
        )
        structured = tuple(path for path in self.structured if path not in dropped)
        if not structured:
            raise ValueError("drop leaves nothing of the ticket: all its structured leaves match")
        card = {**self.card, "transferred": {"dropped": sorted(dropped)}}
        return make_ticket(GroupMasks(shapes, bits, ties), self.step, structured, self.note, card)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes one .npz file, at once or not at all: one bit a group, the card as JSON.

        Raises:
            ValueError: masks that were edited to another dtype, or a card that JSON cannot hold.
        """
        groups = self._groups
        bits = {p: b for p, b in groups.bits.items() if p in self.structured or not b.all()}
        header = {
            "kind": _KIND,
            "format": _FORMATS[-1],
            "shapes": {path: list(shape) for path, shape in groups.shapes.items()},
            "groups": {path: list(b.shape) for path, b in bits.items()},
            "step": int(self.step),
            "structured": list(self.structured),
            "density": float(self.density),
            "hidden": list(self.hidden),
            "note": self.note,
            "card": dict(self.card),
        }
        arrays = {}
        for i, (path, kept) in enumerate(bits.items()):
            arrays[f"bits_{i}"] = np.packbits(kept)
            if path in groups.ties:
                arrays[f"ties_{i}"] = groups.ties[path]
        write(Path(file), header, arrays)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Ticket":
        """Reads a ticket that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, or one that holds no ticket.
        """
        file = Path(file)
        if not file.exists():
            raise FileNotFoundError(f"no ticket at {file}")
        try:
            header, arrays = read(file, _KIND, _FORMATS, _sizes)
            masks, structured = _read_masks(header, arrays), tuple(header["structured"])
            fields = {name: header[name] for name in ("density", "note", "card")}
            hidden = tuple(header.get("hidden", ()))
            return cls(masks, header["step"], structured, **fields, hidden=hidden)
        except Exception as error:  # whatever zip, JSON or NumPy make of damaged bytes
            raise ValueError(f"{file} is no readable ticket ({why(error)})") from None


def make_ticket(
    masks: GroupMasks,
    step: int,
    structured: tuple[str, ...],
    note: str,
    card: Mapping[str, Any],
    hidden: tuple[str, ...] = (),
) -> Ticket:
    """A ticket with its density counted from the masks, and sizes (kept, of) on its card."""
    size = {path: np.array(masks.size(path)) for path in masks}
    kept, of = sum((size[path] for path in structured), np.zeros(2, int)).tolist()
    params = sum(size.values(), np.zeros(2, int)).tolist()
    card = {**card, "weights": [kept, of], "params": params}
    return Ticket(masks, step, structured, kept / max(of, 1), note, card, hidden)


def masks_like(masks: Mapping[str, np.ndarray], params: Any, hidden: tuple[str, ...] = ()) -> Any:
    """Masks by leaf path as a tree like `params`; what was hidden from the run is kept.

    Raises:
        ValueError: masks of another dtype or, naming the first, leaves that do not fit.
    """
    _check_masks(masks)
    named = leaf_paths(params)
    shapes = {path: shape_of(leaf) for path, leaf in named}
    unseen = {path for path in shapes if path not in masks and _under(path, hidden)}
    _check_fit(masks, {path: s for path, s in shapes.items() if path not in unseen}, "")
    leaves = [
        jnp.ones(shapes[path], bool) if path in unseen else jnp.asarray(masks[path])
        for path, _ in named
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _under(path: str, branches: tuple[str, ...]) -> bool:
    return any(path == branch or path.startswith(f"{branch}/") for branch in branches)


def _check_masks(masks: Mapping[str, Any]) -> None:
    for path, mask in masks.items():
        dtype = str(getattr(mask, "dtype", type(mask).__name__))
        if dtype != "bool":
            raise ValueError(f"the ticket's mask of {path} is {dtype}, expected an array of bool")


def _check_fit(
    masks: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], advice: str
) -> None:
    for path, shape in shapes.items():
        there = tuple(masks[path].shape) if path in masks else "nothing"
        if there != shape:
            raise ValueError(
                f"the ticket does not fit {path}: the parameters have shape {shape}, the ticket "
                f"{there}; it was made for another network, or optax.masked hid the leaf from "
                f"the state{advice}"
            )
    for path in masks:
        if path not in shapes:
            raise ValueError(f"the ticket names {path}, which the parameters lack{advice}")


def _sizes(header: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each array in a ticket file, from its header."""
    grids = header["shapes" if header["format"] == 1 else "groups"].values()
    counts = [math.prod(grid) for grid in grids]
    check_parameters(header["shapes"])
    sizes = {f"bits_{i}": -(-n // 8) for i, n in enumerate(counts)}
    sizes |= {f"mask_{i}": -(-n // 8) for i, n in enumerate(counts)}
    return sizes | {f"ties_{i}": 8 * n for i, n in enumerate(counts)}


def _read_masks(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> GroupMasks:
    """The support in a ticket file of any format."""
    shapes = {path: tuple(shape) for path, shape in header["shapes"].items()}
    if header["format"] == 1:  # a mask by element of every leaf
        masks = {
            path: unpacked(arrays[f"mask_{i}"], s) for i, (path, s) in enumerate(shapes.items())
        }
        return GroupMasks(shapes, masks)
    grids = {path: tuple(grid) for path, grid in header["groups"].items()}
    bits = {path: unpacked(arrays[f"bits_{i}"], g) for i, (path, g) in enumerate(grids.items())}
    ties = {path: arrays[f"ties_{i}"] for i, path in enumerate(grids) if f"ties_{i}" in arrays}
    return GroupMasks(shapes, bits, ties)


def unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `np.packbits` for an array of a known shape.

    Raises:
        ValueError: bytes of another number or dtype.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"{bits.shape} bytes of {bits.dtype} are no mask of shape {shape}")
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)
