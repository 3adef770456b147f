"""Preprocessing for dense tasks: the whole image, so that masks and boxes stay where they are.

Image processors crop. Here an image is resized as a whole to the model's resolution, its sides independently, and only
colours are treated as the checkpoint says. What a model finds is compared in shares of the image, or resized to the
mask, which itself is never resampled.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ttreg_hf.measuring.tower import VisionTower

ORIGINAL = "original"


@dataclass(frozen=True)
class WholeImage:
    """An image processor that resizes the whole image, for one or for each image's own size.

    Args:
        size: height and width in pixels; `None`: each image's own, rounded to whole patches.
        patch_size: height and width of a patch in pixels.
        scale: on every value.
        mean: of each channel, or of all, taken away after that.
        std: likewise, divided by at last.
    """

    size: tuple[int, int] | None
    patch_size: tuple[int, int]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any, size: tuple[int, int] | None, patch_size: tuple[int, int]) -> "WholeImage":
        """With scale, mean and deviation of the colours of the checkpoint's processor."""
        scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        return cls(size, patch_size, scale, *(tuple(np.atleast_1d(values).tolist()) for values in (mean, std)))

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Any]:
        height, width = self.size or (
            max(1, round(side / patch)) * patch
            for side, patch in zip((images.height, images.width), self.patch_size, strict=True)
        )
        resized = images.resize((width, height), Image.Resampling.BICUBIC)
        bytes_HWC = np.asarray(resized, dtype=np.float32).reshape(height, width, -1)
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.mean, self.std))
        colours = (bytes_HWC * self.scale - mean) / std
        return {"pixel_values": torch.from_numpy(colours).permute(2, 0, 1)[None].contiguous()}


def whole_image(tower: VisionTower, processor: Any, image_size: int | str | None) -> WholeImage | None:
    """The processor for a model at a resolution.

    Args:
        tower: of the model.
        processor: the checkpoint's; `None` if images are float tensors.
        image_size: height and width in pixels, `"original"`, or `None` for the model's own.

    Raises:
        ValueError: not whole patches.
    """
    if processor is None:
        return None
    patch_size, size = tower.base_layout.patch_size, whole_size(tower, image_size)
    if size is not None and any(side % patch for side, patch in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"`image_size` is a multiple of the model's patch size {patch_size[0]} x {patch_size[1]}, got {size[0]} x "
            f"{size[1]}. Give one that is, or {ORIGINAL!r}."
        )
    return WholeImage.of(processor, size, patch_size)


def whole_size(tower: VisionTower, image_size: int | str | None) -> tuple[int, int] | None:
    """Height and width in pixels that whole images are resized to; `None`: each image's own. As in `whole_image`."""
    return None if image_size == ORIGINAL else _sides(image_size if image_size is not None else _own_size(tower))


def _own_size(tower: VisionTower) -> Any:
    config = tower.trunk.config
    if hasattr(config, "image_size"):
        return config.image_size
    return int(config.num_patches**0.5) * tower.base_layout.patch_size[0]  # SigLIP 2, which takes any


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)
