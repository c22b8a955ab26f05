"""When a run can stop: its ticket has settled and the pruned network gains no more."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dessilbi_jax.tickets.path import SolutionPath
from dessilbi_jax.tickets.ticket import Ticket
from dessilbi_jax.tree import leaf_paths


class TicketMonitor:
    """Says when the ticket that a run is made for changes no more, so that the run can stop.

    At every record the ticket of the *final* size is taken from the path as it then is, with the
    units that have not entered yet ranked by ‖V_g‖/λ: so it is there from the first record on,
    however little Γ has opened. The run is settled once

    - each ticket of the `patience` records before the newest overlaps with that one by at least
      1 − `support_tol` (kept in both over kept in either, in structured leaves), and
    - the best projected accuracy of the last `patience` records is at most `gain_tol` above the
      best before.

    Tickets are held against the newest one, not against their neighbours: a slow drift counts.
    Records of a path before λ has been estimated do not count: until then nothing is ranked.

    The defaults, for a record an epoch, were fixed on held-out images by `benchmarks/moments.py`
    (LeNet-300-100 on MNIST, tickets of 5 %, runs of 10 epochs). On other seeds and the test images
    they saved 27 % of the epochs, for tickets that retrained to 0.05 points less (3 seeds).

    Args:
        density: density of the ticket, needed where `update` is given a path.
        patience: number of records that have to agree with the newest one.
        support_tol: share by which tickets may differ, in [0, 1).
        gain_tol: gain of accuracy that does not count, in the unit of the accuracy.
        steps_per_epoch: how many steps an epoch has, for `saved`.

    Attributes:
        stopped_at: the step at which the run was first found settled, or None.
        history: (step, overlap, projected accuracy) of each record; the overlap is the least
            with the records before that count, nan for the first.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import numpy as np
        >>> import dessilbi_jax as dl
        >>> monitor = dl.TicketMonitor(patience=2, steps_per_epoch=100)
        >>> mask = {"kernel": np.array([True, False])}
        >>> [monitor.update(100 * k, mask, 0.9) for k in (1, 2, 3)]
        [False, False, True]
        >>> monitor.saved(10)
        7.0
    """

    def __init__(
        self,
        density: float | None = None,
        *,
        patience: int = 1,
        support_tol: float = 0.1,
        gain_tol: float = 0.03,
        steps_per_epoch: int = 1,
    ) -> None:
        for name, number in (("patience", patience), ("steps_per_epoch", steps_per_epoch)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number ≥ 1, got {number!r}")
        if density is not None and not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}")
        if not 0 <= support_tol < 1:
            raise ValueError(f"support_tol must lie in [0, 1), got {support_tol}")
        if not 0 <= gain_tol < math.inf:
            raise ValueError(f"gain_tol must be a finite number ≥ 0, got {gain_tol}")
        self.density, self.patience = density, patience
        self.support_tol, self.gain_tol = support_tol, gain_tol
        self.steps_per_epoch = steps_per_epoch
        self.stopped_at: int | None = None
        self.history: list[tuple[int, float, float]] = []
        self._window: list[tuple[dict[str, int], np.ndarray]] = []  # sizes of leaves, bits

    def update(self, step: int, path_or_support: Any, projected_accuracy: float) -> bool:
        """Takes in a record and says whether the run can stop.

        Args:
            step: the step, larger than all before.
            path_or_support: the path, already recorded at this step; or the ticket of the final
                size itself, as a `Ticket`, a dict from leaf path to bool array or a tree of bool
                arrays, in which every leaf counts: leave dense ones out.
            projected_accuracy: accuracy of the network projected on that ticket.

        Returns:
            True from the first record on at which the run has settled.

        Raises:
            TypeError: a path, and no density was given to the monitor.
            ValueError: a step not after the last one, an accuracy that is not finite, or a
                support of another network or dtype.
        """
        if self.history and step <= self.history[-1][0]:
            raise ValueError(f"steps must ascend: got {step} after {self.history[-1][0]}")
        accuracy = float(projected_accuracy)
        if not math.isfinite(accuracy):
            raise ValueError(f"projected_accuracy must be a finite number, got {accuracy}")
        if isinstance(path_or_support, SolutionPath):
            if self.density is None:
                raise TypeError("give the monitor the density of the ticket to follow a path")
            if len(path_or_support) and not path_or_support.ranked:
                self.history.append((int(step), math.nan, accuracy))
                return False
        sizes, bits = self._support(path_or_support)
        if self._window and sizes != self._window[-1][0]:
            odd = [p for p, n in sizes.items() if self._window[-1][0].get(p) != n]
            raise ValueError(f"{(odd or list(sizes))[0]} differs from the supports before it")
        overlap = min((_overlap(bits, before) for _, before in self._window), default=math.nan)
        self.history.append((int(step), overlap, accuracy))
        self._window = [*self._window, (sizes, bits)][-self.patience :]
        if self.stopped_at is None and self._settled():
            self.stopped_at = int(step)
        return self.stopped_at is not None

    def saved(self, epochs_total: float) -> float:
        """Epochs of a run of `epochs_total` that were saved by stopping; 0 if it did not settle.

        Example:
            >>> import dessilbi_jax as dl
            >>> dl.TicketMonitor().saved(10)
            0.0
        """
        if self.stopped_at is None:
            return 0.0
        return max(float(epochs_total) - self.stopped_at / self.steps_per_epoch, 0.0)

    def to_json(self) -> dict[str, Any]:
        """All there is to know, as `json.dumps` takes it; one bit an element and record."""
        return {
            "density": self.density,
            "patience": self.patience,
            "support_tol": self.support_tol,
            "gain_tol": self.gain_tol,
            "steps_per_epoch": self.steps_per_epoch,
            "stopped_at": self.stopped_at,
            "history": [
                [step, None if math.isnan(overlap) else overlap, accuracy]
                for step, overlap, accuracy in self.history
            ],
            "sizes": self._window[-1][0] if self._window else {},
            "window": [base64.b64encode(bits.tobytes()).decode() for _, bits in self._window],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "TicketMonitor":
        """The monitor that `to_json` described, to go on from there.

        Raises:
            ValueError: what is no such description.

        Example:
            >>> import json
            >>> import dessilbi_jax as dl
            >>> text = json.dumps(dl.TicketMonitor(0.05).to_json())
            >>> dl.TicketMonitor.from_json(json.loads(text)).density
            0.05
        """
        try:
            options = ("patience", "support_tol", "gain_tol", "steps_per_epoch")
            monitor = cls(state["density"], **{name: state[name] for name in options})
            monitor.stopped_at = state["stopped_at"]
            monitor.history = [
                (int(step), math.nan if overlap is None else float(overlap), float(accuracy))
                for step, overlap, accuracy in state["history"]
            ]
            sizes = {str(path): int(n) for path, n in state["sizes"].items()}
            for text in state["window"]:
                bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
                if bits.size != -(-sum(sizes.values()) // 8):
                    raise ValueError(f"{bits.size} bytes for {sum(sizes.values())} elements")
                monitor._window.append((sizes, bits))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this describes no TicketMonitor ({error!r})") from None
        return monitor

    def _support(self, given: Any) -> tuple[dict[str, int], np.ndarray]:
        """The sizes of the leaves that count, and all their bits."""
        if isinstance(given, SolutionPath):
            given = given.ticket(density=self.density)
        if isinstance(given, Ticket):
            leaves = [(path, given.masks[path]) for path in given.structured]
        else:
            leaves = leaf_paths(given)
        masks = {path: np.asarray(mask) for path, mask in leaves}
        for path, mask in masks.items():
            if mask.dtype != bool:
                raise ValueError(f"the support of {path} is {mask.dtype}, expected bool")
        flat = np.concatenate([mask.ravel() for mask in masks.values()] or [np.zeros(0, bool)])
        return {path: mask.size for path, mask in masks.items()}, np.packbits(flat)

    def _settled(self) -> bool:
        full = len(self._window) == self.patience and len(self.history) > self.patience
        if not full or not self.history[-1][1] >= 1 - self.support_tol:  # nan: nothing to compare
            return False
        accuracies = [accuracy for _, _, accuracy in self.history]
        late, early = accuracies[-self.patience :], accuracies[: -self.patience]
        return max(late) - max(early) <= self.gain_tol


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Elements kept in both over elements kept in either; 1 where nothing is kept in either."""
    either = int(np.bitwise_count(one | other).sum())
    return int(np.bitwise_count(one & other).sum()) / either if either else 1.0
