"""Base against patched, with figures worked out by hand, and the verdict."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import NEURONS, images

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.attention import _entropy
from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.config import GateConfig
from ttreg_hf.calibration.controls import RANDOM_DRAWS, Controls, random_neurons
from ttreg_hf.calibration.later_blocks import later_outlier_fractions
from ttreg_hf.calibration.measuring import Measured, measure
from ttreg_hf.calibration.norms import NormStatistics
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.calibration.patch_norms import PatchNorms
from ttreg_hf.calibration.trial import Outcome, Trial
from ttreg_hf.calibration.verification import Verification, compare, gate_checks, verify
from ttreg_hf.families import blocks_of, image_inputs
from ttreg_hf.maps import image_maps
from ttreg_hf.modeling.ttreg_base import down_projection
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.planted.kinds import make_known_model
from ttreg_hf.planted.truth import KnownModel
from ttreg_hf.register_neuron import RegisterNeuron

GATE = GateConfig(max_outlier_ratio=0.1, max_drift=0.0625, max_drift_of_zeroed=0.5, max_ratio_of_random=0.5)


def _measured(features: list[list[float]], outliers: list[int], register_norm: float = 0.0) -> Measured:
    masks = [torch.arange(10) < count for count in outliers]
    norms = [torch.where(mask, 9.0, 1.0) for mask in masks]
    statistics = NormStatistics(1, torch.device("cpu"))
    statistics.add(torch.stack(norms)[None])
    patch_norms = PatchNorms()
    patch_norms.add(torch.ones_like(torch.stack(norms)), torch.stack(norms)[None])
    return Measured(tuple(masks), tuple(norms), patch_norms, statistics, register_norm, torch.tensor(features))


def _verification(
    *,
    after: float = 0.0,
    similarity: float = 1.0,
    zeroed: float = 1.0,
    random: tuple[float, ...] = (1.0, 0.9),
    layer_share: float = 0.01,
) -> Verification:
    same = _measured([[1.0, 0.0]], [1])
    return dataclasses.replace(
        compare(same, same, in_sample=False),
        outlier_fraction_before=0.1,
        outlier_fraction_after=after,
        feature_similarity=similarity,
        controls=Controls(Outcome(0.0, zeroed), tuple(Outcome(ratio, 1.0) for ratio in random)),
        layer_share=layer_share,
    )


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, []),
        ({"after": 0.01, "similarity": 0.9375}, []),
        ({"after": 0.0101}, ["outliers after / before"]),
        ({"similarity": 0.9374}, ["feature drift"]),
        ({"similarity": 0.75, "zeroed": 0.5}, []),
        ({"similarity": 0.74, "zeroed": 0.5}, ["feature drift"]),
        ({"after": 0.005, "random": (1.0, 0.1)}, []),
        ({"after": 0.0051, "random": (1.0, 0.1)}, ["best of the random draws"]),
        ({"random": (1.0, 0.0)}, ["best of the random draws"]),
        ({"layer_share": 0.25}, []),
        ({"layer_share": 0.26}, ["neurons of their layer"]),
        ({"similarity": math.nan}, ["feature drift"]),
        ({"after": math.nan}, ["outliers after / before", "best of the random draws"]),
    ],
)
def test_every_condition_of_the_gate_counts_and_bounds_are_included(fields, failed):
    found = _verification(**fields)
    found = dataclasses.replace(found, checks=gate_checks(found, GATE))
    names = [check.name for check in found.checks if not check.passed]
    assert len(names) == len(failed)
    assert all(part in name for part, name in zip(failed, names, strict=True))
    assert found.verdict == ("unresolved" if failed else "fixed")
    assert all(check.remedy for check in found.checks)


def test_what_was_not_judged_is_unresolved():
    assert _verification().verdict == "unresolved"


def test_outlier_ratio_is_after_over_before():
    assert dataclasses.replace(_verification(after=0.05), outlier_fraction_before=0.2).outlier_ratio == 0.25
    assert dataclasses.replace(_verification(), outlier_fraction_before=0.0).outlier_ratio == 1.0  # nothing was shown


def test_compare_goes_image_by_image():
    before = _measured([[1.0, 0.0], [0.0, 2.0]], [2, 4])
    after = _measured([[5.0, 0.0], [3.0, 3.0]], [0, 1], register_norm=7.0)
    found = compare(before, after, in_sample=True)
    assert found.feature_similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found.min_feature_similarity == pytest.approx(math.sqrt(0.5))
    low, high = found.feature_similarity_interval
    assert (low, high) == pytest.approx((math.sqrt(0.5), 1.0))
    assert (found.outlier_fraction_before, found.outlier_fraction_after) == (0.3, 0.05)
    assert found.outlier_ratio_interval == pytest.approx((0.0, 0.25))
    assert (found.max_norm_before, found.max_norm_after) == ((9.0,), (9.0,))
    assert found.tail_before == pytest.approx((9.0,), rel=0.02)
    assert (found.num_images, found.in_sample, found.register_norm) == (2, True, 7.0)


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
        OutlierRule(1, threshold),
    )
    assert found.num_images == 5
    assert found.outlier_fraction == pytest.approx((norms_LBN[1] > threshold).float().mean().item())
    torch.testing.assert_close(found.norms.max_L.float(), norms_LBN.amax((1, 2)))
    assert found.register_norm == 0.0
    torch.testing.assert_close(found.features_BD, bare_case.feature(model(**inputs)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_measure_keeps_registers_and_patches_apart(bare_case):
    patched = add_test_time_registers(
        bare_case.stock_model(), NEURONS, num_test_time_registers=2, output_registers=True
    )
    states = patched(**image_inputs(patched, images()), output_hidden_states=True).hidden_states[1:]
    norms_LBT, prefix = torch.stack([state.norm(dim=-1) for state in states]), bare_case.family.num_prefix_tokens
    found = measure(patched, [Batch(images(), (0, 1, 2))], OutlierRule(2, 1.0))
    torch.testing.assert_close(found.norms.max_L.float(), norms_LBT[:, :, prefix + 2 :].amax((1, 2)))
    assert found.register_norm == pytest.approx(norms_LBT[2, :, prefix : prefix + 2].mean().item())


@pytest.fixture(scope="module", params=["dinov2", "clip_vision_model", "siglip_vision_model"])
def trial(request: pytest.FixtureRequest) -> tuple[Trial, PlantedModel]:
    planted = planted_model(request.param)
    batches = [Batch(synthetic_images(8, seed=7), tuple(range(8)))]
    return Trial(planted.model, batches, OutlierRule(4, planted.norm_threshold)), planted


def _verify(trial: Trial, neurons: Sequence[RegisterNeuron], **options: Any) -> Verification:
    return verify(trial, neurons, **{"shift_value": "per_neuron", "in_sample": False, "gate": GateConfig()} | options)


def test_moving_planted_neurons_passes_the_gate_and_every_figure_shows_it(trial):
    trial, planted = trial
    found = _verify(trial, planted.register_neurons)
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
    assert [draw.outlier_ratio for draw in found.controls.random] == [1.0] * RANDOM_DRAWS
    assert found.controls.zeroed.outlier_ratio == 0.0
    assert found.layer_share == 2 / down_projection(blocks_of(trial.model)[2]).in_features
    strong, weak = found.neurons
    assert strong.norm_share > weak.norm_share > 0.1
    assert abs(strong.change_per_norm) < 0.02


def test_other_neurons_do_not_pass(trial):
    trial, planted = trial
    others = random_neurons(trial.model, planted.register_neurons, draws=1, seed=9)[0]
    found = _verify(trial, others)
    assert found.verdict == "unresolved"
    assert found.outlier_ratio == 1.0
    assert all(effect.change_per_norm is None for effect in found.neurons)


@pytest.fixture(scope="module")
def later_trial() -> tuple[Trial, KnownModel, int]:
    """Outliers are looked for before the block in which the second population begins."""
    known = make_known_model("clip", "two populations", trigger="bright", seed=0)
    begins = max(neuron.layer for neuron in known.register_neurons)
    batches = [Batch(synthetic_images(24, seed=7), tuple(range(24)))]
    return Trial(known.model, batches, OutlierRule(begins - 1, known.norm_threshold)), known, begins


def test_a_population_that_begins_after_the_detection_block_is_unresolved(later_trial):
    trial, known, begins = later_trial
    found = _verify(trial, [neuron for neuron in known.register_neurons if neuron.layer < begins])
    assert found.outlier_ratio == 0.0
    failed = [check for check in found.checks if not check.passed]
    assert [check.name for check in failed] == ["patches in a second population at a later block / outliers before"]
    assert failed[0].value > 0.1 == failed[0].bound
    assert failed[0].value == pytest.approx(max(found.later_outlier_fractions) / found.outlier_fraction_before)
    assert f"begin after block {begins - 1}" in failed[0].remedy
    assert f"--detection-layer {begins}" in failed[0].remedy
    assert found.verdict == "unresolved"


def test_with_the_later_population_moved_too_the_gate_is_passed(later_trial):
    trial, known, _ = later_trial
    found = _verify(trial, known.register_neurons)
    assert found.later_outlier_fractions == (0.0,) * (len(found.max_norm_after) - trial.rule.detection_layer - 1)
    assert found.verdict == "fixed"


def test_content_and_fixed_positions_are_no_later_population():
    """Content is large at the embeddings' output already, position 3 in every image, as the rule says."""
    norms_LBN = torch.ones(2, 40, 50) + 0.1 * torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0))
    embedding_norms_BN = torch.ones(40, 50)
    norms_LBN[1, :, 3] = embedding_norms_BN[:, 5] = norms_LBN[:, :, 5] = 20.0
    patch_norms = PatchNorms()
    patch_norms.add(embedding_norms_BN, norms_LBN)
    same = dataclasses.replace(_measured([[1.0, 0.0]], [0]), patch_norms=patch_norms)
    assert later_outlier_fractions(same, same, OutlierRule(0, 5.0, fixed_positions=(3,))) == (0.0,)
    assert later_outlier_fractions(same, same, OutlierRule(0, 5.0)) == (pytest.approx(1 / 50),)
    assert later_outlier_fractions(same, same, OutlierRule(0, 25.0)) == (0.0,)  # smaller than an outlier has to be
    assert later_outlier_fractions(same, same, OutlierRule(1, 5.0)) == ()


def test_random_draws_leave_the_chosen_out_and_keep_to_their_layers(trial):
    trial, planted = trial
    layer = planted.register_neurons[0].layer
    width = down_projection(blocks_of(trial.model)[layer]).in_features
    neurons = [RegisterNeuron(layer, place, 0.0) for place in range(width - 3)] + [RegisterNeuron(4, 0, 0.0)]
    draws = random_neurons(trial.model, neurons, draws=4, seed=0)
    for draw in draws:
        assert {n.neuron for n in draw if n.layer == layer} == {width - 3, width - 2, width - 1}  # all that are left
        assert [n.layer for n in draw].count(4) == 1
        assert (4, 0) not in {(n.layer, n.neuron) for n in draw}
    assert len({draw[-1].neuron for draw in draws}) > 1
    assert (
        draws
        == random_neurons(trial.model, neurons, draws=4, seed=0)
        != random_neurons(trial.model, neurons, draws=4, seed=1)
    )


def test_entropy_of_an_even_spread_is_1(trial):
    trial, _ = trial
    maps = image_maps(trial.model, trial.batches[0].pixel_values[:1], detection_layer=4)[0]
    even = dataclasses.replace(maps, attention=torch.full((8, 8), 0.01))
    peak = dataclasses.replace(maps, attention=torch.eye(64)[5].reshape(8, 8))
    assert (_entropy(even), _entropy(peak)) == (pytest.approx(1.0), pytest.approx(0.0))
