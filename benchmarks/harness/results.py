"""Where results go, what is written beside each number, and how uncertain it is."""

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dessilbi_jax.files import write_atomically

RESULTS = Path(__file__).parents[1] / "results"


@functools.cache
def machine() -> dict[str, Any]:
    """The machine and the versions a number was measured with."""
    from importlib.metadata import version

    import jax

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    packages = ("jax", "jaxlib", "optax", "numpy")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


# Options that say nothing to a reader of a result: where data are, and which part was made last.
PLACES = ("--data-dir",)
UNTOLD = ("--work", "--share", "--results", "--out")


def command() -> str:
    """The command that made a result, without the folders of the machine."""
    words = iter([piece for word in sys.argv[1:] for piece in _parts(word)])
    told = ["python", "-m", "benchmarks", Path(sys.argv[0]).stem]
    for word in words:
        if word in UNTOLD:
            next(words, None)
        elif word in PLACES:
            next(words, None)
            told += [word, "DIR"]
        else:
            told.append(word)
    return " ".join(told)


def _parts(word: str) -> list[str]:
    """--name=value as two words."""
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def write_json(file: Path, content: Any) -> Path:
    """Writes a file at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(content, indent=1) + "\n")
    return file


def write(name: str, result: dict[str, Any], started: float, folder: Path | None = None) -> Path:
    """Writes a result with its command, machine and duration; into `RESULTS` by default."""
    full = {
        "command": command(),
        "machine": machine(),
        "seconds": round(time.time() - started, 1),
        **result,
    }
    return write_json((folder or RESULTS) / f"{name}.json", full)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    return {
        "mean": round(float(np.mean(values)), 3),
        "std": round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None,
        "values": [round(float(v), 3) for v in values],
    }


def independent(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The difference of two means that are not paired, and the two-sided p of Welch's t-test.

    std is that of the difference of single runs; p is None where it is not defined.
    """
    from scipy import stats

    enough = min(len(ours), len(theirs)) > 1
    std = float(np.hypot(np.std(ours, ddof=1), np.std(theirs, ddof=1))) if enough else None
    p = stats.ttest_ind(ours, theirs, equal_var=False).pvalue if std else None
    return {
        "mean": round(float(np.mean(ours) - np.mean(theirs)), 3),
        "std": None if std is None else round(std, 3),
        "n": min(len(ours), len(theirs)),
        "p": None if p is None else float(f"{p:.2g}"),
    }


def above(gaps: Sequence[float], bound: float, level: float = 0.05) -> str:
    """Whether a mean difference is above a bound: "yes", "no", or "undecided".

    By one-sided Student's t-tests of either side at the level; one difference decides nothing.
    """
    from scipy import stats

    if len(gaps) < 2:
        return "undecided"
    reach = stats.t.ppf(1 - level, len(gaps) - 1) * np.std(gaps, ddof=1) / np.sqrt(len(gaps))
    mean = float(np.mean(gaps))
    return "yes" if mean - reach > bound else "no" if mean + reach < bound else "undecided"


def holm(ps: Sequence[float]) -> list[float]:
    """p of several tests, each as Holm (1979) corrects it for all of them together."""
    order = np.argsort(ps)
    out, last = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        last = max(last, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = last
    return out


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The difference seed by seed, and the two-sided p of Student's paired t-test.

    p is None where it is not defined: fewer than two seeds, or differences that are all equal.
    """
    from scipy import stats

    gaps = np.subtract(ours, theirs)
    p = stats.ttest_rel(ours, theirs).pvalue if len(gaps) > 1 and np.ptp(gaps) > 0 else None
    return {**spread(gaps), "n": len(gaps), "p": None if p is None else float(f"{p:.2g}")}
