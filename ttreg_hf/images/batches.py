"""Batches of preprocessed images, in one global order that does not depend on processes, workers or batch size.

Image g of the order belongs to process `g % world`. The main process reads the source, undecoded, in a thread, and
hands images to the workers; they decode and preprocess. An image that cannot be decoded is left out and remembered.
Images of one size go through the model together, so none is ever padded.

Letters: `B` images, `H`, `W` height and width in pixels.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttreg_hf.images.image_source import image_key
from ttreg_hf.images.normalisation import split_normalisation
from ttreg_hf.images.pixel_values import to_pixel_values
from ttreg_hf.images.prefetch import read_ahead
from ttreg_hf.images.processes import Processes

_MOST_SHOWN = 5
_READ_AHEAD = 4  # batches, still encoded


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Args:
        pixel_values: `(B, 3, H, W)`.
        places: of the images in the global order, rising.
        seen_before: if not `None`, this process has now seen all its images before this place.
        fill_to: to how many images a forward pass of them is best filled up; 0 for as many as there are. A GPU may
            round differently for another number of images, and results are not to depend on how images were shared.
    """

    pixel_values: Tensor
    places: tuple[int, ...]
    seen_before: int | None = None
    fill_to: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def only(self, images: Sequence[int]) -> "Batch":
        """Some of the images, by their rows, rising."""
        pixel_values, places = self.pixel_values[list(images)], tuple(self.places[image] for image in images)
        return replace(self, pixel_values=pixel_values, places=places)

    def to(self, device: torch.device) -> "Batch":
        """The same images there; from pinned memory the host does not wait."""
        return replace(self, pixel_values=self.pixel_values.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a `DataLoader` calls."""
        return replace(self, pixel_values=self.pixel_values.pin_memory())


@dataclass(frozen=True)
class BadImage:
    """An image that could not be decoded."""

    key: str
    reason: str


@dataclass
class ReadRecord:
    """What a process found out while it went through its images.

    Args:
        end: one more than the last place it read.
        bad_images: by place.
    """

    end: int = 0
    bad_images: dict[int, BadImage] = field(default_factory=dict)


class ImageBatches:
    """The first `num_images` images of a source, as batches. Can be gone through again.

    Args:
        source: what `open_images` returns.
        processor: a transformers image processor; may be `None` if all images are float tensors.
        num_images: how many images of the source to use, over all processes.
        batch_size: images in a batch at most; fewer at the end, and where images differ in size.
        device: where batches go.
        processes: which of the images are this process's.
        workers: processes that decode; 0 decodes in this one.
        max_bad_share: images that may be bad, as a share of `num_images`, rounded up.
    """

    def __init__(
        self,
        source: Iterable[Any],
        processor: Any,
        *,
        num_images: int,
        batch_size: int,
        device: torch.device,
        processes: Processes | None = None,
        workers: int = 0,
        max_bad_share: float = 0.01,
    ) -> None:
        self.source, self.processor = source, processor
        self._reader, self.normalisation = split_normalisation(processor)
        self.num_images, self.batch_size, self.device = num_images, batch_size, device
        self.processes = processes or Processes()
        self.workers = workers
        self.most_bad = math.ceil(max_bad_share * num_images)
        self.start = 0
        self.keep: Callable[[int], bool] | None = None
        self.status: Callable[[], str] | None = None  # a few words on what was found so far, for who shows progress
        self.record = ReadRecord()  # the views below share it

    @property
    def bad_images(self) -> dict[int, BadImage]:
        """Those found so far by this process, by place."""
        return self.record.bad_images

    def read_by_all(self) -> ReadRecord:
        """What all processes have read.

        Raises:
            ValueError: more unreadable images than are allowed.
        """
        records = self.processes.collect([self.record])
        bad_images = {index: bad for record in records for index, bad in record.bad_images.items()}
        self.check_bad_images(bad_images)
        return ReadRecord(max(record.end for record in records), dict(sorted(bad_images.items())))

    def check_bad_images(self, bad_images: Mapping[int, BadImage]) -> None:
        """Refuse more unreadable images than are allowed.

        Raises:
            ValueError: it names some of them.
        """
        if len(bad_images) > self.most_bad:
            shown = "; ".join(f"{bad.key} ({bad.reason})" for _, bad in sorted(bad_images.items())[:_MOST_SHOWN])
            raise ValueError(
                f"At most {self.most_bad} of {self.num_images} images may be unreadable, got {len(bad_images)}: "
                f"{shown}. Repair or remove them, or allow more with `max_bad_share` (`--max-bad-images`)."
            )

    def where(self, keep: Callable[[int], bool]) -> "ImageBatches":
        """Only the images whose place is wanted."""
        return self._view(keep=keep)

    def since(self, start: int) -> "ImageBatches":
        """Only the images from this place on."""
        return self._view(start=start)

    def up_to(self, num_images: int) -> "ImageBatches":
        """Only the images before this place."""
        return self._view(num_images=min(num_images, self.num_images))

    def of_size(self, batch_size: int) -> "ImageBatches":
        """The same in batches of another size."""
        return self._view(batch_size=batch_size)

    def with_status(self, status: Callable[[], str]) -> "ImageBatches":
        """The same, with words on what was found so far."""
        return self._view(status=status)

    def on_every_process(self) -> "ImageBatches":
        """All images on this process, whatever the others do."""
        return self._view(processes=Processes())

    def without_workers(self) -> "ImageBatches":
        """Decoded in this process: for a look at a few images, which is not worth starting workers."""
        return self._view(workers=0)

    def first(self, num_images: int) -> Iterator[Batch]:
        """The first images of these, in batches."""
        left = num_images
        workers = min(self.workers, math.ceil(num_images / self.batch_size))  # each decodes whole batches ahead
        for collated in self._view(workers=workers)._collated():
            wanted = sorted(place for batch in collated.by_size for place in batch.places)[:left]
            for batch in collated.by_size:
                count = sum(place in wanted for place in batch.places)
                if count:
                    yield self._on_device(Batch(batch.pixel_values[:count], batch.places[:count]))
            left -= len(wanted)
            if left <= 0:
                return

    def holds_any(self) -> bool:
        """Whether there is an image at all."""
        return next(self._images(), None) is not None

    def __iter__(self) -> Iterator[Batch]:
        for collated in self._collated():
            is_filled = self.device.type == "cuda" and len(collated.by_size) == 1
            for batch in collated.by_size:
                yield replace(self._on_device(batch), fill_to=self.batch_size if is_filled else 0)

    def _collated(self) -> Iterator["_Collated"]:
        """What comes from the workers; unreadable images are noted on the way."""
        loader: Any = DataLoader(
            _Decoded(self._reader),
            batch_sampler=_RawBatches(self),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for collated in loader:
            for place, bad in collated.bad_images:
                self.bad_images[place] = bad
            self.check_bad_images(self.bad_images)
            yield collated

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        if batch.pixel_values.is_floating_point() or self.normalisation is None:
            return batch
        return replace(batch, pixel_values=self.normalisation(batch.pixel_values))

    def _images(self) -> Iterator[tuple[int, Any]]:
        """Place and raw image of those that are this process's."""
        rank, world = self.processes.rank, self.processes.world
        for place, image in _from_place(self.source, self.start, self.num_images, rank, world):
            self.record.end = max(self.record.end, place + 1)
            if self.keep is None or self.keep(place):
                yield place, image

    def _view(self, **changes: Any) -> "ImageBatches":
        view = copy.copy(self)
        view.__dict__.update(changes)
        return view


class _RawBatches:
    """Lists of `(place, raw image)`."""

    def __init__(self, batches: ImageBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        return read_ahead(self._read(), _READ_AHEAD) if self.batches.workers else self._read()

    def _read(self) -> Iterator[list[tuple[int, Any]]]:
        images = self.batches._images()
        while batch := list(itertools.islice(images, self.batches.batch_size)):
            yield batch


class _Decoded(Dataset[Any]):
    """Decodes and preprocesses raw images; runs in the workers."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getitem__(self, index: tuple[int, Any]) -> tuple[int, Any]:
        place, image = index
        try:
            return place, to_pixel_values(image, self.processor, name=image_key(image, place))
        except OSError as error:  # a file that is corrupt, truncated, empty, missing or of another kind
            return place, BadImage(image_key(image, place), f"{type(error).__name__}: {error}"[:200])


class _Collated(NamedTuple):
    """What a worker made of some raw images; a tuple, so that a `DataLoader` finds what to pin."""

    by_size: list[Batch]
    bad_images: list[tuple[int, BadImage]]


def _collate(items: list[tuple[int, Any]]) -> _Collated:
    images = {place: found for place, found in items if isinstance(found, Tensor)}
    sizes = list(dict.fromkeys(image.shape for image in images.values()))
    batches = []
    for size in sizes:
        places = tuple(place for place, image in images.items() if image.shape == size)
        batches.append(Batch(torch.stack([images[place] for place in places]), places))
    if batches:
        batches[-1] = replace(batches[-1], seen_before=1 + max(place for place, _ in items))
    return _Collated(batches, [(place, found) for place, found in items if isinstance(found, BadImage)])


def _from_place(source: Any, start: int, stop: int, rank: int, world: int) -> Iterator[tuple[int, Any]]:
    """Places `start <= place < stop` with `place % world == rank`, and their images."""
    first = start + (rank - start) % world
    if hasattr(source, "__getitem__"):
        for place in range(first, min(stop, len(source)), world):
            yield place, source[place]
        return
    skipped = source.skip(first) if hasattr(source, "skip") else itertools.islice(source, first, None)
    places = range(first, stop, world)
    yield from zip(places, itertools.islice(skipped, 0, None, world), strict=False)
