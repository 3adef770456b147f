"""The figure of one image, before and after. It draws the maps that it is given, in magma and viridis.

Letters: `h`, `w` patches in height and width.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from ttreg_hf.measuring.image_maps import ImageMaps
from ttreg_hf.pictures.colours import COLOUR_MAPS, drawn_attention, pca_colours, shared_scale
from ttreg_hf.pictures.figures import DPI, FAINT, INK, WIDTH_INCHES, small_print
from ttreg_hf.pictures.numbers import percent, short_number


@dataclass(frozen=True)
class _Column:
    """One map in both variants, on one scale."""

    title: str
    unit: str
    colour_map: str
    maps: list[np.ndarray]
    notes: list[str]
    scale: Normalize
    mark: float | None = None


def plot_before_after(
    photo: Any,
    before: ImageMaps,
    after: ImageMaps | None = None,
    *,
    title: str,
    norm_threshold: float | None = None,
    neuron_name: str = "",
    caption: str = "",
) -> Figure:
    """One image: photo, patch norms, attention, PCA colours and, where measured, a neuron; before and after.

    Both rows share the scale of each column and the basis of the colours.

    Args:
        photo: what the model saw, cropped alike: PIL image or `(H, W, 3)` array, uint8 or floats from 0 to 1.
        before: of the base model.
        after: of the patched model; without it there is one row.
        title: first line.
        norm_threshold: L2 norm above which a patch counts as an outlier; marked on the colour bar, and counted.
        neuron_name: such as `"17/884"`.
        caption: small print at the bottom.

    Raises:
        ValueError: before and after are not maps of the same grid.
    """
    variants = [before] if after is None else [before, after]
    if len({tuple(maps.patch_norms.shape) for maps in variants}) > 1:
        raise ValueError(
            f"`before` and `after` are maps of one image, got grids {tuple(variants[0].patch_norms.shape)} and "
            f"{tuple(variants[1].patch_norms.shape)}. Give both models the same `pixel_values`."
        )
    # by place; the photo is at 0, the PCA colours at 3
    columns = {1: _norm_column(variants, norm_threshold), 2: _attention_column(variants, norm_threshold)}
    if before.neuron_activation is not None:
        columns[4] = _neuron_column(before.neuron_activation, neuron_name)
    colours = [colour.numpy() for colour in pca_colours([maps.features for maps in variants])]

    figure, grid = _image_grid(len(variants), len(columns) + 2, before.patch_norms.shape, title, caption)
    for row, name in enumerate(["before", "after"][: len(variants)]):
        axes = _draw_image(figure, grid, row, 0, "Photo", photo)
        axes.set_ylabel(name if after is not None else "", fontsize=13, color=INK, fontweight="bold", labelpad=6)
    for place, column in columns.items():
        _draw_column(figure, grid, place, column)
    for row, colour in enumerate(colours):
        axes = _draw_image(figure, grid, row, 3, "PCA of features", colour)
        axes.set_xlabel("first 3 components as RGB", **small_print())
    return figure


def _norm_column(variants: list[ImageMaps], threshold: float | None) -> _Column:
    notes = []
    for maps in variants:
        note = f"largest {short_number(float(maps.patch_norms.max()))}"
        if threshold is not None:
            outliers = int((maps.patch_norms > threshold).sum())
            note += f"\n{outliers} of {maps.patch_norms.numel()} above {short_number(threshold)}"
        notes.append(note)
    norms = [maps.patch_norms.numpy() for maps in variants]
    scale = shared_scale(norms, at_least=0.0 if threshold is None else 1.05 * threshold)
    return _Column("Patch norms", "L2 norm", COLOUR_MAPS["norms"], norms, notes, scale, threshold)


def _attention_column(variants: list[ImageMaps], threshold: float | None) -> _Column:
    """Notes: the largest, or the share on the patches that are outliers before; after, also the register's."""
    outliers = variants[0].patch_norms > (float("inf") if threshold is None else threshold)
    notes = []
    names = ["on outlier patches", "on the same patches"]
    for maps, name in zip(variants, names[: len(variants)], strict=True):
        note = f"largest {percent(maps.attention.max())}"
        if outliers.any():
            note = f"{percent(maps.attention[outliers].sum())} {name}"
        if maps.register_attention is not None:
            note += f"\n{percent(maps.register_attention)} on the register"
        notes.append(note)
    shares = [drawn_attention(maps.attention) for maps in variants]
    title = "CLS attention, last block" if variants[0].has_cls else "Attention received, last block"
    return _Column(title, "% of the attention", COLOUR_MAPS["attention"], shares, notes, shared_scale(shares))


def _neuron_column(activation: Tensor, name: str) -> _Column:
    """One map: it is measured before the shift, so it is the same in both variants."""
    largest = float(activation.flatten()[activation.abs().argmax()])
    reach = abs(largest) or 1.0
    note = f"largest {short_number(largest)}\nbefore it is moved"
    return _Column(
        f"Neuron {name}".strip(), "activation", "RdBu_r", [activation.numpy()], [note], Normalize(-reach, reach)
    )


def _image_grid(rows: int, columns: int, patches: Sequence[int], title: str, caption: str) -> tuple[Figure, GridSpec]:
    """A page of image cells with a row for colour bars below, sized so that the cells fit the images. In inches."""
    lines = textwrap.wrap(caption, 155)
    left, right, gap = 0.45, 0.2, 0.3
    cell = (WIDTH_INCHES - left - right - gap * (columns - 1)) / columns
    tall = cell * patches[0] / patches[1]
    top, notes, bar, bottom = 0.95, 0.6, 0.14, 0.7 + 0.19 * len(lines)
    height = top + rows * (tall + notes) + bar + bottom
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")
    grid = GridSpec(
        rows + 1, columns, figure, height_ratios=[tall] * rows + [bar],
        left=left / WIDTH_INCHES, right=1 - right / WIDTH_INCHES, top=1 - top / height, bottom=bottom / height,
        wspace=gap / cell, hspace=notes * (rows + 1) / (rows * tall + bar),
    )  # fmt: skip
    margin = left / WIDTH_INCHES
    figure.text(margin, 1 - 0.2 / height, title, fontsize=15, color=INK, fontweight="bold", va="top", wrap=True)
    figure.text(margin, 0.15 / height, "\n".join(lines), va="bottom", **small_print())
    return figure, grid


def _draw_image(
    figure: Figure,
    grid: GridSpec,
    row: int,
    column: int,
    title: str,
    image: Any,
    colour_map: str = "gray",
    scale: Normalize | None = None,
) -> Axes:
    """One cell; only the first row has titles."""
    axes = figure.add_subplot(grid[row, column])
    axes.imshow(np.asarray(image), interpolation="nearest", cmap=colour_map, norm=scale)
    axes.set_title(title if row == 0 else "", fontsize=12, color=INK, pad=6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _draw_column(figure: Figure, grid: GridSpec, place: int, column: _Column) -> None:
    for row, (values, note) in enumerate(zip(column.maps, column.notes, strict=True)):
        axes = _draw_image(figure, grid, row, place, column.title, values, column.colour_map, column.scale)
        axes.set_xlabel(note, **small_print())
    last = figure.axes[-1].images[0]
    bar_axes = figure.add_subplot(grid[grid.nrows - 1, place])
    bar = figure.colorbar(last, cax=bar_axes, orientation="horizontal")
    bar.outline.set_visible(False)
    _style_bar(bar_axes, column)


def _style_bar(axes: Axes, column: _Column) -> None:
    axes.xaxis.set_major_locator(_few_ticks(column.scale))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: short_number(value)))
    axes.tick_params(labelsize=9, colors=FAINT, length=3)
    axes.set_xlabel(column.unit, **small_print())
    if column.mark is not None:
        axes.axvline(column.mark, color="white", linewidth=3.5)
        axes.axvline(column.mark, color=INK, linewidth=1.5)
        axes.annotate(
            "threshold", (column.mark, 1), (0, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color=INK,
        )  # fmt: skip


def _few_ticks(scale: Normalize) -> Locator:
    if not isinstance(scale, LogNorm):
        return MaxNLocator(4)
    wide = float(scale.inverse(1.0)) / float(scale.inverse(0.0)) > 50
    return LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=9)
