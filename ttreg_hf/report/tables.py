"""The tables of a report: a calibration's numbers as text, row by row."""

import dataclasses
from typing import Any

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.pictures.numbers import percent, short_number
from ttreg_hf.report.table import Table

_MOST_BAD_IMAGES = 20  # that are named


def norm_table(result: CalibrationResult) -> Table:
    """One row a block."""
    norms = result.norms
    separation = norms.separation or (None,) * len(norms.median)
    return Table(
        ("block", "median", "p99.9", "largest", "above the threshold", "separation"),
        tuple(
            (
                f"{block}" + (" (detection)" if block == norms.detection_layer else ""),
                short_number(norms.median[block]),
                short_number(norms.p999[block]),
                short_number(norms.max[block]),
                percent(norms.outlier_fraction[block]),
                "one population" if separation[block] is None else f"{separation[block]:.1f}",
            )
            for block in range(len(norms.median))
        ),
    )


def selection_table(result: CalibrationResult) -> Table | None:
    """The set of each round, and what it does to the images that chose it."""
    if not result.selections:
        return None
    columns = ("", "neurons", "outliers after / before", "feature similarity", "images run", "within the budget")
    return Table(
        columns,
        tuple(
            (
                f"round {number}",
                str(len(selection.register_neurons)),
                f"{selection.outcome.outlier_ratio:.4f}",
                f"{selection.outcome.feature_similarity:.4f}",
                str(selection.images_run),
                "yes" if selection.within_budget else "no, cut short",
            )
            for number, selection in enumerate(result.selections, start=1)
        ),
    )


def neuron_table(result: CalibrationResult) -> Table:
    """Every register neuron: its score, what it does on outliers, and what moving it alone does."""
    effects = {} if result.verification is None else {(e.layer, e.neuron): e for e in result.verification.neurons}
    candidates = {(c.register_neuron.layer, c.register_neuron.neuron): c for c in result.candidates}
    rows = []
    for neuron in result.register_neurons:
        place = (neuron.layer, neuron.neuron)
        candidate, effect = candidates.get(place), effects.get(place)
        rows.append(
            (
                f"{neuron.layer} / {neuron.neuron}",
                short_number(neuron.score),
                *(
                    ("", "", "")
                    if candidate is None
                    else (
                        short_number(candidate.contrast),
                        percent(candidate.consistency),
                        percent(candidate.sparsity),
                    )
                ),
                *(
                    ("", "", "")
                    if effect is None
                    else (
                        percent(effect.norm_share),
                        f"{effect.feature_change:.2g}",
                        "none" if effect.change_per_norm is None else f"{effect.change_per_norm:.2g}",
                    )
                ),
            )
        )
    columns = ("layer / neuron", "score", "contrast", "consistency", "sparsity", "norm share", "drift", "drift / norm")
    return Table(columns, tuple(rows))


def setting_table(result: CalibrationResult) -> Table:
    """Every setting, and whether it was chosen automatically."""
    values: dict[str, Any] = dataclasses.asdict(result.config) | {"shift_value": result.shift_value}
    return Table(
        ("setting", "value", "from"),
        tuple(
            (
                name,
                "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value),
                "chosen automatically" if name in result.chosen else "given, or the default",
            )
            for name, value in values.items()
        ),
    )


def provenance_table(result: CalibrationResult) -> Table:
    """Where the numbers come from."""
    origin = result.provenance
    bad = ", ".join(origin.bad_images[:_MOST_BAD_IMAGES])
    more = ", ..." if len(origin.bad_images) > _MOST_BAD_IMAGES else ""
    rows = [
        ("model", f"{origin.model} ({origin.model_class})"),
        ("revision", origin.revision or "not recorded"),
        ("images", str(origin.source)),
        ("asked for / scored / with outliers",
         f"{origin.num_images} / {origin.images_scored} / {origin.images_with_outliers}"),
        ("unreadable", f"{len(origin.bad_images)}{': ' + bad + more if bad else ''}"),
        ("resolution", f"{origin.image_size[0]} x {origin.image_size[1]} pixels (height x width)"),
        ("number format, processes", f"{origin.dtype}, {origin.processes}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
        ("made", origin.created),
    ]  # fmt: skip
    return Table(("", ""), tuple(rows))
