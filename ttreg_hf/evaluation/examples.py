"""Data sets with truths, as batches: images go through `ImageBatches`, what is known about them goes beside.

Image g of the order belongs to process `g % world`, as in calibration.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttreg_hf.evaluation.ground_truth import BOX_FORMATS, BOXES, LABEL, MASK, Truth, read_boxes, read_mask, size_of
from ttreg_hf.images.batches import Batch, ImageBatches
from ttreg_hf.images.columns import has_transform, is_image
from ttreg_hf.images.decoder import DECODING_FAILURES
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.progress import Progress
from ttreg_hf.records import check_types

# how data sets call their columns, and what is tried in this order; a dot leads into a column of columns
_USUAL = {
    "image": ("image", "img"),
    MASK: ("mask", "annotation", "segmentation"),
    BOXES: ("boxes", "bbox", "objects.bbox", "objects.boxes"),
    LABEL: ("label", "labels", "fine_label"),
}


@dataclass(frozen=True)
class Columns:
    """Where a data set keeps things; `None`: found by the usual names. `objects.bbox` is `bbox` in `objects`.

    Args:
        image: PIL images, undecoded images, or float tensors `(3, H, W)`, which are used as they are.
        mask: class of every pixel, as an image or an integer array.
        boxes: lists of four numbers.
        label: class of the image, an integer.
        box_format: `"xyxy"`, `"xywh"` or `"voc"`; see `read_boxes`.
    """

    image: str | None = None
    mask: str | None = None
    boxes: str | None = None
    label: str | None = None
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        check_types(self)
        if self.box_format not in BOX_FORMATS:
            raise ValueError(f"`box_format` is one of {', '.join(BOX_FORMATS)}, got {self.box_format!r}.")


class LabelledImages:
    """Raw images of a data set, as `ImageBatches` reads them; each one's truth is kept until it is asked for.

    Args:
        dataset: a `datasets` dataset, map-style or streaming, or a sequence of dicts.
        columns: where it keeps things.
        wanted: which truths, of `mask`, `boxes` and `label`.

    Raises:
        TypeError: several splits, or no data set.
        ValueError: a column is missing.
    """

    def __init__(self, dataset: Any, columns: Columns, wanted: Sequence[str]) -> None:
        names = _column_names(dataset)
        self.columns = {kind: _column(kind, getattr(columns, kind), names) for kind in ("image", *wanted)}
        self._box_format = columns.box_format
        self._dataset = _undecoded(dataset, self.columns) if hasattr(dataset, "features") else dataset
        self._examples: dict[int, Any] = {}
        self._processes = Processes()

    @property
    def size(self) -> int | None:
        """Number of images, if it is known."""
        return len(self._dataset) if hasattr(self._dataset, "__len__") else None

    def source(self, processes: Processes | None = None) -> Any:
        """What `ImageBatches` of these processes takes; truths of an earlier pass are forgotten."""
        self._processes = processes or Processes()
        self._examples.clear()
        return _Stream(self) if self.size is None else _Table(self)

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels, where the data set says them."""
        feature = (getattr(self._dataset, "features", None) or {}).get(self.columns.get(LABEL))
        names = getattr(feature, "names", None)
        return tuple(names) if names else None

    def raw(self, place: int, example: Mapping[str, Any]) -> Any:
        """The image of an example; if it is this process's, its truth is put aside."""
        if place % self._processes.world == self._processes.rank:  # a stream is read past the others' images
            self._examples[place] = example
        return _at(example, self.columns["image"])

    def truth(self, place: int) -> Truth:
        """What is known about an image that was read; it is forgotten then. Images may be asked for in any order.

        Raises:
            ValueError: a mask, box or label that is missing or broken.
        """
        example = self._examples.pop(place)
        known = {kind: _at(example, column) for kind, column in self.columns.items()}
        try:
            return Truth(
                place,
                mask=read_mask(known[MASK]) if MASK in known else None,
                boxes=read_boxes(known[BOXES], size_of(known["image"]), self._box_format) if BOXES in known else None,
                label=int(known[LABEL]) if LABEL in known else None,
            )
        except DECODING_FAILURES as error:
            raise ValueError(f"Image {place} of the data set: {error}") from error


class LabelledBatches:
    """Batches of images with their truths: this process's. Can be gone through again.

    Args:
        images: the data set.
        batches: over `images.source()`.
        progress: shows how far it is.
        stage: what it is called there.
    """

    def __init__(self, images: LabelledImages, batches: ImageBatches, progress: Progress, stage: str) -> None:
        self.images, self.batches = images, batches
        self._progress, self._stage = progress, stage

    @property
    def processes(self) -> Processes:
        """Those that share the images."""
        return self.batches.processes

    def __iter__(self) -> Iterator[tuple[Batch, list[Truth]]]:
        for batch in self._progress(self._stage, self.batches, self.batches.num_images):
            truths = {row: truth for row, place in enumerate(batch.places) if (truth := self._truth(place))}
            if truths:
                kept = batch if len(truths) == len(batch) else batch.only(list(truths))
                yield kept, list(truths.values())

    def _truth(self, place: int) -> Truth | None:
        """What is known about an image; one with a broken truth counts as unreadable."""
        try:
            return self.images.truth(place)
        except ValueError as error:
            self.batches.leave_out(place, error)
            return None


class _Table(Sequence[Any]):
    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __getitem__(self, place: Any) -> Any:
        return self.images.raw(place, self.images._dataset[place])

    def __len__(self) -> int:
        return self.images.size or 0


class _Stream:
    def __init__(self, images: LabelledImages, start: int = 0, dataset: Any = None) -> None:
        self.images, self.start = images, start
        self.dataset = images._dataset if dataset is None else dataset

    def __iter__(self) -> Iterator[Any]:
        for place, example in enumerate(self.dataset, self.start):
            yield self.images.raw(place, example)

    def skip(self, count: int) -> "_Stream":
        return _Stream(self.images, self.start + count, self.dataset.skip(count))


def _column_names(dataset: Any) -> list[str]:
    if isinstance(getattr(dataset, "column_names", None), dict):
        raise TypeError(
            f"`data` is one split of a data set, got all of them: {', '.join(dataset)}. Give one, as "
            "`dataset['validation']`."
        )
    if has_transform(dataset):
        inner = dict(dataset[0])
        names = list(inner)
    elif hasattr(dataset, "features"):
        names = list(dataset.features or dataset.column_names or next(iter(dataset), {}))
        inner = {name: dataset.features[name] for name in names} if dataset.features else {}
    elif isinstance(dataset, Sequence) and len(dataset) and isinstance(dataset[0], Mapping):
        names, inner = list(dataset[0]), dict(dataset[0])
    else:
        raise TypeError(
            f"`data` is a `datasets` dataset or a sequence of dicts with an image and its truth, got "
            f"{type(dataset).__name__}. A folder is opened with `datasets.load_dataset('imagefolder', data_dir=...)`."
        )
    return names + [f"{name}.{part}" for name, parts in inner.items() for part in _parts(parts)]


def _parts(feature: Any) -> Iterable[str]:
    feature = getattr(feature, "feature", feature)  # of a list of columns
    return feature if isinstance(feature, Mapping) else ()


def _column(kind: str, given: str | None, names: list[str]) -> str:
    for candidate in (given,) if given is not None else _USUAL[kind]:
        if candidate in names:
            return candidate
    looked_for = repr(given) if given is not None else f"none of {', '.join(_USUAL[kind])}"
    raise ValueError(
        f"The data set needs a column with each image's {kind}, got {looked_for} among {', '.join(names)}. Name it "
        f"with `Columns({kind}=...)` (`--{kind}-column`)."
    )


def _at(example: Mapping[str, Any], column: str) -> Any:
    """A column of an example; a list of columns may be kept as a list of dicts too."""
    if column in example:
        return example[column]
    outer, _, inner = column.partition(".")
    parts = example[outer]
    return parts[inner] if isinstance(parts, Mapping) else [part[inner] for part in parts]


def _undecoded(dataset: Any, columns: Mapping[str, str]) -> Any:
    """Only the columns that are needed, images as bytes and paths: decoding is done by the workers."""
    if has_transform(dataset):
        return dataset
    names = dict.fromkeys(column.partition(".")[0] for column in columns.values())
    dataset = dataset.with_format(None).select_columns(list(names))
    for name in names:
        feature: Any = (dataset.features or {}).get(name)
        if is_image(feature):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset
