"""Folds register neurons that go nowhere into the weights: their columns of the down projections become zero.

Then nothing is left to shift, and a runtime computes as fast as the base model. But the prefix tokens lose these
neurons too, which a shift leaves to them: so the result is measured before it is handed over.
"""

from typing import Any

import torch
from torch import nn

from ttreg_hf.applying import shared_copy
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.families import place_shift


def fold_neurons(model: Any) -> Any:
    """A copy of a patched model that writes nothing for its register neurons, on any token, and shifts nothing.

    Args:
        model: patched; stays as it is, and shares all other weights.

    Raises:
        ValueError: its neurons' activation goes to a register, which goes through the same weights; or some of it
            stays on the patches.
    """
    config = model.config
    goes_nowhere = config.test_time_register_mode == "constant" or config.shift_scale == 0
    if not goes_nowhere or config.shift_fill != "zero":
        raise ValueError(
            "`--fold` writes zeros into the weights of neurons whose activation goes nowhere, but this checkpoint "
            f"moves it to a register through the same weights (`shift_scale` {config.shift_scale:g}, `shift_fill` "
            f"{config.shift_fill!r}). Export it without, or patch in constant mode, or with `shift_scale=0`."
        )
    twin = shared_copy(model)
    tower = VisionTower.of(twin)
    for layer in {layer for layer, _ in config.register_neurons}:
        neurons = [neuron for place, neuron in config.register_neurons if place == layer]
        place_shift(tower.blocks[layer], [], twin.registers)
        projection = tower.down_projections[layer]
        projection.weight = nn.Parameter(_without(projection.weight.detach(), neurons), requires_grad=False)
    return twin


def _without(weight: torch.Tensor, neurons: list[int]) -> torch.Tensor:
    return weight.index_fill(1, torch.tensor(neurons, device=weight.device), 0)
