"""The unit of every count and interval is the photograph: crops of one, and copies of one, are counted once.

Letters: `B` images, `U` photographs.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch

Key = tuple[int, str]
"""What an image is known by: the photograph that it was said to be of, and a digest of its pixels."""

PhotographOf = Callable[[int], int]
"""From an image's place in the order to its photograph."""


def own_photograph(place: int) -> int:
    """Every image is a photograph of its own."""
    return place


def photograph_keys(batch: Batch, photograph_of: PhotographOf = own_photograph) -> list[Key]:
    """One key an image of the batch."""
    pixels = batch.pixel_values.detach().cpu().float().contiguous()
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in pixels]
    return [(photograph_of(place), digest) for place, digest in zip(batch.places, digests, strict=True)]


def photographs_of(keys: Sequence[Key]) -> list[int]:
    """The photograph of each image, numbered from 0 as they come; name or pixels in common make two images one."""
    by_name: dict[int, int] = {}
    by_pixels: dict[str, int] = {}
    numbers: list[int] = []
    for name, pixels in keys:
        number = by_name.get(name, by_pixels.get(pixels, max(numbers, default=-1) + 1))
        by_name.setdefault(name, number)
        by_pixels.setdefault(pixels, number)
        numbers.append(number)
    return numbers


def count_photographs(keys: Sequence[Key]) -> int:
    """How many these images are of."""
    return len(set(photographs_of(keys)))


def sums_of_photographs(values_B: Tensor, photographs: Sequence[int]) -> Tensor:
    """`(U,)` float64: of the images of each photograph.

    Args:
        values_B: one value an image.
        photographs: of each image, as `photographs_of` numbers them.
    """
    index_B = torch.tensor(photographs, dtype=torch.long)
    sums_U = torch.zeros(max(photographs, default=-1) + 1, dtype=torch.float64)
    return sums_U.index_add_(0, index_B, values_B.double().cpu())


def means_of_photographs(values_B: Tensor, photographs: Sequence[int]) -> Tensor:
    """`(U,)` float64: likewise, means."""
    ones_B = torch.ones(len(photographs), dtype=torch.float64)
    return sums_of_photographs(values_B, photographs) / sums_of_photographs(ones_B, photographs)
