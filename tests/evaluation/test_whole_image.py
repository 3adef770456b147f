"""Dense tasks see the whole image, in the colours of the checkpoint's processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil

from ttreg_hf.evaluation.whole_image import whole_image
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.planted import TINY, planted_model

PROCESSOR = BitImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})


@pytest.fixture(scope="module")
def tower():
    return VisionTower.of(planted_model().model)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_colours_are_those_of_the_processor(tower):
    image = noise(112, 112)
    expected = PROCESSOR(images=image, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    found = whole_image(tower, PROCESSOR, None)(images=image)["pixel_values"]
    assert torch.allclose(found, expected, atol=1e-5)


def test_nothing_is_cropped(tower):
    image = Image.new("RGB", (300, 100))
    image.paste((255, 255, 255), (0, 0, 150, 100))  # the left half is white
    found = whole_image(tower, PROCESSOR, 56)(images=image)["pixel_values"]
    assert found.shape == (1, 3, 56, 56)
    assert (found[0, :, :, :24] > 1.9).all()
    assert (found[0, :, :, 32:] < -1.4).all()


def test_each_images_own_size_is_rounded_to_whole_patches(tower):
    found = whole_image(tower, PROCESSOR, "original")(images=noise(300, 100))["pixel_values"]
    assert found.shape[2:] == (98, 294)
    assert tower.layout.patch_map(torch.zeros(1, 1 + 7 * 21, 2), *found.shape[2:]).shape[2:] == (7, 21)


def test_half_patches_are_refused(tower):
    with pytest.raises(ValueError, match="multiple of the model's patch size 14 x 14, got 100 x 100"):
        whole_image(tower, PROCESSOR, 100)


@pytest.mark.parametrize(
    "family", ["vit", "clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "dinov3_vit"]
)
def test_other_resolutions_work_in_every_family(family):
    tower = VisionTower.of(planted_model(family, **TINY).model)
    last = tower.num_layers - 1
    with Recorder(tower, norm_layers=[], states=[("key", -1), ("out", 0)], patches=True) as recorder:
        recording = recorder(torch.randn(2, 3, 56, 84))
    assert recording.patches_BDhw.shape == (2, 64, 4, 6)
    assert recording.feature_BD.shape == (2, 64)
    count = tower.layout.num_prefix_tokens + 24
    assert {name: state.shape for name, state in recording.states.items()} == {
        ("key", last): (2, count, 64),
        ("out", 0): (2, count, 64),
    }


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 4)])
def test_images_of_other_channels_keep_them(tower, mode, channels):
    processor = BitImageProcessorPil(image_mean=[0.5] * channels, image_std=[0.25] * channels)
    image = Image.new(mode, (60, 40), "white")
    found = whole_image(tower, processor, 56)(images=image)["pixel_values"]
    assert torch.allclose(found, torch.full((1, channels, 56, 56), 2.0))
