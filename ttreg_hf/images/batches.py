"""Batches of preprocessed images, in one global order that does not depend on processes, workers or batch size.

Image g of the order belongs to process `g % world`. The main process reads the source, undecoded, in a thread, and
hands images to the workers; they decode and preprocess. An image that cannot be decoded is left out and remembered.
Images of one size go through the model together, so none is ever padded.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ttreg_hf.images.bad_image import BadImage
from ttreg_hf.images.batch import Batch
from ttreg_hf.images.decoding import Collated, DecodedImages
from ttreg_hf.images.image_source import image_key
from ttreg_hf.images.normalisation import split_normalisation
from ttreg_hf.images.pixel_values import check_channels
from ttreg_hf.images.prefetch import read_ahead
from ttreg_hf.images.processes import Processes
from ttreg_hf.images.read_record import ReadRecord
from ttreg_hf.images.resizing import resized_processor
from ttreg_hf.images.same_images import StreamDigest, check_same_sources, check_same_streams, source_told
from ttreg_hf.images.workers import DecodingWorkers

_READ_AHEAD = 4  # batches, still encoded
_COMPARED = 16  # images of a stream, at least, for each process
_COUNTED = 128  # images of a source without a length that are gone through, undecoded, to count them


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
        channels: that the model takes.
        decoders: that other images are decoded by too; of their own by default.

    Raises:
        ValueError: a processor that gives images of other channels.
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
        channels: int = 3,
        decoders: DecodingWorkers | None = None,
    ) -> None:
        check_channels(processor, channels)
        self.source, self.processor, self.channels = source, processor, channels
        self._reader, self.normalisation = split_normalisation(processor, channels)
        self.num_images, self.batch_size, self.device = num_images, batch_size, device
        self.processes = processes or Processes()
        self.workers, self._decoders = workers, decoders or DecodingWorkers()
        self.most_bad = math.ceil(max_bad_share * num_images)
        self.start = 0
        self.keep: Callable[[int], bool] | None = None
        self.size: tuple[int, int] | None = None  # that images are brought to, where it is not their processor's
        self.status: Callable[[], str] | None = None  # a few words on what was found so far, for who shows progress
        self.record = ReadRecord()  # the views below share it

    @property
    def bad_images(self) -> dict[int, BadImage]:
        """Those found so far by this process, by place."""
        return self.record.bad_images

    def read_by_all(self) -> ReadRecord:
        """What all processes have read.

        Raises:
            ValueError: more unreadable images than are allowed, or other images on other processes.
        """
        of_all = ReadRecord.of_all(self.processes.collect([self.record]))
        of_all.check_bad_images(self.most_bad, self.num_images)
        return of_all

    def check_same_images(self) -> None:
        """Refuse processes that see different images, before any is decoded: by the first batch, where it is a stream.

        To be called by all of them. What comes later in a stream is compared by `read_by_all`.

        Raises:
            ValueError: they do.
        """
        if self.processes.world == 1:
            return
        if _is_indexed(self.source):
            check_same_sources(self.processes.collect([source_told(self.source)]))
            return
        first = self.processes.world * max(self.batch_size, _COMPARED)
        first_images = self._view(num_images=min(first, self.num_images), start=0, keep=None, record=ReadRecord())
        for _ in first_images._images():
            pass
        check_same_streams(self.processes.collect([first_images.record.stream]))

    def resume_stream(self, digest: StreamDigest) -> None:
        """Go on with the digest of a run that was killed.

        Raises:
            ValueError: that run saw other images.
        """
        place = self.record.stream.differs_from(digest)
        if place is not None:
            raise ValueError(
                f"`resume` continues a run on the same images, but these differ before image {place}. Give it the "
                "same ones in the same order, or begin again without it."
            )
        if digest.place > self.record.stream.place:
            self.record.stream = digest

    def leave_out(self, place: int, error: Exception) -> None:
        """Count an image as unreadable for what is wrong with it beside its pixels.

        Raises:
            ValueError: there are more than are allowed.
        """
        self.bad_images[place] = BadImage.of(image_key(None, place), error)
        self.record.check_bad_images(self.most_bad, self.num_images)

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

    def at_size(self, size: tuple[int, int], given: tuple[int, int]) -> "ImageBatches":
        """The same made by their processor at another size: heights and widths in pixels, wanted and as it is now.

        What has no processor, or gets another size from it all the same, is interpolated.
        """
        reader, normalisation = split_normalisation(resized_processor(self.processor, size, given), self.channels)
        return self._view(_reader=reader, normalisation=normalisation, size=size)

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

    def expected_count(self) -> int:
        """How many images there are for all processes, readable or not.

        Exact where the source has a length, or is short; else what was asked for.
        """
        source: Any = self.source
        if _is_indexed(source):
            return min(len(source), self.num_images)
        every = self.on_every_process().up_to(_COUNTED)._view(record=ReadRecord())
        counted = sum(1 for _ in every._images())
        return counted if counted < _COUNTED else self.num_images

    def __iter__(self) -> Iterator[Batch]:
        for collated in self._collated():
            is_filled = self.device.type == "cuda" and len(collated.by_size) == 1
            for batch in collated.by_size:
                yield replace(self._on_device(batch), fill_to=self.batch_size if is_filled else 0)

    def _collated(self) -> Iterator[Collated]:
        """What comes from the workers; unreadable images are noted on the way."""
        images, pinned = DecodedImages(self._reader, self.channels), self.device.type == "cuda"
        with self._decoders.loader(images, _RawBatches(self), workers=self.workers, pinned=pinned) as loader:
            for collated in loader:
                for place, bad in collated.bad_images:
                    self.bad_images[place] = bad
                self.record.check_bad_images(self.most_bad, self.num_images)
                yield collated

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        if not batch.pixel_values.is_floating_point() and self.normalisation is not None:
            batch = batch.with_pixels(self.normalisation(batch.pixel_values))
        if self.size is None or batch.pixel_values.shape[-2:] == self.size:
            return batch
        pixels = torch.nn.functional.interpolate(batch.pixel_values.float(), self.size, mode="bicubic", antialias=True)
        return batch.with_pixels(pixels)

    def _images(self) -> Iterator[tuple[int, Any]]:
        """Place and raw image of those that are this process's."""
        for place, image in self._of_table() if _is_indexed(self.source) else self._of_stream():
            self.record.end = max(self.record.end, place + 1)
            if self.keep is None or self.keep(place):
                yield place, image

    def _of_table(self) -> Iterator[tuple[int, Any]]:
        source: Any = self.source
        rank, world = self.processes.rank, self.processes.world
        for place in range(self.start + (rank - self.start) % world, min(self.num_images, len(source)), world):
            yield place, source[place]

    def _of_stream(self) -> Iterator[tuple[int, Any]]:
        """Goes past the images of other processes, and takes in what they are."""
        source: Any = self.source
        rest = source.skip(self.start) if hasattr(source, "skip") else itertools.islice(source, self.start, None)
        end = self.start
        for place, image in enumerate(itertools.islice(rest, max(0, self.num_images - self.start)), self.start):
            self.record.stream = self.record.stream.after(place, image)
            end = place + 1
            if place % self.processes.world == self.processes.rank:
                yield place, image
        if end < self.num_images:
            self.record.stream = replace(self.record.stream, length=end)

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


def _is_indexed(source: Any) -> bool:
    """Whether images are had by their place, and not one after the other."""
    return hasattr(source, "__getitem__")
