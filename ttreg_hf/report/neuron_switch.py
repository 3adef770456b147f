"""The neuron switch: a few photographs as one model sees them while more and more register neurons are moved.

Letters: `S` states of the model, `L` blocks whose norms are shown, `A` blocks whose attention is shown, `h`, `w`
patches in height and width, `H`, `W` pixels, `K` coordinates of a feature's direction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers, patching_of, zeroing_of
from ttreg_hf.images.batch import Batch
from ttreg_hf.images.progress import Progress, silent
from ttreg_hf.measuring.image_maps import ImageMaps, MapRecorder
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.table_spikes import moved_nowhere, random_rows
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.modeling.modeling_ttreg import TTRegModelMixin
from ttreg_hf.pictures.colours import pca_colours
from ttreg_hf.pictures.visualization import seen_photograph
from ttreg_hf.register_neuron import RegisterNeuron

BASE, ZEROED, RANDOM, CONSTANT, MOVED = "base", "zeroed", "random", "constant", "moved"
_MOST_COUNTS = 13  # numbers of moved neurons, 0 and all included
_MOST_COORDINATES = 64  # of a patch feature's direction


@dataclass(frozen=True)
class State:
    """How the model is run.

    Args:
        kind: `"base"`, `"zeroed"` (not moved), `"random"` (others of the same layers, moved), `"constant"` (zeroed;
            attentions read a constant row instead of a token) or `"moved"`. Spikes of the position table are taken
            away in all but the first, other rows of it in `"random"`.
        num_neurons: how many.
    """

    kind: str
    num_neurons: int


@dataclass(frozen=True, eq=False)
class Photograph:
    """One photograph in every state, on the CPU; maps are float32.

    Args:
        pixels_HW3: what the model sees, uint8.
        norms_SLhw: patch norms after the blocks that are shown.
        attention_SAhw: share of a block's attention, as in `ImageMaps`.
        on_register_SA: share of it that goes to the test-time registers; 0 in the base model.
        similarity_S: cosine of the image's pooled feature to the base model's.
        colours_Shw3: PCA colours of the patch features, uint8, one basis for all states; `None`: not shown.
        directions_ShwK: directions of the patch features in their main coordinates: of two of them, the dot product is
            the features' cosine, but for what the other coordinates hold; `None`: not shown.
    """

    pixels_HW3: Tensor
    norms_SLhw: Tensor
    attention_SAhw: Tensor
    on_register_SA: Tensor
    similarity_S: Tensor
    colours_Shw3: Tensor | None = None
    directions_ShwK: Tensor | None = None


@dataclass(frozen=True, eq=False)
class NeuronSwitch:
    """All that a page shows.

    Args:
        states: the base model first; of the others `"moved"` come last, in order of their numbers.
        photographs: at least one.
        norm_layers: blocks whose norms are shown.
        attention_layers: blocks whose attention is shown.
        detection_layer: block that tells outliers; one of `norm_layers`.
        has_cls: whether the attention is what CLS gives, or what patches receive.
        note: about the model, for those who look.
        num_spikes: of the position table, that all states but the base model take away.
    """

    states: tuple[State, ...]
    photographs: tuple[Photograph, ...]
    norm_layers: tuple[int, ...]
    attention_layers: tuple[int, ...]
    detection_layer: int
    has_cls: bool
    note: str = ""
    num_spikes: int = 0


def record_switch(
    base: PreTrainedModel,
    patched: TTRegModelMixin | None,
    images: Sequence[Tensor],
    processor: Any,
    *,
    detection_layer: int,
    seed: int = 0,
    every_block: bool = False,
    note: str = "",
    constants: Tensor | None = None,
    progress: Progress = silent,
) -> NeuronSwitch:
    """Run the model in every state over the photographs.

    Args:
        base: the model before.
        patched: its twin, which says the register neurons, strongest first, and how they are moved; `None`, or one
            without neurons: there is one state, the base model.
        images: `pixel_values` of each photograph, `(C, H, W)`; at least one.
        processor: that made them; `None` for tensors that were given as they are.
        detection_layer: block that tells outliers, 0-based.
        seed: of the random neurons.
        every_block: show norms and attention of all blocks, PCA colours and similarities of patches; else norms after
            the detection block and attention of the last one.
        note: about the model, for those who look.
        constants: rows of constant mode for the same neurons, to be shown too.
        progress: shows how far each state is.
    """
    states: list[State] = []
    by_image: list[list[ImageMaps]] = [[] for _ in images]
    batches = [Batch(image.unsqueeze(0), (place,)) for place, image in enumerate(images)]
    for state, twin in _twins(base, patched, constants, seed):
        states.append(state)
        with MapRecorder(twin, detection_layer=detection_layer, every_block=every_block) as maps_of:
            for batch in progress(f"{state.kind} {state.num_neurons or ''}".strip(), batches, len(images)):
                by_image[batch.places[0]] += maps_of(batch.pixel_values)
    last = VisionTower.of(base).num_layers - 1
    return NeuronSwitch(
        states=tuple(states),
        photographs=tuple(_photograph(image, maps, processor) for image, maps in zip(images, by_image, strict=True)),
        norm_layers=tuple(range(last + 1)) if every_block else (detection_layer,),
        attention_layers=tuple(range(last + 1)) if every_block else (last,),
        detection_layer=detection_layer,
        has_cls=by_image[0][0].has_cls,
        note=note,
        num_spikes=0 if patched is None else len(patched.registers.config.fixed_positions),
    )


def states_to_show(patched: TTRegModelMixin | None, constants: Tensor | None = None) -> tuple[State, ...]:
    """The states that `record_switch` records."""
    config: Any = None if patched is None else patched.registers.config
    if config is None or not (config.register_neurons or config.fixed_positions):
        return (State(BASE, 0),)
    num_neurons = len(config.register_neurons)
    moved = (State(MOVED, count) for count in counts_to_show(num_neurons)[1:] or [0])
    constant = () if constants is None else (State(CONSTANT, num_neurons),)
    return State(BASE, 0), State(ZEROED, num_neurons), State(RANDOM, num_neurons), *constant, *moved


def counts_to_show(num_neurons: int) -> list[int]:
    """Numbers of neurons to move: 0, all, and at most eleven between, denser where the strongest are."""
    if num_neurons < _MOST_COUNTS:
        return list(range(num_neurons + 1))
    steps = torch.logspace(0, torch.tensor(float(num_neurons)).log10(), _MOST_COUNTS - 1, dtype=torch.float64)
    return sorted({0, *steps.round().int().tolist()})


def directions(features_Shw: Sequence[Tensor]) -> Tensor:
    """Unit vectors in the main coordinates of all of them, `(S, h, w, K)`; their dot products are cosines.

    Args:
        features_Shw: `(h, w, D)` in each state.
    """
    unit_ShwD = torch.nn.functional.normalize(torch.stack(list(features_Shw)).double(), dim=-1)
    flat = unit_ShwD.flatten(0, 2)
    _, coordinates_DD = torch.linalg.eigh(flat.T @ flat)  # ascending
    return (unit_ShwD @ coordinates_DD[:, -_MOST_COORDINATES:]).float()


def _photograph(image: Tensor, maps: Sequence[ImageMaps], processor: Any) -> Photograph:
    features = [seen.features for seen in maps]
    blocks = [seen.blocks for seen in maps if seen.blocks is not None]
    pooled_SD = torch.stack([seen.pooled_D for seen in maps])
    shown: dict[str, Tensor] = {
        "norms_SLhw": torch.stack([seen.patch_norms for seen in maps]).unsqueeze(1),
        "attention_SAhw": torch.stack([seen.attention for seen in maps]).unsqueeze(1),
        "on_register_SA": torch.tensor([[seen.register_attention or 0.0] for seen in maps]),
    }
    if blocks:
        shown = {
            "norms_SLhw": torch.stack([each.norms_Lhw for each in blocks]),
            "attention_SAhw": torch.stack([each.attention_Lhw for each in blocks]),
            "on_register_SA": torch.stack([each.on_register_L for each in blocks]),
            "colours_Shw3": torch.stack(pca_colours(features)).mul(255).round().byte(),
            "directions_ShwK": directions(features),
        }
    return Photograph(
        pixels_HW3=torch.from_numpy(seen_photograph(image.cpu(), processor)).mul(255).round().byte(),
        similarity_S=torch.nn.functional.cosine_similarity(pooled_SD, pooled_SD[:1], dim=-1),
        **shown,
    )


def _twins(
    base: PreTrainedModel, patched: TTRegModelMixin | None, constants: Tensor | None, seed: int
) -> Iterator[tuple[State, PreTrainedModel]]:
    for state in states_to_show(patched, constants):
        if patched is None or state.kind == BASE:
            yield state, base
            continue
        tower, options = VisionTower.of(base), patching_of(patched)
        neurons = [RegisterNeuron(*pair) for pair in patched.registers.config.register_neurons]
        if state.kind == ZEROED:
            yield state, moved_nowhere(tower, neurons, zeroing_of(patched)).model
            continue
        if state.kind == CONSTANT:
            options |= {"test_time_register_mode": "constant", "constants": constants, "shift_value": "per_neuron"}
        if state.kind == RANDOM:
            (neurons,) = random_neurons(tower, neurons, draws=1, seed=seed)
            places = [(row, column) for row, column in options["fixed_positions"]]
            (options["fixed_positions"],) = random_rows(tower, places, draws=1, seed=seed)
        yield state, add_test_time_registers(base, neurons[: state.num_neurons], **options)
