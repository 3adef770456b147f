"""The conditions of the verdict `fixed`, with what was measured.

Letters: `U` photographs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ttreg_hf.calibration.comparison import Comparison
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.controls import Controls
from ttreg_hf.measuring.feature_drift import FeatureDrift
from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio

Bounds = tuple[float, float]
_CARRIES = "Try a later `--first-layer` or a smaller `--top-k`: some of these neurons carry features."
_SPIKES_CARRY = "These rows of the position table carry features: the model needs them where they are."
_FEATURES = ("the pooled feature", "ordinary patches")
_NO_BETTER = "Zeroing these neurons costs hardly more than moving them: nothing is gained by a register for them."


@dataclass(frozen=True)
class GateCheck:
    """One condition of the verdict `fixed`.

    Args:
        name: what was measured.
        value: the measurement.
        bound: it has to be at most this.
        remedy: what to try where it is not.
        interval: 95 %, over photographs; `None` where there is none.
        by_upper_end: whether the upper end of the interval has to keep the bound, not the value alone.
    """

    name: str
    value: float
    bound: float
    remedy: str
    interval: Bounds | None = None
    by_upper_end: bool = False

    @property
    def judged(self) -> float:
        """What is held against the bound."""
        return self.interval[1] if self.by_upper_end and self.interval is not None else self.value

    @property
    def passed(self) -> bool:
        return self.judged <= self.bound

    @property
    def reason(self) -> str:
        """Why it fails, and what to try."""
        what = "is, at 95 %, up to" if self.by_upper_end and self.interval is not None else "is"
        return f"{self.name} {what} {self.judged:.3g}, allowed is {self.bound:.3g}. {self.remedy}"


@dataclass(frozen=True)
class Drift:
    """1 - mean cosine to the base model's features on the unchanged images; intervals are 95 %, over photographs.

    Args:
        pooled: of the pooled feature.
        pooled_interval: of it; `None` of fewer than eight photographs.
        patches: of the patches that are no outliers in the base model.
        patches_interval: of it.
    """

    pooled: float
    pooled_interval: Bounds | None
    patches: float
    patches_interval: Bounds | None

    @classmethod
    def of(cls, found: FeatureDrift) -> "Drift":
        """The means over photographs."""
        return cls(
            float(found.pooled_U.mean()),
            interval_of_mean(found.pooled_U),
            float(found.patches_U.mean()),
            interval_of_mean(found.patches_U),
        )


@dataclass(frozen=True)
class Drifts:
    """How far the features move, and what that is to be compared with, on the same photographs.

    Args:
        moved: by moving the neurons.
        zeroed: by zeroing them and moving nothing, extra token included.
        jpeg: of the base model, on the images saved as JPEG of quality 90.
        shifted: of the base model, on the images moved by one patch.
    """

    moved: Drift
    zeroed: Drift
    jpeg: Drift
    shifted: Drift


def gate_checks(
    found: Comparison,
    moved: FeatureDrift,
    zeroed: FeatureDrift,
    controls: Controls,
    later_fractions: Sequence[float],
    layer_share: float,
    gate: GateConfig,
) -> tuple[GateCheck, ...]:
    """All conditions.

    Args:
        found: base against patched.
        moved: drift of the features by moving the neurons.
        zeroed: by zeroing them and moving nothing.
        controls: the same number of neurons used otherwise.
        later_fractions: share of the patched model's patches in a second population, at each block after the detection
            block.
        layer_share: neurons moved, over all of their layer.
        gate: the bounds.
    """
    return (
        outlier_check(found, gate),
        *drift_checks(moved, zeroed, gate, _CARRIES if layer_share else _SPIKES_CARRY),
        _random_check(found.outlier_ratio, controls, gate),
        *_later_checks(found, later_fractions, gate),
        _layer_check(layer_share, gate),
    )


def drift_checks(
    moved: FeatureDrift, zeroed: FeatureDrift, gate: GateConfig, remedy: str = _CARRIES
) -> tuple[GateCheck, ...]:
    """Of the pooled feature and of ordinary patches: an absolute bound, and half of what zeroing costs.

    The second one counts where zeroing's drift exceeds the first bound.
    """
    checks = []
    for what, absolute, moved_U, zeroed_U in zip(
        _FEATURES, absolute_drift_checks(moved, gate, remedy), _values(moved), _values(zeroed), strict=True
    ):
        checks.append(absolute)
        if not float(zeroed_U.mean()) <= gate.max_drift:
            checks.append(_check_of_zeroing(what, moved_U, zeroed_U, gate))
    return tuple(checks)


def absolute_drift_checks(moved: FeatureDrift, gate: GateConfig, remedy: str = _CARRIES) -> tuple[GateCheck, ...]:
    """Of the pooled feature and of ordinary patches, whatever zeroing costs."""
    checks = []
    for what, moved_U in zip(_FEATURES, _values(moved), strict=True):
        name = f"drift of {what} (1 - mean cosine to the base model)"
        interval = interval_of_mean(moved_U)
        checks.append(GateCheck(name, float(moved_U.mean()), gate.max_drift, remedy, interval, by_upper_end=True))
    return tuple(checks)


def _values(drift: FeatureDrift) -> tuple[Tensor, Tensor]:
    return drift.pooled_U, drift.patches_U


def _check_of_zeroing(what: str, moved_U: Tensor, zeroed_U: Tensor, gate: GateConfig) -> GateCheck:
    return GateCheck(
        f"drift of {what}, over that of zeroing the same neurons",
        float(moved_U.sum() / zeroed_U.sum()),
        gate.max_drift_of_zeroed,
        _NO_BETTER,
        interval_of_ratio(moved_U, zeroed_U),
        by_upper_end=True,
    )


def outlier_check(found: Comparison, gate: GateConfig) -> GateCheck:
    """That outliers go."""
    return GateCheck(
        "outliers after / before",
        found.outlier_ratio,
        gate.max_outlier_ratio,
        "Try more images (`--num-images`), another `--last-layer`, or another round (`--rounds`).",
        found.outlier_ratio_interval,
    )


def _random_check(ratio: float, controls: Controls, gate: GateConfig) -> GateCheck:
    """That random neurons do not take them away as well."""
    best_random = min(draw.outlier_ratio for draw in controls.random)
    return GateCheck(
        "outliers after / before, over the best of the random draws",
        ratio / best_random if best_random > 0 else 1.0,
        gate.max_ratio_of_random,
        "Random neurons take the outliers away too, so these are not special: check `--norm-threshold`.",
    )


def _later_checks(found: Comparison, fractions: Sequence[float], gate: GateConfig) -> tuple[GateCheck, ...]:
    """No second population after the detection block; no check where no block follows it."""
    if not fractions:
        return ()
    worst, before = max(fractions), found.outlier_fraction_before
    first = len(found.max_norm_after) - len(fractions)
    layer = first + fractions.index(worst)
    return (
        GateCheck(
            "patches in a second population at a later block / outliers before",
            worst / before if before else float(worst > 0),
            gate.max_later_ratio,
            f"Outliers stay or begin after block {first - 1}, where they were detected, most at block {layer}: try "
            f"`--detection-layer {layer}`.",
        ),
    )


def _layer_check(layer_share: float, gate: GateConfig) -> GateCheck:
    """That the neurons moved are not a whole layer."""
    return GateCheck(
        "neurons moved / neurons of their layer",
        layer_share,
        gate.max_layer_share,
        "A whole layer writes these outliers, not a few register neurons: this method does not treat them.",
    )


def zeroing_passes(zeroed: FeatureDrift, outlier_ratio: float, gate: GateConfig) -> bool:
    """Whether zeroing the neurons and moving nothing keeps the bounds of outliers and drift as well."""
    uppers = []
    for values_U in (zeroed.pooled_U, zeroed.patches_U):
        interval = interval_of_mean(values_U)
        uppers.append(float(values_U.mean()) if interval is None else interval[1])
    return outlier_ratio <= gate.max_outlier_ratio and all(
        math.isfinite(upper) and upper <= gate.max_drift for upper in uppers
    )
