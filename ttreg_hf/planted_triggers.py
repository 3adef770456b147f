"""Register neurons of a planted model: what they fire on, and how they are tuned to images and wired in.

Letters: `B` images, `T` tokens, `D` hidden.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttreg_hf.families import blocks_of, image_inputs, inner_layout
from ttreg_hf.modeling.ttreg_base import down_projection, find_mlp
from ttreg_hf.planted_wiring import BRIGHT, CONSTANT, CONTRAST, OUTLIER, write_neuron

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
    block = blocks_of(model)[layer]
    down = down_projection(block)
    direction = torch.zeros(down.out_features)
    for channel, weight in TRIGGERS[trigger].items():
        direction[channel] = weight
    trigger_BT = _mlp_input(model, block, images) @ direction
    layout = inner_layout(model)
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
        write_neuron(block, neuron, gain * direction, -gain * bound)
        down.weight[:, neuron] = 0
        down.weight[OUTLIER, neuron] = _OUTLIER_NORM * ordinary_norm / sum(strengths.values())


def _mlp_input(model: Any, block: Any, images: Tensor) -> Tensor:
    """What the block's MLP reads, `(B, T, D)`, after its LayerNorm."""
    seen: list[Tensor] = []
    mlp, _ = find_mlp(block)
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(**image_inputs(model, images))
    finally:
        handle.remove()
    return seen[0]
