"""Rows that people try by hand instead of patching: outlier patches found by their norm, then mended or hidden."""

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.evaluation.evaluation_result import CalibratedThreshold
from ttreg_hf.evaluation.masked_model import masked_model, why_not_masked
from ttreg_hf.evaluation.rows import INTERPOLATED, MASKED, Row
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.tower import VisionTower

_NO_RULE = "outliers are told by the threshold and block of a calibration of these weights; give one (`--calibration`)"


@dataclass(frozen=True)
class ManualBaselines:
    """The rows that there are, and why there are no others.

    Args:
        rows: by name.
        left_out: why, by name.
        threshold: by which outliers are told; `None` where nobody says so.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    threshold: CalibratedThreshold | None = None


def not_dense(task: str) -> ManualBaselines:
    """None of another task: nothing is to be seen in features of patches that it does not read."""
    return ManualBaselines(left_out=dict.fromkeys((INTERPOLATED, MASKED), f"the task {task} reads no patches"))


def manual_baselines(base: PreTrainedModel, calibration: CalibrationResult | None) -> ManualBaselines:
    """Those of a dense task.

    `interpolated`: the base model, outlier patches read as the mean of their ordinary neighbours (`interpolation.py`).
    `masked`: the base model in which, from the block behind the detection block on, no token attends to outlier
    patches.

    An outlier patch is one whose norm after the calibration's detection block is above its threshold: nothing else is
    known to whoever does it by hand.

    Args:
        base: the base model, which stays as it is.
        calibration: of its weights; `None`: there is none.
    """
    if calibration is None or calibration.on_other_weights or not calibration.was_found_on(base):
        return ManualBaselines(left_out=dict.fromkeys((INTERPOLATED, MASKED), _NO_RULE))
    norms = calibration.norms
    rule = OutlierRule(norms.detection_layer, norms.norm_threshold)
    threshold = CalibratedThreshold(norms.norm_threshold, norms.detection_layer, calibration.image_size)
    found = ManualBaselines({INTERPOLATED: Row(base, interpolate=rule)}, threshold=threshold)
    why_not = why_not_masked(VisionTower.of(base), rule.detection_layer)
    if why_not is None:
        found.rows[MASKED] = Row(masked_model(base, rule))
    else:
        found.left_out[MASKED] = why_not
    return found
