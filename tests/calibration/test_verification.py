"""Base against patched, with figures worked out by hand, and the verdict."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from benchmarks.planted_kinds import make_known_model
from benchmarks.planted_truth import KnownModel

from ttreg_hf.calibration.comparison import compare
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.later_outliers import later_outlier_fractions
from ttreg_hf.calibration.verification import Verification, verify
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.intervention import Intervention
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.norms import NormStatistics
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron


def _measurement(
    features: list[list[float]],
    outliers: list[int],
    register_norm: float = 0.0,
    photographs: Sequence[int] | None = None,
) -> Measurement:
    masks = [torch.arange(10) < count for count in outliers]
    norms = [torch.where(mask, 9.0, 1.0) for mask in masks]
    statistics = NormStatistics(1, torch.device("cpu"))
    statistics.add(torch.stack(norms)[None])
    patch_norms = PatchNorms()
    keys = [(photograph, str(image)) for image, photograph in enumerate(photographs or range(len(norms)))]
    patch_norms.add(torch.ones_like(torch.stack(norms)), torch.stack(norms)[None], keys, (1, len(norms[0])))
    places = tuple(range(len(norms)))
    return Measurement(
        tuple(masks), tuple(norms), patch_norms, statistics, register_norm, torch.tensor(features), places
    )


def test_compare_goes_image_by_image():
    before = _measurement([[1.0, 0.0], [0.0, 2.0]] * 4, [2, 4] * 4)
    after = _measurement([[5.0, 0.0], [3.0, 3.0]] * 4, [0, 1] * 4, register_norm=7.0)
    found = compare(before, after)
    assert found.feature_similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found.min_feature_similarity == pytest.approx(math.sqrt(0.5))
    low, high = found.feature_similarity_interval
    assert math.sqrt(0.5) <= low < found.feature_similarity < high <= 1.0
    assert (found.outlier_fraction_before, found.outlier_fraction_after) == (0.3, 0.05)
    low, high = found.outlier_ratio_interval
    assert 0.0 <= low < found.outlier_ratio == pytest.approx(1 / 6)
    assert found.outlier_ratio < high <= 0.25
    assert (found.max_norm_before, found.max_norm_after) == ((9.0,), (9.0,))
    assert found.tail_before == pytest.approx((9.0,), rel=0.02)
    assert (found.num_images, found.num_photographs, found.register_norm) == (8, 8, 7.0)
    assert found.photographs_with_outliers == 8


def test_crops_of_one_photograph_count_once_and_few_photographs_have_no_interval():
    """Fifteen crops of one photograph, which drift, beside one image of its own."""
    features, photographs = [[1.0, 0.0]] * 16, [0] * 15 + [1]
    before = _measurement(features, [1] * 16, photographs=photographs)
    after = _measurement([[0.0, 1.0]] * 15 + [[1.0, 0.0]], [0] * 16, photographs=photographs)
    found = compare(before, after)
    assert (found.num_images, found.num_photographs, found.photographs_with_outliers) == (16, 2, 2)
    assert found.feature_similarity == pytest.approx(0.5)
    assert found.feature_similarity_interval is None
    assert found.outlier_ratio_interval is None
    apart = compare(_measurement(features, [1] * 16), _measurement(features, [0] * 16))
    assert apart.feature_similarity_interval == pytest.approx((1.0, 1.0))


def test_without_outliers_before_nothing_was_shown():
    found = compare(_measurement([[1.0, 0.0]] * 9, [0] * 9), _measurement([[1.0, 0.0]] * 9, [0] * 9))
    assert (found.outlier_ratio, found.photographs_with_outliers) == (1.0, 0)


@pytest.mark.parametrize(
    ("photographs", "with_outliers", "verdict"),
    [(8, 8, "fixed"), (7, 7, "unresolved"), (8, 4, "fixed"), (8, 3, "unresolved"), (40, 3, "unresolved")],
)
def test_a_verdict_of_fixed_rests_on_enough_photographs(intervention, photographs, with_outliers, verdict):
    found = _verify(*intervention)
    found = dataclasses.replace(found, num_photographs=photographs, photographs_with_outliers=with_outliers)
    assert found.verdict == verdict
    reasons = found.reasons(48)
    assert bool(reasons) == (verdict == "unresolved")
    assert all(reason.startswith("too few images: ") and "would do" in reason for reason in reasons)
    assert found.reasons(23)[0].startswith("too few images: 23 photographs")  # none of eight to score


@pytest.fixture(scope="module", params=["dinov2", "clip_vision_model", "siglip_vision_model"])
def intervention(request: pytest.FixtureRequest) -> tuple[Intervention, PlantedModel]:
    planted = planted_model(request.param)
    batches = [Batch(synthetic_images(12, seed=7), tuple(range(12)))]
    return Intervention(VisionTower.of(planted.model), batches, OutlierRule(4, planted.norm_threshold)), planted


def _verify(
    intervention: Intervention, planted: Any, neurons: Sequence[RegisterNeuron] | None = None, **options: Any
) -> Verification:
    settings = {"shift_value": "per_neuron", "in_sample": False, "gate": GateConfig()}
    return verify(intervention, neurons or planted.register_neurons, **settings | options)


def test_moving_planted_neurons_passes_the_gate_and_every_figure_shows_it(intervention):
    intervention, planted = intervention
    found = _verify(intervention, planted)
    assert found.verdict == "fixed"
    assert found.outlier_fraction_before > 0.02
    assert found.outlier_fraction_after == 0.0
    assert found.outlier_ratio_interval == (0.0, 0.0)
    assert max(found.max_norm_before) > planted.norm_threshold > max(found.max_norm_after)
    assert max(found.tail_before) > 3 * max(found.tail_after)
    assert found.register_norm > planted.norm_threshold
    assert found.min_feature_similarity > 0.99
    assert found.maps.largest_before > 2 * found.maps.largest_after
    assert found.maps.entropy_after > found.maps.entropy_before
    assert found.maps.on_register > 0.05
    assert [draw.outlier_ratio for draw in found.controls.random] == [1.0] * GateConfig().random_draws
    assert found.controls.zeroed.outlier_ratio == 0.0
    assert found.layer_share == 2 / intervention.tower.widths[2]
    assert [check.interval for check in found.checks[:3]] == [
        found.outlier_ratio_interval,
        found.drifts.moved.pooled_interval,
        found.drifts.moved.patches_interval,
    ]
    assert {check.interval for check in found.checks[3:]} == {None}
    assert found.drifts.moved.pooled == pytest.approx(1 - found.feature_similarity, abs=1e-6)
    assert found.drifts.zeroed.pooled == pytest.approx(1 - found.controls.zeroed.feature_similarity, abs=1e-6)
    assert found.drifts.moved.patches < found.drifts.zeroed.patches < 0.05
    assert min(found.drifts.jpeg.pooled, found.drifts.shifted.pooled) > 1e-7
    assert min(found.drifts.jpeg.patches, found.drifts.shifted.patches) > 1e-4
    assert found.zeroing_passes  # a sink with a value of nearly zero is hardly missed
    assert found.places == tuple(range(12))
    strong, weak = found.neurons
    assert strong.norm_share > weak.norm_share > 0.1
    assert abs(strong.change_per_norm) < 0.02


def test_other_neurons_do_not_pass(intervention):
    intervention, planted = intervention
    others = random_neurons(intervention.tower, planted.register_neurons, draws=1, seed=9)[0]
    found = _verify(intervention, planted, others)
    assert found.verdict == "unresolved"
    assert found.outlier_ratio == 1.0
    assert all(effect.change_per_norm is None for effect in found.neurons)


@pytest.fixture(scope="module")
def later_intervention() -> tuple[Intervention, KnownModel, int]:
    """Outliers are looked for before the block in which the second population begins."""
    known = make_known_model("clip", "two populations", trigger="bright", seed=0)
    begins = max(neuron.layer for neuron in known.register_neurons)
    batches = [Batch(synthetic_images(24, seed=7), tuple(range(24)))]
    rule = OutlierRule(begins - 1, known.norm_threshold)
    return Intervention(VisionTower.of(known.model), batches, rule), known, begins


def test_a_population_that_begins_after_the_detection_block_is_unresolved(later_intervention):
    intervention, known, begins = later_intervention
    found = _verify(intervention, known, [neuron for neuron in known.register_neurons if neuron.layer < begins])
    assert found.outlier_ratio == 0.0
    failed = [check for check in found.checks if not check.passed]
    assert [check.name for check in failed] == ["patches in a second population at a later block / outliers before"]
    assert failed[0].value > 0.1 == failed[0].bound
    assert failed[0].value == pytest.approx(max(found.later_outlier_fractions) / found.outlier_fraction_before)
    assert f"begin after block {begins - 1}" in failed[0].remedy
    assert f"--detection-layer {begins}" in failed[0].remedy
    assert found.verdict == "unresolved"


def test_with_the_later_population_moved_too_the_gate_is_passed(later_intervention):
    intervention, known, _ = later_intervention
    found = _verify(intervention, known)
    later_blocks = len(found.max_norm_after) - intervention.rule.detection_layer - 1
    assert found.later_outlier_fractions == (0.0,) * later_blocks
    assert found.verdict == "fixed"


def test_content_and_fixed_positions_are_no_later_population():
    """Content is large at the embeddings' output already, position 3 in every image, as the rule says."""
    norms_LBN = torch.ones(2, 40, 50) + 0.1 * torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0))
    embedding_norms_BN = torch.ones(40, 50)
    norms_LBN[1, :, 3] = embedding_norms_BN[:, 5] = norms_LBN[:, :, 5] = 20.0
    patch_norms = PatchNorms()
    patch_norms.add(embedding_norms_BN, norms_LBN, [(image, str(image)) for image in range(40)], (5, 10))
    same = dataclasses.replace(_measurement([[1.0, 0.0]], [0]), patch_norms=patch_norms)
    assert later_outlier_fractions(same, same, OutlierRule(0, 5.0, fixed_positions=(3,))) == (0.0,)
    assert later_outlier_fractions(same, same, OutlierRule(0, 5.0)) == (pytest.approx(1 / 50),)
    assert later_outlier_fractions(same, same, OutlierRule(0, 25.0)) == (0.0,)  # smaller than an outlier has to be
    assert later_outlier_fractions(same, same, OutlierRule(1, 5.0)) == ()
