"""Rescaling and normalising on the device: bitwise what the processor gives, or not done at all."""

import pytest
import torch
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.normalisation import split_normalisation
from ttreg_hf.images.photographs import photograph_paths
from ttreg_hf.images.pixel_values import to_pixel_values

PROCESSORS = [
    BitImageProcessorPil(),  # DINOv2's
    CLIPImageProcessorPil(),
    SiglipImageProcessorPil(),
    Siglip2ImageProcessorPil(patch_size=16, max_num_patches=64),
    ViTImageProcessorPil(),
]


def _batches(processor, workers=0):
    paths = photograph_paths()
    return ImageBatches(
        paths, processor, num_images=len(paths), batch_size=3, device=torch.device("cpu"), workers=workers
    )


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
@pytest.mark.parametrize("through", ["batches", "first"])
def test_images_are_bitwise_what_the_processor_gives(processor, through):
    batches = _batches(processor)
    assert batches.normalisation is not None
    for batch in batches if through == "batches" else batches.first(4):
        for place, found in zip(batch.places, batch.pixel_values, strict=True):
            assert torch.equal(found, to_pixel_values(photograph_paths()[place], processor))


def test_workers_hand_on_bytes():
    (collated, *_) = _batches(PROCESSORS[0], workers=1)._collated()
    assert collated.by_size[0].pixel_values.dtype == torch.uint8


class _Brighter(ViTImageProcessorPil):
    """Does more to the values than its settings say."""

    def normalize(self, image, *args, **options):
        return super().normalize(image, *args, **options) + 0.25


@pytest.mark.parametrize(
    "processor",
    [
        None,
        lambda images, return_tensors: None,
        ViTImageProcessorPil(do_normalize=False),
        _Brighter(),
        Siglip2ImageProcessorPil(patch_size=15, do_resize=False),
    ],
    ids=["none", "a function", "without normalising", "its own normalising", "other sizes only"],
)
def test_a_processor_of_another_kind_does_all_itself(processor):
    assert split_normalisation(processor) == (processor, None)
