"""What a task finds out about each image, and how it becomes one figure with an interval.

Every figure is a mean over columns of a ratio of sums over images: CorLoc and accuracies have one column and count 1
for each image; of an mIoU the columns are classes, numerators intersections and denominators unions.

Letters: `B` images, `C` columns, `S` samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.intervals import MIN_PHOTOGRAPHS, Bootstrap, Interval, mean_ratio

ERROR = "error"
"""Metrics whose names begin so are better where they are smaller."""


@dataclass(frozen=True)
class Scores:
    """One metric of one model, image by image.

    Args:
        metric: its name, such as `"CorLoc"`.
        setting: what distinguishes it from others of the same name, such as `"key, layer 11"`; empty if nothing does.
        places: of the images in the data set, ascending.
        numerators_BC: float64.
        denominators_BC: float64, at least 0.
        row: of the table that they stand in, if it is not that of the model which was measured.
        is_primary: whether it is the task's primary endpoint, named beforehand; all others are exploratory.
    """

    metric: str
    setting: str
    places: tuple[int, ...]
    numerators_BC: Any
    denominators_BC: Any
    row: str | None = None
    is_primary: bool = False

    def value(self) -> float:
        """The figure, from 0 to 1; NaN if no column has anything in it."""
        return float(mean_ratio(self.numerators_BC.sum(0), self.denominators_BC.sum(0)))


def interval_of(bootstrap: Bootstrap, scores: Scores) -> Interval:
    """Of one row."""
    return Interval(scores.value(), *_bounds(bootstrap, _samples(bootstrap, scores)))


def interval_of_difference(bootstrap: Bootstrap, scores: Scores, base: Scores) -> Interval:
    """Of a row minus another, both on the same images.

    Raises:
        ValueError: they are not.
    """
    if scores.places != base.places:
        raise ValueError(
            f"Rows are compared on the same images, got {len(scores.places)} and {len(base.places)} of them for "
            f"{scores.metric}. Evaluate both on one data set that does not change."
        )
    samples_S = _samples(bootstrap, scores) - _samples(bootstrap, base)
    return Interval(scores.value() - base.value(), *_bounds(bootstrap, samples_S))


def _bounds(bootstrap: Bootstrap, samples_S: Any) -> tuple[float | None, float | None]:
    """None of fewer than eight images: draws of a few are too much alike to say what others would give."""
    return bootstrap.bounds(samples_S) if bootstrap.num_images >= MIN_PHOTOGRAPHS else (None, None)


def _samples(bootstrap: Bootstrap, scores: Scores) -> Any:
    return bootstrap.samples(scores.numerators_BC, scores.denominators_BC)


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

    def scores(self, processes: Processes, *, primary: tuple[str, str] | None = None) -> list[Scores]:
        """Of all processes, metrics in the order in which they were first met.

        Args:
            processes: that share the images.
            primary: metric and setting of the primary endpoint; `None`: all are exploratory.
        """
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
                is_primary=(metric, setting) == primary,
            )
            for (metric, setting), rows in by_name.items()
        ]
