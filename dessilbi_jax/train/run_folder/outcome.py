"""What result.json says of the end of a run."""

import math
from typing import Any

import numpy as np

import dessilbi_jax as dl
from dessilbi_jax.optimizer.state import has_lam
from dessilbi_jax.tickets.snapshot import observe
from dessilbi_jax.train.step import TrainState


def lam_in_force(state: TrainState) -> float | None:
    """Returns λ, None before the first automatic estimate."""
    split = dl.get_state(state.opt_state)
    return float(split.lam) if has_lam(split) else None


def lam_estimates(state: TrainState) -> list[list[float]]:
    """Returns every [step, λ]: the automatic estimates made, or [0, λ] of a λ that was given."""
    split = dl.get_state(state.opt_state)
    if isinstance(split.auto, tuple) and not split.auto:
        return [[0, float(split.lam)]]
    steps, lams = np.asarray(split.auto.steps), np.asarray(split.auto.lams)
    return [
        [step, lam] for step, lam in zip(steps.tolist(), lams.tolist(), strict=True) if step > 0
    ]


def selected_groups(state: TrainState) -> list[int]:
    """Returns how many groups are selected, and how many there are; one that spans leaves once."""
    seen = observe(dl.get_state(state.opt_state, merge=True))
    own = [chosen for path, chosen in seen.chosen.items() if path not in seen.ties]
    counts = [sum(int(chosen.sum()) for chosen in own), sum(chosen.size for chosen in own)]
    if seen.ties:
        numbers = np.concatenate([ties.ravel() for ties in seen.ties.values()])
        chosen = np.concatenate([seen.chosen[path].ravel() for path in seen.ties])
        counts[0] += np.unique(numbers[chosen]).size
        counts[1] += np.unique(numbers).size
    return counts


def groups_of_path(path: dl.SolutionPath) -> list[int]:
    """Returns the same of a path's last record: the state of a network that has been cut knows
    only of the groups that are left.
    """
    return list(path.ticket(at=int(path.steps[-1])).card["groups"])


def layers(path: dl.SolutionPath) -> list[dict[str, Any]]:
    """Returns what became of each structured leaf by the path's last record."""
    density = {name: float(values[-1]) for name, values in path.layer_density().items()}
    counts = {name: math.prod(units) for name, units in path.groups.items()}
    return [
        {
            "name": name,
            "shape": list(path.shapes[name]),
            "groups": counts[name],
            "selected_groups": round(density[name] * counts[name]),
            "density": density[name],
        }
        for name in path.groups
    ]
