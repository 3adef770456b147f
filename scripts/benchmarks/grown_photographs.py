"""Photographs as growing and judging take them: squares to crop from, and crops that remember their photograph.

Letters: `B` crops.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.growing import normalised
from benchmarks.photographs import CALIBRATE, GROW, REPORT

_ROOM = 1.5  # side of a square to crop from, over the side of a crop


@dataclass(frozen=True)
class Crops:
    """Parts of photographs.

    Args:
        pixels: normalised, `(B, 3, S, S)`.
        photographs: which photograph each is of, `(B,)`.
    """

    pixels: Tensor
    photographs: Tensor


def squares_to_grow(folder: Path, size: int) -> Tensor:
    """Left, middle and right squares of all photographs to grow with, `(M, 3, S, S)` uint8."""
    side = round(_ROOM * size)
    found = []
    for path in _paths(folder, GROW):
        with Image.open(path) as image:
            width, height = image.size
            short = min(width, height)
            for share in (0.0, 0.5, 1.0) if max(width, height) > 1.2 * short else (0.5,):
                left, top = round(share * (width - short)), round(share * (height - short))
                square = image.convert("RGB").crop((left, top, left + short, top + short)).resize((side, side))
                found.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return torch.stack(found)


def crops_to_calibrate(folder: Path, size: int, count: int, *, seed: int) -> Crops:
    """`count` crops; a calibration keeps the photographs of its stages apart."""
    return _crops(_paths(folder, CALIBRATE), size, count, seed)


def crops_to_report(folder: Path, size: int, each: int = 8) -> Crops:
    """Of photographs that nothing else has seen, so many of each."""
    paths = _paths(folder, REPORT)
    return _crops(paths, size, each * len(paths), seed=0)


def _crops(paths: list[Path], size: int, count: int, seed: int) -> Crops:
    """In turn of each photograph; at least half of its shorter side."""
    random = np.random.default_rng(seed)
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    pixels = []
    for place in range(count):
        image = images[place % len(images)]
        side = int(min(image.size) * random.uniform(0.5, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    order = torch.arange(count) % len(images)
    return Crops(normalised(torch.stack(pixels).float()), order)


def _paths(folder: Path, split: str) -> list[Path]:
    """Sorted by name.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted((folder / split).glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(
            f"Photographs to {split} are JPEG files in {folder / split}, but there is none. Make them with "
            "`python scripts/real_photographs.py --output DIR`."
        )
    return paths
