"""The name of one register neuron."""

from dataclasses import dataclass


@dataclass(frozen=True, order=False)
class RegisterNeuron:
    """One input of a block's MLP down projection that writes outlier tokens.

    Args:
        layer: 0-based block.
        neuron: index, the row of the up projection and the column of the down projection.
        score: mean |activation| on outlier tokens, then over the images that have one; NaN where it was not measured.
    """

    layer: int
    neuron: int
    score: float
