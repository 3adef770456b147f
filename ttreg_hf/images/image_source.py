"""Images from wherever users keep them, one by one.

An image source is a folder, a `datasets` dataset (map-style or streaming), or any iterable of paths, PIL images, uint8
arrays `(H, W, C)`, or float tensors `(C, H, W)` that are used as `pixel_values` as they are. The model takes `C`
channels, 3 as a rule.

Sources give their images undecoded where they can (paths, or dicts of `bytes` and `path`), so that going through them
is quick and decoding can be done elsewhere.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError
from torch import Tensor

from ttreg_hf.images.bad_image import BadImage
from ttreg_hf.images.columns import has_transform, undecoded_column
from ttreg_hf.images.decoder import DECODING_FAILURES
from ttreg_hf.images.folder import PICTURES, Folder


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
        dataset, image_of = undecoded_column(images, image_column)
        return _TableImages(dataset, image_of) if hasattr(dataset, "__len__") else _StreamImages(dataset, image_of)
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
    if isinstance(image, BadImage):
        return image.key
    return f"image {place}"


class _FolderImages(Sequence[Path]):
    """All image files below a folder, by path; one file alone is a folder of one."""

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise FileNotFoundError(
                f"`images` names a folder or an image file, but {folder} does not exist. Check the path."
            )
        self.folder = folder
        self.paths = (folder,) if folder.is_file() else _pictures(folder)

    def __getitem__(self, place: Any) -> Any:
        return self.paths[place]

    def __len__(self) -> int:
        return len(self.paths)


def _pictures(path: Path) -> tuple[Path, ...]:
    folder = Folder.look_into(path)
    kind = folder.kind()
    if kind == PICTURES:
        return folder.files[PICTURES]
    if kind is None:
        raise FileNotFoundError(
            f"The folder {path} holds no image, but {folder.described()}. Give a folder with image files (for example "
            ".jpg or .png); sub-folders are searched too, hidden ones are not."
        )
    raise ValueError(
        f"The folder {path} holds a data set ({folder.described()}). Give what `datasets.load_dataset` makes of it."
    )


class _TableImages(Sequence[Any]):
    """The image column of a map-style data set."""

    def __init__(self, dataset: Any, image_of: Callable[[Any], Any]) -> None:
        self.dataset, self.image_of = dataset, image_of

    def __getitem__(self, place: Any) -> Any:
        if not has_transform(self.dataset) or place >= len(self):
            return self.image_of(self.dataset[place])
        try:
            row = self.dataset[place]  # decoded by `datasets` and changed by the user
        except DECODING_FAILURES as error:
            return BadImage.of(f"image {place}", error)
        return self.image_of(row)

    def __len__(self) -> int:
        return len(self.dataset)


class _StreamImages:
    """The image column of a streaming data set."""

    def __init__(self, dataset: Any, image_of: Callable[[Any], Any]) -> None:
        self.dataset, self.image_of = dataset, image_of

    def __iter__(self) -> Iterator[Any]:
        try:
            for row in self.dataset:
                yield self.image_of(row)
        except OSError as error:
            if not _is_of_an_image(error):
                raise
            raise ValueError(
                f"An image of the data set cannot be read ({error}), and a stream that decodes by itself, as one "
                "behind `map`, ends there. Before that, have it undecoded: "
                "`dataset.cast_column('image', datasets.Image(decode=False))`."
            ) from error

    def skip(self, count: int) -> "_StreamImages":
        """Without the first images; a stream that knows how skips them unread."""
        return _StreamImages(self.dataset.skip(count), self.image_of)


def _is_of_an_image(error: OSError) -> bool:
    """Whether Pillow raised it, and not a file system or a network, which have kinds of their own."""
    return error.errno is None and type(error) in (OSError, UnidentifiedImageError)


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
