"""Set-up of every test: eight virtual CPU devices, no network, signals as in a foreground shell."""

import atexit
import os
import shutil
import signal
import socket
import tempfile

# Eight devices share what cores there are: on a busy machine they meet late, and XLA ends a process
# whose devices have not met in 40 s, unless told to wait longer.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same small programs. The workers inherit the folder of the first process.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

# One program at a time: of many small ones in flight each can hold threads that another waits for.
jax.config.update("jax_cpu_enable_async_dispatch", False)

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: object) -> None:
    """Refuses every connection that leaves this machine, so that no test can need a network."""
    if self.family != socket.AF_UNIX:
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests may not use the network: connection to {address} refused")
    return _connect(self, address)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Blocks sockets other than loopback for the whole session."""
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _loopback_only)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def signals_act():
    """Signals act, also where the tests were started in the background and they are ignored."""
    acts = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    yield
    for number, act in before.items():
        signal.signal(number, act)


@pytest.fixture(autouse=True, scope="module")
def nothing_piles_up():
    """What one module has compiled is of no use to the next, and would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_in_haste():
    """For a few steps of small networks: optimising the programs would take longer than those."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
