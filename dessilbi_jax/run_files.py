"""What is in a run folder: the names of its files, and a record of the run."""

import dataclasses
import math
import re
from typing import Any

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PATH = "path.npz"
NORMS = "norms.npz"
GROWTH = "growth.json"
CHECKPOINTS = "checkpoints"
RESULT = "result.json"
REPORT = "report.html"
WEIGHTS = "weights"
TICKET = "ticket.npz"
RETRAINED = "retrained"
SLIM = "slim"
INTERPRETATION = "interpretation.npz"
SWEEP = "sweep"
LOCK = "run.lock"
UNFINISHED_ENDING = ".unfinished"  # of a retraining, beside where it goes
OURS = {
    CONFIG, METRICS, PATH, PATH + ".previous", NORMS, GROWTH, CHECKPOINTS, RESULT, REPORT, WEIGHTS,
    TICKET, RETRAINED, RETRAINED + UNFINISHED_ENDING, SLIM, SWEEP, INTERPRETATION, LOCK,
}  # fmt: skip
# What is in the folders among them: paths from there on. Nothing else is ever replaced or deleted.
RETRAINED_FILES = r"weights\.safetensors|result\.json"
SLIM_FILES = r"params\.safetensors|plan\.json|card\.json|forward\.jaxexport|result\.json"
_CHECKPOINT = (
    r"(state(\.orbax-checkpoint-tmp[^/]*)?/.*|meta\.json|checksums\.json|[a-z]+\.jsonl?|[a-z]+\.npz|commit_success\.txt|"
    r"_[A-Z_]+|)"
)
CHECKPOINT_FILES = rf"(\d+(\.orbax-checkpoint-tmp[^/]*)?/{_CHECKPOINT})?"
UNFINISHED_FILES = rf"(request\.json|{CHECKPOINTS}/{CHECKPOINT_FILES}|{re.escape(LOCK)})?"
_PART = r"(\.[0-9a-f]+)?\.(part|tmp)"  # how a file or folder ends that was not finished
_INSIDE = {
    WEIGHTS: r"(\d+\.safetensors)?",
    CHECKPOINTS: CHECKPOINT_FILES,
    RETRAINED: RETRAINED_FILES,
    SLIM: SLIM_FILES,
    RETRAINED + UNFINISHED_ENDING: UNFINISHED_FILES,
    SWEEP: (
        rf"([0-9.e-]+\.npz({_PART})?|[0-9.e-]+-{RETRAINED}({_PART})?/({RETRAINED_FILES})|"
        rf"[0-9.e-]+-{RETRAINED}{re.escape(UNFINISHED_ENDING)}/{UNFINISHED_FILES})?"
    ),
}
# What a run that was killed while writing can leave behind.
_NAMES = "|".join(map(re.escape, sorted(OURS)))
UNFINISHED = re.compile(rf"\.?({_NAMES}|\d+\.safetensors){_PART}")
# All that a run writes: what the path of a file matches, from the run's folder on.
WRITTEN = re.compile(
    "|".join(
        [
            rf"({_NAMES})/?",
            *(rf"{re.escape(name)}({_PART})?/({inside})" for name, inside in _INSIDE.items()),
            rf"({WEIGHTS}/)?{UNFINISHED.pattern}/?",
        ]
    )
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of metrics.jsonl: what was measured at a step. None is what is not known.

    Attributes:
        step: steps done, from 1.
        epoch: epochs done.
        loss: mean training loss since the record before; None where all those steps were skipped.
        learning_rate: the one of the last step.
        lam: λ in force, None before its first estimate.
        accuracy: of the dense network on held-out data, as a fraction.
        held_out_loss: of the dense network on held-out data.
        projected_accuracy: of the network projected on Γ's support, on held-out data.
        skipped: steps left out so far because their loss or gradient was not finite.
        seconds: training time so far, of all starts together.
        density: selected weights over structured weights.
        parameters: of the network at that step.

    Example:
        >>> Record.from_json({"step": 5, "epoch": 0.5, "loss": 2.3}).number("accuracy")
        nan
    """

    step: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    lam: float | None = None
    accuracy: float | None = None
    held_out_loss: float | None = None
    projected_accuracy: float | None = None
    skipped: int | None = None
    seconds: float | None = None
    density: float | None = None
    parameters: int | None = None

    def number(self, name: str) -> float:
        """Returns a field as a number, NaN where it is not known."""
        value = getattr(self, name)
        return math.nan if value is None else float(value)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Record":
        """The inverse of `to_json`, also of lines of other versions.

        Fields that are not there, as in older run folders, are None; others are left out.

        Raises:
            ValueError: it is no object of numbers, or lacks its step or epoch.
        """
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got {type(value).__name__}")
        found: dict[str, Any] = {name: value.get(name) for name in METRIC_NAMES}
        for name in ("step", "epoch"):
            if found[name] is None:
                raise ValueError(f"the field {name!r} is missing")
        for name, number in found.items():
            if isinstance(number, bool) or not isinstance(number, int | float | None):
                raise ValueError(f"{name!r} should be a number or null, got {number!r}")
        if not (math.isfinite(found["step"]) and math.isfinite(found["epoch"])):
            raise ValueError("step and epoch should be finite")
        return cls(**found)


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(Record))

_BUDGETS = {"groups": "channels or groups", "params": "parameters", "flops": "FLOPs"}


def budget_in_words(name: str, amount: float) -> str:
    """Returns what a run is to end with, as `TrainConfig.budget` has it.

    Example:
        >>> budget_in_words("flops", 0.25), budget_in_words("params", 20000)
        ('25 % of the FLOPs', '20,000 parameters')
    """
    noun = _BUDGETS.get(name, str(name))
    return f"{100 * amount:.4g} % of the {noun}" if amount < 1 else f"{amount:,} {noun}"
