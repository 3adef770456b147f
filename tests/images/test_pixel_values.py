"""One image becomes the `pixel_values` of the whole photograph, with as many channels as the model takes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Siglip2ImageProcessorPil,
    SmolVLMImageProcessorPil,
    ViTImageProcessorPil,
)

from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.images.normalisation import split_normalisation
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.pictures.visualization import seen_photograph

QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
COLOURS = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def quarters(size: int = 800) -> Image.Image:
    """Red, green, blue and white, so that a part is told from the whole."""
    image, half = Image.new("RGB", (size, size)), size // 2
    for place, colour in enumerate(QUADRANTS):
        image.paste(colour, (place % 2 * half, place // 2 * half, (place % 2 + 1) * half, (place // 2 + 1) * half))
    return image


SEVERAL_VIEWS = {
    "LLaVA-NeXT": LlavaNextImageProcessorPil(**COLOURS),
    "LLaVA-OneVision": LlavaOnevisionImageProcessorPil(**COLOURS),
    "Idefics 2": Idefics2ImageProcessorPil(**COLOURS),
    "Idefics 2, split": Idefics2ImageProcessorPil(do_image_splitting=True, **COLOURS),
    "Idefics 3": Idefics3ImageProcessorPil(**COLOURS),
    "SmolVLM": SmolVLMImageProcessorPil(**COLOURS),
    "GOT-OCR 2, InternVL, Aya Vision": GotOcr2ImageProcessorPil(crop_to_patches=True, **COLOURS),
    "Gemma 3": Gemma3ImageProcessorPil(
        do_pan_and_scan=True, pan_and_scan_min_ratio_to_activate=1.0, pan_and_scan_min_crop_size=8, **COLOURS
    ),
}
ONE_VIEW = {"CLIP": CLIPImageProcessorPil(**COLOURS), "ViT": ViTImageProcessorPil(**COLOURS)}


@pytest.mark.parametrize("name", [*SEVERAL_VIEWS, *ONE_VIEW])
def test_it_is_the_whole_photograph_that_is_seen(name):
    pixels = to_pixel_values(quarters(), {**SEVERAL_VIEWS, **ONE_VIEW}[name])
    assert pixels.ndim == 3
    _, height, width = pixels.shape
    for place, colour in enumerate(QUADRANTS):
        row, column = ((1 + 2 * part) * side // 4 for part, side in ((place // 2, height), (place % 2, width)))
        assert torch.allclose(pixels[:, row, column], torch.tensor(colour) / 255, atol=0.02), colour


@pytest.mark.parametrize("name", SEVERAL_VIEWS)
def test_their_last_steps_can_wait_too(name):
    processor = SEVERAL_VIEWS[name]
    without, left = split_normalisation(processor)
    assert left is not None
    assert torch.equal(left(to_pixel_values(quarters(), without)), to_pixel_values(quarters(), processor))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 4, 4), r"got \(2, 3, 4, 4\)"), ((1, 1, 4, 3, 4, 4), r"got \(1, 1, 4, 3, 4, 4\)"), ((1, 9, 48), "got")],
    ids=["several images", "tiles", "patches"],
)
def test_a_processor_that_gives_something_else_is_refused(shape, message):
    with pytest.raises(ValueError, match=rf"gives `pixel_values` \(1, 3, H, W\), {message}"):
        to_pixel_values(quarters(8), lambda images, return_tensors: {"pixel_values": torch.zeros(shape)})
    with pytest.raises(ValueError, match="gives `pixel_values`, got pixel_values_images"):
        to_pixel_values(quarters(8), lambda images, return_tensors: {"pixel_values_images": torch.zeros(shape)})


SETTINGS: dict[str, Any] = {"do_resize": False, "do_rescale": True, "do_normalize": True}
GREY = ViTImageProcessorPil(image_mean=[0.5], image_std=[0.25], **SETTINGS)
CONVERTS = BitImageProcessorPil(do_center_crop=False, image_mean=[0.5], image_std=[0.25], **SETTINGS)
RGBA = ViTImageProcessorPil(image_mean=[0.5] * 4, image_std=[0.25] * 4, **SETTINGS)


@pytest.mark.parametrize(("channels", "mode", "processor"), [(1, "L", GREY), (1, "L", CONVERTS), (4, "RGBA", RGBA)])
@pytest.mark.parametrize("form", ["PIL", "RGB", "array HWC", "array CHW", "float"])
def test_images_of_other_channels_are_read(channels, mode, processor, form):
    image = quarters(8).convert(mode)
    array = np.asarray(image).reshape(8, 8, channels)
    expected = (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    forms = {
        "PIL": image,
        "RGB": quarters(8),
        "array HWC": array,
        "array CHW": array.transpose(2, 0, 1).copy(),
        "float": expected,
    }
    found = ImageBatches(
        [forms[form]], processor, num_images=1, batch_size=1, device=torch.device("cpu"), channels=channels
    )
    torch.testing.assert_close(next(iter(found)).pixel_values[0], expected)


def test_a_grey_array_needs_no_channel_axis():
    found = to_pixel_values(np.asarray(quarters(8).convert("L")), GREY, channels=1)
    assert torch.equal(found, to_pixel_values(quarters(8), GREY, channels=1))


def test_flattened_patches_of_other_channels_become_an_image_again():
    values = torch.arange(2 * 3 * 2 * 2).float().reshape(1, 6, 4)  # 2 x 3 patches of 2 x 2 pixels, one channel

    def processor(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": values, "spatial_shapes": torch.tensor([[2, 3]])}

    found = to_pixel_values(quarters(8), processor, channels=1)
    assert found.shape == (1, 4, 6)
    assert found[0, :2, :2].flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("processor", [BitImageProcessorPil(), Siglip2ImageProcessorPil(), CLIPImageProcessorPil()])
def test_a_processor_of_other_channels_is_refused_before_images_are_read(channels, processor):
    with pytest.raises(ValueError, match=rf"takes images of {channels} channels.*float tensors \({channels}, H, W\)"):
        ImageBatches([], processor, num_images=1, batch_size=1, device=torch.device("cpu"), channels=channels)


def test_channels_that_no_file_has_are_given_as_float_tensors():
    with pytest.raises(ValueError, match=r"images of 7 channels, .* do not have\. Give float tensors \(7, H,"):
        to_pixel_values(quarters(8), ViTImageProcessorPil(), channels=7)
    assert to_pixel_values(torch.zeros(7, 4, 4), None, channels=7).shape == (7, 4, 4)
    with pytest.raises(TypeError, match=r"has shape \(7, H, W\), got \(3, 4, 4\)"):
        to_pixel_values(torch.zeros(3, 4, 4), None, channels=7)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_every_number_of_channels_can_be_shown(channels):
    shown = seen_photograph(torch.rand(channels, 4, 6), None)
    assert shown.shape == (4, 6, 3)
