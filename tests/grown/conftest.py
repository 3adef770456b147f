"""A tiny model in which artifacts were grown; nobody wired them.

Not every tiny model grows outliers that a calibration tells from the rest: with other textures or ratios some are said
to be `clean`. This one shows that unwired neurons can be found, not how often they are.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from benchmarks.growing import grow, random_crops
from benchmarks.grown_variants import MLPS, Variant
from benchmarks.planted_truth import graded_model, without_plant
from torch import Tensor
from transformers import PreTrainedModel

SIZE, PATCH = 112, 14
TINY = Variant("tiny", MLPS, 8.0, outliers=2, image_size=SIZE, batch_size=8)


@dataclass(frozen=True)
class Grown:
    """The model before and after growing, and images that neither has seen."""

    original: PreTrainedModel
    grown: PreTrainedModel
    images: Tensor


@pytest.fixture(scope="session")
def textures() -> Tensor:
    """`(64, 3, 168, 168)` uint8: patches of their own brightness, with noise."""
    noise = torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    shade = torch.rand(64, 3, SIZE // PATCH, SIZE // PATCH, generator=torch.Generator().manual_seed(4))
    images = 0.6 * noise - 0.4 * F.interpolate(shade, scale_factor=PATCH)
    return F.interpolate((images / 8 + 0.5).clamp(0, 1) * 255, scale_factor=1.5).byte()


@pytest.fixture(scope="session")
def original() -> PreTrainedModel:
    """Random features that see contrast, and no outliers."""
    return without_plant(
        graded_model("dinov2", layout={3: 2}, trigger="low_information", seed=0)
    ).model.requires_grad_(False)


@pytest.fixture(scope="session")
def grown(original: PreTrainedModel, textures: Tensor) -> Grown:
    images = random_crops(textures, 128, SIZE, torch.Generator().manual_seed(9))
    return Grown(original, grow(original, textures, TINY, steps=200, learning_rate=1e-3), images)
