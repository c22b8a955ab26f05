"""Learning rates over a run, by name."""

from collections.abc import Sequence

import optax

from dessilbi_jax.train.config import SCHEDULES


def schedule(
    kind: str,
    peak: float,
    steps: int,
    *,
    warmup: float = 0.0,
    drop_at: Sequence[float] = (),
    drop_factor: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    Args:
        kind: "constant", "cosine", "half" or "step", as `TrainConfig.schedule` has them.
        peak: the highest rate.
        steps: updates in the whole run.
        warmup: fraction of the run, in [0, 1), in which the rate rises to `peak` in a straight
            line; the schedule begins behind it.
        drop_at: for "step": fractions of the run (behind the warmup) where the rate drops.
        drop_factor: for "step": what it is multiplied by there.

    Raises:
        ValueError: there is no schedule of that name.

    Example:
        >>> rate = schedule("half", 0.1, 100)
        >>> [round(float(rate(step)), 6) for step in (0, 49, 75, 100)]
        [0.1, 0.1, 0.05, 0.0]
    """
    rising = round(warmup * steps)
    if rising:
        rise = optax.linear_schedule(0.0, peak, rising)
        after = schedule(kind, peak, steps - rising, drop_at=drop_at, drop_factor=drop_factor)
        # The first update is not of rate 0, which would be lost.
        return optax.join_schedules([lambda step: rise(step + 1), after], [rising])
    if kind == "constant":
        return optax.constant_schedule(peak)
    if kind == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    if kind == "half":
        half = steps // 2
        falling = optax.cosine_decay_schedule(peak, steps - half)
        return optax.join_schedules([optax.constant_schedule(peak), falling], [half])
    if kind == "step":
        drops: dict[int, float] = {}
        for fraction in drop_at:
            boundary = int(fraction * steps)
            drops[boundary] = drops.get(boundary, 1.0) * drop_factor
        return optax.piecewise_constant_schedule(peak, drops)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
