"""Drift of features against hand-made ones, and the small changes that give it a scale."""

import io

import numpy as np
import pytest
import torch
from families import images
from PIL import Image
from transformers import BitImageProcessorPil

from ttreg_hf.applying import add_test_time_registers
from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.feature_drift import Seen, feature_drifts
from ttreg_hf.measuring.measurement import measure
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.perturbations import Perturbation, PixelScale, as_jpeg, shifted
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower

HALF = PixelScale((0.5,) * 3, (0.25,) * 3)


@torch.no_grad()
def test_drift_is_of_the_pooled_feature_and_of_the_patches_that_are_ordinary_in_the_base(bare_case):
    model = bare_case.stock_model()
    tower, batch = VisionTower.of(model), Batch(images(4), (0, 1, 2, 3))
    norms = measure(tower, [batch], OutlierRule(1, 0.0)).patch_norms
    threshold = float(torch.cat(list(measure(tower, [batch], OutlierRule(1, 0.0)).norms_BN)).quantile(0.8))
    rule = OutlierRule(1, threshold)
    before = measure(tower, [batch], rule, photograph_of=lambda place: place // 2)
    assert norms.num_images == 4
    twin = VisionTower.of(add_test_time_registers(model, [[1, 3], [2, 5]], shift_scale=30.0))
    found = feature_drifts(tower, {"twin": Seen(twin)}, [batch], before, BatchLimit())["twin"]

    pooled, patches = [], []
    for base, moved, outliers_N in zip(_features(tower), _features(twin), before.outliers_BN, strict=True):
        pooled.append(1 - torch.cosine_similarity(base[0], moved[0], dim=0))
        drift_N = 1 - torch.cosine_similarity(base[1].flatten(1), moved[1].flatten(1), dim=0)
        patches.append(drift_N[~outliers_N].mean())
    by_photograph = [torch.stack(values).double().reshape(2, 2).mean(1) for values in (pooled, patches)]
    torch.testing.assert_close(found.pooled_U, by_photograph[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.patches_U, by_photograph[1], rtol=1e-3, atol=1e-6)
    assert found.patches_U.min() > 1e-5


def _features(tower: VisionTower) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with Recorder(tower, patches=True) as recorder:
        seen = recorder(images(4))
    return list(zip(seen.feature_BD, seen.patches_BDhw, strict=True))


def test_the_base_model_on_unchanged_images_does_not_drift(bare_case):
    tower, batch = VisionTower.of(bare_case.stock_model()), Batch(images(3), (0, 1, 2))
    before = measure(tower, [batch], OutlierRule(1, 1e9))
    same = Perturbation(lambda pixel_values: pixel_values)
    found = feature_drifts(tower, {"same": Seen(tower, same)}, [batch], before, BatchLimit())["same"]
    assert found.pooled_U.abs().max() < 1e-6 > found.patches_U.abs().max()


def test_a_shift_compares_what_is_in_the_image_with_itself():
    """A feature that is the patch's own colour is found one column further."""
    pixels = torch.rand(1, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)  # 4 x 4 patches of 2 x 2 pixels
    change = shifted(2)
    moved = change.change(pixels)
    assert moved.shape == pixels.shape
    assert torch.equal(moved[..., 2:], pixels[..., :-2])
    assert torch.equal(moved[..., :2], pixels[..., :2])  # mirrored, not made up
    assert change.columns == 1


@pytest.mark.parametrize("scale", [HALF, PixelScale()])
def test_jpeg_is_what_pillow_makes_of_the_picture(scale):
    bytes_HW3 = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    bytes_HW3[0, 0] = (0, 255, 0)  # the whole range, for a scale that is not known
    whole = io.BytesIO()
    Image.fromarray(bytes_HW3).save(whole, "JPEG", quality=90)
    expected = torch.from_numpy(np.array(Image.open(whole))).permute(2, 0, 1).float() / 255
    given = torch.from_numpy(bytes_HW3).permute(2, 0, 1).float() / 255
    found = as_jpeg(scale).change(((given - 0.5) / 0.25)[None])[0]
    torch.testing.assert_close(found, (expected - 0.5) / 0.25, atol=1e-5, rtol=1e-5)


def test_the_scale_of_pixels_is_the_processors():
    processor = BitImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 3.0])
    assert PixelScale.of(processor) == PixelScale((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert PixelScale.of(None) == PixelScale.of(BitImageProcessorPil(do_normalize=False)) == PixelScale()
