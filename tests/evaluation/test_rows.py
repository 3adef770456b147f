"""The models of a table, and what is read of them."""

import dataclasses

import numpy as np
import pytest
import torch

from ttreg_hf import add_test_time_registers
from ttreg_hf.applying import constants_of
from ttreg_hf.calibration.calibration_run import calibrate
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.usable_constants import why_no_constants
from ttreg_hf.evaluation.constant_row import constant_row, in_constant_mode
from ttreg_hf.evaluation.rows import model_rows
from ttreg_hf.evaluation.token_probe import kinds_of_tokens, pick_tokens
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model, synthetic_images


@pytest.fixture(scope="module")
def planted():
    return planted_model(neurons_per_layer={2: 2, 3: 1})


@pytest.fixture(scope="module")
def patched(planted):
    options = {"num_test_time_registers": 2, "shift_value": "per_layer", "shift_scale": 0.5}
    return add_test_time_registers(planted.model, planted.register_neurons, output_registers=True, **options)


def test_rows_are_what_they_are_called(planted, patched):
    rows = model_rows(patched)
    images = planted.sample[:2]
    with torch.no_grad():
        stock = planted.model(images).last_hidden_state
        own = patched(images).last_hidden_state
        states = {name: model(images).last_hidden_state for name, model in rows.items()}
    assert torch.equal(states["base"], stock)
    assert torch.equal(states["patched"], patched.token_layout.remove(own))
    assert rows["patched"].config.shift_value == "per_layer"
    assert rows["zeroed, not moved"].config.shift_scale == 0
    assert rows["zeroed, not moved"].config.register_neurons == patched.config.register_neurons
    assert len({id(next(model.parameters())) for model in rows.values()}) == 1  # one set of weights


def test_rows_of_a_model_in_constant_mode_are_its_own_controls(planted):
    rows_LD = torch.randn(2, planted.model.config.hidden_size)
    options = {"test_time_register_mode": "constant", "constants": rows_LD}
    patched = add_test_time_registers(planted.model, planted.register_neurons, **options)
    rows, images = model_rows(patched), planted.sample[:2]
    with torch.no_grad():
        states = {name: model(images).last_hidden_state for name, model in rows.items()}
        assert torch.equal(states["base"], planted.model(images).last_hidden_state)
        assert torch.equal(states["patched"], patched(images).last_hidden_state)
    assert torch.equal(constants_of(rows["random neurons"]), rows_LD)
    assert len(constants_of(rows["zeroed, not moved"])) == 0
    assert not torch.allclose(states["zeroed, not moved"], states["patched"], atol=1e-3)


def test_a_calibrated_model_has_a_row_in_constant_mode_and_others_say_why_not(planted):
    settings = CalibrationConfig(num_images=24, top_k=2, last_layer=3, norm_threshold=planted.norm_threshold)
    result = calibrate(planted.model, synthetic_images(24), config=settings)
    result = dataclasses.replace(result, constants=torch.zeros(2, planted.model.config.hidden_size))
    patched = add_test_time_registers(planted.model, result)
    assert why_no_constants(patched, result) is None
    assert torch.equal(constants_of(constant_row(patched, result).model), result.constants)
    others = add_test_time_registers(planted.model, [[0, 1]])
    constant = add_test_time_registers(planted.model, result, test_time_register_mode="constant")
    assert "needs a calibration that measured its rows" in why_no_constants(patched, None)
    none = dataclasses.replace(result, constants=None)
    assert f"which is `{result.verdict}`, measured no rows" in why_no_constants(patched, none)
    assert "these are others" in why_no_constants(others, result)
    assert "in constant mode itself" in why_no_constants(constant, result)


def test_the_row_in_constant_mode_takes_the_same_spikes_away(planted):
    patched = add_test_time_registers(planted.model, planted.register_neurons, fixed_positions=[[0, 3]])
    row = in_constant_mode(patched, torch.zeros(2, planted.model.config.hidden_size))
    assert row.config.fixed_positions == patched.config.fixed_positions == [[0, 3]]


def random_row(patched, seed=0):
    return model_rows(patched, seed=seed)["random neurons"].config.register_neurons


def test_random_neurons_are_others_of_the_same_layers(patched):
    taken = patched.config.register_neurons
    drawn = random_row(patched, seed=1)
    assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in taken)
    assert not {tuple(pair) for pair in drawn} & {tuple(pair) for pair in taken}
    assert drawn == random_row(patched, seed=1) != random_row(patched, seed=2)


def test_random_neurons_are_all_others_of_a_layer_that_has_fewer(planted):
    most = add_test_time_registers(planted.model, [[0, neuron] for neuron in range(200)])
    assert sorted(random_row(most)) == [[0, neuron] for neuron in range(200, 256)]


def record(model, pixel_values, states=()):
    with Recorder(VisionTower.of(model), norm_layers=[], states=states) as recorder:
        return recorder(pixel_values)


def test_states_are_those_of_the_modules(planted, patched):
    row = model_rows(patched)["patched"]
    recording = record(row, planted.sample[:2], [("out", -1), ("value", 4)])
    with torch.no_grad():
        outputs = patched(planted.sample[:2], output_hidden_states=True)
    assert VisionTower.of(row).layout.num_test_time_registers == 2
    assert torch.allclose(recording.states["out", 5], outputs.hidden_states[-1])
    block = VisionTower.of(patched).blocks[4]
    expected = block.attention.v_proj(block.norm1(outputs.hidden_states[4]))
    assert torch.allclose(recording.states["value", 4], expected, atol=1e-5)
    assert torch.allclose(recording.feature_BD, outputs.pooler_output)


@pytest.mark.parametrize("family", ["vit", "clip_vision_model", "siglip_vision_model"])
def test_the_global_feature_is_cls_or_what_the_model_pools(family):
    """ViT's pooler is a layer that most checkpoints lack, so CLS counts; SigLIP has no CLS but a pooling head."""
    model = planted_model(family).model
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        outputs = model(images)
    expected = outputs.last_hidden_state[:, 0] if family == "vit" else outputs.pooler_output
    assert torch.allclose(record(model, images).feature_BD, expected)


@pytest.mark.parametrize(("feature", "layer"), [("keys", 0), ("key", 6), ("out", -7)])
def test_unknown_features_and_layers_are_refused(planted, feature, layer):
    with pytest.raises(ValueError, match=r"`feature` is one of|`layer` is a layer from -6 to 5"):
        record(planted.model, planted.sample[:1], [(feature, layer)])


def test_tokens_are_picked_where_they_are(planted, patched):
    row = model_rows(patched)["patched"]
    layout = VisionTower.of(row).layout
    states = record(row, planted.sample[:3], [("out", 1)]).states["out", 1]
    norms = torch.zeros(states.shape[:2])
    norms[0, 3 + 5], norms[1, 3 + 7], norms[2, 3 + 9] = 1.0, 1.0, 1.0
    norms[:, :3] = 99.0  # CLS and registers are no patches
    picked = pick_tokens(layout, states, norms, (4, 5, 6), seed=0)
    assert list(picked) == kinds_of_tokens(layout)
    assert torch.equal(picked["CLS"], states[:, 0])
    assert torch.equal(picked["largest-norm patch"], torch.stack([states[0, 8], states[1, 10], states[2, 12]]))
    assert torch.allclose(picked["test-time register"], states[:, 1:3].mean(1))
    place = int(np.random.default_rng([0, 5]).integers(64))
    assert torch.equal(picked["random patch"][1], states[1, 3 + place])
    assert kinds_of_tokens(VisionTower.of(planted.model).layout) == ["CLS", "random patch", "largest-norm patch"]
