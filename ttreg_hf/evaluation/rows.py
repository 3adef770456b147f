"""The models that are measured beside each other: what patching does, and what would have happened anyway."""

import numpy as np
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.families import blocks_of
from ttreg_hf.modeling.ttreg_base import down_projection, neurons_by_layer

BASE, PATCHED, ZEROED, RANDOM, TRAINED = "base", "patched", "zeroed, not moved", "random neurons", "trained registers"


def model_rows(
    patched: PreTrainedModel, *, seed: int = 0, trained_registers: PreTrainedModel | None = None
) -> dict[str, PreTrainedModel]:
    """The rows of a table, all with the patched model's weights but the last one.

    Args:
        patched: a patched model.
        seed: of the random neurons.
        trained_registers: a model that was trained with registers, to be shown beside it.

    Returns:
        `base`; `patched`; `zeroed, not moved`: the token is there, its neurons are zeroed everywhere, their activation
        goes nowhere; `random neurons`: as many others of the same layers are moved; `trained registers`, if given.
    """
    config = patched.config
    neurons = config.register_neurons
    options = {
        "num_test_time_registers": config.num_test_time_registers,
        "shift_value": config.shift_value,
        "shift_fill": config.shift_fill,
        "shift_scale": config.shift_scale,
    }
    rows = {
        BASE: add_test_time_registers(patched, []),
        PATCHED: add_test_time_registers(patched, neurons, **options),
        ZEROED: add_test_time_registers(patched, neurons, **{**options, "shift_scale": 0.0, "shift_fill": "zero"}),
        RANDOM: add_test_time_registers(patched, random_neurons(patched, seed=seed), **options),
    }
    return rows if trained_registers is None else {**rows, TRAINED: trained_registers}


def random_neurons(patched: PreTrainedModel, *, seed: int = 0) -> list[list[int]]:
    """As many `[layer, neuron]` pairs of each layer as are register neurons there, and none of these; drawn once each.

    Raises:
        ValueError: a layer does not have that many others.
    """
    random, drawn = np.random.default_rng(seed), []
    for layer, taken in sorted(neurons_by_layer(patched.config.register_neurons).items()):
        width = down_projection(blocks_of(patched)[layer]).in_features
        others = np.setdiff1d(np.arange(width), taken)
        if len(others) < len(taken):
            raise ValueError(
                f"Random neurons are others than the register neurons, but layer {layer} has {len(taken)} of these "
                f"among {width}. Leave most of a layer's neurons alone."
            )
        drawn += [[layer, int(neuron)] for neuron in random.choice(others, len(taken), replace=False)]
    return drawn
