"""The data of the neuron switch: what the model shows, in every state, and what survives a file."""

import dataclasses

import pytest
import torch

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.image_maps import image_maps
from ttreg_hf.report.calibration_folder import record_calibrated_switch
from ttreg_hf.report.neuron_switch import State, counts_to_show
from ttreg_hf.report.switch_file import SWITCH_FILE, load_switch, save_switch


def test_states_go_from_the_base_model_over_the_controls_to_all_neurons(reported):
    everything = len(reported.result.register_neurons)
    assert everything == 3
    moved = [State("moved", count) for count in (1, 2, 3)]
    controls = State("zeroed", 3), State("random", 3)
    assert reported.switch.states == (State("base", 0), *controls, State("constant", 3), *moved)


def twin_of(reported, state):
    neurons, shift_value = reported.result.register_neurons, reported.result.shift_value
    if state.kind == "base":
        return reported.model
    if state.kind == "constant":
        return add_test_time_registers(reported.model, reported.result, test_time_register_mode="constant")
    scale = 0.0 if state.kind == "zeroed" else 1.0
    return add_test_time_registers(
        reported.model, neurons[: state.num_neurons], shift_value=shift_value, shift_scale=scale
    )


def shown_images(reported):
    """Those that verified, and then the first of all; every one has outliers."""
    return reported.images[list(reported.result.verification.places[:4])]


def test_maps_are_those_of_the_model_in_that_state(reported):
    images, layer = shown_images(reported), reported.result.norms.detection_layer
    for place, state in enumerate(reported.switch.states):
        if state.kind == "random":
            continue
        twin = twin_of(reported, state)
        for image, photograph in zip(images, reported.switch.photographs, strict=True):
            (maps,) = image_maps(twin, image[None], detection_layer=layer)
            torch.testing.assert_close(photograph.norms_SLhw[place, 0], maps.patch_norms)
            torch.testing.assert_close(photograph.attention_SAhw[place, 0], maps.attention)
            assert float(photograph.on_register_SA[place, 0]) == pytest.approx(maps.register_attention or 0.0)


def test_fog_lifts_as_neurons_are_moved_and_stays_with_random_ones(reported):
    threshold = reported.result.norms.norm_threshold
    states = reported.switch.states
    outliers = sum((photograph.norms_SLhw > threshold).flatten(1).sum(1) for photograph in reported.switch.photographs)
    counts = dict(zip(states, outliers.tolist(), strict=True))
    assert counts[State("base", 0)] > 0
    assert counts[State("random", 3)] >= 0.9 * counts[State("base", 0)]
    assert counts[State("moved", 3)] == counts[State("zeroed", 3)] == counts[State("constant", 3)] == 0
    assert min(counts[State("moved", 1)], counts[State("moved", 2)]) > 0


def test_photographs_without_a_processor_span_black_to_white(reported):
    pixels = reported.switch.photographs[0].pixels_HW3
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (112, 112, 3)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)


def test_a_clean_model_has_the_base_state_alone(reported):
    clean = dataclasses.replace(
        reported.result, verdict="clean", register_neurons=(), verification=None, selections=(), candidates=(),
        constant_mode=None, constants=None,
    )  # fmt: skip
    switch = record_calibrated_switch(reported.model, reported.batches(), clean, "")
    assert switch.states == (State("base", 0),)
    assert switch.photographs[0].norms_SLhw.shape[0] == 1


@pytest.mark.parametrize("everything", [1, 2, 12, 13, 45, 300])
def test_counts_hold_none_and_all_and_are_few(everything):
    counts = counts_to_show(everything)
    assert (counts[0], counts[-1]) == (0, everything)
    assert counts == sorted(set(counts))
    assert len(counts) <= 13
    assert counts[:4] == list(range(min(4, everything + 1)))


def test_a_file_keeps_maps_to_half_precision_and_the_rest_exactly(reported, tmp_path):
    save_switch(reported.switch, tmp_path)
    loaded = load_switch(tmp_path)
    assert loaded is not None
    kept = [dataclasses.replace(switch, photographs=()) for switch in (reported.switch, loaded)]
    assert dataclasses.asdict(kept[0]) == dataclasses.asdict(kept[1])
    for one, other in zip(reported.switch.photographs, loaded.photographs, strict=True):
        assert torch.equal(one.pixels_HW3, other.pixels_HW3)
        torch.testing.assert_close(one.norms_SLhw, other.norms_SLhw, rtol=1e-3, atol=0)
        torch.testing.assert_close(one.attention_SAhw, other.attention_SAhw, rtol=1e-3, atol=1e-7)


def test_a_file_of_something_else_is_told(tmp_path):
    assert load_switch(tmp_path) is None
    (tmp_path / SWITCH_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is not what `ttreg calibrate` writes .* Calibrate again, or remove it"):
        load_switch(tmp_path)
