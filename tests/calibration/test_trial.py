"""Trials: the smallest count that is enough, and what a wrong or missing neuron does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttreg_hf.calibration.batches import Batch
from ttreg_hf.calibration.trial import Trial, smallest_count
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron


@given(limit=st.integers(1, 3000), needed=st.integers(1, 4000))
def test_smallest_count_is_the_smallest_that_is_enough(limit, needed):
    asked: list[int] = []

    def is_enough(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert smallest_count(is_enough, limit) == (needed if needed <= limit else None)
    assert all(1 <= count <= limit for count in asked)
    assert len(asked) == len(set(asked)) <= 2 * limit.bit_length() + 1


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model(neurons_per_layer={2: 2})


def _trial(planted: PlantedModel) -> Trial:
    return Trial(
        planted.model,
        [Batch(synthetic_images(8, seed=7), tuple(range(8)))],
        detection_layer=-2,
        norm_threshold=planted.norm_threshold,
    )


def _others(planted: PlantedModel, count: int) -> list[RegisterNeuron]:
    taken = {neuron.neuron for neuron in planted.register_neurons}
    return [RegisterNeuron(2, place, 0.1) for place in range(50) if place not in taken][:count]


def test_enough_stops_at_the_last_planted_neuron(planted):
    ranked = [*planted.register_neurons, *_others(planted, 20)]
    assert _trial(planted).enough(ranked) == len(planted.register_neurons)


def test_enough_looks_as_far_as_it_takes(planted):
    """A ranking with 5 wrong neurons between the planted ones needs all 7."""
    first, last = planted.register_neurons
    assert _trial(planted).enough([first, *_others(planted, 5), last, *_others(planted, 9)[5:]]) == 7


def test_enough_keeps_fewest_neurons_when_none_helps(planted):
    assert _trial(planted).enough(_others(planted, 6)) == 1


def test_verify_tells_planted_neurons_from_others(planted):
    trial = _trial(planted)
    right = trial.verify(planted.register_neurons, in_sample=True)
    wrong = trial.verify(_others(planted, 2), in_sample=False)
    assert (right.in_sample, wrong.in_sample) == (True, False)
    assert right.outlier_fraction_before == wrong.outlier_fraction_before > 0
    assert (right.outlier_ratio, wrong.outlier_ratio) == (0.0, 1.0)


def test_a_trial_leaves_the_base_model_as_it_was(planted):
    trial = _trial(planted)
    trial.verify(planted.register_neurons, in_sample=True)
    again = _trial(planted)
    assert again.before.outlier_fraction == trial.before.outlier_fraction > 0
