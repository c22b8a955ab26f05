"""What in a folder a run wrote, and what is somebody else's: only the former is deleted."""

import os
import re
from collections.abc import Sequence
from pathlib import Path


def foreign(folder: Path, own: re.Pattern[str]) -> list[str]:
    """Returns what is in a folder, at any depth, besides files of the names `own`.

    Args:
        folder: the folder; links in it are not followed.
        own: what the paths of our files match as a whole, from `folder` on, with `/`. An empty
            folder's path ends with `/`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as there:
        ...     for name in ("0.bin", "12.bin", "mine.bin"):
        ...         _ = Path(there, name).write_text("")
        ...     foreign(Path(there), re.compile(r"[0-9]+[.]bin"))
        ['mine.bin']
    """
    return [name for name in _listed(folder) if not own.fullmatch(name)]


def remove_own(folder: Path, own: re.Pattern[str], last: Sequence[str] = ()) -> None:
    """Deletes the files in a folder whose names `own` matches, and folders that are empty then.

    Args:
        folder: the folder, which stays; links in it are deleted and not followed.
        own: as `foreign` has it.
        last: what goes after all else, in this order.

    Raises:
        OSError: something cannot be deleted.
    """
    names = [name for name in _listed(folder) if own.fullmatch(name)]
    for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
        path = folder / name
        if name.endswith("/"):
            path.rmdir()
        else:
            path.unlink()
        for above in path.parents:
            if above == folder or any(above.iterdir()):
                break
            above.rmdir()


def _listed(folder: Path) -> list[str]:
    """The paths of all files, links and empty folders (with `/` at the end) below a folder."""
    found = []
    for place, folders, names in os.walk(folder):
        above = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(above / name).as_posix() for name in [*names, *links]]
        if not folders and not names and place != str(folder):
            found.append(f"{above.as_posix()}/")
    return sorted(found)
