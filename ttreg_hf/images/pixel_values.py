"""How one image becomes `pixel_values`.

Letters: `C` channels, `H`, `W` height and width in pixels, `N` patches.
"""

import functools
import math
from typing import Any

from PIL import Image
from torch import Tensor

from ttreg_hf.images.decoder import MODES, is_missing, to_pil

_VIEWS = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")  # options that cut a photograph into several
_DONE = ("do_convert_rgb",)  # an image has the model's channels before its processor sees it
_PROCESSOR_FAILURES = (ValueError, RuntimeError, ArithmeticError, LookupError)


def to_pixel_values(image: Any, processor: Any, *, name: str = "the image", channels: int = 3) -> Tensor:
    """One image as the model takes it, `(C, H, W)`; float tensors are taken as they are.

    An image keeps its proportions where its processor does so (SigLIP 2); the tower flattens it into patches. Of a
    processor that gives several views of a photograph (LLaVA-NeXT, Idefics 3), it is the one of the whole.

    Args:
        image: as `to_pil` takes it, or a float tensor.
        processor: a transformers image processor; may be `None` for float tensors.
        name: of the image, for messages.
        channels: that the model takes.

    Raises:
        TypeError: not an image.
        OSError: an image that cannot be read, or that the processor refuses; it is named.
        ValueError: an image that needs a processor, and none was given, or one that gives something else.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        return _checked(image, name, channels)
    if processor is None:
        raise ValueError(
            "PIL images and arrays need an image processor, and none was found for this model. Pass `processor=`, "
            "for example `AutoImageProcessor.from_pretrained(...)`, or give preprocessed float tensors."
        )
    if channels not in MODES:
        raise ValueError(
            f"This model takes images of {channels} channels, which files do not have. Give float tensors "
            f"({channels}, H, W)."
        )
    photograph = to_pil(image, name=name, mode=MODES[channels])
    try:
        given = processor(images=photograph, return_tensors="pt", **whole_view(processor))
    except _PROCESSOR_FAILURES as error:
        size = f"{photograph.width} x {photograph.height} pixels"
        raise OSError(f"{name} ({size}) is refused by the image processor: {error}") from error
    if "pixel_values" not in given:
        raise ValueError(f"An image processor gives `pixel_values`, got {', '.join(given)}. Pass another `processor`.")
    if "spatial_shapes" in given:
        return _without_padding(given["pixel_values"][0], channels, *given["spatial_shapes"][0].tolist())
    return _one_view(given["pixel_values"], channels)


def whole_view(processor: Any) -> dict[str, bool]:
    """Options that keep a processor from cutting a photograph into several views, and from changing its channels."""
    settings = processor.func if isinstance(processor, functools.partial) else processor
    return {name: False for name in (*_VIEWS, *_DONE) if getattr(settings, name, None)}


def check_channels(processor: Any, channels: int) -> None:
    """Refuse a processor that does not give as many channels as the model takes, before images are read.

    Raises:
        ValueError: what to give instead.
    """
    if processor is None or channels == 3 or channels not in MODES:
        return
    try:
        to_pixel_values(Image.new(MODES[channels], (224, 224)), processor, channels=channels)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"This model takes images of {channels} channels, and its image processor does not give them ({error}). "
            f"Pass a `processor` that does, or give float tensors ({channels}, H, W) without one."
        ) from error


def _checked(image: Tensor, name: str, channels: int) -> Tensor:
    if image.ndim != 3 or image.shape[0] != channels:
        raise TypeError(
            f"A float tensor used as `pixel_values` has shape ({channels}, H, W), got {tuple(image.shape)}."
        )
    if is_missing(image) or not bool(image.isfinite().all()):
        raise OSError(f"{name} has no pixels, or values that are not finite. Remove it.")
    return image


def _one_view(values: Tensor, channels: int) -> Tensor:
    """The whole photograph, `(C, H, W)`, of a batch of one: `(1, C, H, W)`, or of its views `(1, n, C, H, W)`."""
    image = values[0, 0] if values.ndim == 5 else values[0]  # the whole comes before its parts
    if values.ndim not in (4, 5) or len(values) != 1 or image.shape[0] != channels:
        raise ValueError(
            f"For one image a processor gives `pixel_values` (1, {channels}, H, W), got {tuple(values.shape)}. Pass "
            "another `processor`, or give preprocessed float tensors."
        )
    return image


def _without_padding(patches_NX: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An image again of what SigLIP 2's processor (NaFlex) gives: flattened patches, padded to a fixed number.

    Args:
        patches_NX: `(N, p * p * C)`, of which the first `height * width` are the image's.
        channels: C.
        height: of the image in patches.
        width: likewise.

    Returns:
        `(C, height * p, width * p)`.
    """
    size = math.isqrt(patches_NX.shape[1] // channels)
    patches = patches_NX[: height * width].reshape(height, width, size, size, channels)
    return patches.permute(4, 0, 2, 1, 3).reshape(channels, height * size, width * size)
