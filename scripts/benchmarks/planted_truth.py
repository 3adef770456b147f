"""Planted models with graded strengths, and the truth about them.

Letters: `B` images, `N` patches, `D` hidden.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttreg_hf.measuring.position_report import Place
from ttreg_hf.modeling.families import blocks_of_trunk, down_projection, find_attention, find_mlp
from ttreg_hf.planted import wiring
from ttreg_hf.planted.model import planted_model, synthetic_images
from ttreg_hf.register_neuron import RegisterNeuron

NUM_LAYERS, FIRST_PLANTED, LAST_PLANTED = 10, 2, 8
NUM_OWN_CHANNELS = 24  # at the end, for distractors
_IMAGES_TO_TUNE = 48
_RESERVED, _MEASURING_CONTRAST = 8, 6  # first channels, and last neurons of layer 0, of a planted model
STRONGEST, _WEAKEST = 60.0, 2.0  # median activation where a neuron fires


@dataclass(frozen=True)
class KnownModel:
    """A stock model, and what a calibration without any setting may say about it.

    Args:
        model: stock transformers model, in eval mode.
        verdicts: those that are right.
        register_neurons: all that were planted; moving them takes the outliers away and leaves the feature.
        distractors: neurons `(layer, neuron)` that look like register neurons and are none.
        norm_threshold: L2 norm of a block's output between ordinary patches and outliers, at every block.
        sample: the images that the triggers were tuned on, `(B, 3, H, W)`.
        fixed_positions: spikes of the position table, on its grid; to be taken away together with the neurons.
    """

    model: PreTrainedModel
    verdicts: tuple[str, ...]
    register_neurons: tuple[RegisterNeuron, ...]
    distractors: tuple[tuple[int, int], ...]
    norm_threshold: float
    sample: Tensor
    fixed_positions: tuple[Place, ...] = ()

    @property
    def ordinary_norm(self) -> float:
        """The largest norm of an ordinary patch, before any distractor."""
        return self.norm_threshold / 2

    @property
    def planted_pairs(self) -> set[tuple[int, int]]:
        return {(neuron.layer, neuron.neuron) for neuron in self.register_neurons}


def graded_layout(seed: int) -> tuple[dict[int, int], list[float]]:
    """How many neurons each layer gets, and their strengths in order of layers, as real models have them.

    1 to 45 neurons in 1 to 6 layers, the strongest 30 times the weakest; seeds 0 and 1 take the two ends.

    Source: the published lists; `facebook/dinov2-large` has 45 neurons in 6 layers, from 151 down to about 6.
    """
    random = torch.Generator().manual_seed(1000 + seed)
    total = {0: 45, 1: 1}.get(seed, round(45 ** float(torch.rand(1, generator=random))))
    spread = {0: 6, 1: 1}.get(seed, int(torch.randint(1, 7, (1,), generator=random)))
    layers = torch.randperm(LAST_PLANTED - FIRST_PLANTED + 1, generator=random)[: min(spread, total)] + FIRST_PLANTED
    counts = dict.fromkeys(sorted(layers.tolist()), 1)
    for place in torch.randint(0, len(counts), (total - len(counts),), generator=random).tolist():
        counts[list(counts)[place]] += 1
    graded = torch.logspace(0, 1, total, base=_WEAKEST / STRONGEST) * STRONGEST
    return counts, graded[torch.randperm(total, generator=random)].tolist()


def graded_model(
    family: str,
    *,
    trigger: str,
    seed: int,
    layout: Mapping[int, int] | None = None,
    outlier_fraction: float = 0.05,
    **config_fields: Any,
) -> KnownModel:
    """A planted model of ten blocks, with `graded_layout(seed)` or as many neurons in each layer as given."""
    counts, strengths = graded_layout(seed) if layout is None else (dict(layout), None)
    planted = planted_model(
        family,
        trigger=trigger,
        neurons_per_layer=counts,
        strengths=strengths,
        seed=seed,
        images=synthetic_images(_IMAGES_TO_TUNE, seed=10_000 + seed),
        outlier_fraction=outlier_fraction,
        num_hidden_layers=NUM_LAYERS,
        **config_fields,
    )
    return KnownModel(planted.model, ("fixed",), planted.register_neurons, (), planted.norm_threshold, planted.sample)


@torch.no_grad()
def without_plant(known: KnownModel) -> KnownModel:
    """The planted neurons fire no more and write nothing: no outliers but at fixed positions."""
    for neuron in known.register_neurons:
        wiring.silence_neuron(blocks_of_trunk(known.model)[neuron.layer], neuron.neuron)
    verdicts = known.verdicts if known.fixed_positions else ("clean",)
    return dataclasses.replace(known, verdicts=verdicts, register_neurons=())


def mlp_reads(known: KnownModel, layer: int) -> Tensor:
    """What the layer's MLP reads of the sample's patches, `(B, N, D)`."""
    mlp, _ = find_mlp(blocks_of_trunk(known.model)[layer])
    return wiring.patches_of(known.model, wiring.input_of(known.model, mlp, known.sample))


def mean_read(known: KnownModel, block: nn.Module, channel: int) -> float:
    """Mean over the sample of what the block's attention reads in a channel."""
    return float(wiring.input_of(known.model, find_attention(block), known.sample)[..., channel].mean())


def free_neurons(known: KnownModel, layer: int, count: int, random: torch.Generator) -> list[int]:
    """Neurons of a layer that have no part yet; the last ones may measure the contrast."""
    taken = known.planted_pairs | set(known.distractors)
    width = down_projection(blocks_of_trunk(known.model)[layer]).in_features - _MEASURING_CONTRAST
    places = torch.randperm(width, generator=random).tolist()
    return [place for place in places if (layer, place) not in taken][:count]


def write_marked_neuron(
    known: KnownModel, layer: int, neuron: int, *, marked: int, height: float, writes: int, length: float
) -> None:
    """The neuron fires, as strongly as any, where a channel is marked, and writes on another; in place.

    Args:
        known: the model.
        layer: where the neuron is.
        neuron: which one.
        marked: channel that it reads.
        height: of the mark there.
        writes: channel that it writes on.
        length: of what it adds, in median patch norms.
    """
    wiring.write_neuron(
        blocks_of_trunk(known.model)[layer],
        neuron,
        reads_D=wiring.axis(known.model, marked, 2 * STRONGEST / height),
        bias=-STRONGEST,
        writes_D=wiring.axis(known.model, writes, length * known.ordinary_norm / STRONGEST),
    )


def ordinary_channels(known: KnownModel) -> slice:
    """The channels that hold ordinary content."""
    return slice(_RESERVED, known.model.config.hidden_size - NUM_OWN_CHANNELS)


def random_direction(known: KnownModel, random: torch.Generator) -> Tensor:
    """A unit vector `(D,)` in the channels that hold ordinary content."""
    direction, channels = wiring.axis(known.model, 0, 0.0), ordinary_channels(known)
    direction[channels] = torch.randn(len(direction[channels]), generator=random)
    return direction / direction.norm()


def own_channels(known: KnownModel, places: range) -> list[int]:
    """Channels for a distractor alone, counted from the end; nothing else reads or writes them."""
    channels = [known.model.config.hidden_size - 1 - place for place in places]
    for channel in channels:
        wiring.claim_channel(known.model, channel)
    return channels


def ranked(*neurons: RegisterNeuron) -> tuple[RegisterNeuron, ...]:
    """The strongest first."""
    return tuple(sorted(neurons, key=lambda neuron: -neuron.score))


def trigger_of(known: KnownModel) -> Tensor:
    """The direction `(D,)` that planted neurons read; its largest entry is 1."""
    neuron = known.register_neurons[0]
    row_D = wiring.read_projection(blocks_of_trunk(known.model)[neuron.layer]).weight[neuron.neuron]
    return row_D / row_D.abs().max()


def outlier_channel(known: KnownModel) -> int:
    """The channel that the planted neurons write."""
    neuron = known.register_neurons[0]
    return int(down_projection(blocks_of_trunk(known.model)[neuron.layer]).weight[:, neuron.neuron].abs().argmax())


def firing(known: KnownModel) -> dict[int, int]:
    """On how many patches of the sample the planted neurons of each layer fire; those of one layer fire together."""
    counts = {}
    for neuron in {neuron.layer: neuron for neuron in known.register_neurons}.values():
        up = wiring.read_projection(blocks_of_trunk(known.model)[neuron.layer])
        fires_BN = mlp_reads(known, neuron.layer) @ up.weight[neuron.neuron] + up.bias[neuron.neuron] > 0
        counts[neuron.layer] = int(fires_BN.sum())
    return counts


def tune(known: KnownModel, counts: Mapping[int, int]) -> None:
    """Set the planted neurons' thresholds so that those of each layer fire on as many patches; strengths stay."""
    for layer, count in sorted(counts.items()):
        direction_D = trigger_of(known)
        values = (mlp_reads(known, layer) @ direction_D).flatten().sort(descending=True).values
        bound, median = float(values[count]), float(values[count // 2])
        up = wiring.read_projection(blocks_of_trunk(known.model)[layer])
        for neuron in (planted for planted in known.register_neurons if planted.layer == layer):
            gain = neuron.score / (median - bound)
            up.weight[neuron.neuron], up.bias[neuron.neuron] = gain * direction_D, -gain * bound
