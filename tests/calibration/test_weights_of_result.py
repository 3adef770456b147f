"""A calibration belongs to the weights that were measured."""

import copy
import dataclasses

import pytest
import torch
from brief import calibrate_briefly
from torch import nn
from transformers import Dinov2ForImageClassification

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.planted import PlantedModel, planted_model, synthetic_images
from ttreg_hf.publishing.checkpoint import read_calibration, save_checkpoint

OTHERS = (
    r"A calibration belongs to the weights that were measured, those of planted-dinov2, but planted-dinov2 has others"
)


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return planted_model()


@pytest.fixture(scope="module")
def result(planted: PlantedModel) -> CalibrationResult:
    config = CalibrationConfig(num_images=24, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold)
    return calibrate_briefly(planted.model, synthetic_images(24), config=config)


@pytest.fixture
def retrained(planted: PlantedModel) -> nn.Module:
    """Of the same name."""
    model = copy.deepcopy(planted.model)
    with torch.no_grad():
        model.encoder.layer[0].attention.q_proj.weight[0, 0] += 1e-4
    return model


def test_a_result_of_other_weights_is_refused_and_its_neurons_are_not(planted, result, retrained):
    with pytest.raises(ValueError, match=OTHERS + r"\. Calibrate it, or pass the calibration's `register_neurons`"):
        add_test_time_registers(retrained, result)
    pairs = [[neuron.layer, neuron.neuron] for neuron in result.register_neurons]
    assert add_test_time_registers(retrained, result.register_neurons).config.register_neurons == pairs
    assert add_test_time_registers(planted.model, result).config.register_neurons == pairs


def test_what_the_trunk_does_not_read_may_differ(planted, result):
    """A head, another number format, train mode, and a patched model of the same weights."""
    head = Dinov2ForImageClassification(planted.model.config).train()
    head.dinov2.load_state_dict(planted.model.state_dict())
    half = copy.deepcopy(planted.model).to(torch.bfloat16)
    patched = add_test_time_registers(planted.model, [[1, 3]])
    for model in (head, half, patched):
        assert result.was_found_on(model)
        assert add_test_time_registers(model, result).config.register_neurons
    assert head.training


def test_a_result_measured_in_half_precision_goes_with_the_whole_weights(planted, retrained):
    config = CalibrationConfig(num_images=2, top_k=2, last_layer=2, norm_threshold=planted.norm_threshold)
    found = calibrate_briefly(copy.deepcopy(planted.model).to(torch.bfloat16), synthetic_images(2), config=config)
    assert list(found.provenance.weights) == [found.provenance.dtype] == ["bfloat16"]
    assert found.was_found_on(planted.model)
    with torch.no_grad():
        retrained.encoder.layer[0].attention.q_proj.weight[0] += 1.0
    assert not found.was_found_on(retrained)


def test_two_exchanged_blocks_are_other_weights(planted, result):
    model = copy.deepcopy(planted.model)
    layers = model.encoder.layer
    layers[4], layers[5] = layers[5], layers[4]
    with pytest.raises(ValueError, match=OTHERS):
        add_test_time_registers(model, result)


def test_a_checkpoint_knows_whether_its_calibration_is_of_its_weights(planted, result, retrained, tmp_path):
    """Whoever saves it, and whatever the calibration said before."""
    for model, is_other in ((planted.model, False), (retrained, True)):
        patched = add_test_time_registers(model, result.register_neurons)
        folder = tmp_path / str(is_other)
        save_checkpoint(patched, folder, calibration=dataclasses.replace(result, on_other_weights=not is_other))
        assert read_calibration(folder).on_other_weights is is_other
        assert ("Not measured on these weights" in (folder / "README.md").read_text(encoding="utf-8")) is is_other
