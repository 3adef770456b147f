"""Confidence intervals by the bootstrap: images are drawn again, with replacement, and pairs stay pairs."""

import torch
from torch import Tensor

_DRAWS = 2000
_LEVEL = 0.95


def _draws(num_images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(num_images, (_DRAWS, num_images), generator=generator)


def interval_of_mean(values_B: Tensor) -> tuple[float, float]:
    """95 % interval of the mean over images."""
    return _interval(values_B.double()[_draws(len(values_B))].mean(1))


def interval_of_ratio(above_B: Tensor, below_B: Tensor) -> tuple[float, float] | None:
    """95 % interval of the ratio of two sums over the same images; draws whose lower sum is 0 are left out.

    `None` if the lower sum is 0 over all images.
    """
    if not below_B.any():
        return None
    draws = _draws(len(above_B))
    above, below = above_B.double()[draws].sum(1), below_B.double()[draws].sum(1)
    return _interval((above / below)[below > 0])


def _interval(values: Tensor) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
