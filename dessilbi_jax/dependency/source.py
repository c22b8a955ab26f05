"""Which line of the user's code an equation comes from."""

import functools
import os
from typing import Any

_LIBRARIES = ("jax", "flax", "equinox", "haiku", "jaxtyping")


@functools.cache
def _is_library(path: str) -> bool:
    parts = path.replace(os.sep, "/").split("/")
    return path.startswith("<frozen") or any(
        f"/site-packages/{name}/" in f"/{'/'.join(parts)}" for name in _LIBRARIES
    )


def user_line(traceback: Any) -> str:
    """The innermost line outside JAX and the libraries on it; empty where there is none."""
    for frame in traceback.frames if traceback is not None else ():
        if not _is_library(frame.file_name):
            function = getattr(frame, "function_name", "").rpartition(".<locals>.")[2]
            return f"{os.path.basename(frame.file_name)}:{frame.line_num} ({function})"
    return ""
