"""The figures of a report. They draw what a calibration holds, in the vermilion and blue of Okabe and Ito.

Letters: `L` blocks, `F` neurons of a block.
"""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.selection import Selection, SelectionStep
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.pictures.figures import FAINT, INK, LEFT, page, small_print, style_axes
from ttreg_hf.pictures.norm_plots import plot_populations
from ttreg_hf.pictures.numbers import short_number

_CHOSEN, _OTHER, _THIRD = "#0072b2", "#d55e00", "#009e73"
_BARS = "#8a8a8a"
_STAGES = {  # of `SelectionStep`: name, colour, and a marker that others do not hide
    "grow": ("grow", _CHOSEN, "o", 7),
    "cost": ("costly, but replaceable?", _THIRD, "v", 9),
    "prune": ("needed?", _OTHER, "s", 10),
    "elsewhere": ("other images: missing?", _BARS, "^", 9),
}
_MOST_SCORES, _LEAST_SCORES = 1000, 60  # of the ranking that are drawn
_LEAST_DRIFT = 1e-7  # less is drawn as this


def figures_of(result: CalibrationResult) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all that this result has something for."""
    yield "norms_per_block", result.plot()
    yield "populations", plot_populations(result.norms)
    if result.register_neurons:
        yield "scores", _scores(result)
    if result.selections:
        yield "selection_path", _selection_path(result.selections)
    if result.verification is not None:
        yield "controls", _controls(result.verification)


def _scores(result: CalibrationResult) -> Figure:
    """The best scores, ranked, with the chosen neurons marked."""
    ranked = result.scores.flatten().sort(descending=True)
    chosen = {(neuron.layer, neuron.neuron) for neuron in result.register_neurons}
    places = [divmod(int(place), result.scores.shape[1]) for place in ranked.indices[:_MOST_SCORES]]
    last = max((rank for rank, place in enumerate(places, start=1) if place in chosen), default=0)
    shown = [
        (rank, float(score), place in chosen)
        for rank, (score, place) in enumerate(zip(ranked.values.tolist(), places, strict=False), start=1)
        if score > 0 and rank <= max(_LEAST_SCORES, 2 * last)
    ]
    figure = page("Scores of the neurons, ranked", 4.6)
    axes = figure.add_axes((LEFT, 0.2, 0.9, 0.64))
    for is_chosen, colour, label in ((False, _BARS, "other neurons"), (True, _CHOSEN, "register neurons")):
        points = [(rank, score) for rank, score, chosen_one in shown if chosen_one is is_chosen]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=7 if is_chosen else 4, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, position: short_number(value))
    axes.set_xlim(0, shown[-1][0] + 1)
    axes.set_xlabel("rank", fontsize=11, color=INK)
    axes.set_ylabel("mean |activation| on outliers", fontsize=11, color=INK)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=11, labelcolor=INK)
    hidden = len(chosen) - sum(is_chosen for *_, is_chosen in shown)
    beyond = f" {hidden} of the chosen ones rank lower." if hidden else ""
    figure.text(LEFT, 0.02, f"The best {len(shown)} of {result.scores.numel()} neurons.{beyond}", **small_print())
    return figure


def _selection_path(selections: Sequence[Selection]) -> Figure:
    """All sets that were tried: outliers left, and similarity of the features, against the number of neurons."""
    steps = [step for selection in selections for step in selection.path]
    figure = page("Sets of neurons that were tried", 5.6)
    panels = (
        ("outliers after / before", [step.outlier_ratio for step in steps], 0.52),
        ("feature similarity", [step.feature_similarity for step in steps], 0.13),
    )
    for label, values, bottom in panels:
        axes = figure.add_axes((LEFT + 0.02, bottom, 0.88, 0.32))
        _draw_steps(axes, steps, values)
        axes.set_ylabel(label, fontsize=11, color=INK)
        axes.yaxis.set_label_coords(-0.075, 0.5)
        axes.set_ylim(_room(values))
        axes.ticklabel_format(useOffset=False)
        axes.set_xlim(0.5, max(step.num_neurons for step in steps) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        style_axes(axes)
    figure.axes[-1].set_xlabel("neurons moved", fontsize=11, color=INK)
    figure.axes[0].legend(
        frameon=False, fontsize=10, labelcolor=INK, ncols=5, loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure


def _draw_steps(axes: Axes, steps: Sequence[SelectionStep], values: Sequence[float]) -> None:
    """Filled: went on with this set. Hollow: did not."""
    for stage, (name, colour, marker, size) in _STAGES.items():
        label: str | None = name
        for kept in (True, False):
            points = [
                (step.num_neurons, value)
                for step, value in zip(steps, values, strict=True)
                if step.stage == stage and step.kept is kept
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True), marker, color=colour, markerfacecolor=colour if kept else "none",
                    markersize=size, markeredgewidth=1.8, label=label,
                )  # fmt: skip
                label = None


def _controls(verification: Verification) -> Figure:
    """Outliers that stay against feature drift: moved, zeroed, and random draws; the gate's bounds shaded."""
    figure = page("Moved, and the controls", 5.0)
    axes = figure.add_axes((LEFT, 0.16, 0.9, 0.68))
    controls = verification.controls
    bounds = [check.bound for check in verification.checks]
    groups = (
        ("moved to the register", _CHOSEN, "o", [(verification.outlier_ratio, verification.feature_similarity)]),
        ("zeroed, not moved", _OTHER, "s", [(controls.zeroed.outlier_ratio, controls.zeroed.feature_similarity)]),
        ("random neurons, moved", _BARS, "^", [(d.outlier_ratio, d.feature_similarity) for d in controls.random]),
    )
    drifts = []
    for label, colour, marker, outcomes in groups:
        points = [(max(1 - similarity, _LEAST_DRIFT), ratio) for ratio, similarity in outcomes]
        drifts += [drift for drift, _ in points]
        text = f"{label} ({len(points)} draws)" if marker == "^" else label
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=11, label=text, alpha=0.85, zorder=3)
    axes.set_xscale("log")
    drifts += bounds[1:2]
    axes.set_xlim(min(drifts) / 3, max(drifts) * 3)
    axes.set_ylim(-0.06, 1.08 * max(1.0, verification.outlier_ratio, *(d.outlier_ratio for d in controls.random)))
    if len(bounds) > 1:
        low = axes.get_xlim()[0]
        axes.add_patch(Rectangle((low, -1), bounds[1] - low, 1 + bounds[0], color=_THIRD, alpha=0.15, linewidth=0))
        axes.annotate("inside the gate's bounds", (bounds[1], bounds[0]), (-6, 4), textcoords="offset points",
                      ha="right", fontsize=10, color=FAINT)  # fmt: skip
    axes.set_xlabel("feature drift (1 - mean cosine to the base model)", fontsize=11, color=INK)
    axes.set_ylabel("outliers after / before", fontsize=11, color=INK)
    style_axes(axes)
    axes.xaxis.set_major_formatter(lambda value, position: short_number(value))
    axes.legend(frameon=False, fontsize=11, labelcolor=INK, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.05
    return low - room, high + room
