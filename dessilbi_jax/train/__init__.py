"""Training runs: a configuration, a loop, checkpoints, and a folder that holds the outcome.

`TrainConfig` and the presets import nothing heavy; `fit`, which trains, and `load_params`, which
reads what it left, are loaded when they are asked for and need the extra `[train]`.

Example:
    >>> from dessilbi_jax import train
    >>> train.get_preset("demo").config.network
    'lenet300'
"""

import importlib
from typing import TYPE_CHECKING, Any

from dessilbi_jax.train.config import TrainConfig
from dessilbi_jax.train.presets import PRESETS, Preset, get_preset

if TYPE_CHECKING:
    from dessilbi_jax.train.checkpoint import load_params
    from dessilbi_jax.train.interrupt import Interrupted
    from dessilbi_jax.train.loop import fit

__all__ = [
    "PRESETS",
    "Interrupted",
    "Preset",
    "TrainConfig",
    "fit",
    "get_preset",
    "load_params",
]

_LATER = {"fit": "loop", "Interrupted": "interrupt", "load_params": "checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
