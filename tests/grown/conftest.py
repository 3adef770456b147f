"""A tiny model in which artifacts were grown; nobody wired them.

Not every tiny model grows outliers that a calibration tells from the rest: with other textures or ratios some are said
to be `clean`. This one shows that unwired neurons can be found, not how often they are.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import grown as command
from benchmarks.composites import build_composites
from benchmarks.growing import grow, random_crops
from benchmarks.grown_variants import MLPS, VARIANTS, Variant
from benchmarks.planted_truth import graded_model, without_plant
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import BitImageProcessorPil, PreTrainedModel

SIZE, PATCH = 112, 14
COUNTS = {"num_train": 12, "num_test": 8}
SCHEMES = ("int8 static, maximum", "int8 dynamic")
TINY = Variant("tiny", MLPS, 8.0, outliers=2, image_size=SIZE, batch_size=8, other_size=168)


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


def _pictures(textures, folder: Path) -> None:
    folder.mkdir(parents=True)
    for place, image in enumerate(textures):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:02}.jpg", quality=100, subsampling=0)


def _composites(folder: Path, backgrounds: Path) -> None:
    random = np.random.default_rng(0)
    for name, colour in (("red", (250, 30, 30, 255)), ("blue", (30, 30, 250, 255))):
        (folder / "cutouts" / name).mkdir(parents=True)
        for place in range(4):
            image = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(image).polygon([tuple(each) for each in random.integers(0, 64, (5, 2))], fill=colour)
            image.save(folder / "cutouts" / name / f"{place}.png")
    build_composites(folder / "cutouts", folder / "composites", backgrounds=str(backgrounds), size=SIZE, **COUNTS)


@pytest.fixture(scope="session")
def done(grown, textures, tmp_path_factory) -> Path:
    """The folder that the command leaves, started where growing has ended."""
    folder = tmp_path_factory.mktemp("grown")
    side = {"height": SIZE, "width": SIZE}
    grown.original.save_pretrained(folder / "base")
    for place in (folder / "base", folder / "output" / "tiny-0" / command.CHECKPOINT):
        BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side).save_pretrained(place)
    grown.grown.save_pretrained(folder / "output" / "tiny-0" / command.CHECKPOINT)
    for split, part in (("calibrate", textures[:48]), ("report", textures[48:])):
        _pictures(part, folder / "photographs" / split)
    _composites(folder, folder / "photographs" / "report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", dataclasses.replace(TINY, expected=("fixed", "unresolved")))
        patch.setattr("benchmarks.grown_quantisation.SIMULATED", SCHEMES)
        patch.setattr(command, "_run_all", lambda jobs, processes: not any(map(command.run_job, jobs)))
        command.grown_artifacts(
            folder / "base",
            folder / "photographs",
            folder / "output",
            composites=folder / "composites",
            variant=["tiny"],
            seed=[0],
            num_images=64,
            device="cpu",
        )
    return folder / "output"
