"""Small changes of an image that nobody would call a change: what they do to a feature gives its drift a scale.

Letters: `B` images, `H`, `W` height and width in pixels, `D` channels, `h`, `w` patches in height and width.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Perturbation:
    """A change of images.

    Args:
        change: `pixel_values` -> the changed ones, of the same shape.
        columns: by how many patches it moves what is in the image to the right.
    """

    change: Callable[[Tensor], Tensor]
    columns: int = 0


@dataclass(frozen=True)
class PixelScale:
    """What a value of `pixel_values` is in brightness from 0 to 1: `value * std + mean`, per channel.

    `None`: not known, as of float tensors that somebody hands over; then each image is taken to use the whole range.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, processor: Any) -> "PixelScale":
        """That of an image processor."""
        mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
        if not getattr(processor, "do_normalize", False) or mean is None or std is None:
            return cls()
        return cls(tuple(mean), tuple(std))

    def scale_and_offset(self, image_3HW: Tensor) -> tuple[Tensor, Tensor]:
        """`(3, 1, 1)` or `(1, 1, 1)` each: brightness is `value * scale + offset`."""
        if self.mean is None or self.std is None:
            low, high = image_3HW.min(), image_3HW.max()
            scale = 1 / (high - low).clamp_min(1e-12)
            return scale.reshape(1, 1, 1), (-low * scale).reshape(1, 1, 1)
        scale, offset = (image_3HW.new_tensor(values)[:, None, None] for values in (self.std, self.mean))
        return scale, offset


def as_jpeg(scale: PixelScale) -> Perturbation:
    """Saved as JPEG of quality 90 and read again."""

    def change(pixel_values: Tensor) -> Tensor:
        return torch.stack([_as_jpeg(image, scale) for image in pixel_values])

    return Perturbation(change)


def shifted(patch_width: int) -> Perturbation:
    """Moved to the right by one patch; what comes in on the left is the image's own, mirrored."""

    def change(pixel_values: Tensor) -> Tensor:
        mirrored = pixel_values[..., :patch_width].flip(-1)
        return torch.cat([mirrored, pixel_values[..., :-patch_width]], dim=-1)

    return Perturbation(change, columns=1)


def _as_jpeg(image_3HW: Tensor, scale: PixelScale) -> Tensor:
    wide = image_3HW.detach().float().cpu()
    factor, offset = scale.scale_and_offset(wide)
    bytes_3HW = ((wide * factor + offset).clamp(0, 1) * 255).round().byte()
    # three channels are a picture; of any other number each is one
    pictures = [bytes_3HW.permute(1, 2, 0)] if len(wide) == 3 else list(bytes_3HW)
    read = [torch.from_numpy(_saved_and_read(np.ascontiguousarray(picture.numpy()))) for picture in pictures]
    read_3HW = read[0].permute(2, 0, 1) if len(wide) == 3 else torch.stack(read)
    changed = (read_3HW.float() / 255 - offset) / factor
    return changed.to(device=image_3HW.device, dtype=image_3HW.dtype)


def _saved_and_read(pixels: Any) -> Any:
    """`(H, W, 3)` or `(H, W)` bytes."""
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, "JPEG", quality=_JPEG_QUALITY)
    with Image.open(whole) as opened:
        return np.array(opened)
