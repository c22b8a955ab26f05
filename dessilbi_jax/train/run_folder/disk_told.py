"""An error of the disk in a run: what is left of the run, and what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dessilbi_jax import run_files
from dessilbi_jax.train.run_folder.checkpoints import newest

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


@contextlib.contextmanager
def disk_told(out: Path) -> Iterator[None]:
    """Says of an error of the disk what is left and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        last = newest(out / run_files.CHECKPOINTS)
        then = "go on with --resume" if (out / run_files.CONFIG).exists() else "start it again"
        raise OSError(
            f"the run cannot be written ({_plain(error)}); last good checkpoint: "
            f"{last or 'none yet'}. Make room or give write permission, then {then}"
        ) from error


def _plain(error: OSError) -> OSError:
    """The same error in the system's own words: what to do is said by who catches it."""
    return OSError(error.errno, os.strerror(error.errno or 0), error.filename)
