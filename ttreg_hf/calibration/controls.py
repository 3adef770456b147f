"""The paper's controls: as many random neurons, and zeroing without moving. And what each neuron does by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.intervention import Intervention, Outcome
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.position_report import Place
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.table_spikes import random_rows
from ttreg_hf.register_neuron import RegisterNeuron

_MOST_EFFECTS = 64


@dataclass(frozen=True)
class Controls:
    """What the same number of neurons does otherwise.

    Args:
        zeroed: the same neurons zeroed on the patches and not moved, extra token included; spikes likewise.
        random: one entry a draw of other neurons of the same layers, moved, on some of the images with outliers;
            likewise of other rows of the position table.
    """

    zeroed: Outcome
    random: tuple[Outcome, ...]


@dataclass(frozen=True)
class NeuronEffect:
    """What moving one neuron alone does.

    Args:
        layer: 0-based block.
        neuron: index.
        norm_share: of the outlier tokens' norm at the detection block that goes with it.
        feature_change: 1 - mean cosine of the pooled feature to the base model's.
        change_per_norm: `feature_change / norm_share`; small for neurons that write outside what the heads read
            (Proposition 1 of the paper). `None` where it takes no norm away.
    """

    layer: int
    neuron: int
    norm_share: float
    feature_change: float
    change_per_norm: float | None


def run_controls(
    intervention: Intervention,
    few: Intervention,
    neurons: Sequence[RegisterNeuron],
    *,
    shift_value: str,
    draws: int,
    seed: int,
    processes: Processes,
) -> Controls:
    """Zeroing on the intervention's images, random draws on a few of them; all processes have both."""

    def outcome(drawn: tuple[Sequence[RegisterNeuron], Sequence[Place]] | None) -> Outcome:
        if drawn is None:
            nowhere = intervention.nowhere(neurons, shift_value=shift_value)
            return intervention.compared(intervention.measure(nowhere))
        moved, rows = drawn
        return (few.taking(rows) if rows else few).outcome(moved, shift_value=shift_value)

    tower = intervention.tower
    drawn = random_neurons(tower, neurons, draws=draws, seed=seed)
    rows = random_rows(tower, intervention.fixed_positions, draws=draws, seed=seed)
    zeroed, *others = processes.map(outcome, [None, *zip(drawn, rows, strict=True)])
    return Controls(zeroed=zeroed, random=tuple(others))


def neuron_effects(
    intervention: Intervention, neurons: Sequence[RegisterNeuron], *, shift_value: str, processes: Processes
) -> tuple[NeuronEffect, ...]:
    """Each of the first 64 neurons alone, on the intervention's images, which all processes have."""
    alone = intervention.taking(()) if intervention.fixed_positions else intervention

    def effect(neuron: RegisterNeuron) -> NeuronEffect:
        after = alone.after([neuron], shift_value=shift_value)
        share, change = _norm_share(intervention.before, after), 1 - intervention.compared(after).feature_similarity
        return NeuronEffect(neuron.layer, neuron.neuron, share, change, change / share if share > 0.001 else None)

    return tuple(processes.map(effect, neurons[:_MOST_EFFECTS]))


def _norm_share(before: Measurement, after: Measurement) -> float:
    """Mean share of the norm that the base model's outlier tokens lose."""
    lost, count = 0.0, 0
    for mask, old, new in zip(before.outliers_BN, before.norms_BN, after.norms_BN, strict=True):
        lost += float((1 - new[mask] / old[mask]).sum())
        count += int(mask.sum())
    return lost / max(count, 1)
