"""Disks that are full: found out before the work where possible, and told in one sentence where not."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

MIN_SPACE = 64 * 2**20  # bytes: more than any output without weights takes
_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(f"os error {number}" for number in _NUMBERS)  # as safetensors says it
_REMEDY = "Free some space there, or give an output on another disk."


def check_space(directory: Path, size: int = MIN_SPACE) -> None:
    """Refuse to begin where the result would not fit.

    Args:
        directory: one that exists.
        size: bytes that will be written.

    Raises:
        OSError: less is free.
    """
    free = shutil.disk_usage(directory).free
    if free < size:
        raise OSError(f"{_megabytes(size)} will be written, but {_megabytes(free)} are free in {directory}. {_REMEDY}")


@contextmanager
def explaining_full_disk(directory: Path) -> Generator[None]:
    """Says where the disk is full, and what to do, whichever library found it out.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in _NUMBERS or any(text in str(error) for text in _TEXTS):
            raise OSError(f"The disk is full in {directory}. {_REMEDY}") from error
        raise


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
