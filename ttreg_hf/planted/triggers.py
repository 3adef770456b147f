"""Register neurons of a planted model: what they fire on, and how they are tuned to images and wired in.

Letters: `T` tokens, `D` hidden.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.modeling.families import blocks_of_trunk, find_mlp, layout_of_trunk
from ttreg_hf.planted.parts import BRIGHT, CONSTANT, CONTRAST, OUTLIER
from ttreg_hf.planted.wiring import input_of, write_neuron

# what a neuron reads: LayerNorm hides all of these channels on tokens that are outliers already, so none fires there
TRIGGERS = {"bright": {BRIGHT: 1.0}, "low_information": {CONSTANT: 1.0, CONTRAST: -1.0}}
_OUTLIER_NORM = 10.0  # of an outlier token, in units of the largest ordinary one


def write_register_neurons(
    model: Any,
    layer: int,
    strengths: Mapping[int, float],
    trigger: str,
    fraction: float,
    images: Tensor,
    ordinary_norm: float,
) -> None:
    """Wire neurons of one layer: fire on the patches where the trigger is strongest, write the outlier channel."""
    block = blocks_of_trunk(model)[layer]
    direction = torch.zeros(model.config.hidden_size)
    for channel, weight in TRIGGERS[trigger].items():
        direction[channel] = weight
    trigger_BT = input_of(model, find_mlp(block)[0], images) @ direction
    layout = layout_of_trunk(model)
    ranked = trigger_BT[:, layout.patches].flatten().sort(descending=True).values
    firing = max(2, round(fraction * ranked.numel()))
    bound, median = float(ranked[firing]), float(ranked[firing // 2])
    highest_prefix = max(trigger_BT[:, layout.prefix].flatten().tolist(), default=-math.inf)
    if median - bound < 1e-3 or highest_prefix > bound - (median - bound) / 2:
        raise ValueError(
            f"Layer {layer} cannot tell {firing} patches of these images by the trigger {trigger!r}: it is "
            f"{median:.3f} there, {bound:.3f} elsewhere and {highest_prefix:.3f} on prefix tokens. Give more varied "
            "images."
        )
    for neuron, strength in strengths.items():
        gain = strength / (median - bound)
        writes_D = torch.zeros_like(direction)
        writes_D[OUTLIER] = _OUTLIER_NORM * ordinary_norm / sum(strengths.values())
        write_neuron(block, neuron, reads_D=gain * direction, bias=-gain * bound, writes_D=writes_D)
