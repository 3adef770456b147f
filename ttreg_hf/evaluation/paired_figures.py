"""From the scores of all rows to figures: each with its interval, and its differences on the same images."""

import functools
from collections.abc import Mapping

from ttreg_hf.evaluation.evaluation_result import EXPLORATORY, PRIMARY, Figure
from ttreg_hf.evaluation.rows import BASE, PATCHED
from ttreg_hf.evaluation.scores import Scores, interval_of, interval_of_difference
from ttreg_hf.measuring.intervals import Bootstrap


def paired_figures(
    found: Mapping[str, list[Scores]],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    hub_metrics: Mapping[str, str],
) -> list[Figure]:
    """Metrics in order, rows within each.

    Args:
        found: scores by row; the base model's among them.
        resamples, confidence, seed: of the intervals.
        hub_metrics: what the Hub calls a metric.
    """
    names = dict.fromkeys((each.metric, each.setting) for scores in found.values() for each in scores)

    @functools.cache
    def bootstrap_of(num_images: int) -> Bootstrap:
        return Bootstrap(num_images, resamples=resamples, confidence=confidence, seed=seed)

    figures = []
    for name in names:
        rows = {row: each for row, scores in found.items() for each in scores if (each.metric, each.setting) == name}
        for row, scores in rows.items():
            bootstrap = bootstrap_of(len(scores.places))
            interval = interval_of(bootstrap, scores)
            difference = patched_minus = None
            if row != BASE and BASE in rows:
                difference = interval_of_difference(bootstrap, scores, rows[BASE])
            if row not in (BASE, PATCHED) and PATCHED in rows:
                patched_minus = interval_of_difference(bootstrap, rows[PATCHED], scores)
            figures.append(
                Figure(
                    *name,
                    row,
                    interval.value,
                    interval.low,
                    interval.high,
                    difference,
                    hub_metrics.get(name[0]),
                    PRIMARY if scores.is_primary else EXPLORATORY,
                    patched_minus,
                )
            )
    return figures
