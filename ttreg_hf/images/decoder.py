"""One image from a path, bytes, an array or PIL, as a PIL image in RGB that stands upright."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
# what Pillow raises on files that are corrupt: found by trying damaged files of all formats
_DECODING_FAILURES = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def to_pil(image: Any, *, name: str = "the image") -> Image.Image:
    """A PIL image in RGB, turned upright as its EXIF data says, from a path, a PIL image or a uint8 array.

    Raises:
        TypeError: something else.
        UnidentifiedImageError: a file that is not an image; it is named.
    """
    if isinstance(image, dict) and (image.get("bytes") is not None or image.get("path")):
        name = image.get("path") or name
        with open_image_file(_file_of(image), name=name) as opened:
            return _read_to_its_end(opened, name)
    if isinstance(image, (str, Path)):
        with open_image_file(Path(image)) as opened:
            return _read_to_its_end(opened, image)
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    array = np.asarray(image) if isinstance(image, (np.ndarray, Tensor)) else None
    if array is not None and array.dtype == np.uint8 and array.ndim == 3 and 3 in (array.shape[0], array.shape[2]):
        return Image.fromarray(array if array.shape[2] == 3 else array.transpose(1, 2, 0))
    got = type(image).__name__ if array is None else f"an array of {array.dtype} with shape {array.shape}"
    raise TypeError(
        f"Images are PIL images, uint8 arrays (H, W, 3) or float tensors (3, H, W); {name} is {got}. Convert it first."
    )


def _file_of(image: dict[str, Any]) -> Any:
    """The file behind `bytes` or `path`; streams may give a path on the Hub or inside an archive."""
    if image.get("bytes") is not None:
        return io.BytesIO(image["bytes"])
    if "://" not in image["path"]:
        return Path(image["path"])
    from datasets.utils.file_utils import xopen

    with xopen(image["path"], "rb") as file:
        return io.BytesIO(file.read())


def _read_to_its_end(image: Image.Image, name: Any) -> Image.Image:
    try:
        return _to_rgb(image)
    except _DECODING_FAILURES as error:
        raise OSError(f"{name} cannot be read to its end ({error}). Remove it, or get it again.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion clips
        array = np.asarray(image)
        wide = image.mode != "I" or array.max() > 255  # mode I may hold 8 bits as well
        image = Image.fromarray((array >> 8 if wide else array).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # directly to RGB Pillow warns
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_image_file(file: Any, *, name: Any = None) -> Image.Image:
    """A path or an open file as a PIL image.

    Raises:
        FileNotFoundError, UnidentifiedImageError: with the file's name.
    """
    try:
        return Image.open(file)
    except _DECODING_FAILURES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, which names the file
        raise UnidentifiedImageError(
            f"{name or file} is not an image that Pillow can read. Remove it, or convert it to PNG or JPEG."
        ) from error
