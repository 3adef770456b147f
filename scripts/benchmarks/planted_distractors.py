"""What can mislead a calibration, wired into a planted model, and the truth about it.

Every function changes the model in place and returns the new truth. What a distractor reads and writes are channels
of its own, so that it leaves the planted neurons as they are.

Letters: `B` images, `N` patches, `D` hidden.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.planted_truth import (
    STRONGEST,
    KnownModel,
    firing,
    free_neurons,
    mean_read,
    mlp_reads,
    ordinary_channels,
    own_channels,
    random_direction,
    tune,
)
from ttreg_hf.modeling.families import blocks_of_trunk
from ttreg_hf.planted import wiring

_SHARP = 20.0  # activations this large make GELU, quick GELU and SiLU ramps


@torch.no_grad()
def with_hot_neurons(known: KnownModel, *, seed: int, in_each_layer: int = 3) -> KnownModel:
    """Neurons of the planted layers that fire hard on ordinary patches and on outliers, and write next to nothing.

    On outliers they are stronger than the strongest register neuron, so the paper's score ranks them first. Half fire
    on every token, half on about 60 % of the ordinary patches.
    """
    random = torch.Generator().manual_seed(2000 + seed)
    hot, was_firing = [], firing(known)
    for layer in sorted({neuron.layer for neuron in known.register_neurons}):
        block = blocks_of_trunk(known.model)[layer]
        states_BND = mlp_reads(known, layer)
        for place, neuron in enumerate(free_neurons(known, layer, in_each_layer, random)):
            content_D = random_direction(known, random)
            content_D *= (0.3 if place % 2 == 0 else 2.0) / (states_BND @ content_D).std()
            strength = 1.5 * STRONGEST
            bias = 1.0 if place % 2 == 0 else 0.5
            writes_D = 0.002 * known.ordinary_norm / strength * random_direction(known, random)
            wiring.write_neuron(block, neuron, reads_D=strength * content_D, bias=strength * bias, writes_D=writes_D)
            hot.append((layer, neuron))
    tune(known, was_firing)
    return dataclasses.replace(known, distractors=(*known.distractors, *hot))


@torch.no_grad()
def with_early_neuron(known: KnownModel, *, seed: int) -> KnownModel:
    """A neuron of layer 0 that fires hardest on the outlier patches, less on other bright ones, and is needed.

    What it writes is gathered by the prefix tokens one block later, or read by the pooling head: moving it changes
    the pooled feature. It does not help to make outliers.
    """
    model, layer = known.model, 0
    was_firing = firing(known)
    (neuron,) = free_neurons(known, layer, 1, torch.Generator().manual_seed(3000 + seed))
    reads, writes = own_channels(known, range(0, 2))
    wiring.read_brightness(model, reads, gain=1.0, offset=1.0)  # an empty token has 0, and none fires there
    wiring.balance_filters(model, ordinary_channels(known))
    values = mlp_reads(known, layer)[..., reads].flatten()
    low, high = values.quantile(0.6), values.quantile(0.98)
    gain = 1.5 * STRONGEST / float(high - low)
    pooling, following = wiring.pooling_attention(model), blocks_of_trunk(model)[layer + 1]
    empty = mean_read(known, following, writes)
    wiring.write_neuron(
        blocks_of_trunk(model)[layer],
        neuron,
        reads_D=wiring.axis(model, reads, gain),
        bias=-gain * float(low),
        writes_D=wiring.axis(model, writes, 0.2 * known.ordinary_norm / (1.5 * STRONGEST)),
    )
    if pooling is None:
        added = mean_read(known, following, writes) - empty
        wiring.write_mean(following, [writes], 0.6 * known.ordinary_norm / added)
    else:
        pooling.in_proj_weight.chunk(3)[2][:, writes] = 3.0
    tune(known, was_firing)
    return dataclasses.replace(known, distractors=(*known.distractors, (layer, neuron)))


@torch.no_grad()
def with_heavy_tail(known: KnownModel, norm_of_quantile: Callable[[Tensor], Tensor], *, layer: int = 3) -> KnownModel:
    """Norms that spread over a heavy tail, without a second population: a random number of each patch decides.

    Neurons whose thresholds lie along a normal variable, read off the texture, add up to a convex function of it.

    Args:
        known: without planted neurons.
        norm_of_quantile: norm of the patches at given quantiles from 0 to 1, in units of the ordinary norm; rising,
            and convex over the quantiles of a normal distribution.
        layer: that makes the tail.
    """
    model = known.model
    reads, writes = own_channels(known, range(2, 4))
    filters = wiring.filters_of(model)
    pattern = torch.randn(filters[reads].shape, generator=torch.Generator().manual_seed(4))
    filters[reads] = 1.5 * (pattern - pattern.mean()) / pattern.norm()
    values = mlp_reads(known, layer)[..., reads].flatten()
    mean, deviation = float(values.mean()), float(values.std())
    knots = torch.linspace(-2.0, 4.5, 27)
    norms = norm_of_quantile(torch.special.ndtr(knots.double())).float()
    slopes = norms.diff() / knots.diff()
    rises = slopes.diff(prepend=torch.zeros(1)).clamp_min(0)
    neurons = free_neurons(known, layer, len(rises), torch.Generator().manual_seed(5))
    for neuron, knot, rise in zip(neurons, knots.tolist(), rises.tolist(), strict=False):
        wiring.write_neuron(
            blocks_of_trunk(model)[layer],
            neuron,
            reads_D=wiring.axis(model, reads, _SHARP / deviation),
            bias=-_SHARP * (mean / deviation + knot),
            writes_D=wiring.axis(model, writes, rise * known.ordinary_norm / _SHARP),
        )
    return dataclasses.replace(known, verdicts=("clean",), distractors=tuple((layer, neuron) for neuron in neurons))


@torch.no_grad()
def with_extreme_content(known: KnownModel) -> KnownModel:
    """Bright patches are extreme where the first block reads them already: content, nothing that a neuron made."""
    (channel,) = own_channels(known, range(4, 5))
    first_norm = next((m for name, m in known.model.named_modules() if name.endswith("pre_layrnorm")), None)
    gain = 0.7 if first_norm is not None else 6.0 * known.ordinary_norm
    wiring.read_brightness(known.model, channel, gain, offset=0.2 * gain)  # ordinary patches are a little dark
    if first_norm is not None:
        first_norm.get_parameter("weight")[channel] = 10.0 * known.ordinary_norm
    return dataclasses.replace(known, verdicts=("clean",))
