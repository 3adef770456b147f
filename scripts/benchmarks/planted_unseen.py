"""What no constant of the selection was set on, wired into a planted model, and the truth about it.

A calibration is run on these once, when nothing is changed any more. Every function changes the model in place and
returns the new truth.

Letters: `B` images, `N` patches, `D` hidden.
"""

import dataclasses

import torch
from torch import Tensor

from benchmarks.planted_truth import (
    KnownModel,
    firing,
    mean_read,
    mlp_reads,
    own_channels,
    trigger_of,
    tune,
)
from ttreg_hf.modeling.families import blocks_of_trunk, down_projection, find_attention
from ttreg_hf.planted import wiring

_ADDED = 0.4  # to the feature, by an average number of outliers, in ordinary norms
_LIGHT = 0.5  # standard deviation of what the light of an image adds, over what tells bright patches from others


@torch.no_grad()
def with_counted_outliers(known: KnownModel) -> KnownModel:
    """The feature says how many outliers an image has: one block later all tokens read what each of them holds.

    Moving the neurons takes the outliers away. But a register counts as one, however many they were, so the feature
    changes: not patching is right.
    """
    model, (layer,) = known.model, {neuron.layer for neuron in known.register_neurons}
    (counted,) = own_channels(known, range(11, 12))
    down, following = down_projection(blocks_of_trunk(model)[layer]), blocks_of_trunk(model)[layer + 1]
    empty = mean_read(known, following, counted)
    for neuron in known.register_neurons:
        written_D = down.weight[:, neuron.neuron]
        written_D[counted] = 0.3 * written_D.abs().max()
    added = mean_read(known, following, counted) - empty
    wiring.write_mean(following, [counted], _ADDED * known.ordinary_norm / added)
    pooling = wiring.pooling_attention(model)
    if pooling is not None:
        pooling.in_proj_weight.chunk(3)[2][:, counted] = 0.2
    return dataclasses.replace(
        known, verdicts=("unresolved",), register_neurons=(), distractors=tuple(sorted(known.planted_pairs))
    )


@torch.no_grad()
def with_some_images(known: KnownModel, *, share: float = 0.3) -> KnownModel:
    """Outliers in some images alone: the planted neurons fire on bright patches where the whole image is bright too.

    Attention adds the mean brightness of the image to every token; the neurons read it beside their trigger.

    Args:
        known: with neurons in one layer, which fire on bright patches.
        share: of the outliers that stay.
    """
    model, blocks = known.model, blocks_of_trunk(known.model)
    (layer,), was_firing = {neuron.layer for neuron in known.register_neurons}, firing(known)
    (light,) = own_channels(known, range(12, 13))
    wiring.read_brightness(model, light, gain=1.0)
    trigger_D, states_BND = trigger_of(known), mlp_reads(known, layer)
    weight = _gap(states_BND @ trigger_D, was_firing[layer]) / _gap(states_BND[..., light], was_firing[layer])
    before_BN = wiring.patches_of(model, wiring.input_of(model, blocks[1], known.sample))[..., light]
    mean_B = wiring.input_of(model, find_attention(blocks[1]), known.sample)[..., light].mean(1)
    wiring.write_mean(blocks[1], [light], _LIGHT * _gap(before_BN, was_firing[layer]) / float(mean_B.std()))
    up = wiring.read_projection(blocks[layer])
    for neuron in known.register_neurons:
        up.weight[neuron.neuron] = trigger_D + wiring.axis(model, light, weight)
    tune(known, {layer: max(1, round(share * was_firing[layer]))})
    return dataclasses.replace(known, verdicts=("fixed", "unresolved"))


def _gap(values_BN: Tensor, count: int) -> float:
    """How far so many of the largest values lie, on average, above all."""
    return float(values_BN.flatten().topk(count).values.mean() - values_BN.mean())
