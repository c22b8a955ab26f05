"""What the process keeps is not asked for again."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# Five times 64 MB, written to; how often the system had to find a page.
FAULTS = """
import resource
from dessilbi_jax.train.devices.allocator import keep_memory
kept = {keep}
def take():
    return len(b"x" * (64 << 20))
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    take()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(monkeypatch, keep, **env):
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    words = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_pages_are_kept(monkeypatch):
    glibc = platform.libc_ver()[0] == "glibc"
    _, before = run(monkeypatch, "None", JAX_PLATFORMS="cpu")
    kept, faults = run(monkeypatch, "keep_memory()", JAX_PLATFORMS="cpu")
    assert kept == glibc
    assert not glibc or faults < 0.1 * before


@pytest.mark.parametrize(
    "env", [{"JAX_PLATFORMS": "cuda,cpu"}, {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"}]
)
def test_other_choices_stand(monkeypatch, env):
    assert run(monkeypatch, "keep_memory()", **env)[0] is False
