"""How well a path selects and estimates, and means over seeds with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs, one truly selected and one not, that the scores order right.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    ranks = stats.rankdata(scores)
    k = int(truth.sum())
    return float((ranks[truth].sum() - k * (k + 1) / 2) / (k * (len(truth) - k)))


def early(times: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores of what enters at times in an order that also ranks those that never did.

    >>> early(np.array([np.inf, 1.0, np.inf]), np.array([1, 2, 0])).tolist()
    [0.0, 2.0, 1.0]
    """
    scores = np.empty(len(times))
    scores[order] = np.arange(len(order))[::-1]
    return scores


def least_relative_error(coefs: np.ndarray, truth: np.ndarray) -> float:
    """min over the path of ‖β̂ − β‖/‖β‖, of coefficients (p, T)."""
    return float((np.linalg.norm(coefs - truth[:, None], axis=0) / np.linalg.norm(truth)).min())


def interval(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Mean, and the half-width of its 95 % interval by Student's t over seeds."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else None
    return {
        "mean": round(float(np.mean(values)), digits),
        "half": None if half is None else round(float(half), digits),
        "values": [round(float(v), digits) for v in values],
    }


def summary(rows: dict[str, dict[str, list[float]]], against: str | None) -> list[dict[str, Any]]:
    """Rows of a table: by method and measure the interval, and that of the difference to a bar.

    Args:
        rows: by method, by measure, the values of all seeds.
        against: the method that is the bar; None: there is none.
    """
    out = []
    for method, measures in rows.items():
        line: dict[str, Any] = {"method": method}
        for name, values in measures.items():
            line[name] = interval(values)
            bar = rows[against].get(name) if against else None
            if bar is not None and method != against and name != "seconds":
                line[name]["minus bar"] = interval(list(np.subtract(values, bar)))
        out.append(line)
    return out
