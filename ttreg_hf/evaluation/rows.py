"""The rows of a table, measured beside each other: what patching does, and what would have happened anyway."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, patching_of, zeroing_of
from ttreg_hf.measuring.image_maps import MapRecorder
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.table_spikes import moved_nowhere, random_rows
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.register_neuron import RegisterNeuron

KEPT = "base, its worst linear layers in 16 bit"  # of quantised models only
BASE, PATCHED, ZEROED, RANDOM, TRAINED = "base", "patched", "zeroed, not moved", "random neurons", "trained registers"
CONSTANT, INTERPOLATED, MASKED = "constant mode", "interpolated", "masked"
ROWS = (BASE, PATCHED, CONSTANT, ZEROED, RANDOM, INTERPOLATED, MASKED, TRAINED)


@dataclass(frozen=True)
class Row:
    """A model, and how a task reads its patches.

    Args:
        model: that is run.
        interpolate: which patches are read as the mean of their ordinary neighbours; `None`: all as they are.
    """

    model: PreTrainedModel
    interpolate: OutlierRule | None = None

    @cached_property
    def tower(self) -> VisionTower:
        """Of the model."""
        return VisionTower.of(self.model)

    def recorder(
        self, *, norm_layers: Iterable[int] = (), states: Iterable[tuple[str, int]] = (), patches: bool = False
    ) -> Recorder:
        """What the tower makes of images; arguments as the `Recorder`'s."""
        return Recorder(
            self.tower, norm_layers=norm_layers, states=states, patches=patches, interpolate=self.interpolate
        )

    def map_recorder(self) -> MapRecorder:
        """Maps of images: the last block's attention above all."""
        return MapRecorder(self.model, detection_layer=-1, interpolate=self.interpolate)


def model_rows(patched: TTRegModelMixin, *, seed: int = 0) -> dict[str, PreTrainedModel]:
    """A patched model and its controls, all with the same weights.

    Args:
        patched: a patched model.
        seed: of the random neurons.

    Returns:
        `base`; `patched`; `zeroed, not moved`: the token is there, its neurons are zeroed everywhere, their activation
        goes nowhere, and neither do spikes of the position table; `random neurons`: as many others of the same layers
        are moved, and as many other rows of the table.
    """
    neurons, places, options = patched.config.register_neurons, patched.config.fixed_positions, patching_of(patched)
    listed = [RegisterNeuron(layer, neuron, float("nan")) for layer, neuron in neurons]
    base = VisionTower.of(add_test_time_registers(patched, []))
    (others,) = random_neurons(base, listed, draws=1, seed=seed)
    (rows,) = random_rows(base, [tuple(place) for place in places], draws=1, seed=seed)
    return {
        BASE: base.model,
        PATCHED: add_test_time_registers(patched, neurons, **options),
        ZEROED: moved_nowhere(base, neurons, zeroing_of(patched)).model,
        RANDOM: add_test_time_registers(patched, others, **options | {"fixed_positions": rows}),
    }
