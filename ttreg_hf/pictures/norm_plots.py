"""The figures of the norms of all blocks, before and after.

In the vermilion and blue of Okabe and Ito, which colour-blind readers tell apart.
Letters: `L` blocks.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.pictures.figures import DPI, FAINT, INK, LEFT, WIDTH_INCHES, page, small_print, style_axes
from ttreg_hf.pictures.numbers import counted, short_number

_BEFORE_COLOUR, _AFTER_COLOUR = "#d55e00", "#0072b2"
_OTHER_COLOUR = "#8a8a8a"
NORMS_TITLE = "Norms of the patch tokens after each block"


def plot_norms(norms: NormReport) -> Figure:
    """Median and largest patch norm after each block, with threshold and detection block.

    Args:
        norms: what `inspect_norms` found.
    """
    return plot_norms_per_block(
        norms.median,
        norms.max,
        norm_threshold=norms.norm_threshold,
        detection_layer=norms.detection_layer,
        title=NORMS_TITLE,
        caption=f"{counted(norms.num_images, 'image')} inspected.",
    )


def plot_populations(norms: NormReport) -> Figure:
    """Separation of two populations of norms, and share of the patches above the threshold, per block."""
    figure = page("Where outliers show", 3.9)
    layers = np.arange(len(norms.median))
    separation = [value or 0.0 for value in norms.separation] or [0.0] * len(layers)
    panels = (
        ("separation of two populations", separation, "robust deviations; none: one population"),
        ("patches above the threshold", [100 * share for share in norms.outlier_fraction], "%"),
    )
    for place, (title, values, unit) in enumerate(panels):
        axes = figure.add_axes((LEFT + 0.48 * place, 0.17, 0.42, 0.58))
        colours = [_AFTER_COLOUR if layer == norms.detection_layer else _OTHER_COLOUR for layer in layers]
        axes.bar(layers, values, color=colours, width=0.7)
        axes.set_ylim(0, 1.12 * max(values) or 1)
        if not any(values):
            axes.text(0.5, 0.5, "none at any block", transform=axes.transAxes, ha="center", **small_print())
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(min(len(layers), 13), integer=True))
        axes.set_title(f"{title} ({unit})", fontsize=11, color=INK, loc="left")
        axes.set_xlabel("block (blue: detection block)", fontsize=11, color=INK)
        style_axes(axes)
    return figure


def plot_norms_per_block(
    median_L: Sequence[float],
    max_L: Sequence[float],
    *,
    after: tuple[Sequence[float] | None, Sequence[float]] | None = None,
    norm_threshold: float | None = None,
    detection_layer: int | None = None,
    title: str,
    caption: str = "",
) -> Figure:
    """Median and largest patch norm after each block, on a logarithmic axis.

    Args:
        median_L: median L2 norm of the patches in each block's raw output.
        max_L: the largest one.
        after: the same two of the patched model; the medians may be `None`.
        norm_threshold: drawn as a line.
        detection_layer: the block that the threshold is meant for, marked; negative ones count from the end.
        title: first line.
        caption: small print at the bottom.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.075, 0.19, 0.78, 0.68))
    layers = np.arange(len(median_L))
    variants: list[tuple[str, str, Sequence[float] | None, Sequence[float]]] = [
        ("before", _BEFORE_COLOUR, median_L, max_L)
    ]
    if after is not None:
        variants.append(("after", _AFTER_COLOUR, *after))
    labels = []
    for name, colour, medians, maxima in variants:
        prefix = f"{name}, " if after is not None else ""
        axes.plot(layers, maxima, color=colour, linewidth=2.2, marker="o", markersize=5)
        labels.append((float(maxima[-1]), f"{prefix}largest", colour))
        if medians is not None:
            axes.plot(layers, medians, color=colour, linewidth=1.6, linestyle=(0, (4, 2)))
            labels.append((float(medians[-1]), f"{prefix}median", colour))
    axes.set_yscale("log")
    if norm_threshold is not None:
        axes.axhline(norm_threshold, color=FAINT, linewidth=1.2, linestyle=":")
        labels.append((norm_threshold, f"threshold {short_number(norm_threshold)}", FAINT))
    if detection_layer is not None:
        layer = range(len(median_L))[detection_layer]
        axes.axvspan(layer - 0.3, layer + 0.3, color="#000000", alpha=0.07, linewidth=0)
        axes.annotate(
            "detection block", (layer, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", va="bottom", fontsize=10, color=FAINT,
        )  # fmt: skip
    _style_block_axes(axes, len(median_L))
    _label_line_ends(axes, labels)
    figure.text(0.075, 0.965, title, fontsize=14, color=INK, fontweight="bold", va="top")
    figure.text(0.075, 0.02, caption, va="bottom", wrap=True, **small_print())
    return figure


def _style_block_axes(axes: Axes, num_blocks: int) -> None:
    axes.set_xlabel("block", fontsize=11, color=INK)
    axes.set_ylabel("L2 norm of patch tokens", fontsize=11, color=INK)
    axes.set_xlim(-0.5, num_blocks - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(min(num_blocks, 13), integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: short_number(value)))
    style_axes(axes)


def _label_line_ends(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed apart where they would overlap."""
    low, high = np.log(axes.get_ylim())
    bottom = -1.0
    for value, text, colour in sorted(labels):
        place = max(float((np.log(value) - low) / (high - low)), bottom)
        axes.text(1.01, place, text, transform=axes.transAxes, color=colour, fontsize=11, va="center")
        bottom = place + 0.055
