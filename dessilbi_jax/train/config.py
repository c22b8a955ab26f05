"""What a training run is made of: one frozen dataclass, checked when it is built.

Nothing heavy is imported here, so that the command can show its help and its presets at once.
"""

import dataclasses
import math
from typing import Any, Literal

from dessilbi_jax.text import near_miss

STRUCTURES = (
    "filters",
    "weights",
    "neurons",
    "layers",
    "input_channels",
    "slices",
    "rows",
    "columns",
    "channels",
)
# Structures whose groups are channels or hidden units, so that less of them is less work.
REMOVABLE = ("channels", "filters", "neurons")
VARIANTS = ("paper", "toolbox")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine", "half", "step")
DTYPES = ("float32", "bfloat16")
NONFINITE = ("stop", "skip")
_SMALLEST, _LARGEST = 1.1754944e-38, 3.4028235e38  # of float32, without those that lose digits
_MOST_STEPS = 2**31 - 128  # updates that the counter of a run holds
BUDGETS = ("weights", "groups", "params", "flops")  # what `settle` can end with, besides a density


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every choice that the weights of a run depend on, besides the data and the machine.

    Two runs with equal configurations, on the same machine and versions, end with the same
    weights bit for bit.

    Attributes:
        network: name of a network of `dessilbi_jax.models`; None: the `model` given to `fit`.
        dataset: name of a data set of `dessilbi_jax.data`; None: the `data` given to `fit`.
        epochs: passes over the training data, at least 1.
        batch_size: images, or windows of text, a step, on all devices together; an incomplete last
            batch of an epoch is dropped.
        image_size: side in pixels that streamed images are cropped to; None: 224.
            Small images have the size they have.
        context: tokens of a window of text; None: 128.
        dtype: what the network computes in, "float32" or "bfloat16"; parameters, V and Γ are
            float32.
        remat: compute each block anew in the backward pass, which saves memory for time.
        widths: widths of the network's layers; None: those of the network's paper.
        learning_rate: the step that moves the weights W, at the start of the schedule.
        schedule: "constant", "cosine" (down to 0 at the end), "half" (constant for half of the
            run, then a cosine to 0), or "step".
        warmup: fraction of the run, in [0, 1), in which the rate rises from 0 to `learning_rate`
            in a straight line; the schedule begins behind it.
        drop_at: for "step": fractions of the run after which `drop_factor` multiplies the rate.
        drop_factor: for "step": the factor, in (0, 1).
        optimizer: "sgd" (with `momentum`) or "adam" (coupling after Adam's scaling).
        momentum: of sgd, in [0, 1); 0 is none. Adam ignores it.
        nesterov: Nesterov's form of the momentum, sgd only.
        weight_decay: 0 or more; with sgd as `variant` has it, with adam as AdamW has it.
        clip: largest norm of the gradient of the loss, all leaves together; longer ones are scaled
            down to it. None: none is.
        nonfinite: what a loss or gradient that is not finite does: "stop" the run with an error,
            or "skip" the step, which is counted.
        variant: where the coupling stands with sgd: "paper" before the momentum, "toolbox" after.
        kappa: damping κ of Γ, above 0.
        nu: coupling ν between W and Γ, above 0; larger is looser.
        lam: λ as a number above 0, or "auto": set inside the run so that `density` is reached.
        density: for lam="auto": selected elements over elements of structured leaves, in (0, 1].
            None with a numeric `lam`.
        at: for lam="auto": the fraction of the run at which `density` is reached, in (0, 1].
        settle: (begin, end), fractions of the run between which the support of W shrinks to exactly
            the budget; what leaves is zero from then on, and the rest trains on. None: W stays
            dense, and the path of Γ is all that the run knows.
        budget: (what, how much) `settle` ends with: "weights", "groups", "params" or "flops", as a
            share of the whole, above 0 and below 1, or as a number. None: `density`.
        cut: whether a network whose groups are channels is cut where settling ends, inside the
            run, so that the rest of it costs what the smaller network costs.
        grow: epochs between two looks at which layers Γ has selected nearly all channels of, which
            then get more, as `Grower` has it; None: widths stay. The learning rate is constant
            until `grow_until`, and the schedule is that of the rest of the run. λ = "auto" then
            means that groups enter whose weights the loss keeps large, not `density`.
        grow_until: fraction of the run, in (0, 1), from which on nothing grows any more.
        grow_add: fewest channels that a layer grows by.
        grow_limit: most channels of a layer; None: there is none.
        structure: what a group is: "filters" (convolutions by output filter, dense kernels by
            weight), "weights", "neurons", "layers", "input_channels", "slices", "rows",
            "columns", or "channels": all that makes a removable channel or hidden unit, across
            kernel, bias, normalisation and branches, so that a ticket can be cut out.
        sqrt_size: weigh the threshold of a group by the square root of its size, so that groups of
            very different sizes, such as heads and hidden units, can be compared.
        lean: keep no Γ in the state, only what it takes to rebuild it.
        augment: random crops and horizontal flips of small training images. Streamed ones are
            always cropped and flipped.
        holdout: fraction of the training images held out for the accuracies of the record, in
            (0, 0.5]. The test images are used once, at the end.
        records_per_epoch: records of the solution path in an epoch, besides the early ones.
        keep_every: epochs between the parameters that are kept to rewind a ticket to; 0 keeps
            only those of the start and of the end.
        init: 16 hexadecimal digits that stand for the weights the run starts from, as `fit` fills
            them in for its `init`; None: they are drawn anew.
        seed: of the initial weights, the held-out images, the order of the batches, augmentation.

    Raises:
        ValueError: a value is out of its range, not finite, or does not go with another one.
        TypeError: a value is of the wrong type.

    Example:
        >>> config = TrainConfig(network="lenet300", dataset="digits", epochs=2)
        >>> config.nu, config.lam, config.density
        (20.0, 'auto', 0.05)
        >>> TrainConfig(network="lenet300", dataset="digits", epochs=2, nu=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: nu must be a finite number above 0, got -1.0
    """

    network: str | None
    dataset: str | None
    epochs: int
    batch_size: int = 128
    widths: tuple[int, ...] | None = None
    image_size: int | None = None
    context: int | None = None
    dtype: str = "float32"
    remat: bool = False
    learning_rate: float = 0.05
    schedule: str = "constant"
    warmup: float = 0.0
    drop_at: tuple[float, ...] = (0.5, 0.75)
    drop_factor: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float | None = None
    nonfinite: str = "stop"
    variant: Literal["paper", "toolbox"] = "toolbox"
    kappa: float = 1.0
    nu: float = 20.0
    lam: float | Literal["auto"] = "auto"
    density: float | None = 0.05
    at: float = 1.0
    settle: tuple[float, float] | None = None
    budget: tuple[str, float] | None = None
    cut: bool = True
    grow: int | None = None
    grow_until: float = 0.5
    grow_add: int = 8
    grow_limit: int | None = None
    structure: str = "filters"
    sqrt_size: bool = False
    lean: bool = False
    augment: bool = False
    holdout: float = 0.1
    records_per_epoch: int = 1
    keep_every: int = 1
    init: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("network", "dataset"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} must be a name or None, got {value!r}")
        for name in ("epochs", "batch_size", "records_per_epoch", "grow_add"):
            _integer(name, getattr(self, name), least=1, most=_MOST_STEPS)
        _integer("keep_every", self.keep_every, least=0)
        _integer("seed", self.seed, least=0, most=2**63 - 1)
        for name in ("learning_rate", "kappa", "nu"):
            _number(name, getattr(self, name))
        for name in ("image_size", "context", "grow", "grow_limit"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), least=1)
        for name in ("nesterov", "lean", "augment", "remat", "sqrt_size", "cut"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("dtype", self.dtype, DTYPES)
        _choice("nonfinite", self.nonfinite, NONFINITE)
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("variant", self.variant, VARIANTS)
        _choice("structure", self.structure, STRUCTURES)
        _number("weight_decay", self.weight_decay, zero=True)
        _number("warmup", self.warmup, zero=True, below=1.0)
        if self.clip is not None:
            _number("clip", self.clip)
        _number("momentum", self.momentum, zero=True, below=1.0)
        _number("drop_factor", self.drop_factor, below=1.0)
        _number("at", self.at, most=1.0)
        _number("holdout", self.holdout, most=0.5)
        _number("grow_until", self.grow_until, below=1.0)
        for fraction in self.drop_at:
            _number("drop_at", fraction, below=1.0)
        if self.widths is not None:
            for width in self.widths:
                _integer("widths", width, least=1)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Checks the values that depend on one another."""
        if isinstance(self.lam, str):
            if self.lam != "auto":
                raise ValueError(f"lam must be a number above 0 or 'auto', got {self.lam!r}")
            if self.density is None:
                raise ValueError("lam='auto' needs a density in (0, 1], got None")
            _number("density", self.density, most=1.0)
        else:
            _number("lam", self.lam)
            if self.density is not None:
                raise ValueError(
                    f"density={self.density} is what lam='auto' aims at and has no meaning with "
                    f"lam={self.lam}: give one of the two"
                )
        if self.settle is not None:
            _check_settle(self.settle, self.density if self.budget is None else 1.0)
        if self.budget is not None:
            self._check_budget()
        if self.grow is not None:
            self._check_growth(self.grow)
        if self.optimizer == "adam" and self.variant != "toolbox":
            raise ValueError(
                "variant='paper' is about the momentum of sgd; with optimizer='adam' the "
                "coupling stands after Adam's scaling: leave variant out"
            )
        if self.nesterov and (self.optimizer == "adam" or not self.momentum):
            raise ValueError("nesterov=True needs optimizer='sgd' and a momentum above 0")

    def _check_growth(self, every: int) -> None:
        """Checks that there is time to grow, and that nothing settles meanwhile."""
        if self.network is None:
            raise ValueError(
                "a run grows networks of dessilbi_jax.models, which are built from widths: grow "
                "one of your own by dl.grow in your own loop, or leave out grow"
            )
        if self.structure not in REMOVABLE:
            raise ValueError(
                f"a network grows by channels, which structure={self.structure!r} does not select: "
                f"take one of {', '.join(REMOVABLE)}"
            )
        if every > self.grow_until * self.epochs:
            raise ValueError(
                f"the network is looked at every {every} epochs, and grows in the first "
                f"{self.grow_until:g} of {self.epochs} epochs: that is never; give more epochs, "
                "a smaller grow or a later grow_until"
            )
        if self.budget is not None and isinstance(self.budget[1], int):
            raise ValueError(
                f"{self.budget[0]}={self.budget[1]} is a number, and how large the network will "
                "be is not known before it has grown: give a share of it, such as 0.5"
            )
        if self.settle is not None and self.settle[0] < self.grow_until:
            raise ValueError(
                f"settling would begin at {self.settle[0]:g} of the run, while it grows until "
                f"{self.grow_until:g}: let settle begin there or later"
            )

    def _check_budget(self) -> None:
        """Checks what the run is to end with."""
        if not isinstance(self.budget, tuple) or len(self.budget) != 2:
            raise TypeError(f"budget must be (what, how much), got {self.budget!r}")
        name, amount = self.budget
        _choice("the budget", name, BUDGETS)
        whole = isinstance(amount, int) and not isinstance(amount, bool)
        if not (amount >= 1 if whole else isinstance(amount, float) and 0 < amount < 1):
            raise ValueError(
                f"{name} must be a share of the whole, above 0 and below 1, or a whole number of "
                f"at least 1, got {amount!r}"
            )
        if self.settle is None:
            raise ValueError(
                f"{name}={amount} is what a settled run ends with, but settle is None: give the "
                "moments between which W becomes sparse, such as (0.1, 0.75)"
            )
        if name == "flops" and self.structure != "channels":
            raise ValueError(
                f"flops={amount} are those of a network whose channels leave, but the structure is "
                f"{self.structure!r}: take structure='channels', or another budget"
            )

    @property
    def cuts(self) -> bool:
        """Whether the network is cut inside the run."""
        return self.cut and self.settle is not None and self.structure == "channels"

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values, in the order of the definition."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TrainConfig":
        """Rebuilds a configuration from `to_json`'s result.

        Example:
            >>> config = TrainConfig(network="lenet5", dataset="mnist", epochs=1, widths=(4, 8, 16))
            >>> TrainConfig.from_json(config.to_json()) == config
            True
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"unknown fields of a configuration: {', '.join(unknown)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Returns one line 'name: old value, now new value' for each field that differs.

    Example:
        >>> a = TrainConfig(network="lenet300", dataset="digits", epochs=2)
        >>> differences(a, dataclasses.replace(a, nu=50.0))
        ['nu: 20.0, now 50.0']
    """
    pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)]
    return [f"{name}: {a!r}, now {b!r}" for name, a, b in pairs if a != b]


def _check_settle(settle: Any, density: float | None) -> None:
    """Raises unless these are two moments of a run that has a density to end with."""
    if not isinstance(settle, tuple) or len(settle) != 2:
        raise TypeError(f"settle must be (begin, end), fractions of the run, got {settle!r}")
    begin, end = settle
    _number("the begin of settle", begin, zero=True, below=1.0)
    _number("the end of settle", end, most=1.0)
    if begin >= end:
        raise ValueError(f"settle must begin before it ends, got {begin:g}:{end:g}")
    if density is None:
        raise ValueError("settle ends with the density that lam='auto' aims at; there is none")


def _number(
    name: str,
    value: Any,
    *,
    zero: bool = False,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    """Raises unless `value` is finite, above 0 (or 0 where allowed) and within its upper limit."""
    upper = f" and below {below:g}" if below < math.inf else ""
    upper = f" and at most {most:g}" if most < math.inf else upper
    wanted = f"{name} must be a finite number {'of at least 0' if zero else 'above 0'}{upper}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{wanted}, got {value!r}")
    low = value >= 0 if zero else value > 0
    if not (math.isfinite(value) and low and value < below and value <= most):
        raise ValueError(f"{wanted}, got {value!r}")
    if value and not _SMALLEST <= value <= _LARGEST:
        raise ValueError(
            f"{name} must be a number that float32 holds, from {_SMALLEST:.2g} to {_LARGEST:.2g}, "
            f"got {value!r}"
        )


def _integer(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    """Raises unless `value` is an integer of at least `least` and at most `most`."""
    over = most is not None and isinstance(value, int) and value > most
    upper = f" and at most {most}" if over else ""
    wanted = f"{name} must be an integer of at least {least}{upper}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wanted)
    if value < least or over:
        raise ValueError(wanted)


def _plain(value: Any) -> Any:
    """The value with NumPy's scalars as Python's, and lists as tuples."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 1) else value


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        hint = near_miss(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")
