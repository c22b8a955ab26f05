"""The solution path: what entered Γ when, recorded during one run."""

import math
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dessilbi_jax.dependency.plan import Plan
from dessilbi_jax.files import load
from dessilbi_jax.optimizer.reading import get_state
from dessilbi_jax.tickets.draw import Asked, draw
from dessilbi_jax.tickets.group_sets import GroupSet, group_sets
from dessilbi_jax.tickets.records import KIND, Records
from dessilbi_jax.tickets.snapshot import observe
from dessilbi_jax.tickets.ticket import Ticket, masks_like


class SolutionPath:
    """Supports of Γ along a run, at one bit a group and record.

    A *unit* is what can be selected by itself: a group, or a single element where the penalty
    thresholds elements. Beside the bits the path keeps one float32 a unit to rank those that
    entered at the same record: how far ‖V_g‖/λ was beyond 1 then; for units that never entered
    it is ‖V_g‖/λ at the last record. For those that entered, a second one holds ‖V_g‖/λ at the
    last record, for the other order that tickets can be drawn in. Groups that span leaves are
    recorded leaf by leaf, with the number of the group that each unit of a leaf belongs to.

    Attributes:
        steps: the recorded steps, ascending.
        metrics: by name, one float a record (nan where none was given).
        shapes: by leaf path, the leaf's shape (all leaves).
        groups: by leaf path, the shape of its units (structured leaves).

    References:
        Y. Fu, C. Liu, D. Li, X. Sun, J. Zeng and Y. Yao, "DessiLBI: Exploring Structural Sparsity
        of Deep Networks via Differential Inclusion Paths", ICML 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> import dessilbi_jax as dl
        >>> params = {"fc": {"kernel": jnp.array([[2.0, 0.1]])}}
        >>> tx = dl.dessilbi(0.1, nu=1.0, lam=0.25)
        >>> state, path = tx.init(params), dl.SolutionPath()
        >>> for step in range(1, 4):
        ...     _, state = tx.update(params, state, params)
        ...     path.record(step, state, accuracy=0.5)
        >>> path.entry_steps()["fc/kernel"].tolist()
        [[2, -1]]
        >>> path.density().tolist()
        [0.0, 0.5, 0.5]
    """

    def __init__(self) -> None:
        self._records = Records()

    def __len__(self) -> int:
        return len(self._records.steps)

    @property
    def steps(self) -> np.ndarray:
        """The recorded steps, int64."""
        return np.array(self._records.steps, np.int64)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """By name, one float64 a record; nan where a record had none."""
        return {
            name: np.array(values, np.float64) for name, values in self._records.metrics.items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By leaf path, the leaf's shape (all leaves that were seen)."""
        return dict(self._records.shapes)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """By leaf path, the shape of its units (structured leaves)."""
        return dict(self._records.groups)

    def sets(self) -> list[GroupSet]:
        """The sets of groups: a leaf's own, and those that leaves share, in the leaves' order."""
        return group_sets(self._records.groups, self._records.ties)

    @property
    def ranked(self) -> bool:
        """Whether the last record tells units apart; before λ's first estimate it cannot."""
        return self._records.ranked

    def record(self, step: int, opt_state: Any, params: Any = None, **metrics: float) -> None:
        """Records the support of Γ at a step, wholly or not at all.

        Args:
            step: the step, larger than all recorded before.
            opt_state: optimizer state that holds a `SplitLBIState`.
            params: W at that step. Without it nothing is known of leaves that `optax.partition`
                or `optax.masked` hides from the state, and that a weight is zero is seen only
                where its V has never moved.
            metrics: numbers to keep with it, such as `accuracy` and `projected_accuracy`.

        Raises:
            TypeError: a step that is no integer, or a metric that is no number.
            ValueError: a step not after the last one, a state that has made fewer updates than
                the last one, a state or parameters of another network, or parameters that are
                not finite.
        """
        number = _checked_step(step)
        values = {name: _checked_metric(name, value) for name, value in metrics.items()}
        seen = observe(get_state(opt_state, merge=True), params)
        self._records = self._records.appended(number, seen, values)

    def grow(self, opt_state: Any, plan: Plan) -> None:
        """Goes on with a network that has grown: what it has more was not selected so far.

        Args:
            opt_state: `Grown.opt_state` of `dl.grow`.
            plan: `Grown.plan`.

        Raises:
            ValueError: they are of another network than the one recorded.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> import dessilbi_jax as dl
            >>> params = {"a": {"kernel": jnp.ones((4, 2))}, "b": {"kernel": jnp.ones((2, 3))}}
            >>> def net(p, x):
            ...     return jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
            >>> tx = dl.dessilbi(0.1, nu=1.0, lam=0.1, structure=dl.neurons)
            >>> path = dl.SolutionPath()
            >>> state = tx.init(params)
            >>> path.record(1, state)
            >>> wide = dl.grow(params, {"a/kernel": 5}, jnp.ones((1, 4)), key=jax.random.key(0),
            ...                fn=net, opt_state=state)
            >>> path.grow(wide.opt_state, wide.plan)
            >>> path.groups["a/kernel"], path.shapes["b/kernel"]
            ((1, 5), (5, 3))
        """
        seen = observe(get_state(opt_state, merge=True), None)
        self._records = self._records.grown(seen, plan)

    def truncate(self, step: int) -> None:
        """Forgets all records after `step`, as a resume from a checkpoint of that step needs."""
        self._records = self._records.until(step)

    def entry_steps(self) -> dict[str, np.ndarray]:
        """By leaf path: the step at which each unit was first found selected, −1 = never."""
        steps = np.append(self.steps, -1)
        return {path: steps[entry] for path, entry in self._records.entry.items()}

    def density(self) -> np.ndarray:
        """Selected elements over all elements of structured leaves, one float a record."""
        shapes = self._records.shapes
        sizes = np.array([math.prod(shapes[path]) for path in self.groups], float)
        by_layer = list(self.layer_density().values())
        kept: np.ndarray = np.sum(np.array(by_layer) * sizes[:, None], axis=0)
        return kept / max(float(sizes.sum()), 1.0)

    def layer_density(self) -> dict[str, np.ndarray]:
        """By leaf path: selected elements over its elements, one float a record."""
        return {
            path: np.array([int(np.bitwise_count(b).sum()) for b in bits], float)
            / math.prod(self._records.groups[path])
            for path, bits in self._records.bits.items()
        }

    def support(self, step: int, params: Any = None) -> Any:
        """The support of Γ at a recorded step; dense leaves are all True.

        Args:
            step: a recorded step.
            params: parameters whose tree the result is to have; without them it is a dict from
                leaf path to bool array.

        Raises:
            ValueError: a step that was not recorded (the nearest one is named), or parameters of
                another network.
        """
        kept = self._records.masks_at(self._records.record_of(step))
        masks = {path: np.array(mask) for path, mask in kept.items()}
        return masks if params is None else masks_like(masks, params, self._records.hidden)

    def ticket(
        self,
        *,
        at: int | None = None,
        groups: int | None = None,
        weights: int | None = None,
        density: float | None = None,
        params: int | None = None,
        flops: float | None = None,
        count: Callable[[Mapping[str, np.ndarray]], float] | None = None,
        per_layer: bool | Mapping[str, float] = False,
        minimum: int = 1,
        rank: Literal["entry", "strength"] = "entry",
        network: Any = None,
    ) -> Ticket:
        """A support to prune to: of a recorded step, or of exactly the asked size.

        By size, units are kept in the order in which they entered; those of one record by how
        far ‖V_g‖/λ was beyond 1, largest first; units that never entered come last, by ‖V_g‖/λ
        at the last record; equal ones as the leaves stand. `groups` is met exactly. The other
        sizes give the longest prefix of that order within the request, and `Ticket.note` says
        what was left. Tickets of growing size are nested. A group that spans leaves is one unit
        and is never split. Weights that were zero before come last of all.

        With `network`, units are kept in the order in which they come to lie on a path from input
        to output (`liveness`), as a support can leave none: small ones of single weights often do.
        The note then says what lies on no path; without `network` it says that nobody looked.

        Args:
            at: a recorded step: the support as it was then; nothing else applies to it.
            groups: number of units.
            weights: elements kept in structured leaves.
            density: the same over all elements of structured leaves.
            params: parameters left: kept elements and all of dense leaves, or what `count` says.
            flops: operations left, as `count` says.
            count: for `params` and `flops`: from masks (`GroupMasks`, bool arrays by leaf path) to
                the number left, such as the `flops` of channel groups; it must not fall when
                more is kept.
            per_layer: True fills all leaves up to the same share of their elements, as nearly as
                whole groups allow. A dict gives each its share, by leaf path or by a regular
                expression searched in it (an exact path wins, then the first that is found),
                and is the size by itself; with a size, shares grow alike until it is reached.
            minimum: units kept in every structured leaf, those of the leaf that come first in
                the order; 0 allows empty layers.
            rank: what the order is made by, "entry" or "strength".
            network: `dl.channel_groups` of the network. It also tells the size of leaves that
                are hidden from the state.

        Raises:
            TypeError: unless exactly one size is given; `count` where it is missing or has no
                use; a `network` of another kind.
            ValueError: nothing recorded or ranked yet; a step that was not recorded, had nothing
                selected, or at which weights were not finite; `rank="strength"` where λ was 0 at
                the last record; a size out of range or too small for `minimum`, with the nearest
                that can be kept; a share, pattern or `network` that does not fit; `params` where
                the size of leaves is not known.

        Example:
            >>> import jax.numpy as jnp
            >>> import dessilbi_jax as dl
            >>> params = {"kernel": jnp.array([[3.0, 0.1, 2.0, 1.0]])}
            >>> tx = dl.dessilbi(0.1, nu=1.0, lam=0.15)
            >>> path = dl.SolutionPath()
            >>> path.record(1, tx.update(params, tx.init(params), params)[1])
            >>> path.ticket(density=0.5).masks["kernel"].tolist()
            [[True, False, True, False]]
        """
        sizes = {"at": at, "groups": groups, "weights": weights, "density": density}
        sizes |= {"params": params, "flops": flops}
        return draw(self._records, Asked(sizes, count, per_layer, minimum, rank, network))

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the path to one .npz file, without pickle, at once or not at all.

        A file that is there is kept beside it with the ending `.previous`.
        """
        self._records.write(Path(file))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "SolutionPath":
        """Reads a path that `save` wrote.

        Where the file is damaged or missing and the previous one is whole, that one is read and
        a warning says so.

        Raises:
            FileNotFoundError: no such file, and no previous one.
            ValueError: neither it nor the previous one can be read.
        """
        path = cls()
        path._records = load(Path(file), KIND, Records.read)
        return path


def _checked_step(step: Any) -> int:
    try:
        if isinstance(step, bool):
            raise TypeError
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be a whole number ≥ 0, got {step!r}") from None
    if number < 0:
        raise ValueError(f"step must be a whole number ≥ 0, got {number}")
    return number


def _checked_metric(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"the metric {name} must be a number, got {value!r}") from None
