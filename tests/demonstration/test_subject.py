"""One calibration says where outliers show and what constant mode reads, however it is given; of others none does."""

import dataclasses

import pytest
import torch

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.demonstration.demo import demo
from ttreg_hf.demonstration.subject import Subject
from ttreg_hf.planted import planted_model, synthetic_images
from ttreg_hf.publishing.checkpoint import save_checkpoint
from ttreg_hf.report.neuron_switch import State

from .conftest import LAYER, THRESHOLD


@pytest.fixture(scope="module")
def result(shown):
    settings = CalibrationConfig(
        num_images=8, top_k=2, last_layer=2, detection_layer=LAYER - 1, norm_threshold=THRESHOLD
    )
    found = calibrate(shown.base, synthetic_images(8), config=settings)
    return dataclasses.replace(found, constants=torch.ones(2, shown.base.config.hidden_size))


def told(subject):
    return subject.detection_layer, subject.norm_threshold, subject.constants is not None


def saved(model, calibration, folder):
    save_checkpoint(model, folder)
    calibration.beside(model).save(folder)
    return folder


def test_a_calibration_says_the_same_as_neurons_beside_a_checkpoint_and_by_its_name(shown, result, tmp_path):
    expected = (LAYER - 1, THRESHOLD, True)
    patched = add_test_time_registers(shown.base, result)
    folder = saved(patched, result, tmp_path / "checkpoint")
    opened = [
        Subject.open(shown.base, result),
        Subject.open(patched, calibration=result),
        Subject.open(shown.base, result.register_neurons, calibration=result),
        Subject.open(folder, processor=object()),
    ]
    assert [told(subject) for subject in opened] == [expected] * len(opened)
    assert all(torch.equal(subject.constants, result.constants) for subject in opened)


def test_neurons_alone_and_a_model_alone_have_no_threshold_and_no_constants(shown):
    for subject in (Subject.open(shown.patched), Subject.open(shown.base, [[1, 2]]), Subject.open(shown.base)):
        assert told(subject)[1:] == (None, False)


def test_constants_belong_to_the_neurons_that_were_calibrated(shown, result):
    others = Subject.open(shown.base, [[0, 1]], calibration=result)
    assert told(others) == (LAYER - 1, THRESHOLD, False)
    assert Subject.open(shown.base, calibration=result).patched is None  # it measures, and patches nothing
    assert told(Subject.open(shown.base, calibration=result)) == (LAYER - 1, THRESHOLD, False)


def test_a_calibration_of_other_weights_is_refused_and_one_that_knows_it_says_nothing(shown, result, tmp_path):
    other = planted_model(neurons_per_layer={1: 1, 2: 2}, seed=7).model
    patched = add_test_time_registers(other, result.register_neurons)
    beside = result.beside(patched)
    assert beside.on_other_weights
    assert told(Subject.open(patched, calibration=beside))[1:] == (None, False)
    with pytest.raises(ValueError, match="A calibration belongs to the weights that were measured"):
        Subject.open(patched, calibration=result)
    folder = saved(patched, result, tmp_path / "checkpoint")
    assert told(Subject.open(folder, processor=object()))[1:] == (None, False)


def test_what_is_told_is_what_the_page_shows(shown, result):
    switch = demo(shown.base, shown.images[0], result).switch
    assert switch.detection_layer == LAYER - 1
    assert switch.states == Subject.open(shown.base, result).states
    assert State("constant", 2) in switch.states
