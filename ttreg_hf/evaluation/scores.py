"""What a task finds out about each image, and how it becomes one figure with an interval.

Every figure is a mean over columns of a ratio of sums over images: CorLoc and accuracies have one column and count 1
for each image; of an mIoU the columns are classes, numerators intersections and denominators unions. So a figure is
never a mean of means, and images can be drawn again without looking at them again.

Letters: `B` images, `C` columns, `S` samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttreg_hf.calibration.processes import Processes


@dataclass(frozen=True)
class Scores:
    """One metric of one model, image by image.

    Args:
        metric: its name, such as `"CorLoc"`.
        setting: what distinguishes it from others of the same name, such as `"key, layer 11"`; empty if nothing does.
        places: of the images in the data set, ascending.
        numerators_BC: float64.
        denominators_BC: float64, at least 0.
    """

    metric: str
    setting: str
    places: tuple[int, ...]
    numerators_BC: Any
    denominators_BC: Any

    def value(self) -> float:
        """The figure, from 0 to 1; NaN if no column has anything in it."""
        return float(mean_ratio(self.numerators_BC.sum(0), self.denominators_BC.sum(0)))


@dataclass(frozen=True)
class Interval:
    """A figure and where it may lie, were the images others."""

    value: float
    low: float
    high: float


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
    """Percentile intervals over images drawn again with replacement; every row is drawn the same images.

    Args:
        num_images: images to draw from, and to draw.
        resamples: how often.
        confidence: share of the samples within an interval.
        seed: of the draws.

    Source: Efron & Tibshirani 1993, percentile method; paired, because rows see the same images.
    """

    def __init__(self, num_images: int, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        self._confidence = confidence
        shares = np.full(num_images, 1 / num_images)
        self._times_SB = np.random.default_rng(seed).multinomial(num_images, shares, size=resamples).astype(np.float64)

    def interval(self, scores: Scores) -> Interval:
        """Of one row."""
        return self._interval(scores.value(), self._values(scores))

    def difference(self, scores: Scores, base: Scores) -> Interval:
        """Of a row minus another, both on the same images.

        Raises:
            ValueError: they are not.
        """
        if scores.places != base.places:
            raise ValueError(
                f"Rows are compared on the same images, got {len(scores.places)} and {len(base.places)} of them for "
                f"{scores.metric}. Evaluate both on one data set that does not change."
            )
        return self._interval(scores.value() - base.value(), self._values(scores) - self._values(base))

    def _values(self, scores: Scores) -> Any:
        return mean_ratio(self._times_SB @ scores.numerators_BC, self._times_SB @ scores.denominators_BC)

    def _interval(self, value: float, samples_S: Any) -> Interval:
        outside = (1 - self._confidence) / 2
        drawn = samples_S[~np.isnan(samples_S)]
        if not len(drawn):
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(drawn, [outside, 1 - outside])
        return Interval(value, float(low), float(high))


@dataclass
class Tally:
    """Collects what one process finds, image by image, and makes `Scores` of what all found."""

    found: list[tuple[str, str, int, Any, Any]] = field(default_factory=list)

    def add(
        self,
        metric: str,
        place: int,
        numerators: float | Sequence[float],
        denominators: float | Sequence[float] = 1.0,
        *,
        setting: str = "",
    ) -> None:
        """One image's part of one metric; a count of 1 image if no denominators are given."""
        above, below = (np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in (numerators, denominators))
        self.found.append((metric, setting, place, above, below))

    def scores(self, processes: Processes) -> list[Scores]:
        """Of all processes, metrics in the order in which they were first met."""
        by_name: dict[tuple[str, str], list[tuple[int, Any, Any]]] = {}
        for metric, setting, *row in sorted(processes.collect(self.found), key=lambda found: found[2]):
            by_name.setdefault((metric, setting), []).append((row[0], row[1], row[2]))
        return [
            Scores(
                metric,
                setting,
                tuple(place for place, _, _ in rows),
                np.stack([numerators for _, numerators, _ in rows]),
                np.stack([denominators for _, _, denominators in rows]),
            )
            for (metric, setting), rows in by_name.items()
        ]
