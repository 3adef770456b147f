"""What a verification found, as tables: one rendering for the terminal, the report and the model card."""

from collections.abc import Sequence

from ttreg_hf.calibration.gate import Drift, GateCheck
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.pictures.numbers import counted, interval_text, percent, short_number
from ttreg_hf.report.table import Table


def verification_tables(verification: Verification, *, detection_layer: int, norm_threshold: float) -> list[Table]:
    """Base against patched, the conditions of the verdict, and the controls.

    Args:
        verification: what was found.
        detection_layer: block where outliers were detected.
        norm_threshold: norm above which a patch counted as one.
    """
    return [
        before_after_table(verification, detection_layer=detection_layer, norm_threshold=norm_threshold),
        gate_table(verification.checks),
        control_table(verification),
    ]


def before_after_table(verification: Verification, *, detection_layer: int, norm_threshold: float) -> Table:
    """Base against patched."""
    block, maps = detection_layer, verification.maps
    rows = (
        (
            f"outlier patches, block {block}, norm above {short_number(norm_threshold)}",
            percent(verification.outlier_fraction_before),
            percent(verification.outlier_fraction_after),
        ),
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
        ("cosine of the pooled feature to the base model's, mean", "1", f"{verification.feature_similarity:.4f}"),
        ("the same, smallest", "1", f"{verification.min_feature_similarity:.4f}"),
        ("largest attention on one patch, last block", percent(maps.largest_before), percent(maps.largest_after)),
        ("entropy of the attention on patches (1: even)", f"{maps.entropy_before:.3f}", f"{maps.entropy_after:.3f}"),
        ("attention on the register, last block", "", percent(maps.on_register)),
        ("cosine of the mean patch feature to the base model's", "1", f"{maps.mean_patch_similarity:.4f}"),
    )
    photographs = counted(verification.num_photographs, "photograph")
    head = f"{photographs}, {verification.photographs_with_outliers} with outliers"
    return Table((head, "before", "after"), rows)


def gate_table(checks: Sequence[GateCheck]) -> Table:
    """The conditions of `fixed`, or of constant mode."""
    return Table(
        (
            "condition (bounds are provisional; the upper end of drift keeps its bound)",
            "measured",
            "95 % interval, over photographs",
            "at most",
            "",
        ),
        tuple(
            (
                check.name,
                f"{check.value:.4f}",
                interval_text(check.interval),
                f"{check.bound:.4f}",
                "passed" if check.passed else "failed",
            )
            for check in checks
        ),
        tuple("ok" if check.passed else "no" for check in checks),
    )


def control_table(verification: Verification) -> Table:
    """The same number of neurons, used otherwise; and what small changes of the images do to the base model."""
    zeroed, draws, drifts = verification.controls.zeroed, verification.controls.random, verification.drifts
    fewest, count = min(draws, key=lambda draw: draw.outlier_ratio), len(draws)
    mean_ratio, mean_similarity = (
        sum(getattr(draw, name) for draw in draws) / count for name in ("outlier_ratio", "feature_similarity")
    )
    rows = (
        ("moved to the register", f"{verification.outlier_ratio:.4f}", *_drift_cells(drifts.moved)),
        ("zeroed, not moved", f"{zeroed.outlier_ratio:.4f}", *_drift_cells(drifts.zeroed)),
        (
            f"of {count} random draws, moved: the fewest outliers",
            f"{fewest.outlier_ratio:.4f}",
            f"{1 - fewest.feature_similarity:.2g}",
            "",
        ),
        (f"of {count} random draws, moved: mean", f"{mean_ratio:.4f}", f"{1 - mean_similarity:.2g}", ""),
        ("for scale: base model, images as JPEG of quality 90", "", *_drift_cells(drifts.jpeg)),
        ("for scale: base model, images moved by one patch", "", *_drift_cells(drifts.shifted)),
    )
    return Table(("as many neurons", "outliers after / before", "drift, pooled", "drift, ordinary patches"), rows)


def notes_of(verification: Verification) -> list[str]:
    """What has to be said beside the tables."""
    notes = []
    if verification.in_sample:
        notes.append("In-sample: measured on images that were also used to find the neurons.")
    if verification.zeroing_passes:
        notes.append(
            "Zeroing these neurons, without moving them to a register, keeps the bounds too: moving was not shown to "
            "be needed here."
        )
    return notes


def _drift_cells(drift: Drift) -> tuple[str, str]:
    return f"{drift.pooled:.2g}", f"{drift.patches:.2g}"
