"""Confidence intervals by the bootstrap: photographs are drawn again, with replacement, and pairs stay pairs.

Every figure is a mean over columns of a ratio of sums over images, so it is never a mean of means, and images can be
drawn again without looking at them again.

Letters: `B` images, `U` photographs, `C` columns, `S` samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_RESAMPLES = 2000
MIN_PHOTOGRAPHS = 8
"""Fewer give no interval: draws of a few are too much alike to say what others would give."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it may lie, were the images others; no bounds of fewer than eight."""

    value: float
    low: float | None
    high: float | None


def mean_ratio(numerators: Any, denominators: Any) -> Any:
    """Mean over the last axis of numerators / denominators, of the columns whose denominator is not 0.

    Returns:
        The leading axes; NaN where no column is left.
    """
    present = denominators > 0
    ratios = np.divide(numerators, denominators, out=np.zeros_like(numerators), where=present)
    count = present.sum(-1)
    return np.where(count > 0, ratios.sum(-1) / np.maximum(count, 1), np.nan)


class Bootstrap:
    """Percentile intervals over images drawn again with replacement; every figure is drawn the same images.

    Args:
        num_images: images to draw from, and to draw.
        resamples: how often.
        confidence: share of the samples within an interval.
        seed: of the draws.

    Source: Efron & Tibshirani 1993, percentile method; paired, because all figures see the same images.
    """

    def __init__(
        self, num_images: int, *, resamples: int = _RESAMPLES, confidence: float = 0.95, seed: int = 0
    ) -> None:
        self._confidence, self.num_images = confidence, num_images
        shares = np.full(num_images, 1 / num_images)
        self._times_SB = np.random.default_rng(seed).multinomial(num_images, shares, size=resamples).astype(np.float64)

    def samples(self, numerators_BC: Any, denominators_BC: Any) -> Any:
        """`(S,)`: the figure, each time of other images; NaN where no column has anything in it."""
        return mean_ratio(self._times_SB @ numerators_BC, self._times_SB @ denominators_BC)

    def bounds(self, samples_S: Any) -> tuple[float, float]:
        """The interval that holds so many of the samples, those without a figure left out."""
        outside = (1 - self._confidence) / 2
        drawn = samples_S[~np.isnan(samples_S)]
        if not len(drawn):
            return float("nan"), float("nan")
        low, high = np.quantile(drawn, [outside, 1 - outside])
        return float(low), float(high)


def interval_of_mean(values_U: Tensor) -> tuple[float, float] | None:
    """95 % interval of the mean over photographs; `None` of fewer than eight."""
    return interval_of_ratio(values_U, torch.ones_like(values_U))


def interval_of_ratio(above_U: Tensor, below_U: Tensor) -> tuple[float, float] | None:
    """95 % interval of the ratio of two sums over the same photographs.

    `None` where fewer than eight photographs have something in the lower sum: the others say nothing.
    """
    if int((below_U > 0).sum()) < MIN_PHOTOGRAPHS:
        return None
    bootstrap = Bootstrap(len(below_U))
    return bootstrap.bounds(bootstrap.samples(above_U.double().numpy()[:, None], below_U.double().numpy()[:, None]))
