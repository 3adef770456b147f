"""Random neurons to compare register neurons with: as many others of the same layers."""

import random
from collections import Counter
from collections.abc import Sequence

from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron


def random_neurons(
    tower: VisionTower, neurons: Sequence[RegisterNeuron], *, draws: int, seed: int
) -> list[tuple[RegisterNeuron, ...]]:
    """As many other neurons of the same layers, or all others of a layer that has fewer; without replacement.

    Args:
        tower: whose neurons they are.
        neurons: that are left out.
        draws: how many sets.
        seed: of the draws.
    """
    generator = random.Random(seed)
    counts = Counter(neuron.layer for neuron in neurons)
    taken = {(neuron.layer, neuron.neuron) for neuron in neurons}
    others = {
        layer: [index for index in range(tower.widths[layer]) if (layer, index) not in taken]
        for layer in sorted(counts)
    }
    return [
        tuple(
            RegisterNeuron(layer, index, 0.0)
            for layer, indices in others.items()
            for index in generator.sample(indices, min(counts[layer], len(indices)))
        )
        for _ in range(draws)
    ]
