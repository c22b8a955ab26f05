"""Set-up of every test: eight virtual CPU devices, no network, signals as in a foreground shell."""

import os
import signal
import socket

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest

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
    """Ctrl-C acts, also where the tests were started in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
