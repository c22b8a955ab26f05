"""The method: split linearized Bregman iteration as Optax gradient transformations.

`step` is the method itself, (V, Γ) from one update to the next, to be read from top to bottom;
`alias` what users call; `chain` the parts of an optimizer around the step; `auto_lam` finds λ
inside a run; `calibration` and `diagnosis` answer what is asked of a run from outside; `kernels`
is another way to compute the same step.
"""

from dessilbi_jax.optimizer.alias import add_split_lbi, dessilbi, wrap
from dessilbi_jax.optimizer.asked import Auto, Settle, auto, settle
from dessilbi_jax.optimizer.calibration import calibrate, step_size_bound
from dessilbi_jax.optimizer.diagnosis import Diagnosis, diagnose
from dessilbi_jax.optimizer.reading import gamma, get_state, support
from dessilbi_jax.optimizer.settling import Settled
from dessilbi_jax.optimizer.state import SplitLBIState

__all__ = [
    "Auto",
    "Diagnosis",
    "Settle",
    "Settled",
    "SplitLBIState",
    "add_split_lbi",
    "auto",
    "calibrate",
    "dessilbi",
    "diagnose",
    "gamma",
    "get_state",
    "settle",
    "step_size_bound",
    "support",
    "wrap",
]
