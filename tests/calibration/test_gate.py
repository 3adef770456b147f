"""Every condition of the verdict `fixed`, with figures worked out by hand."""

import dataclasses
import math

import pytest
import torch

from ttreg_hf.calibration.comparison import Comparison
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.controls import Controls
from ttreg_hf.calibration.gate import Drift, GateCheck, gate_checks, zeroing_passes
from ttreg_hf.measuring.feature_drift import FeatureDrift
from ttreg_hf.measuring.intervention import Outcome

GATE = GateConfig(max_outlier_ratio=0.1, max_drift=0.0625, max_drift_of_zeroed=0.5, max_ratio_of_random=0.5)
FOUND = Comparison(
    num_images=8,
    num_photographs=8,
    photographs_with_outliers=8,
    outlier_fraction_before=0.1,
    outlier_fraction_after=0.0,
    outlier_ratio_interval=(0.0, 0.0),
    max_norm_before=(9.0,),
    max_norm_after=(1.0,),
    tail_before=(9.0,),
    tail_after=(1.0,),
    register_norm=9.0,
    feature_similarity=1.0,
    feature_similarity_interval=(1.0, 1.0),
    min_feature_similarity=1.0,
)


def _drift(pooled: float = 0.0, patches: float = 0.0) -> FeatureDrift:
    """The same in eight photographs."""
    values = (torch.full((8,), value, dtype=torch.float64) for value in (pooled, patches))
    return FeatureDrift(*values)


def _checks(
    *,
    after: float = 0.0,
    moved: FeatureDrift | None = None,
    zeroed: FeatureDrift | None = None,
    random: tuple[float, ...] = (1.0, 0.9),
    layer_share: float = 0.01,
) -> tuple[GateCheck, ...]:
    controls = Controls(Outcome(0.0, 1.0), tuple(Outcome(ratio, 1.0) for ratio in random))
    found = dataclasses.replace(FOUND, outlier_fraction_after=after)
    return gate_checks(found, moved or _drift(), zeroed or _drift(), controls, (), layer_share, GATE)


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, []),
        ({"after": 0.01, "moved": _drift(0.0625, 0.0625)}, []),
        ({"after": 0.0101}, ["outliers after / before"]),
        ({"moved": _drift(0.0626)}, ["drift of the pooled feature (1"]),
        ({"moved": _drift(0.0, 0.0626)}, ["drift of ordinary patches (1"]),
        ({"moved": _drift(0.05, 0.05), "zeroed": _drift(0.1, 0.1)}, []),
        ({"moved": _drift(0.051), "zeroed": _drift(0.1)}, ["drift of the pooled feature, over that of zeroing"]),
        ({"moved": _drift(0.0, 0.06), "zeroed": _drift(0.9, 0.1)}, ["drift of ordinary patches, over that of zero"]),
        ({"moved": _drift(0.06), "zeroed": _drift(0.0625)}, []),  # zeroing keeps the bound itself
        ({"moved": _drift(0.4), "zeroed": _drift(0.8)}, ["drift of the pooled feature (1"]),  # half is not enough
        ({"moved": _drift(math.nan)}, ["drift of the pooled feature (1"]),
        ({"zeroed": _drift(0.0, math.nan)}, ["drift of ordinary patches, over that of zeroing"]),
        ({"after": 0.005, "random": (1.0, 0.1)}, []),
        ({"after": 0.0051, "random": (1.0, 0.1)}, ["best of the random draws"]),
        ({"random": (1.0, 0.0)}, ["best of the random draws"]),
        ({"layer_share": 0.25}, []),
        ({"layer_share": 0.26}, ["neurons of their layer"]),
        ({"after": math.nan}, ["outliers after / before", "best of the random draws"]),
    ],
)
def test_every_condition_of_the_gate_counts_and_bounds_are_included(fields, failed):
    checks = _checks(**fields)
    names = [check.name for check in checks if not check.passed]
    assert len(names) == len(failed)
    assert all(part in name for part, name in zip(failed, names, strict=True))
    assert all(check.remedy in check.reason for check in checks)


def test_the_upper_end_of_the_interval_keeps_the_bounds_of_drift():
    """One photograph in eight drifts far: the mean is below the bound, but other photographs might not be."""
    spread = torch.tensor([0.0] * 7 + [0.4], dtype=torch.float64)  # mean 0.05
    checks = _checks(moved=FeatureDrift(spread, torch.zeros(8)))
    failed = [check for check in checks if not check.passed]
    assert [check.name[:27] for check in failed] == ["drift of the pooled feature"]
    assert failed[0].value == pytest.approx(0.05)
    assert failed[0].value < GATE.max_drift < failed[0].judged
    assert "is, at 95 %, up to" in failed[0].reason
    zeroed = FeatureDrift(2.1 * spread[[7, 0, 1, 2, 3, 4, 5, 6]], torch.zeros(8))  # of others: pairs say nothing
    ratio = next(
        check
        for check in _checks(moved=FeatureDrift(spread, torch.zeros(8)), zeroed=zeroed)
        if "pooled feature, over" in check.name
    )
    assert ratio.value == pytest.approx(1 / 2.1)


def test_seven_photographs_have_a_mean_and_no_interval():
    drift = Drift.of(FeatureDrift(torch.full((7,), 0.25), torch.full((7,), 0.5)))
    assert (drift.pooled, drift.patches) == (0.25, 0.5)
    assert drift.pooled_interval is drift.patches_interval is None


@pytest.mark.parametrize(
    ("zeroed", "ratio", "passes"),
    [
        (_drift(0.0625, 0.0625), 0.1, True),
        (_drift(0.0626, 0.0), 0.0, False),
        (_drift(0.0, 0.0626), 0.0, False),
        (_drift(), 0.11, False),
        (_drift(math.nan), 0.0, False),
    ],
)
def test_zeroing_passes_where_it_keeps_the_bounds_of_outliers_and_drift(zeroed, ratio, passes):
    assert zeroing_passes(zeroed, ratio, GATE) is passes
