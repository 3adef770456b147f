"""What a data set says about an image: mask, boxes or label, from the forms in which data sets keep them.

Letters: `H`, `W` height and width in pixels, `n` boxes.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ttreg_hf.images.decoder import open_image_file, to_pil

MASK, BOXES, LABEL = "mask", "boxes", "label"
BOX_FORMATS = ("xyxy", "xywh", "voc")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF


@dataclass(frozen=True)
class Truth:
    """One image.

    Args:
        place: in the data set.
        mask: class of every pixel, `(H, W)`, int64; `None` if not asked for.
        boxes: `(n, 4)`, left, top, right and bottom as shares of the image's width and height; likewise.
        label: class of the image; likewise.
    """

    place: int
    mask: Any = None
    boxes: Any = None
    label: int | None = None


def read_mask(mask: Any) -> Any:
    """Class of every pixel, `(H, W)`, int64.

    Args:
        mask: a PIL image of any mode, or what `datasets` gives undecoded; an integer array `(H, W)`. Of a palette
            image the index counts; of a colour image red + 256 * green + 65536 * blue, as ImageNet-S has it.

    Raises:
        ValueError: something else.
    """
    if isinstance(mask, dict):
        file = io.BytesIO(mask["bytes"]) if mask.get("bytes") is not None else mask["path"]
        mask = open_image_file(file, name=mask.get("path") or "the mask")
    if isinstance(mask, Image.Image) and mask.mode in ("RGBA", "LA", "CMYK", "YCbCr", "HSV"):
        mask = mask.convert("L" if mask.mode == "LA" else "RGB")
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 3:
        array = array.astype(np.int64) @ np.array([1, 256, 65536])
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(
            f"A mask holds the class of every pixel, `(H, W)` integers, got {array.dtype} of shape {array.shape}. "
            "Name the column that holds such masks."
        )
    return array.astype(np.int64)


def counted_pixels(mask: Any, ignore_index: int | None) -> Any:
    """Which pixels count, booleans of the mask's shape: all but those of one class."""
    return np.ones(mask.shape, dtype=bool) if ignore_index is None else mask != ignore_index


def read_boxes(boxes: Any, size: tuple[int, int], box_format: str) -> Any:
    """Boxes as shares of the image: `(n, 4)`, left, top, right, bottom.

    Args:
        boxes: n lists of four numbers, in pixels.
        size: width and height of the image in pixels.
        box_format: `"xyxy"`: left, top, right, bottom, the last two not inside; `"xywh"`: left, top, width, height
            (COCO); `"voc"`: the first and the last pixel, counted from 1 (PASCAL VOC).

    Raises:
        ValueError: not four numbers each, or a box that is empty.
    """
    if any(len(box) != 4 for box in boxes):
        raise ValueError(f"A box is four numbers, got {boxes}. Name the column that holds such boxes.")
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if box_format == "xywh":
        array = np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)
    elif box_format == "voc":
        array = array - np.array([1.0, 1.0, 0.0, 0.0])
    if not (array[:, 2:] > array[:, :2]).all():
        raise ValueError(
            f"A box has a width and a height, got {boxes} read as {box_format!r}. Give the right one of "
            f"{', '.join(BOX_FORMATS)} as `box_format` (`--box-format`)."
        )
    return array / np.array([*size, *size])


def size_of(image: Any) -> tuple[int, int]:
    """Width and height of a raw image in pixels, upright; its pixels are not decoded where that can be avoided."""
    if isinstance(image, Tensor) and image.is_floating_point():
        return image.shape[2], image.shape[1]
    if isinstance(image, dict) and image.get("bytes") is not None:
        image = open_image_file(io.BytesIO(image["bytes"]), name=image.get("path"))
    if not isinstance(image, Image.Image):
        return to_pil(image).size
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
