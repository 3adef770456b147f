"""The figure of outliers at the same places in every image: where they are, and at which stage they begin.

Letters: `S` stages, `N` patches.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ttreg_hf.measuring.position_report import TABLE, Place, PositionReport
from ttreg_hf.pictures.figures import FAINT, INK, LEFT, page, small_print, style_axes
from ttreg_hf.pictures.numbers import counted, short_number

_MARK, _LINE, _MAP = "#d55e00", "#0072b2", "cividis"


def plot_positions(positions: PositionReport) -> Figure:
    """The position table, the share of images in which each place stands out, and what is fixed, stage by stage.

    Args:
        positions: with at least one map.
    """
    figure, found = page("The same places in every image", 4.6), positions.maps[0]
    table = positions.table
    if table is not None:
        axes = figure.add_axes((LEFT, 0.15, 0.25, 0.62))
        marked = [spike.place for spike in table.spikes]
        _draw_map(figure, axes, table.norms, table.grid, marked, title=f"{TABLE}: norm of each row")
    axes = figure.add_axes((LEFT + 0.31 * (table is not None), 0.15, 0.25, 0.62))
    largest = [max(shares) for shares in zip(*found.shares, strict=True)]
    title = "stands out: share of images"
    _draw_map(figure, axes, largest, found.grid, found.places, title=title, limits=(0.0, 1.0))
    _draw_stages(figure.add_axes((LEFT + 0.63, 0.19, 0.26, 0.58)), positions)
    note = f"{counted(found.num_images, 'image')} of {found.grid[0]} x {found.grid[1]} patches."
    figure.text(LEFT, 0.02, f"{note} Framed: rows that are spikes; places that stand out in nearly every image.",
                va="bottom", **small_print())  # fmt: skip
    return figure


def _draw_map(
    figure: Figure,
    axes: Axes,
    values_N: Sequence[float],
    grid: tuple[int, int],
    marked: Sequence[Place],
    *,
    title: str,
    limits: tuple[float, float] | None = None,
) -> None:
    low, high = limits or (0.0, max(values_N))
    image = axes.imshow(np.asarray(values_N).reshape(grid), cmap=_MAP, vmin=low, vmax=high, interpolation="nearest")
    for row, column in marked:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_MARK, linewidth=1.8))
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.tick_params(labelsize=10, colors=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.ax.tick_params(labelsize=10, colors=FAINT)


def _draw_stages(axes: Axes, positions: PositionReport) -> None:
    """Norm over median of each fixed place after the embeddings and each block; a dot where it begins."""
    fixed = positions.maps[0].fixed
    axes.set_title("norm over median, by stage (dot: begins)", fontsize=11, color=INK, loc="left")
    axes.set_xlabel("block (-1: embeddings)", fontsize=11, color=INK)
    style_axes(axes)
    if not fixed:
        axes.text(0.5, 0.5, "no place stands out", transform=axes.transAxes, ha="center", **small_print())
        return
    for position in fixed:
        stages = np.arange(len(position.ratios)) - 1
        axes.plot(stages, position.ratios, color=_LINE, linewidth=1.4, alpha=0.7)
        axes.plot(position.begins - 1, position.ratios[position.begins], marker="o", color=_MARK, markersize=6)
    axes.set_yscale("log")
    lowest, highest = (end(end(position.ratios) for position in fixed) for end in (min, max))
    axes.set_ylim(min(1.0, lowest), 1.25 * highest)  # a dot on the highest line is drawn whole
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, at: short_number(value)))
