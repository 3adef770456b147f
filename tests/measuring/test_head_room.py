"""Largest values of linear layers: those of the modules, merged, and inside other models."""

import pytest
import torch
from families import CASES
from modeling.laws import patched_model

from ttreg_hf import add_test_time_registers, modeling
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.head_room import FP8_MAX, HeadRoom, LinearRoom, measure_head_room
from ttreg_hf.measuring.linear_ranges import LinearRanges, linear_layers, ranges_of
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model


@pytest.fixture(scope="module")
def planted():
    return planted_model("dinov2")


def batches_of(pixels, size=3):
    return [Batch(part, tuple(range(len(part)))) for part in pixels.split(size)]


def by_hand(tower, pixels):
    """Inputs and outputs of every linear layer, in one forward pass of all images."""
    kept, handles = {}, []
    for name, layer in linear_layers(tower).items():
        handles.append(
            layer.register_forward_hook(lambda _, args, out, name=name: kept.update({name: (args[0], out)}))
        )
    with torch.no_grad():
        tower.trunk(**tower.inputs(pixels))
    for handle in handles:
        handle.remove()
    return {name: tuple(tensor.abs() for tensor in pair) for name, pair in kept.items()}


def test_the_maxima_are_those_of_the_modules_over_all_batches(planted):
    tower = VisionTower.to_measure(add_test_time_registers(planted.model, planted.register_neurons))
    found = ranges_of(tower, batches_of(planted.sample[:8]))
    expected = by_hand(tower, planted.sample[:8])
    assert found.names == tuple(expected)
    assert len(found.names) == 6 * tower.num_layers  # query, key, value, output, and the MLP's two
    for place, (name, (given, made)) in enumerate(expected.items()):
        assert torch.allclose(found.channel_maxima[name], given.flatten(0, -2).amax(0), rtol=1e-4)
        assert torch.allclose(found.output_max_M[place], made.max(), rtol=1e-4)
        assert float(found.input_quantile_M(0.5)[place]) == pytest.approx(float(given.median()), rel=0.03, abs=2e-3)
    assert not any(module._forward_hooks for module in linear_layers(tower).values())


def test_each_image_has_its_own_figures(planted):
    tower = VisionTower.to_measure(planted.model)
    with LinearRanges(tower) as ranges:
        inputs, outputs, medians = ranges.add(batches_of(planted.sample[:4], 4)[0])
    alone = by_hand(tower, planted.sample[2:3])
    assert inputs.shape == outputs.shape == medians.shape == (4, len(ranges.names))
    assert torch.allclose(inputs[2], torch.stack([given.max() for given, _ in alone.values()]), rtol=1e-4)
    assert torch.allclose(outputs[2], torch.stack([made.max() for _, made in alone.values()]), rtol=1e-4)
    assert torch.allclose(medians[2], torch.stack([given.median() for given, _ in alone.values()]), rtol=1e-3)


class TwoProcesses:
    """What two processes have seen, as one of them gets it."""

    def __init__(self, other):
        self.other = [*other.channel_maxima.values(), other.output_max_M, other._inputs.counts_LG]

    def max(self, values):
        return torch.maximum(values, self.other.pop(0))

    def sum(self, values):
        return values + self.other.pop(0)


def test_ranges_of_two_processes_are_those_of_one(planted):
    tower = VisionTower.to_measure(planted.model)
    first, second = (ranges_of(tower, batches_of(part)) for part in (planted.sample[:4], planted.sample[4:8]))
    first.merge_processes(TwoProcesses(second))
    whole = HeadRoom.of(ranges_of(tower, batches_of(planted.sample[:8])))
    for mine, theirs in zip(HeadRoom.of(first).linears, whole.linears, strict=True):
        assert mine.largest_input == pytest.approx(theirs.largest_input, rel=1e-4)
        assert mine.largest_output == pytest.approx(theirs.largest_output, rel=1e-4)
        assert mine.median_input == pytest.approx(theirs.median_input, rel=0.03)


def test_what_register_neurons_write_is_gone_from_the_largest_outputs_where_it_is_zeroed(planted):
    """Moved, it is as large as before, on the register."""
    found = {}
    for scale in (None, 1.0, 0.0):
        neurons = [] if scale is None else planted.register_neurons
        model = add_test_time_registers(planted.model, neurons, shift_scale=scale)
        room = measure_head_room(VisionTower.to_measure(model), batches_of(planted.sample[:8]))
        (found[scale],) = [each for each in room.linears if each.name == "encoder.layer.2.mlp.fc2"]
    assert found[1.0].largest_output > 0.9 * found[None].largest_output
    assert found[0.0].largest_output < 0.5 * found[None].largest_output


def test_figures_against_the_formats():
    room = HeadRoom((LinearRoom("a", 254.0, 10.0, 0.5), LinearRoom("b", 1.0, 500.0, 0.5), LinearRoom("c", 0, 0, 0)))
    assert room.largest_input.int8_step == pytest.approx(254 / 127 / 0.5)
    assert (room.coarsest.name, room.largest_output.name) == ("a", "b")
    assert (room.above(FP8_MAX), room.above(65_504)) == (1, 0)
    assert room.linears[2].int8_step == 0


@pytest.mark.parametrize("name", ["clip-CLIPModel", "dinov2-swiglu-Dinov2Model"])
def test_towers_inside_other_models_and_gated_mlps(name):
    case = next(case for case in CASES if case.name == name)
    model = patched_model(modeling, case, case.stock_model(attention="sdpa"))
    tower = VisionTower.to_measure(model)
    size = tower.training_size
    found = measure_head_room(tower, batches_of(torch.randn(2, 3, *size)))
    assert len(found.linears) == len(linear_layers(tower)) > 0
    assert all(each.largest_input > 0 and each.largest_output > 0 for each in found.linears)
    assert not any("text" in each.name for each in found.linears)
