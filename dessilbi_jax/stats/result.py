"""A path that can be asked: coefficients and support at any t, when what entered, a picture."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dessilbi_jax.stats.groups import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, repr=False)
class PathResult:
    """A path of coefficients over t, from none to many.

    Attributes:
        ts: times of the T snapshots.
        coefs: (p, T), or (C, p, T) for C classes, in the units of X and y.
        intercepts: (T,) or (C, T).
        dual: V, in the shape of `coefs`; Γ = κ·prox(V) are coefficients of the standardised X.
        entry_times: when each first became nonzero, inf if it never did: (p,), (C, p), or one a
            group, in the order of the sorted labels.
        entry_signs: the sign it had then, 0 if it never came; shape (p,) or (C, p).
        order: coefficients, or groups, from the first that entered to the last, numbered from 0
            (of (C, p) row by row); then those that never did, the nearest first.
        kappa: κ; inf for the inverse scale space.
        alpha: length of a step; 0 for the inverse scale space.
        n_iter: steps made.
    """

    ts: np.ndarray
    coefs: np.ndarray
    intercepts: np.ndarray
    dual: np.ndarray
    entry_times: np.ndarray
    entry_signs: np.ndarray
    order: np.ndarray
    kappa: float
    alpha: float
    n_iter: int
    _groups: Groups = dataclasses.field(kw_only=True)
    _factor: np.ndarray = dataclasses.field(kw_only=True)  # from Γ to the units of X and y
    _centre: np.ndarray = dataclasses.field(kw_only=True)  # means of the columns of X

    def __repr__(self) -> str:
        entered = int(np.isfinite(self.entry_times).sum())
        return (
            f"{type(self).__name__}(t from {self.ts[0]:.4g} to {self.ts[-1]:.4g} in "
            f"{len(self.ts)} snapshots, {entered} of {self.entry_times.size} entered, "
            f"kappa={self.kappa:g}, {self.n_iter} steps)"
        )

    def at(self, t: float) -> np.ndarray:
        """Coefficients at t, (p,) or (C, p), in the units of X and y.

        V is interpolated between the snapshots on either side, and shrunk; before the first entry
        all are zero.

        Raises:
            ValueError: t is not positive, or behind the end of the path.
        """
        v = self._between(self.dual, t)
        out: np.ndarray = self.kappa * self._groups.shrunk_on_host(v) * self._factor
        return out.astype(self.coefs.dtype)

    def intercept_at(self, t: float) -> Any:
        """The intercept at t, a number or (C,). Raises as `at` does."""
        centred = self.intercepts + np.einsum("...pt,p->...t", self.coefs, self._centre)
        return self._between(centred, t) - self.at(t) @ self._centre

    def support(self, t: float) -> np.ndarray:
        """Which coefficients are selected at t, bool (p,) or (C, p). Raises as `at` does."""
        return self.at(t) != 0

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws all coefficients over t, on a logarithmic axis; returns the axes.

        Args:
            ax: Matplotlib's axes, None for new ones.
        """
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(layout="constrained").subplots()
        for line in self.coefs.reshape(-1, self.coefs.shape[-1]):
            if line.any():
                ax.plot(self.ts, line, lw=1, drawstyle=self._drawn)
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)
        ax.set(xscale="log", xlabel="t", ylabel="coefficient")
        return ax

    _drawn = "default"

    def _place(self, t: float) -> tuple[int, int, float]:
        """Snapshots before and after t, and the share of the way between them."""
        t = float(t)
        end = float(self.ts[-1])
        if not 0 < t <= end * (1 + 1e-6):
            raise ValueError(f"t must lie in (0, {end:.6g}], where the path was followed, got {t}")
        if t <= self.ts[0]:
            return 0, 0, 0.0
        right = min(int(np.searchsorted(self.ts, t)), len(self.ts) - 1)
        left = right - 1
        gap = float(self.ts[right]) - float(self.ts[left])
        return left, right, min((t - float(self.ts[left])) / gap, 1.0) if gap else 1.0

    def _between(self, along: np.ndarray, t: float) -> np.ndarray:
        left, right, share = self._place(t)
        out: np.ndarray = (1 - share) * along[..., left] + share * along[..., right]
        return out * min(1.0, t / float(self.ts[0])) if along is self.dual else out


@dataclasses.dataclass(frozen=True, repr=False)
class ExactPath(PathResult):
    """A path of the inverse scale space: constant between knots, where V turns."""

    _drawn = "steps-post"

    def at(self, t: float) -> np.ndarray:
        """Coefficients at t, those of the last knot up to it; zero before the first.

        Raises:
            ValueError: t is not positive, or behind the end of the path.
        """
        return self.coefs[..., self._knot(t)] * (t >= self.ts[0])

    def intercept_at(self, t: float) -> Any:
        """The intercept at t. Raises as `at` does."""
        known = self.intercepts[..., self._knot(t)]
        return known + (self.coefs[..., self._knot(t)] - self.at(t)) @ self._centre

    def _knot(self, t: float) -> int:
        self._place(t)
        return max(int(np.searchsorted(self.ts, t, side="right")) - 1, 0)


def predicted(X: Any, coefs: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """η at each snapshot, (n, T) or (C, n, T).

    Args:
        X: (n, p), dense or sparse, as given.
        coefs, intercepts: of a path.
    """
    rows = coefs if coefs.ndim > 2 else coefs[None]
    eta = np.stack([np.asarray(X @ row) for row in rows])
    return (eta if coefs.ndim > 2 else eta[0]) + intercepts[..., None, :]


def bic(deviance: np.ndarray, df: np.ndarray, n: float, per_df: float | None = None) -> np.ndarray:
    """Deviance + log n · df of each snapshot; inf where df reaches n/2, which fits anything.

    Args:
        deviance: −2 log likelihood.
        df: number of coefficients that are not zero.
        n: number of samples.
        per_df: what one coefficient costs; log n by default, 2 for Akaike's criterion.
    """
    cost = math.log(n) if per_df is None else per_df
    return np.where((df > 0) & (df > n / 2), np.inf, deviance + cost * df)
