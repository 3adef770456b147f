"""One image from a path, bytes, an array or PIL, as a PIL image that stands upright.

Whatever is wrong with one image is an `OSError` that names it: who reads many leaves it out and counts it.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# of what Pillow knows, neither pictures nor readable without other programs: documents, measurements, videos
_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NO_PICTURES
)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Of the images that a model takes, by its number of channels."""
MOST_ELONGATED = 50
"""The longer side over the shorter one, at most: processors resize by the shorter one; strips become gigabytes."""

# what Pillow raises on files that are damaged, and on EXIF data: found by trying damaged files of all formats
DECODING_FAILURES = (
    *(OSError, ValueError, TypeError, SyntaxError, RuntimeError, EOFError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_TOO_MANY_PIXELS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def to_pil(image: Any, *, name: str = "the image", mode: str = "RGB") -> Image.Image:
    """A PIL image, turned upright as its EXIF data says.

    Args:
        image: a path, a `file://` link, bytes, a dict of `bytes` and `path`, a PIL image, or an array of integers from
            0 to 255, `(H, W, C)`, `(C, H, W)`, or `(H, W)` if `mode` is `"L"`.
        name: of the image, where it has no path.
        mode: one of `MODES`.

    Raises:
        TypeError: something else.
        OSError: an image that cannot be read: empty, damaged, too large, or no image; it is named.
    """
    if is_missing(image):
        raise OSError(f"{name} is missing: there is neither a file nor pixels. Remove it, or get it again.")
    name = str(image) if isinstance(image, (str, Path)) else name
    if isinstance(image, dict) and (image.get("bytes") is not None or image.get("path")):
        name = image.get("path") or name
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (str, Path, bytes)):
        with open_image_file(_file_of(image), name=name) as opened:
            return _read_to_its_end(opened, name, mode)
    pil = image if isinstance(image, Image.Image) else _array_as_pil(image, name, mode)
    return _read_to_its_end(pil, name, mode)


def is_missing(image: Any) -> bool:
    """Whether this stands for no image at all: an empty cell of a data set, or an array without pixels."""
    if isinstance(image, dict):
        return image.keys() <= {"bytes", "path"} and image.get("bytes") is None and not image.get("path")
    if isinstance(image, (np.ndarray, Tensor)):
        return 0 in image.shape
    return image is None or image == ""


def open_image_file(file: Any, *, name: Any = None) -> Image.Image:
    """A path or an open file as a PIL image.

    Raises:
        FileNotFoundError, UnidentifiedImageError: with the file's name.
    """
    try:
        return Image.open(file)
    except _TOO_MANY_PIXELS as error:
        raise OSError(f"{name or file} is too large ({error}). Remove it, or make it smaller.") from error
    except DECODING_FAILURES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, which names the file
        raise UnidentifiedImageError(
            f"{name or file} is not an image that Pillow can read. Remove it, or convert it to PNG or JPEG."
        ) from error


def _file_of(image: Any) -> Any:
    """The file behind bytes, a path or a link; streams may give a path on the Hub or inside an archive."""
    if isinstance(image, bytes):
        return io.BytesIO(image)
    link = urlsplit(str(image))
    if link.scheme == "file":
        return Path(unquote(link.path))
    if "://" not in str(image):
        return Path(image)
    from datasets.utils.file_utils import xopen

    with xopen(str(image), "rb") as file:
        return io.BytesIO(file.read())


def _array_as_pil(image: Any, name: str, mode: str) -> Image.Image:
    array = np.asarray(image) if isinstance(image, (np.ndarray, Tensor)) else None
    channels = len(Image.new(mode, (1, 1)).getbands())
    if array is not None and array.dtype.kind in "iu" and _has_channels(array.shape, channels):
        if array.min() < 0 or array.max() > 255:
            raise OSError(f"{name} has values outside 0 to 255. Remove it, or scale it to bytes.")
        array = array.astype(np.uint8)
        if array.ndim == 3 and array.shape[2] != channels:
            array = array.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
        return Image.fromarray(array.squeeze(2) if array.ndim == 3 and channels == 1 else array)
    got = type(image).__name__ if array is None else f"an array of {array.dtype} with shape {array.shape}"
    raise TypeError(
        f"Images are PIL images, uint8 arrays (H, W, {channels}) or float tensors ({channels}, H, W); "
        f"{name} is {got}. Convert it first."
    )


def _has_channels(shape: tuple[int, ...], channels: int) -> bool:
    if len(shape) == 2:
        return channels == 1
    return len(shape) == 3 and channels in (shape[0], shape[2])


def _read_to_its_end(image: Image.Image, name: Any, mode: str) -> Image.Image:
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise OSError(
            f"{name} has {image.width} x {image.height} pixels; one side may be {MOST_ELONGATED} times as long as the "
            "other. Remove it, or crop it."
        )
    try:
        return _in_mode(ImageOps.exif_transpose(image), mode)
    except DECODING_FAILURES as error:
        raise OSError(f"{name} cannot be read to its end ({error}). Remove it, or get it again.") from error


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion clips
        array = np.asarray(image)
        wide = image.mode != "I" or array.max() > 255  # mode I may hold 8 bits as well
        image = Image.fromarray((array >> 8 if wide else array).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # directly to RGB Pillow warns
        image = image.convert("RGBA")
    return image.convert(mode)
