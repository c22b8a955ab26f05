"""From what the user gives to what is computed with: checks, labels, weights, standardisation."""

import dataclasses
import math
from typing import Any

import numpy as np
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import _check_sample_weight, column_or_1d

from dessilbi_jax.stats import losses
from dessilbi_jax.stats.design import Columns
from dessilbi_jax.stats.losses import Loss

MAX_ITER = 100_000


@dataclasses.dataclass(frozen=True)
class Problem:
    """A linear model to follow, on the host in float64.

    Attributes:
        loss: its family.
        columns: X.
        y: response over `y_unit`, centred; labels ±1; or one-hot (C, n).
        y_origin, y_unit: y of the Gaussian was y_origin + y_unit·y.
        w: weights of the samples, of sum 1.
        weight: their sum before that: how many samples they stand for.
        dtype: that of the path: float32 where X is, float64 otherwise.
        classes: the labels, None for the Gaussian.
        fit_intercept: whether there is an intercept.
    """

    loss: Loss
    columns: Columns
    y: np.ndarray
    y_origin: float
    y_unit: float
    w: np.ndarray
    weight: float
    dtype: np.dtype
    classes: np.ndarray | None
    fit_intercept: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coefficients, (p,) or (C, p)."""
        return (*self.y.shape[:-1], self.columns.x.shape[1])


def read(
    X: Any,
    y: Any,
    *,
    family: str = "gaussian",
    sample_weight: Any = None,
    fit_intercept: bool = True,
    scaled: str = "each",
    standardize_y: bool = True,
) -> Problem:
    """Checks a linear model's data and standardises them.

    Args:
        X: (n, p), dense or sparse.
        y: (n,) numbers for the Gaussian, labels of any kind otherwise.
        family: "gaussian", "binomial" or "multinomial".
        sample_weight: (n,), not negative; None: all 1.
        fit_intercept: whether there is an intercept, and X and y are centred.
        scaled: by what columns of X are divided, see `Columns`.
        standardize_y: whether y of the Gaussian is divided by its standard deviation.

    Raises:
        ValueError: as scikit-learn says it: NaN, wrong lengths, no samples; one class.
    """
    loss = losses.family(family)
    X = check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], input_name="X")
    y = column_or_1d(y, warn=True)
    check_consistent_length(X, y)
    sample_weight = _check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    weight = float(sample_weight.sum())
    if not weight > 0:
        raise ValueError("sample_weight must have a positive sum, got weights that are all zero")
    if np.count_nonzero(sample_weight) < 2:
        raise ValueError("n_samples=1: a path needs at least 2 samples")
    w = sample_weight / weight
    y, origin, unit, classes = coded(loss, y, w, fit_intercept, standardize_y)
    columns = Columns.of(X, w, centred=fit_intercept, scaled=scaled)
    return Problem(
        loss, columns, y, origin, unit, w, weight, np.dtype(X.dtype), classes, fit_intercept
    )


def coded(
    loss: Loss, y: Any, w: np.ndarray, fit_intercept: bool, standardize_y: bool
) -> tuple[np.ndarray, float, float, np.ndarray | None]:
    """y as the loss reads it, its origin and unit, and the classes."""
    if loss is losses.GAUSSIAN:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        origin = float(w @ y) if fit_intercept else 0.0
        z = y - origin
        unit = math.sqrt(w @ z**2)
        if unit <= 10 * np.finfo(np.float64).eps * np.abs(y).max():
            z, unit = np.zeros_like(z), 1.0
        unit = unit if standardize_y else 1.0
        return z / unit, origin, unit, None
    check_array(y, ensure_2d=False, dtype=None, input_name="y")
    classes, index = np.unique(y, return_inverse=True)
    present = np.unique(index[w > 0])
    if len(present) < 2:
        raise ValueError(
            f"This solver needs samples of at least 2 classes in the data, but the data contains "
            f"only one class: {classes.tolist()[present[0]]!r}"
        )
    if len(present) < len(classes):
        missing = classes[np.setdiff1d(np.arange(len(classes)), present)]
        raise ValueError(f"all samples of class {missing.tolist()[0]!r} have weight zero: leave them out")
    if loss is losses.BINOMIAL:
        if len(classes) > 2:
            raise ValueError(
                f"family='binomial' is for two classes, got {len(classes)}: {classes.tolist()[:5]}; "
                "use family='multinomial'"
            )
        return np.where(index == 1, 1.0, -1.0), 0.0, 1.0, classes
    return (np.arange(len(classes))[:, None] == index).astype(np.float64), 0.0, 1.0, classes


def group_numbers(groups: Any, p: int, of: str = "columns of X") -> np.ndarray | None:
    """A number 0, 1, … for each of p columns or rows from labels, in the order of the labels.

    Raises:
        ValueError: there is not one label for each.
    """
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (p,):
        raise ValueError(
            f"groups must give one label for each of the {p} {of}, got shape {labels.shape}"
        )
    return np.unique(labels, return_inverse=True)[1]
