"""What a result hangs on: versions of packages, and the machine."""

import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Returns what a run is timed on.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'platform']
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(terse=True),
    }


def _cpu() -> str:
    """Returns the processor's name as the system gives it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of what the numbers of a result depend on.

    Example:
        >>> sorted(versions())
        ['dessilbi_jax', 'flax', 'jax', 'numpy', 'optax', 'python']
    """
    packages = ("jax", "optax", "flax", "numpy", "dessilbi_jax")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # used from a checkout
        return "not installed"
