"""Random neurons that register neurons are compared with."""

import pytest

from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import planted_model
from ttreg_hf.register_neuron import RegisterNeuron


@pytest.mark.parametrize("family", ["dinov2", "clip_vision_model", "siglip_vision_model"])
def test_random_draws_leave_the_chosen_out_and_keep_to_their_layers(family):
    tower, layer = VisionTower.of(planted_model(family).model), 2
    width = tower.widths[layer]
    neurons = [RegisterNeuron(layer, place, 0.0) for place in range(width - 3)] + [RegisterNeuron(4, 0, 0.0)]
    draws = random_neurons(tower, neurons, draws=4, seed=0)
    for draw in draws:
        assert {n.neuron for n in draw if n.layer == layer} == {width - 3, width - 2, width - 1}  # all that are left
        assert [n.layer for n in draw].count(4) == 1
        assert (4, 0) not in {(n.layer, n.neuron) for n in draw}
    assert len({draw[-1].neuron for draw in draws}) > 1
    assert draws == random_neurons(tower, neurons, draws=4, seed=0) != random_neurons(tower, neurons, draws=4, seed=1)
