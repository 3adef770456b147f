"""Work folders of one process: nobody else works at the same place, and the next removes what a killed one left.

A claim is a lock on a file beside the place, which the system lets go when the process ends, however that happens.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

REPLACED = "replaced"  # in a work folder: what was at the place before, until its successor is there
_MOST_SLOTS = 100


@contextmanager
def claimed(place: Path) -> Generator[Path]:
    """An empty work folder beside a place, on the same disk; gone when the block ends.

    Args:
        place: absolute; its parent exists.

    Raises:
        FileExistsError: another process works at this place now.
        OSError: the parent cannot be written to.
    """
    lock = place.with_name(f".{place.name}.lock")
    handle = _lock(lock, place)
    try:
        if handle is not None:
            _remove_abandoned(place)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def scratch_directory() -> Generator[Path]:
    """An empty temporary folder; what a killed process left in its place is removed first.

    Raises:
        OSError: temporary files cannot be written.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    for slot in range(_MOST_SLOTS):
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(claimed(Path(tempfile.gettempdir(), f"ttreg-{user}-{slot}")))
            except OSError:  # taken
                if slot + 1 < _MOST_SLOTS:
                    continue
                raise
            yield folder
            return


def _lock(path: Path, place: Path) -> int | None:
    """The locked file; `None` where the system or the disk has no locks, so that nothing of others is removed."""
    while fcntl is not None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise FileExistsError(
                f"One process at a time writes an output, but another one is writing {place} now. Wait until it has "
                "ended, or give another path."
            ) from None
        except OSError:
            os.close(handle)
            return None
        os.close(handle)  # whoever held it removed it while we waited to look
    return None


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove_abandoned(place: Path) -> None:
    """Work folders of killed processes; what one was about to replace goes back first."""
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[a-z0-9_]{{8}}\.part")
    for left in [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]:
        if (left / REPLACED).is_dir() and not os.path.lexists(place):
            (left / REPLACED).rename(place)
        shutil.rmtree(left, ignore_errors=True)
