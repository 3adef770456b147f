"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_directory(directory: str | Path, *, overwrite: bool = False) -> Generator[Path]:
    """A folder to fill, under a temporary name beside its place; it gets its name when the block ends without error.

    On an error or Ctrl-C nothing remains, and a folder that was there before is as it was.

    Args:
        directory: where the folder shall be.
        overwrite: replace what is there. Without it, a folder that holds something is refused at once.

    Raises:
        FileExistsError: something is there.
        PermissionError: the place cannot be written to.
    """
    directory = Path(directory)
    check_output(directory, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".part", dir=directory.parent))
    try:
        yield unfinished
        unfinished.chmod(_allowed(0o777))  # mkdtemp keeps others out
        if directory.exists():
            replaced = unfinished.with_suffix(".old")
            directory.rename(replaced)
            try:
                unfinished.rename(directory)
            except BaseException:
                replaced.rename(directory)
                raise
            shutil.rmtree(replaced)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_file(path: str | Path, data: bytes) -> Path:
    """Write a file, all of it or nothing; an existing one is replaced.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, _allowed(0o666))  # mkstemp keeps others out
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _allowed(mode: int) -> int:
    """What the umask leaves of it."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def check_output(directory: str | Path, *, overwrite: bool) -> None:
    """Refuse an output folder before any work is done.

    Raises:
        FileExistsError: it is a file, or holds something and `overwrite` is not set.
        PermissionError: it cannot be written to.
    """
    directory = Path(directory)
    if directory.is_file():
        raise FileExistsError(f"The output is a folder, but {directory} is a file. Give another path.")
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        raise FileExistsError(
            f"The output folder {directory} exists and is not empty. Give another one, or `--overwrite` "
            "(`overwrite=True`) to replace it."
        )
    existing = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise PermissionError(f"The output {directory} cannot be written: {existing} is not writable.")
