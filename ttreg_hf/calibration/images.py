"""Images from wherever users keep them, one by one, and how one becomes `pixel_values`.

An image source is a folder, a `datasets` dataset (map-style or streaming), or any iterable of PIL images, uint8 arrays
`(H, W, 3)`, or float tensors `(3, H, W)` that are used as `pixel_values` as they are.

Sources give their images undecoded where they can (paths, or dicts of `bytes` and `path`), so that going through them
is quick and decoding can be done elsewhere.
"""

import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_SUFFIXES = frozenset(Image.registered_extensions())
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


def open_images(images: Any, *, image_column: str | None = None) -> Iterable[Any]:
    """An iterable of images that can be gone through more than once.

    Args:
        images: see this module's docstring.
        image_column: column of a dataset; found if there is just one with images.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a dataset without such a column.
    """
    if isinstance(images, (str, Path)):
        return _FolderImages(Path(images))
    if isinstance(getattr(images, "column_names", None), dict):
        raise TypeError(
            f"`images` is one split of a data set, got all of them: {', '.join(images)}. "
            "Give one, as `dataset['train']`."
        )
    if hasattr(images, "column_names") or hasattr(images, "features"):
        dataset, column = _undecoded(images, image_column)
        return _TableImages(dataset, column) if hasattr(dataset, "__len__") else _StreamImages(dataset, column)
    if isinstance(images, Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, Iterator):
        return _Remembered(images)
    if isinstance(images, Iterable):
        return images
    raise TypeError(
        "`images` is a folder, a `datasets` dataset or an iterable of images, "
        f"got {type(images).__name__}. Give for example a list of PIL images."
    )


def to_pixel_values(image: Any, processor: Any, *, name: str = "the image") -> Tensor:
    """One image as the model takes it, `(3, H, W)`; float tensors are taken as they are.

    An image keeps its proportions where its processor does so (SigLIP 2); `image_inputs` flattens it into patches.

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


def image_key(image: Any, place: int) -> str:
    """What to call an image: its path, or its place in the order."""
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, dict) and image.get("path"):
        return str(image["path"])
    return f"image {place}"


class _FolderImages(Sequence[Path]):
    """All image files below a folder, by path; one file alone is a folder of one."""

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise FileNotFoundError(
                f"`images` names a folder or an image file, but {folder} does not exist. Check the path."
            )
        found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        self.paths = [folder] if folder.is_file() else sorted(found)
        if not self.paths:
            raise FileNotFoundError(
                f"The folder {folder} holds no image. Give a folder with image files (for example .jpg or .png); "
                "sub-folders are searched too."
            )

    def __getitem__(self, place: Any) -> Any:
        return self.paths[place]

    def __len__(self) -> int:
        return len(self.paths)


class _TableImages(Sequence[Any]):
    """The image column of a map-style data set."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __getitem__(self, place: Any) -> Any:
        return self.dataset[place][self.column]

    def __len__(self) -> int:
        return len(self.dataset)


class _StreamImages:
    """The image column of a streaming data set."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __iter__(self) -> Iterator[Any]:
        for example in self.dataset:
            yield example[self.column]

    def skip(self, count: int) -> "_StreamImages":
        """Without the first images; a stream that knows how skips them unread."""
        return _StreamImages(self.dataset.skip(count), self.column)


def _undecoded(dataset: Any, image_column: str | None) -> tuple[Any, str]:
    """A data set whose image column gives bytes and paths, and that column's name."""
    column = image_column or _find_image_column(dataset)
    names = dataset.column_names
    if names is not None and column not in names:
        raise ValueError(f"`image_column` is a column of the data set, got {column!r}. It has {', '.join(names)}.")
    feature: Any = (dataset.features or {}).get(column)
    if _is_image(feature):
        dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset, column


def _find_image_column(dataset: Any) -> str:
    features = dataset.features or {}
    found = [name for name, feature in features.items() if _is_image(feature)]
    if len(found) == 1:
        return found[0]
    names = dataset.column_names or []
    if not found and "image" in names:
        return "image"
    raise ValueError(
        f"The data set needs one image column, got {', '.join(found) or 'none'}; its columns are "
        f"{', '.join(names) or 'not named'}. "
        "Name it with `image_column` (`--image-column`)."
    )


class _Remembered:
    """A one-shot iterator that can be gone through again, because what it gave is kept."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for place in itertools.count():
            if place == len(self._seen):
                try:
                    self._seen.append(next(self._iterator))
                except StopIteration:
                    return
            yield self._seen[place]


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"  # of `datasets`, which need not be installed or loaded for this
