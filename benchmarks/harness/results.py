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


def command() -> str:
    """The command that runs, without what says nothing to a reader: where data and caches lie."""
    module = Path(sys.argv[0]).stem
    words = sys.argv[1:]
    shown = ["DIR" if words[i - 1 : i] in (["--data-dir"], ["--work"]) else w
             for i, w in enumerate(words)]  # fmt: skip
    return " ".join(["python", "-m", "benchmarks", module, *shown])


def write_json(file: Path, content: Any) -> Path:
    """Writes a file at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, file)
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


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The difference seed by seed, and the two-sided p of Student's paired t-test.

    p is None where it is not defined: fewer than two seeds, or differences that are all equal.
    """
    from scipy import stats

    gaps = np.subtract(ours, theirs)
    p = stats.ttest_rel(ours, theirs).pvalue if len(gaps) > 1 and np.ptp(gaps) > 0 else None
    return {**spread(gaps), "n": len(gaps), "p": None if p is None else float(f"{p:.2g}")}
