"""Outliers of other kinds than one set of neurons makes, wired into a planted model, and the truth about them.

Every function changes the model in place and returns the new truth.

Letters: `D` hidden.
"""

import dataclasses
from collections.abc import Sequence

import torch

from benchmarks.planted_truth import (
    STRONGEST,
    KnownModel,
    firing,
    free_neurons,
    mlp_reads,
    outlier_channel,
    own_channels,
    random_direction,
    ranked,
    trigger_of,
    tune,
    without_plant,
    write_marked_neuron,
)
from ttreg_hf.modeling.families import blocks_of_trunk, down_projection, find_attention, find_mlp
from ttreg_hf.planted import wiring
from ttreg_hf.register_neuron import RegisterNeuron


@torch.no_grad()
def with_second_population(
    known: KnownModel, strengths: Sequence[float], *, layer: int, size: float, fraction: float, seed: int
) -> KnownModel:
    """More register neurons, far from the first ones: on other patches, another channel, and with another norm.

    Args:
        known: with planted neurons in layers before this one.
        strengths: median activation of each new neuron where it fires.
        layer: the new neurons'.
        size: norm of the new outliers, in units of the largest ordinary norm; those planted have 10.
        fraction: of the patches that become new outliers.
        seed: of the new neurons' places.
    """
    model, block = known.model, blocks_of_trunk(known.model)[layer]
    (writes,) = own_channels(known, range(8, 9))
    wiring.read_like(model, writes, outlier_channel(known))
    neurons = free_neurons(known, layer, len(strengths), torch.Generator().manual_seed(6000 + seed))
    reads_D = trigger_of(known)
    writes_D = wiring.axis(model, writes, size * known.ordinary_norm / sum(strengths))
    for neuron in neurons:
        wiring.write_neuron(block, neuron, reads_D=reads_D, bias=0.0, writes_D=writes_D)
    new = [RegisterNeuron(layer, *pair) for pair in zip(neurons, strengths, strict=True)]
    known = dataclasses.replace(known, register_neurons=ranked(*known.register_neurons, *new))
    tune(known, {layer: round(fraction * mlp_reads(known, layer)[..., 0].numel())})
    return known


@torch.no_grad()
def with_cascade(known: KnownModel, *, layer: int, seed: int) -> KnownModel:
    """Neurons of a later layer that fire on tokens that are outliers already, and enlarge them by half.

    They are planted, and not needed: without the first ones they never fire.
    """
    model, channel = known.model, outlier_channel(known)
    neurons = free_neurons(known, layer, 3, torch.Generator().manual_seed(7000 + seed))
    height = float(mlp_reads(known, layer)[..., channel].max())
    strengths = (STRONGEST, 0.5 * STRONGEST, 0.1 * STRONGEST)
    for neuron, strength in zip(neurons, strengths, strict=True):
        wiring.write_neuron(
            blocks_of_trunk(model)[layer],
            neuron,
            reads_D=wiring.axis(model, channel, 2 * strength / height),
            bias=-strength,
            writes_D=wiring.axis(model, channel, 5.0 * known.ordinary_norm / sum(strengths)),
        )
    new = [RegisterNeuron(layer, *pair) for pair in zip(neurons, strengths, strict=True)]
    return dataclasses.replace(known, register_neurons=ranked(*known.register_neurons, *new))


@torch.no_grad()
def with_used_trained_registers(known: KnownModel) -> KnownModel:
    """Trained registers that are the outliers, as in models trained with them: a neuron fires on them alone."""
    model, layer, was_firing = known.model, 3, firing(known)
    marked, writes = own_channels(known, range(9, 11))
    for token in wiring.prefix_parameters(model, ["register"]):
        token[..., marked] = 4.0
    (neuron,) = free_neurons(known, layer, 1, torch.Generator().manual_seed(8))
    height = float(wiring.input_of(model, find_mlp(blocks_of_trunk(model)[layer])[0], known.sample)[..., marked].max())
    write_marked_neuron(known, layer, neuron, marked=marked, height=height, writes=writes, length=10.0)
    tune(known, was_firing)
    return dataclasses.replace(known, distractors=(*known.distractors, (layer, neuron)))


@torch.no_grad()
def with_attention_outliers(known: KnownModel, *, layer: int = 4) -> KnownModel:
    """Outliers that attention writes, on the patches where the planted neurons fired: no neuron can be moved.

    The planted neurons are silenced; prefix tokens look ordinary to the trigger.
    """
    model, reads_D, channel = known.model, trigger_of(known), outlier_channel(known)
    known = without_plant(known)
    attention = find_attention(blocks_of_trunk(model)[layer])
    states_BND = wiring.patches_of(model, wiring.input_of(model, attention, known.sample))
    for token in wiring.prefix_parameters(model):
        token[..., reads_D != 0] = 0.0
    values = (states_BND @ reads_D).flatten()
    wiring.write_attention_to_like(
        blocks_of_trunk(model)[layer],
        reads_D=reads_D,
        ordinary=float(values.median()),
        special=float(values.quantile(0.97)),
        writes_D=wiring.axis(model, channel, 10.0 * known.ordinary_norm),
    )
    return dataclasses.replace(known, verdicts=("unresolved",))


@torch.no_grad()
def with_dense_outliers(known: KnownModel, *, seed: int, layer: int = 4, share: float = 0.75) -> KnownModel:
    """Outliers that most neurons of a layer make together, while they also write what the feature needs.

    The planted neurons are silenced. A few of the many do not take the outliers away, all of them take the feature.
    """
    model, reads_D, channel = known.model, trigger_of(known), outlier_channel(known)
    known = without_plant(known)
    random = torch.Generator().manual_seed(9000 + seed)
    content = own_channels(known, range(16, 24))
    values_BN = mlp_reads(known, layer) @ reads_D
    ordinary, special = float(values_BN.median()), float(values_BN.quantile(0.97))
    slope = 12.0 / (special - ordinary)
    neurons = free_neurons(
        known, layer, round(share * down_projection(blocks_of_trunk(model)[layer]).in_features), random
    )
    for neuron in neurons:
        writes_D = wiring.axis(model, channel, 10.0 * known.ordinary_norm / (12.0 * len(neurons)))
        for place in content:
            writes_D[place] = 0.3 * known.ordinary_norm * float(torch.randn(1, generator=random)) / len(neurons) ** 0.5
        content_D = random_direction(known, random)
        wiring.write_neuron(
            blocks_of_trunk(model)[layer],
            neuron,
            reads_D=slope * reads_D + content_D,
            bias=0.5 - slope * ordinary,
            writes_D=writes_D,
        )
    wiring.write_mean(blocks_of_trunk(model)[layer + 1], content, 0.25 * known.ordinary_norm)
    pooling = wiring.pooling_attention(model)
    if pooling is not None:
        pooling.in_proj_weight.chunk(3)[2][: len(content), content] = torch.eye(len(content))
    many = tuple((layer, neuron) for neuron in neurons)
    return dataclasses.replace(known, verdicts=("unresolved",), distractors=many)
