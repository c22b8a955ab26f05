"""What training cost."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """What was trained: steps, floating-point operations of dense training, and time.

    A step counts three forward passes. Weights at zero are counted too: the hardware computes
    with them.
    """

    steps: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __rmul__(self, times: float) -> "Cost":
        return Cost(*(times * each for each in dataclasses.astuple(self)))

    def __sub__(self, other: "Cost") -> "Cost":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a - b for a, b in zip(mine, theirs, strict=True)))
