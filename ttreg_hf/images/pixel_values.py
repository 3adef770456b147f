"""How one image becomes `pixel_values`.

Letters: `H`, `W` height and width in pixels, `N` patches.
"""

import math
from typing import Any

from torch import Tensor

from ttreg_hf.images.decoder import to_pil


def to_pixel_values(image: Any, processor: Any, *, name: str = "the image") -> Tensor:
    """One image as the model takes it, `(3, H, W)`; float tensors are taken as they are.

    An image keeps its proportions where its processor does so (SigLIP 2); the tower flattens it into patches.

    Raises:
        TypeError: not an image.
        ValueError: an image that needs a processor, and none was given.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        if image.ndim != 3 or image.shape[0] != 3:
            raise TypeError(f"A float tensor used as `pixel_values` has shape (3, H, W), got {tuple(image.shape)}.")
        return image
    if processor is None:
        raise ValueError(
            "PIL images and arrays need an image processor, and none was found for this model. Pass `processor=`, "
            "for example `AutoImageProcessor.from_pretrained(...)`, or give preprocessed float tensors."
        )
    given = processor(images=to_pil(image, name=name), return_tensors="pt")
    if "spatial_shapes" in given:
        return _without_padding(given["pixel_values"][0], *given["spatial_shapes"][0].tolist())
    return given["pixel_values"][0]


def _without_padding(patches_NX: Tensor, height: int, width: int) -> Tensor:
    """An image again of what SigLIP 2's processor (NaFlex) gives: flattened patches, padded to a fixed number.

    Args:
        patches_NX: `(N, p * p * 3)`, of which the first `height * width` are the image's.
        height: of the image in patches.
        width: likewise.

    Returns:
        `(3, height * p, width * p)`.
    """
    size = math.isqrt(patches_NX.shape[1] // 3)
    patches = patches_NX[: height * width].reshape(height, width, size, size, 3)
    return patches.permute(4, 0, 2, 1, 3).reshape(3, height * size, width * size)
