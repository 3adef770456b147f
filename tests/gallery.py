"""The same images in every form in which people keep them, and a planted checkpoint that has outliers on them."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import BitImageProcessorPil

from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.images.data_sets import NamedImages, find_images
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.planted import planted_model, synthetic_images

COUNT = 23  # no multiple of 2 or 3
UNEVEN, EVEN = (7, 2, 14), (3, 9, 6, 5)  # images of each file: three files, and four
KINDS = ("folder", "imagefolder stream", "zip", "parquet 3", "parquet 4", "tars", "on disk", "one parquet", "pattern")


@dataclass(frozen=True)
class Gallery:
    """Where things are.

    Args:
        root: of the data sets.
        model: planted checkpoint with its processor.
        norm_threshold: of the planted model.
    """

    root: Path
    model: Path
    norm_threshold: float

    def images(self, kind: str) -> Any:
        """What `calibrate` takes, found as the command line does it."""
        if kind == "imagefolder stream":
            folder = str(self.root / "folder")
            return datasets.load_dataset("imagefolder", data_dir=folder, split="train", streaming=True)
        places = {"one parquet": "whole.parquet", "pattern": "tars/*.tar"}
        return find_images(str(self.root / places.get(kind, kind))).images

    def config(self, **fields: Any) -> CalibrationConfig:
        explicit = {"norm_threshold": self.norm_threshold, "last_layer": 3, "top_k": 4, "batch_size": 4}
        return CalibrationConfig(**{"num_images": 20, **explicit, **fields})


def named(images: Any) -> NamedImages:
    """The same name for every form: a run on one of them is a run on each."""
    return NamedImages(images, DataSource(description="the gallery"))


def make_gallery(root: Path) -> Gallery:
    """Write all of it."""
    planted = planted_model()
    planted.model.save_pretrained(root / "model")
    BitImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(root / "model")
    files = [_png(pixel_values) for pixel_values in synthetic_images(COUNT, seed=99)]
    (root / "folder").mkdir()
    for place, data in enumerate(files):
        (root / "folder" / f"{place:04d}.png").write_bytes(data)
    _zip(files, root / "zip")
    for folder, sizes in (("parquet 3", UNEVEN), ("parquet 4", EVEN)):
        (root / folder).mkdir()
        for shard, places in enumerate(_parts(sizes)):
            _table(files, places).to_parquet(root / folder / f"part-{shard}.parquet")
    _table(files, range(COUNT)).to_parquet(root / "whole.parquet")
    (root / "tars").mkdir()
    for shard, places in enumerate(_parts(UNEVEN)):
        write_tar(root / "tars" / f"{shard}.tar", {f"{place:04d}.png": files[place] for place in places})
    _table(files, range(COUNT)).save_to_disk(root / "on disk")
    return Gallery(root, root / "model", planted.norm_threshold)


def spoil(whole: bytes) -> dict[str, bytes]:
    """A file of each kind that cannot be read, by a name that sorts between those of the gallery."""
    changed = bytearray(whole)
    changed[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    return {
        "0002-corrupt.png": bytes(changed),
        "0004-truncated.png": whole[: len(whole) // 2],
        "0007-empty.png": b"",
        "0011-text.png": b"not an image",
        "0019-cut header.png": whole[:20],
    }


def make_spoilt(gallery: Gallery, root: Path) -> Path:
    """The gallery's folder, and as one tar, with unreadable files in between."""
    files = {path.name: path.read_bytes() for path in (gallery.root / "folder").iterdir()}
    files |= spoil(files["0000.png"])
    (root / "folder").mkdir()
    for name, data in files.items():
        (root / "folder" / name).write_bytes(data)
    write_tar(root / "images.tar", dict(sorted(files.items())))
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _png(pixel_values: Any) -> bytes:
    array = ((pixel_values * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    whole = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(whole, "PNG")
    return whole.getvalue()


def _zip(files: list[bytes], folder: Path) -> None:
    import zipfile

    folder.mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for place, data in enumerate(files):
            archive.writestr(f"{place:04d}.png", data)


def _parts(sizes: tuple[int, ...]) -> list[range]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _table(files: list[bytes], places: range) -> datasets.Dataset:
    rows = [{"bytes": files[place], "path": f"{place:04d}.png"} for place in places]
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": rows, "number": list(places)}, features=features)
