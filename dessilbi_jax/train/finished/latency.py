"""How long calls take, measured in turns so that what else the machine does meets all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_SAMPLE = 2e-3  # seconds a sample lasts at least: the clock and the loop cost nothing beside it
_LEAST, _MOST = 9, 200


def measure(
    calls: Mapping[str, Callable[[], Any]], seconds: float = 2.0
) -> dict[str, dict[str, float]]:
    """Returns the time a call takes, for each of several compiled functions.

    The functions take turns: one sample of each, then the next, in an order that changes. A sample
    is as many calls as last some milliseconds.

    Args:
        calls: by name, a function without arguments; its result is waited for.
        seconds: time to spend, about.

    Returns:
        By name: `median`, `low` and `high` (the quartiles), in seconds a call, and `samples`.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(3)
        >>> found = measure({"add": lambda: x + 1}, seconds=0.01)
        >>> found["add"]["low"] <= found["add"]["median"] <= found["add"]["high"]
        True
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())  # compiles
        once = min(_timed(call, 1) for _ in range(3))
        repeats[name] = max(1, int(np.ceil(_SAMPLE / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, began, rounds = list(calls), time.perf_counter(), 0
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() - began < seconds):
        order = order[1:] + order[:1]
        for name in order:
            samples[name].append(_timed(calls[name], repeats[name]))
        rounds += 1
    out = {}
    for name, times in samples.items():
        low, median, high = np.percentile(times, [25, 50, 75]).tolist()
        out[name] = {"median": median, "low": low, "high": high, "samples": len(times)}
    return out


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Returns the seconds that a call takes, over some."""
    began = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / repeats
