"""Training runs: a configuration, a loop, checkpoints, and a folder that holds the outcome.

`TrainConfig` and the presets import nothing heavy; `fit`, which trains, `load_params` and
`checkpoints`, which read what it left, and what is made of that (`take_ticket`, `retrain`,
`make_slim`, `evaluate`, `interpret`) are loaded when they are asked for and need the extra
`[train]`.

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
    from dessilbi_jax.train.finished.evaluate import evaluate
    from dessilbi_jax.train.finished.interpret import interpret
    from dessilbi_jax.train.finished.make_slim import make_slim
    from dessilbi_jax.train.finished.retrain import retrain
    from dessilbi_jax.train.finished.sweep import sweep
    from dessilbi_jax.train.finished.take_ticket import take_ticket
    from dessilbi_jax.train.interrupt import Interrupted
    from dessilbi_jax.train.loop import fit
    from dessilbi_jax.train.run_folder.checkpoints import load_params
    from dessilbi_jax.train.run_folder.weights import checkpoints

__all__ = [
    "PRESETS",
    "Interrupted",
    "Preset",
    "TrainConfig",
    "checkpoints",
    "evaluate",
    "fit",
    "get_preset",
    "interpret",
    "load_params",
    "make_slim",
    "retrain",
    "sweep",
    "take_ticket",
]

_LATER = {
    "fit": "loop",
    "Interrupted": "interrupt",
    "load_params": "run_folder.checkpoints",
    "checkpoints": "run_folder.weights",
    "take_ticket": "finished.take_ticket",
    "retrain": "finished.retrain",
    "interpret": "finished.interpret",
    "make_slim": "finished.make_slim",
    "sweep": "finished.sweep",
    "evaluate": "finished.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
