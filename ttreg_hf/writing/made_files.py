"""Which files of an output folder this package made: only these are replaced.

A hidden list in the folder says so. A folder inside it that has a list of its own is judged by that one.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ttreg_hf.writing.files import write_file

MADE_FILES = ".ttreg-made.json"
_OF_THE_SYSTEM = ("__pycache__", ".DS_Store")  # made by looking


def record_made_files(folder: Path) -> None:
    """List all files that are in a folder now."""
    _write(folder, {name for name, _ in _files(folder)})


def foreign_files(folder: Path) -> list[str]:
    """Files in a folder that are on no list, sorted; all of them, if there is no list."""
    lists = {folder: _read(folder)}
    foreign = []
    for name, list_home in _files(folder):
        if list_home not in lists:
            lists[list_home] = _read(list_home)
        if (folder / name).relative_to(list_home).as_posix() not in lists[list_home]:
            foreign.append(name)
    return sorted(foreign)


def write_into(folder: str | Path, name: str, data: bytes) -> Path:
    """Write a file into a folder that may be an output: then it is one of those that may be replaced.

    Raises:
        OSError: as `write_file`.
    """
    folder = Path(folder)
    path = write_file(folder / name, data)
    made = _read(folder)
    if (folder / MADE_FILES).is_file() and name not in made:
        _write(folder, made | {name})
    return path


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Path of each file or link below, as a name, and the innermost folder with a list that it is in."""
    homes = {str(folder): folder}
    for parent, folders, names in os.walk(folder):
        home = homes[parent]
        if MADE_FILES in names:
            home = Path(parent)
        folders[:] = [name for name in folders if name not in _OF_THE_SYSTEM]
        homes |= {os.path.join(parent, name): home for name in folders}
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in {*names, *links} - {MADE_FILES, *_OF_THE_SYSTEM}:
            yield Path(parent, name).relative_to(folder).as_posix(), home


def _read(folder: Path) -> set[str]:
    try:
        return set(json.loads((folder / MADE_FILES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or damaged: then nothing is known to be ours
        return set()


def _write(folder: Path, names: set[str]) -> None:
    write_file(folder / MADE_FILES, json.dumps(sorted(names), indent=0).encode())
