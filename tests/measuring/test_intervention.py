"""Interventions: what patching does to the same images, counted once a set of neurons."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.measuring.measurement import measure
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model(neurons_per_layer={2: 2})


def _intervention(planted: PlantedModel, **options: Any) -> Intervention:
    batches = [Batch(part, tuple(range(4))) for part in synthetic_images(8, seed=7).split(4)]
    tower, rule = VisionTower.of(planted.model), OutlierRule(4, planted.norm_threshold)
    return Intervention(tower, iter(batches), rule, options=options)


def test_planted_neurons_take_the_outliers_away_and_others_do_not(planted):
    intervention = _intervention(planted)
    assert intervention.has_outliers
    assert intervention.outcome(planted.register_neurons).outlier_ratio == 0.0
    taken = {neuron.neuron for neuron in planted.register_neurons}
    others = [RegisterNeuron(2, place, 0.1) for place in range(50) if place not in taken][:2]
    assert intervention.outcome(others) == Outcome(1.0, pytest.approx(1.0, abs=1e-4))


def test_zeroing_without_moving_is_another_outcome(planted):
    intervention = _intervention(planted)
    moved = intervention.after(planted.register_neurons)
    zeroed = intervention.after(planted.register_neurons, shift_scale=0.0)
    assert moved.register_norm > 10 * zeroed.register_norm
    assert intervention.compared(zeroed).outlier_ratio == 0.0


def test_forward_passes_are_counted(planted):
    intervention = _intervention(planted)
    assert intervention.images_run == 8
    intervention.outcome(planted.register_neurons)
    assert intervention.images_run == 16


def test_an_intervention_without_outliers_shows_nothing(planted):
    batches = [Batch(synthetic_images(2, seed=7), (0, 1))]
    intervention = Intervention(VisionTower.of(planted.model), batches, OutlierRule(4, 1e9))
    assert not intervention.has_outliers
    assert intervention.outcome(planted.register_neurons).outlier_ratio == 1.0


def test_an_intervention_leaves_the_base_model_as_it_was(planted):
    intervention = _intervention(planted)
    intervention.outcome(planted.register_neurons)
    again = _intervention(planted)
    assert again.before.outlier_fraction == intervention.before.outlier_fraction > 0
    assert torch.equal(again.before.features_BD, intervention.before.features_BD)


def test_twins_keep_the_options_of_the_intervention_and_zeroing_wins_over_them(planted):
    options = {"num_test_time_registers": 2, "shift_fill": "mean", "shift_scale": 0.5}
    intervention = _intervention(planted, **options)
    twin = intervention.patched(planted.register_neurons)
    assert {name: getattr(twin.model.config, name) for name in options} == options
    moved, zeroed, again = (
        intervention.after(planted.register_neurons, shift_scale=scale) for scale in (None, 0.0, None)
    )
    alone = measure(twin, intervention.batches, intervention.rule)
    assert moved.register_norm == again.register_norm == alone.register_norm
    assert zeroed.register_norm < 0.2 * moved.register_norm


@pytest.mark.parametrize("fill", ["mean", "keep"])
def test_neurons_that_go_nowhere_are_zeroed_whatever_moving_leaves_on_the_patches(planted, fill):
    twins = (
        each.nowhere(planted.register_neurons, shift_value="per_neuron")
        for each in (_intervention(planted, shift_fill=fill), _intervention(planted))
    )
    states, zeroed = (twin.model(synthetic_images(2, seed=7)).last_hidden_state for twin in twins)
    torch.testing.assert_close(states, zeroed, rtol=0, atol=0)


def _weakened(planted: PlantedModel, share: float) -> VisionTower:
    """The tower whose planted neurons write a share of what they wrote."""
    tower = VisionTower.of(copy.deepcopy(planted.model))
    with torch.no_grad():
        for neuron in planted.register_neurons:
            tower.down_projections[neuron.layer].weight[:, neuron.neuron] *= share
    return tower


def _least_outlier(intervention: Intervention) -> float:
    before = intervention.before
    return float(torch.stack(before.norms_BN)[torch.stack(before.outliers_BN)].min())


def test_an_outlier_stays_one_with_most_of_its_excess_left(planted):
    strict = dataclasses.replace(planted, norm_threshold=0.9 * _least_outlier(_intervention(planted)))
    intervention = _intervention(strict)
    weak, gone = (intervention.measure(_weakened(planted, share)) for share in (0.6, 0.0))
    by_the_rule_alone = int((torch.stack(weak.norms_BN) > strict.norm_threshold).sum())
    assert by_the_rule_alone < intervention.num_outliers
    assert torch.equal(weak.outliers_B, intervention.before.outliers_B)
    assert intervention.compared(gone).outlier_ratio == 0.0


@pytest.mark.parametrize("staying_share", [math.inf, 0.95])
def test_it_can_be_said_how_much_of_its_excess_an_outlier_keeps_that_stays_one(planted, staying_share):
    strict = dataclasses.replace(planted, norm_threshold=0.9 * _least_outlier(_intervention(planted)))
    plain = _intervention(strict)
    same = Intervention(plain.tower, plain.batches, plain.rule, staying_share=staying_share)
    assert same.on_few(4).staying_share == staying_share
    found = same.measure(_weakened(planted, 0.6))
    above = torch.stack(found.norms_BN) > strict.norm_threshold
    assert int(found.outliers_B.sum()) == int((above & torch.stack(plain.before.outliers_BN)).sum())


def test_an_outlier_with_part_of_its_norm_gone_does_not_pass_for_content(planted):
    plain = _intervention(planted)
    medians = plain.before.patch_norms.medians().tolist()
    rule = dataclasses.replace(plain.rule, content=Content(medians[0], medians[5], share=0.3))
    intervention, weak = Intervention(plain.tower, plain.batches, rule), _weakened(planted, 0.5)
    alone = measure(weak, intervention.batches, rule)
    assert 0 < float(alone.outliers_B.sum()) < intervention.num_outliers
    assert torch.equal(intervention.measure(weak).outliers_B, intervention.before.outliers_B)


def test_few_images_are_the_first_with_outliers(planted):
    plain = synthetic_images(8, seed=7).clamp_max(0.0)  # no bright patch
    images = synthetic_images(8, seed=7)
    mixed = torch.stack([plain[0], images[1], plain[2], images[3], images[4], plain[5], images[6], images[7]])
    batches = [Batch(part, tuple(range(3 * row, 3 * row + len(part)))) for row, part in enumerate(mixed.split(3))]
    intervention = Intervention(VisionTower.of(planted.model), batches, OutlierRule(4, planted.norm_threshold))
    assert (intervention.before.outliers_B > 0).tolist() == [False, True, False, True, True, False, True, True]
    few = intervention.on_few(4)
    assert [batch.places for batch in few.batches] == [(1,), (3, 4), (6,)]
    assert few.before.outliers_B.tolist() == intervention.before.outliers_B[[1, 3, 4, 6]].tolist()
    assert len(intervention.on_few(100).before.outliers_B) == 5
    nothing = Intervention(VisionTower.of(planted.model), batches, OutlierRule(4, 1e9))
    assert nothing.on_few(4) is nothing
