"""What every benchmark shares: where results go and what is written beside each number."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def write(name: str, result: dict[str, Any], started: float) -> Path:
    """Writes a result at once or not at all, with its command, machine and duration."""
    module = Path(sys.argv[0]).stem
    words = sys.argv[1:]
    # Where the data lay says nothing to a reader.
    words = ["DIR" if words[i - 1 : i] == ["--data-dir"] else w for i, w in enumerate(words)]
    command = " ".join(["python", "-m", f"benchmarks.{module}", *words])
    full = {
        "command": command,
        "machine": machine(),
        "seconds": round(time.time() - started, 1),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(full, indent=1) + "\n")
    os.replace(part, file)
    return file
