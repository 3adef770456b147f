"""Base against patched, with figures worked out by hand, and the verdict."""

import dataclasses
import math

import pytest
import torch
from families import NEURONS, images

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.verification import Measured, Verification, compare, measure, verdict_of
from ttreg_hf.families import image_inputs
from ttreg_hf.planted import planted_model, synthetic_images


def _verification(*, before: float = 0.1, after: float = 0.0, similarity: float = 1.0) -> Verification:
    return Verification(4, False, before, after, (1.0,), (1.0,), 0.0, similarity, similarity)


@pytest.mark.parametrize(
    ("after", "similarity", "verdict"),
    [
        (0.0, 1.0, "fixed"),
        (0.01, 0.9, "fixed"),
        (0.0101, 1.0, "unresolved"),
        (0.0, 0.8999, "unresolved"),
        (0.1, 1.0, "unresolved"),
        (0.0, math.nan, "unresolved"),
    ],
)
def test_verdict_is_fixed_within_the_gate_bounds_included(after, similarity, verdict):
    gate = GateConfig(max_outlier_ratio=0.1, min_feature_similarity=0.9)
    assert verdict_of(_verification(after=after, similarity=similarity), gate) == verdict


def test_outlier_ratio_is_after_over_before():
    assert _verification(before=0.2, after=0.05).outlier_ratio == pytest.approx(0.25)
    assert _verification(before=0.0, after=0.0).outlier_ratio == 1.0  # nothing was shown to work


def test_compare_takes_the_cosine_of_each_image():
    before = Measured(2, 0.5, torch.tensor([1.0, 9.0]), 0.0, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    after = Measured(2, 0.1, torch.tensor([1.0, 2.0]), 7.0, torch.tensor([[5.0, 0.0], [3.0, 3.0]]))
    found = compare(before, after, in_sample=True)
    assert found.feature_similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found.min_feature_similarity == pytest.approx(math.sqrt(0.5))
    expected = Verification(2, True, 0.5, 0.1, (1.0, 9.0), (1.0, 2.0), 7.0, 0, 0)
    drift = {"feature_similarity": 0, "min_feature_similarity": 0}
    assert dataclasses.replace(found, **drift) == expected


@torch.no_grad()
def test_measure_equals_hidden_states(bare_case):
    model, prefix = bare_case.stock_model(), bare_case.family.num_prefix_tokens
    inputs = image_inputs(model, images(5))
    norms_LBN = torch.stack(
        [s[:, prefix:].norm(dim=-1) for s in model(**inputs, output_hidden_states=True).hidden_states[1:]]
    )
    threshold = float(norms_LBN[1].median())
    found = measure(
        model,
        [Batch(part, (0,) * len(part)) for part in images(5).split(2)],
        detection_layer=1,
        norm_threshold=threshold,
    )
    assert found.num_images == 5
    assert found.outlier_fraction == pytest.approx((norms_LBN[1] > threshold).float().mean().item())
    torch.testing.assert_close(found.max_norm_L, norms_LBN.amax((1, 2)))
    assert found.register_norm == 0.0
    torch.testing.assert_close(found.features_BD, model(**inputs).pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_measure_keeps_registers_and_patches_apart(bare_case):
    patched = add_test_time_registers(
        bare_case.stock_model(), NEURONS, num_test_time_registers=2, output_registers=True
    )
    states = patched(**image_inputs(patched, images()), output_hidden_states=True).hidden_states[1:]
    norms_LBT, prefix = torch.stack([state.norm(dim=-1) for state in states]), bare_case.family.num_prefix_tokens
    found = measure(patched, [Batch(images(), (0, 1, 2))], detection_layer=2, norm_threshold=1.0)
    torch.testing.assert_close(found.max_norm_L, norms_LBT[:, :, prefix + 2 :].amax((1, 2)))
    assert found.register_norm == pytest.approx(norms_LBT[2, :, prefix : prefix + 2].mean().item())


@pytest.mark.parametrize("family", ["dinov2", "clip_vision_model"])
def test_moving_planted_neurons_moves_the_norm_to_the_register(family):
    planted = planted_model(family)
    batches = [Batch(synthetic_images(8, seed=7), tuple(range(8)))]
    layer, threshold = 4, planted.norm_threshold
    before = measure(planted.model, batches, detection_layer=layer, norm_threshold=threshold)
    patched = add_test_time_registers(planted.model, planted.register_neurons)
    after = measure(patched, batches, detection_layer=layer, norm_threshold=threshold)
    verification = compare(before, after, in_sample=False)
    assert verification.outlier_fraction_before > 0.02
    assert verification.outlier_fraction_after == 0.0
    assert max(verification.max_norm_before) > threshold > max(verification.max_norm_after)
    assert verification.register_norm > threshold
    assert verification.min_feature_similarity > 0.999
    assert verdict_of(verification, GateConfig()) == "fixed"
