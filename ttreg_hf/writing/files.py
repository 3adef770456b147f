"""Files that appear whole or not at all, with the permissions that the user's umask leaves."""

import os
import tempfile
from pathlib import Path

from ttreg_hf.writing.disk import explaining_full_disk


def write_file(path: str | Path, data: bytes) -> Path:
    """Write a file, all of it or nothing; an existing one is replaced.

    Raises:
        OSError: the folder is missing or cannot be written to, or its disk is full.
    """
    path = Path(path)
    with explaining_full_disk(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, allowed(0o666))  # mkstemp keeps others out
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path


def open_to_others(folder: Path) -> None:
    """Give all files below the permissions that the umask leaves: safetensors, for one, keeps others out."""
    for parent, _, names in os.walk(folder):
        for name in names:
            os.chmod(os.path.join(parent, name), allowed(0o666))


def allowed(mode: int) -> int:
    """What the umask leaves of it."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask
