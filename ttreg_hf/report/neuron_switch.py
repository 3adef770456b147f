"""The neuron switch: a few photographs as one model sees them while more and more register neurons are moved.

Letters: `S` states of the model, `h`, `w` patches in height and width, `H`, `W` pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.measuring.image_maps import ImageMaps, MapRecorder
from ttreg_hf.measuring.random_neurons import random_neurons
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.pictures.visualization import seen_photograph

BASE, ZEROED, RANDOM, MOVED = "base", "zeroed", "random", "moved"
_MOST_COUNTS = 13  # numbers of moved neurons, 0 and all included
_MOST_PHOTOGRAPHS, _MOST_LOOKED_AT = 4, 8


@dataclass(frozen=True)
class State:
    """How the model is run.

    Args:
        kind: `"base"`, `"zeroed"` (not moved), `"random"` (others of the same layers, moved) or `"moved"`.
        num_neurons: how many.
    """

    kind: str
    num_neurons: int


@dataclass(frozen=True, eq=False)
class Photograph:
    """One photograph in every state. Maps are float32, on the CPU.

    Args:
        pixels_HW3: what the model sees, uint8.
        norms_Shw: patch norms at the detection block.
        attention_Shw: share of the last block's attention, as in `ImageMaps`.
        on_register_S: share of it that goes to the test-time register; 0 in the base model.
    """

    pixels_HW3: Tensor
    norms_Shw: Tensor
    attention_Shw: Tensor
    on_register_S: Tensor


@dataclass(frozen=True, eq=False)
class NeuronSwitch:
    """All that the page shows.

    Args:
        states: the base model first; of the others `"moved"` come last, in order of their numbers.
        photographs: at least one.
        has_cls: whether the attention is what CLS gives, or what patches receive.
        note: about the model, for those who look.
    """

    states: tuple[State, ...]
    photographs: tuple[Photograph, ...]
    has_cls: bool
    note: str = ""


def record_switch(
    model: PreTrainedModel,
    batches: ImageBatches,
    result: CalibrationResult,
    note: str = "",
) -> NeuronSwitch:
    """Run the model in every state over the photographs to show.

    They are the first images that verified, filled up with the first of all: those in which the base model has outlier
    patches, before the others.

    Args:
        model: the base model that was calibrated.
        batches: all images of the calibration.
        result: its outcome; without register neurons there is one state, the base model.
        note: about the model, for those who look.
    """
    pixel_values = _images_to_show(model, batches, result)
    states: list[State] = []
    by_image: list[list[ImageMaps]] = [[] for _ in pixel_values]
    for state, twin in _twins(model, result):
        states.append(state)
        with MapRecorder(twin, detection_layer=result.norms.detection_layer) as maps_of:
            for maps, image in zip(by_image, pixel_values, strict=True):
                maps += maps_of(image.unsqueeze(0))
    return NeuronSwitch(
        states=tuple(states),
        photographs=tuple(
            Photograph(
                pixels_HW3=torch.from_numpy(seen_photograph(image.cpu(), batches.processor)).mul(255).round().byte(),
                norms_Shw=torch.stack([seen.patch_norms for seen in maps]),
                attention_Shw=torch.stack([seen.attention for seen in maps]),
                on_register_S=torch.tensor([seen.register_attention or 0.0 for seen in maps]),
            )
            for maps, image in zip(by_image, pixel_values, strict=True)
        ),
        has_cls=by_image[0][0].has_cls,
        note=note,
    )


def counts_to_show(num_neurons: int) -> list[int]:
    """Numbers of neurons to move: 0, all, and at most eleven between, denser where the strongest are."""
    if num_neurons < _MOST_COUNTS:
        return list(range(num_neurons + 1))
    steps = torch.logspace(0, torch.tensor(float(num_neurons)).log10(), _MOST_COUNTS - 1, dtype=torch.float64)
    return sorted({0, *steps.round().int().tolist()})


def _images_to_show(model: PreTrainedModel, batches: ImageBatches, result: CalibrationResult) -> Sequence[Tensor]:
    images = batches.on_every_process().without_workers()
    found: dict[int, Tensor] = {}
    if result.verification is not None and not result.verification.in_sample:
        verified = set(result.verification.places)
        found = _first_images(images.where(lambda place: place in verified))
    if len(found) < _MOST_PHOTOGRAPHS:
        found |= _first_images(images)
    threshold, has_outliers = result.norms.norm_threshold, {}
    with MapRecorder(model, detection_layer=result.norms.detection_layer) as maps_of:
        for index, image in list(found.items())[:_MOST_LOOKED_AT]:
            has_outliers[index] = bool((maps_of(image.unsqueeze(0))[0].patch_norms > threshold).any())
    order = sorted(has_outliers, key=lambda place: not has_outliers[place])  # stable
    return [found[place] for place in order[:_MOST_PHOTOGRAPHS]]


def _first_images(images: ImageBatches) -> dict[int, Tensor]:
    """By place."""
    return {
        place: image
        for batch in images.first(_MOST_LOOKED_AT)
        for place, image in zip(batch.places, batch.pixel_values, strict=True)
    }


def _twins(model: PreTrainedModel, result: CalibrationResult) -> Iterator[tuple[State, PreTrainedModel]]:
    yield State(BASE, 0), model
    neurons, shift_value = result.register_neurons, result.shift_value
    if not neurons:
        return
    everything = len(neurons)
    yield State(ZEROED, everything), add_test_time_registers(model, neurons, shift_value=shift_value, shift_scale=0.0)
    (others,) = random_neurons(VisionTower.of(model), neurons, draws=1, seed=result.config.seed)
    yield State(RANDOM, len(others)), add_test_time_registers(model, others, shift_value=shift_value)
    for count in counts_to_show(everything)[1:]:
        yield State(MOVED, count), add_test_time_registers(model, neurons[:count], shift_value=shift_value)
