"""The last steps of an image processor, done where the model runs: workers hand on bytes instead of floats.

Rescaling and normalising look at one value at a time, so they can wait until a whole batch is on the device, a quarter
of its size. This is done only where it is bitwise what the processor itself gives.

Letters: `B` images, `C` channels, `H`, `W` height and width in pixels.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttreg_hf.images.decoder import MODES
from ttreg_hf.images.pixel_values import to_pixel_values

_SETTINGS = ("rescale_factor", "image_mean", "image_std")
_SIDE = 112  # whole patches of 14 and of 16 pixels, which a processor may ask for


@dataclass(frozen=True)
class Normalisation:
    """What is left to do with bytes.

    Args:
        rescale_factor: on every value.
        image_mean: of each channel, taken away after that.
        image_std: of each channel, divided by at last.
    """

    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Bytes -> float32 `pixel_values` of the same shape, in the order and precision of transformers."""
        mean, std = (
            pixels_BCHW.new_tensor(values, dtype=torch.float32) for values in (self.image_mean, self.image_std)
        )
        scaled_BCHW = (pixels_BCHW.double() * self.rescale_factor).float()
        return (scaled_BCHW - mean[:, None, None]) / std[:, None, None]


def split_normalisation(processor: Any, channels: int = 3) -> tuple[Any, Normalisation | None]:
    """A processor that leaves out its last steps, and these; the given one and `None` where they cannot be split.

    Args:
        processor: a transformers image processor, or anything else that makes `pixel_values`.
        channels: that it gives.
    """
    can_be_split = channels in MODES and all(
        getattr(processor, name, None) for name in (*_SETTINGS, "do_rescale", "do_normalize")
    )
    if not can_be_split:
        return processor, None
    left = Normalisation(processor.rescale_factor, tuple(processor.image_mean), tuple(processor.image_std))
    without = functools.partial(processor, do_rescale=False, do_normalize=False)
    probe = _every_value().convert(MODES[channels])
    try:
        pixels = to_pixel_values(probe, without, channels=channels)
        expected = to_pixel_values(probe, processor, channels=channels)
    except (OSError, ValueError):  # it takes no image of this size
        return processor, None
    if pixels.dtype == torch.uint8 and torch.equal(left(pixels), expected):
        return without, left
    return processor, None


def _every_value() -> Image.Image:
    """An image with every value in each channel, and most of them still there when it is resized."""
    rising = (np.arange(_SIDE * _SIDE) % 256).reshape(_SIDE, _SIDE)
    return Image.fromarray(np.stack([rising, rising.T, 255 - rising], axis=-1).astype(np.uint8))
