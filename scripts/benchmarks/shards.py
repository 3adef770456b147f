"""Parquet shards of as many JPEG photographs as a benchmark wants: crops of the bundled ones, over and over."""

import io
import os
import random
import shutil
from pathlib import Path

from datasets import Dataset, Features, Image
from PIL import Image as PilImage

from ttreg_hf.images.photographs import photograph_paths

_CROPS, _SIDE = 350, 480  # different photographs, and their shorter side in pixels


def write_shards(folder: Path, *, num_images: int, shards: int) -> str:
    """Write the shards, unless they lie there; a pattern of their names.

    Shard k holds more images than shard k - 1, so that no number of processes divides them evenly.
    """
    pattern = str(folder / "*.parquet")
    if folder.exists():
        return pattern
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    crops = encoded_crops(_CROPS)
    bounds = [round(num_images * (shard / shards) ** 1.2) for shard in range(shards + 1)]
    for shard in range(shards):
        places = range(bounds[shard], bounds[shard + 1])
        rows = [{"bytes": crops[place % len(crops)], "path": f"{place:08d}.jpg"} for place in places]
        table = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
        table.to_parquet(unfinished / f"{shard:05d}.parquet")
    os.replace(unfinished, folder)
    return pattern


def encoded_crops(count: int) -> list[bytes]:
    """JPEG files of crops of the bundled photographs, the same ones every time."""
    photographs = [PilImage.open(path).convert("RGB") for path in photograph_paths()]
    draw = random.Random(0)
    crops = []
    for place in range(count):
        photograph = photographs[place % len(photographs)]
        side = min(photograph.size)
        wide = draw.randint(side // 2, side), draw.randint(side // 2, side)
        left, top = (draw.randint(0, whole - part) for whole, part in zip(photograph.size, wide, strict=True))
        crop = photograph.crop((left, top, left + wide[0], top + wide[1]))
        scale = _SIDE / min(wide)
        file = io.BytesIO()
        crop.resize((round(wide[0] * scale), round(wide[1] * scale))).save(file, "JPEG", quality=90)
        crops.append(file.getvalue())
    return crops
