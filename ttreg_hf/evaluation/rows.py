"""The models that are measured beside each other: what patching does, and what would have happened anyway."""

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.register_neuron import RegisterNeuron

KEPT = "base, its worst linear layers in 16 bit"  # of quantised models only
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
    listed = [RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in neurons]
    (others,) = random_neurons(VisionTower.of(patched), listed, draws=1, seed=seed)
    rows = {
        BASE: add_test_time_registers(patched, []),
        PATCHED: add_test_time_registers(patched, neurons, **options),
        ZEROED: add_test_time_registers(patched, neurons, **{**options, "shift_scale": 0.0, "shift_fill": "zero"}),
        RANDOM: add_test_time_registers(patched, others, **options),
    }
    return rows if trained_registers is None else {**rows, TRAINED: trained_registers}
