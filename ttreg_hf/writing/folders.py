"""Output folders that appear whole or not at all. What they cannot replace is found out before the work."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ttreg_hf.writing.claims import REPLACED, claimed
from ttreg_hf.writing.disk import check_space, explaining_full_disk
from ttreg_hf.writing.files import open_to_others
from ttreg_hf.writing.made_files import foreign_files, record_made_files


@contextmanager
def whole_directory(directory: str | Path, *, overwrite: bool = False) -> Generator[Path]:
    """A folder to fill, beside its place; it gets there when the block ends without error.

    On an error or Ctrl-C nothing remains, and a folder that was there before is as it was. A finished folder is never
    lost: if something has appeared at its place meanwhile, that stays, and the error says where the finished one lies.

    Args:
        directory: where the folder shall be. No other process may be writing it.
        overwrite: replace what this package made there. Without it, a folder that holds something is refused at once.

    Raises:
        FileExistsError: something is there, or appeared, or is being written by another process.
        PermissionError: the place cannot be written to.
        OSError: the disk is full.
    """
    check_output(directory, overwrite=overwrite)
    place = Path(os.path.abspath(directory))
    place.parent.mkdir(parents=True, exist_ok=True)
    with explaining_full_disk(place.parent), claimed(place) as work:
        unfinished = work / "finished"
        unfinished.mkdir()
        yield unfinished
        record_made_files(unfinished)
        open_to_others(unfinished)
        _put(unfinished, place, overwrite=overwrite)


def check_output(directory: str | Path, *, overwrite: bool) -> None:
    """Refuse an output folder before any work is done.

    Raises:
        FileExistsError: it is a file, a link, a mount point or the current folder; or it holds something and
            `overwrite` is not set, or something that this package did not make.
        PermissionError: it cannot be written to.
        OSError: its disk is full.
    """
    place = Path(os.path.abspath(directory))
    if place.is_symlink():
        raise FileExistsError(f"The output is a folder, but {directory} is a link to {os.readlink(place)}. Give that.")
    if place.exists() and not place.is_dir():
        raise FileExistsError(f"The output is a folder, but {directory} is a file. Give another path.")
    is_here, is_mount = Path.cwd().is_relative_to(place), os.path.ismount(place)
    if is_here or is_mount:
        what = "the current folder, or holds it" if is_here else "a mount point"
        raise FileExistsError(
            f"The output folder appears as a whole, but {directory} is {what}, which cannot be replaced. Give a "
            f"folder below it, such as {Path(directory) / 'result'}."
        )
    if place.is_dir() and any(place.iterdir()):
        _check_replaceable(place, directory, overwrite=overwrite)
    check_writable(place)


def check_writable(directory: str | Path) -> None:
    """Refuse a folder, which need not be there yet, in which no file can be written.

    Raises:
        PermissionError: it cannot be written to.
        OSError: its disk is full.
    """
    place = Path(os.path.abspath(directory))
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise PermissionError(f"The output {directory} cannot be written: {existing} is not writable.")
    check_space(existing)


def _check_replaceable(place: Path, directory: str | Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"The output folder {directory} exists and is not empty. Give another one, or `--overwrite` "
            "(`overwrite=True`) to replace it."
        )
    if foreign := foreign_files(place):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise FileExistsError(
            f"Overwriting replaces what ttreg made, but {directory} holds {foreign[0]}{more}, which it did not make. "
            "Move that away, or give another path."
        )


def _put(finished: Path, place: Path, *, overwrite: bool) -> None:
    """Rename a finished folder to its place, which takes it at once or not at all."""
    try:
        if overwrite and place.is_dir():
            _replace(place, finished)
        else:
            os.rename(finished, place)  # onto an empty folder too; never onto one that holds something
    except BaseException as error:
        kept = _free_name(place)
        finished.rename(kept)
        if not isinstance(error, OSError):
            raise
        raise FileExistsError(
            f"The output is finished, but {place} could not take it: {error.strerror or error} What is there was left "
            f"as it is. The finished output lies in {kept}."
        ) from error


def _replace(place: Path, finished: Path) -> None:
    replaced = finished.with_name(REPLACED)
    place.rename(replaced)
    try:
        if any(replaced.iterdir()):
            _check_replaceable(replaced, place, overwrite=True)  # something may have appeared meanwhile
        finished.rename(place)
    except BaseException:
        replaced.rename(_free_name(place) if os.path.lexists(place) else place)
        raise


def _free_name(place: Path) -> Path:
    """`NAME-1`, or the first after it that nothing has."""
    count = 1
    while os.path.lexists(place.with_name(f"{place.name}-{count}")):
        count += 1
    return place.with_name(f"{place.name}-{count}")
