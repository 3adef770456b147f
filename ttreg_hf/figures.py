"""What all figures share: their size, inks and small print, and how they are written.

Figures are made without pyplot: no display and no global state. They are 1200 pixels wide.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

WIDTH_INCHES, DPI = 12.0, 100
INK, FAINT = "#222222", "#666666"


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure, all of it or nothing; an existing file is replaced.

    Args:
        figure: to be written.
        path: its suffix names the format, such as `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: a format that matplotlib does not write.
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise ValueError(
            f"A figure's file name ends in its format, got {path.name!r}. "
            f"Formats are {', '.join(f'.{name}' for name in sorted(formats))}."
        )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            figure.savefig(file, format=suffix)
        _give_default_permissions(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _give_default_permissions(path: str) -> None:
    """As `open` would: a temporary file is private."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def small_print() -> dict[str, Any]:
    """Style of notes, units and captions."""
    return {"fontsize": 10, "color": FAINT}


def short_number(value: float) -> str:
    """Three digits: `0.00312`, `4.5`, `369`, `2830`."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
