"""The tables of a report: a calibration's numbers as text, row by row."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ttreg_hf.calibration.minimal_set import PER_NEURON
from ttreg_hf.calibration.result import CalibrationResult
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.figures import short_number

_MOST_BAD_IMAGES = 20  # that are named


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each names it.

    Args:
        columns: their heads.
        rows: as many cells each.
        marks: one a row: `"ok"`, `"no"`, or nothing; colours the row's last cell.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()


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


def gate_table(verification: Verification) -> Table:
    """The conditions of `fixed`."""
    return Table(
        ("condition", "measured", "at most (provisional)", ""),
        tuple(
            (check.name, short_number(check.value), short_number(check.bound), "passed" if check.passed else "failed")
            for check in verification.checks
        ),
        tuple("ok" if check.passed else "no" for check in verification.checks),
    )


def before_after_table(result: CalibrationResult, verification: Verification) -> Table:
    """Base against patched, with 95 % intervals where they were computed."""
    block = result.norms.detection_layer
    ratio, similarity = verification.outlier_ratio_interval, verification.feature_similarity_interval
    rows = [
        (
            f"outlier patches, block {block}, norm above {short_number(result.norms.norm_threshold)}",
            percent(verification.outlier_fraction_before),
            percent(verification.outlier_fraction_after),
        ),
        ("outliers after / before", "1", f"{verification.outlier_ratio:.4f} {_interval(ratio)}"),
        (
            "largest patch norm there",
            short_number(verification.max_norm_before[block]),
            short_number(verification.max_norm_after[block]),
        ),
        (
            "p99.9 / median of the patch norms there",
            short_number(verification.tail_before[block]),
            short_number(verification.tail_after[block]),
        ),
        ("mean norm of the register there", "", short_number(verification.register_norm)),
        (
            "cosine of the pooled feature to the base model's, mean",
            "1",
            f"{verification.feature_similarity:.4f} {_interval(similarity)}",
        ),
        ("the same, smallest", "1", f"{verification.min_feature_similarity:.4f}"),
    ]
    if verification.maps is not None:
        maps = verification.maps
        rows += [
            ("largest attention on one patch, last block", percent(maps.largest_before), percent(maps.largest_after)),
            (
                "entropy of the attention on patches (1: even)",
                f"{maps.entropy_before:.3f}",
                f"{maps.entropy_after:.3f}",
            ),
            ("attention on the register, last block", "", percent(maps.on_register)),
            ("cosine of the mean patch feature to the base model's", "1", f"{maps.mean_patch_similarity:.4f}"),
        ]
    return Table((counted(verification.num_images, "image"), "before", "after"), tuple(rows))


def control_table(verification: Verification) -> Table | None:
    """The same number of neurons, used otherwise."""
    controls = verification.controls
    if controls is None:
        return None
    ours = ("moved to the register", verification.outlier_ratio, verification.feature_similarity)
    zeroed = ("zeroed, not moved", controls.zeroed.outlier_ratio, controls.zeroed.feature_similarity)
    draws = [
        (f"random draw {number}, moved", draw.outlier_ratio, draw.feature_similarity)
        for number, draw in enumerate(controls.random, start=1)
    ]
    return Table(
        ("neurons", "outliers after / before", "feature drift"),
        tuple((name, f"{ratio:.4f}", f"{1 - similarity:.2g}") for name, ratio, similarity in (ours, zeroed, *draws)),
    )


def selection_table(result: CalibrationResult) -> Table | None:
    """Both values that a register can get, for the set of each round."""
    if not result.selections:
        return None
    rows = []
    for number, selection in enumerate(result.selections, start=1):
        for name, outcome in (("per_neuron", selection.per_neuron), ("per_layer", selection.per_layer)):
            rows.append(
                (
                    f"round {number}, {name}" + (" (used)" if name == selection.shift_value else ""),
                    str(len(selection.register_neurons)),
                    f"{outcome.outlier_ratio:.4f}",
                    f"{outcome.feature_similarity:.4f}",
                    f"{selection.images_run}" if name == PER_NEURON else "",
                    ("yes" if selection.within_budget else "no, cut short") if name == PER_NEURON else "",
                )
            )
    columns = ("", "neurons", "outliers after / before", "feature similarity", "images run", "within the budget")
    return Table(columns, tuple(rows))


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
    automatic = {*result.chosen, *(("shift_value",) if result.selections else ())}
    return Table(
        ("setting", "value", "from"),
        tuple(
            (
                name,
                "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value),
                "chosen automatically" if name in automatic else "given, or the default",
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
        ("images", origin.images),
        ("asked for / scored / with outliers",
         f"{origin.num_images} / {origin.images_scored} / {origin.images_with_outliers}"),
        ("unreadable", f"{len(origin.bad_images)}{': ' + bad + more if bad else ''}"),
        ("resolution", f"{origin.image_size[0]} x {origin.image_size[1]} pixels (height x width)"),
        ("number format, processes", f"{origin.dtype}, {origin.processes}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
        ("made", origin.created),
    ]  # fmt: skip
    return Table(("", ""), tuple(rows))


def percent(share: float) -> str:
    """Two decimals."""
    return f"{100 * share:.2f} %"


def counted(number: int, noun: str) -> str:
    """Such as `1 image` and `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"
