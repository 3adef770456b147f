"""Images from wherever users keep them, one by one.

An image source is a folder, a `datasets` dataset (map-style or streaming), or any iterable of PIL images, uint8 arrays
`(H, W, 3)`, or float tensors `(3, H, W)` that are used as `pixel_values` as they are.

Sources give their images undecoded where they can (paths, or dicts of `bytes` and `path`), so that going through them
is quick and decoding can be done elsewhere.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ttreg_hf.images.decoder import IMAGE_SUFFIXES


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
        found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
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
