"""The arguments of the transformations: checked once, then passed on as one object."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from dessilbi_jax.optimizer.asked import Auto, Lam, ScalarOrSchedule, Settle, check_number
from dessilbi_jax.prox.penalty import Penalty
from dessilbi_jax.structure.leaf import LeafGroups
from dessilbi_jax.structure.rules import StructureLike, as_structure

NU = 20.0  # ν where none is given
# λ where none is in force: no V reaches it. Not infinity, of which `jax_debug_infs` complains.
CLOSED = 2.0**96


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the step of DessiLBI is given once for all updates.

    Attributes:
        learning_rate: the step of W, a number or a schedule.
        kappa: κ > 0.
        nu: ν > 0.
        lam: λ > 0, a number, a schedule, `Auto`, or None where every rule has its own.
        structure: whatever a user may give; it is turned into an object with `resolve`.
        lean: whether no Γ is stored.
        penalty: Ω; None for the group lasso.
        finished: whether updates are already steps of W, as those of `dl.wrap` are.
        settle: what a user gives: False, True or `Settle`.

    Raises:
        TypeError: λ missing, or something of the wrong kind.
        ValueError: a number out of range.
    """

    learning_rate: ScalarOrSchedule
    kappa: float | jax.Array
    nu: float | jax.Array
    lam: Lam
    structure: StructureLike
    lean: bool
    penalty: Penalty | None
    finished: bool = False
    settle: bool | Settle = False

    def __post_init__(self) -> None:
        if not isinstance(self.settle, bool | Settle):
            raise TypeError(f"settle must be True, False or dl.settle(…), got {self.settle!r}")
        object.__setattr__(self, "structure", as_structure(self.structure))
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate)
        check_number("kappa", self.kappa)
        check_number("nu", self.nu)
        if isinstance(self.lam, str):
            raise TypeError(
                f"lam must be a number, a schedule or dl.auto(density=…, steps=…), got {self.lam!r}"
            )
        if not (isinstance(self.lam, Auto) or callable(self.lam) or self.lam is None):
            check_number("lam", self.lam)
        if self.lam is None and not _every_rule_has_lam(self.structure):
            raise TypeError(
                "lam is missing: give a number, a schedule, dl.auto(density=…, steps=…), or a "
                "lam in every rule; dl.calibrate suggests a number"
            )
        _ = self.settling  # an error at once
        if self.penalty is not None and not isinstance(self.penalty, Penalty):
            raise TypeError(
                "penalty must be made by dl.group_lasso, dl.sparse_group_lasso or "
                f"dl.elastic_net, got {self.penalty!r}"
            )

    @property
    def auto(self) -> Auto | None:
        """How λ is found inside the run, or None where it is given."""
        return self.lam if isinstance(self.lam, Auto) else None

    @functools.cached_property
    def settling(self) -> Settle | None:
        """When and to what the support of W shrinks; None where it does not."""
        if self.settle is False:
            return None
        return (Settle() if self.settle is True else self.settle).of(self.lam)

    def penalty_of(self, leaf: LeafGroups) -> Penalty:
        """Ω of a leaf: its rule's own, or the one for all."""
        return leaf.penalty or self.penalty or _GROUP_LASSO

    def rate_at(self, count: jax.Array) -> Any:
        """The learning rate of an update, of which `count` were made before it."""
        return self.learning_rate(count) if callable(self.learning_rate) else self.learning_rate

    def lam_at(self, count: jax.Array) -> Any:
        """λ of an update where it is given, else `CLOSED`.

        As it was given: float64 leaves are thresholded at that, only the state rounds it.
        """
        value = self.lam(count) if callable(self.lam) else self.lam
        return CLOSED if value is None or isinstance(value, Auto) else value

    def strength_at(self, count: jax.Array) -> Any:
        """The factor of W − Γ in the update: 1/ν, or −learning_rate/ν in a finished one."""
        return -self.rate_at(count) / self.nu if self.finished else 1 / self.nu

    def pace_at(self, count: jax.Array) -> Any:
        """The factor of W − Γ in V: learning_rate/(κν)."""
        return self.rate_at(count) / (self.kappa * self.nu)


_GROUP_LASSO = Penalty()


def _every_rule_has_lam(structure: Any) -> bool:
    rules: Sequence[Any] = getattr(structure, "rules", ())
    return bool(rules) and all(rule[1] is None or rule[2].get("lam") for rule in rules)
