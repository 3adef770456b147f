"""Folders and files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_directory(directory: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
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
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o777 & ~umask)  # mkdtemp keeps others out
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


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name beside its place, then renamed."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
