"""Whether JAX can compute here at all, told in a user's words where it cannot."""

import contextlib
import os
import re
import sys

import jax


def problem() -> str | None:
    """Returns why JAX has no device, None where it has one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = os.environ.get("JAX_PLATFORMS") or jax.config.read("jax_platforms")
        what = f"JAX_PLATFORMS={chosen}" if chosen else "JAX"
        why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"{what} finds no device here{why}: unset JAX_PLATFORMS or set it to cpu; for a GPU "
            "install jax[cuda12] and its driver"
        )
    return None


def wrong_flags() -> str | None:
    """Returns what XLA would end the process for in XLA_FLAGS, None if it takes them.

    XLA does not raise: it prints a line and aborts. So a child of this process, made before JAX
    has begun anything, tries them first.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags.strip() or not hasattr(os, "fork"):
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.dup2(theirs, 2)
            os.close(ours)
            jax.config.update("jax_platforms", "cpu")
            jax.devices()
        os._exit(0)
    os.close(theirs)
    with open(ours, errors="replace") as stream:
        text = stream.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        return None
    lines = [line for line in text.splitlines() if re.search(r"flag", line, re.IGNORECASE)]
    why = re.sub(r"^F\S* .*?\] ", "", lines[0]) if lines else "XLA ended"
    return f"XLA_FLAGS={flags} cannot be used ({why}): correct it or unset it"
