"""What all figures share: their size, inks and small print, and how they are written.

Figures are made without pyplot: no display and no global state. They are 1200 pixels wide.
"""

import io
import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttreg_hf.writing import write_file

WIDTH_INCHES, DPI = 12.0, 100
INK, FAINT = "#222222", "#666666"
LEFT = 0.075  # of titles and axes, as a share of the width


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix)
    return write_file(path, buffer.getvalue())


def page(title: str, height: float) -> Figure:
    """An empty figure of so many inches in height with its title."""
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")
    figure.text(LEFT, 1 - 0.2 / height, title, fontsize=14, color=INK, fontweight="bold", va="top")
    return figure


def style_axes(axes: Axes) -> None:
    """Ticks in faint ink, a faint grid behind, no box."""
    axes.tick_params(labelsize=10, colors=FAINT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def small_print() -> dict[str, Any]:
    """Style of notes, units and captions."""
    return {"fontsize": 10, "color": FAINT}
