"""Where a path ends, and what is said when it ends otherwise than asked."""

import dataclasses
import math
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from dessilbi_jax.stats import losses
from dessilbi_jax.stats.path import Trace
from dessilbi_jax.stats.problem import MAX_ITER, Problem
from dessilbi_jax.stats.result import PathResult, predicted


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where snapshots lie and what ends a path; the arguments of `lbi_path` of these names."""

    ts: Any = None
    nt: int = 100
    ratio: float | None = None
    t_max: float | None = None
    max_support: int | None = None
    until_all_entered: bool = False
    max_iter: int = MAX_ITER

    def __post_init__(self) -> None:
        for name, low in (("nt", 2), ("max_support", 1), ("max_iter", 1)):
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if self.ratio is not None and not 1 < self.ratio < math.inf:
            raise ValueError(f"ratio must be a finite number above 1, got {self.ratio}")
        if self.t_max is not None and not 0 < self.t_max < math.inf:
            raise ValueError(f"t_max must be a positive finite number, got {self.t_max}")
        if self.ts is not None:
            ts = np.asarray(self.ts, dtype=np.float64)
            fine = ts.ndim == 1 and ts.size and (ts > 0).all() and (np.diff(ts) > 0).all()
            if not (fine and np.isfinite(ts).all()):
                raise ValueError("ts must be positive finite times in increasing order")
            if self.t_max is not None:
                raise ValueError("give ts or t_max, not both: the last of ts is the end")

    def arguments(self, few_samples: bool, groups: int) -> dict[str, Any]:
        """Arguments of `path.run`; of `groups` groups."""
        out: dict[str, Any] = {
            "nt": self.nt,
            "ratio": float(self.ratio or (20 if few_samples else 100)),
            "t_max": math.inf if self.t_max is None else float(self.t_max),
            "max_iter": int(self.max_iter),
            "ts": None if self.ts is None else jnp.asarray(np.asarray(self.ts, np.float64)),
        }
        if self.max_support is not None:
            out["max_support"] = int(self.max_support)
        if self.until_all_entered:
            out["max_entered"] = groups
        return out


def tell_unfinished(trace: Trace, limits: Limits) -> None:
    """Warns where a path ended for want of steps."""
    if trace.n_iter >= limits.max_iter:
        warnings.warn(
            f"the path stopped after max_iter={limits.max_iter} steps, at t={trace.stop_time:.4g}; "
            "it is right up to there: raise max_iter, or lower kappa, ratio or t_max",
            ConvergenceWarning,
            stacklevel=4,
        )


def tell_early(out: PathResult, limits: Limits) -> None:
    """Raises where a path was to end before anything enters."""
    if limits.t_max is not None and limits.t_max < out.ts[0]:
        raise ValueError(
            f"the path ends at t_max={limits.t_max:.6g}, before the first entry at "
            f"t={out.ts[0]:.6g}; nothing is selected there: give a later t_max"
        )


def tell_separation(problem: Problem, X: Any, out: PathResult) -> None:
    """Warns where a plane separates the classes, so that coefficients have no limit."""
    eta = predicted(X, out.coefs, out.intercepts)
    if problem.loss is losses.BINOMIAL:
        right = problem.y[:, None] * eta > 0
    else:
        truth = problem.y[..., None] > 0
        right = np.where(truth, eta, -np.inf).max(0) > np.where(truth, -np.inf, eta).max(0)
    right = right[problem.w > 0]
    apart = right.all(axis=0)
    if apart.any():
        warnings.warn(
            f"the classes are separated perfectly from t={out.ts[apart.argmax()]:.4g} on: there "
            f"coefficients grow with t without limit, and the path was capped at "
            f"t={out.ts[-1]:.4g}; choose an earlier t",
            ConvergenceWarning,
            stacklevel=3,
        )
