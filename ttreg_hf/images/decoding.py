"""From raw images to batches: what runs in the workers of a `DataLoader`."""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ttreg_hf.images.bad_image import BadImage
from ttreg_hf.images.batch import Batch
from ttreg_hf.images.image_source import image_key
from ttreg_hf.images.pixel_values import to_pixel_values


@dataclass(frozen=True)
class DecodedImages(Dataset[Any]):
    """Decodes and preprocesses raw images; runs in the workers.

    Args:
        processor: as in `ImageBatches`, or what is left of it.
        channels: likewise.
    """

    processor: Any
    channels: int

    def do_the_same(self, other: "DecodedImages") -> bool:
        """Whether these are decoded as others are: by the same processor with the same options."""
        own, others = (
            (each.func, each.args, each.keywords) if isinstance(each, functools.partial) else each
            for each in (self.processor, other.processor)
        )
        return bool(own == others) and self.channels == other.channels

    def __getitem__(self, index: tuple[int, Any]) -> tuple[int, Any]:
        place, image = index
        if isinstance(image, BadImage):
            return place, image
        key = image_key(image, place)
        try:
            return place, to_pixel_values(image, self.processor, name=key, channels=self.channels)
        except OSError as error:  # damaged, empty, missing, too large, or refused
            return place, BadImage.of(key, error)


class Collated(NamedTuple):
    """What a worker made of some raw images; a tuple, so that a `DataLoader` finds what to pin."""

    by_size: list[Batch]
    bad_images: list[tuple[int, BadImage]]


def collate(items: list[tuple[int, Any]]) -> Collated:
    """Batches of one size each, and what could not be read apart."""
    images = {place: found for place, found in items if isinstance(found, Tensor)}
    sizes = list(dict.fromkeys(image.shape for image in images.values()))
    batches = []
    for size in sizes:
        places = tuple(place for place, image in images.items() if image.shape == size)
        batches.append(Batch(torch.stack([images[place] for place in places]), places))
    if batches:
        batches[-1] = replace(batches[-1], seen_before=1 + max(place for place, _ in items))
    return Collated(batches, [(place, found) for place, found in items if isinstance(found, BadImage)])
