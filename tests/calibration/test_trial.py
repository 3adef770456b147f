"""Trials: what patching does to the same images, counted once a trial."""

import pytest
import torch

from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.outliers import OutlierRule
from ttreg_hf.calibration.trial import Outcome, Trial
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model(neurons_per_layer={2: 2})


def _trial(planted: PlantedModel) -> Trial:
    batches = [Batch(part, tuple(range(4))) for part in synthetic_images(8, seed=7).split(4)]
    return Trial(planted.model, iter(batches), OutlierRule(4, planted.norm_threshold))


def test_planted_neurons_take_the_outliers_away_and_others_do_not(planted):
    trial = _trial(planted)
    assert trial.has_outliers
    assert trial.outcome(planted.register_neurons).outlier_ratio == 0.0
    taken = {neuron.neuron for neuron in planted.register_neurons}
    others = [RegisterNeuron(2, place, 0.1) for place in range(50) if place not in taken][:2]
    assert trial.outcome(others) == Outcome(1.0, pytest.approx(1.0, abs=1e-4))


def test_zeroing_without_moving_is_another_outcome(planted):
    trial = _trial(planted)
    moved = trial.after(planted.register_neurons)
    zeroed = trial.after(planted.register_neurons, shift_scale=0.0)
    assert moved.register_norm > 10 * zeroed.register_norm
    assert trial.compared(zeroed).outlier_ratio == 0.0


def test_forward_passes_are_counted(planted):
    trial = _trial(planted)
    assert trial.images_run == 8
    trial.outcome(planted.register_neurons)
    assert trial.images_run == 16


def test_a_trial_without_outliers_shows_nothing(planted):
    trial = Trial(planted.model, [Batch(synthetic_images(2, seed=7), (0, 1))], OutlierRule(4, 1e9))
    assert not trial.has_outliers
    assert trial.outcome(planted.register_neurons).outlier_ratio == 1.0


def test_a_trial_leaves_the_base_model_as_it_was(planted):
    trial = _trial(planted)
    trial.outcome(planted.register_neurons)
    again = _trial(planted)
    assert again.before.outlier_fraction == trial.before.outlier_fraction > 0
    assert torch.equal(again.before.features_BD, trial.before.features_BD)


def test_twins_keep_the_options_of_the_trial_and_zeroing_wins_over_them(planted):
    options = {"num_test_time_registers": 2, "shift_fill": "mean", "shift_scale": 0.5}
    trial = _trial(planted)
    trial.options = options
    twin, zeroed = trial.patched(planted.register_neurons), trial.patched(planted.register_neurons, shift_scale=0.0)
    assert {name: getattr(twin.config, name) for name in options} == options
    assert (zeroed.config.shift_scale, zeroed.config.shift_fill) == (0.0, "mean")
