"""Memory that stays with the process, so that a training step on a CPU need not ask for it anew."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_OWN_CHOICE = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_")
_PLUGINS = ("jax_plugins", "libtpu")


def keep_memory() -> bool:
    """Has the C library keep what is freed, where JAX computes on a CPU; returns whether it does.

    XLA asks for the temporary memory of a compiled step at each call (300 MB for ResNet-20 at
    batch 128) and gives it back behind it. By default glibc maps such a block into the process
    and unmaps it again, and the system clears every page of it: that took a quarter of a step.
    Here blocks are taken from one heap that never shrinks. To be called before JAX computes
    anything, as `dessilbi` does; it acts on the whole process.

    Nothing is done without glibc, where JAX may find an accelerator, or where the environment
    chooses an allocator already (GLIBC_TUNABLES, LD_PRELOAD, MALLOC_ARENA_MAX, MALLOC_MMAP_MAX_).

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict("os.environ", MALLOC_ARENA_MAX="4"):
        ...     keep_memory()
        False
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN_CHOICE):
        return False
    if not _only_cpu():
        return False
    library = ctypes.CDLL(None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    done = [library.mallopt(name, value) for name, value in settings]
    return all(done)


def _only_cpu() -> bool:
    """Whether JAX will compute on the CPU: it is told to, or nothing else is installed."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen.split(",")[0] == "cpu"
    installed = importlib.metadata.entry_points(group="jax_plugins")
    return not installed and not any(importlib.util.find_spec(name) for name in _PLUGINS)
