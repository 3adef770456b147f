"""Figures are ratios of sums; intervals are the percentile bootstrap's."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from ttreg_hf.evaluation.evaluation_result import Figure
from ttreg_hf.evaluation.scores import Scores, Tally, interval_of, interval_of_difference
from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.intervals import Bootstrap, mean_ratio
from ttreg_hf.records import from_json


def scores(numerators, denominators, places=None):
    numerators, denominators = np.array(numerators, dtype=float), np.array(denominators, dtype=float)
    return Scores("m", "", tuple(places or range(len(numerators))), numerators, denominators)


def test_a_figure_is_a_mean_of_ratios_of_sums_and_not_of_means():
    # class 0: (1 + 3) / (2 + 4); class 1: (0 + 1) / (1 + 1); class 2 occurs nowhere
    found = scores([[1, 0, 0], [3, 1, 0]], [[2, 1, 0], [4, 1, 0]])
    assert found.value() == pytest.approx((4 / 6 + 1 / 2) / 2)
    assert np.isnan(mean_ratio(np.zeros(2), np.zeros(2)))


def test_intervals_are_those_of_scipy():
    right = np.random.default_rng(1).random(80) < 0.3
    found = interval_of(Bootstrap(80, resamples=4000, seed=0), scores(right[:, None], np.ones((80, 1))))
    theirs = stats.bootstrap(
        (right.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == right.mean()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_intervals_of_ratios_draw_numerator_and_denominator_together():
    random = np.random.default_rng(2)
    below = random.integers(1, 100, 60).astype(float)
    above = np.floor(below * random.random(60))
    found = interval_of(Bootstrap(60, resamples=4000, confidence=0.9), scores(above[:, None], below[:, None]))
    theirs = stats.bootstrap(
        (above, below),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=0.9,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_differences_are_paired():
    """Rows that differ by a constant differ by it in every sample, however much the images differ."""
    values = np.random.default_rng(3).random((30, 1))
    ones = np.ones((30, 1))
    bootstrap = Bootstrap(30)
    difference = interval_of_difference(bootstrap, scores(values + 0.25, ones), scores(values, ones))
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))
    alone = interval_of(bootstrap, scores(values, ones))
    assert alone.high - alone.low > 0.1


def test_differences_are_refused_on_other_images():
    with pytest.raises(ValueError, match="Rows are compared on the same images, got 2 and 3"):
        interval_of_difference(Bootstrap(2), scores([[1], [1]], [[1], [1]]), scores([[1]] * 3, [[1]] * 3))


@pytest.mark.parametrize(("count", "bounds"), [(1, (None, None)), (7, (None, None)), (8, (0.75, 0.75))])
def test_fewer_than_eight_images_have_no_interval(count, bounds):
    some = scores([[3.0]] * count, [[4.0]] * count)
    found, difference = interval_of(Bootstrap(count), some), interval_of_difference(Bootstrap(count), some, some)
    assert (found.value, (found.low, found.high)) == (0.75, bounds)
    assert (difference.value, difference.low is None) == (0, bounds[0] is None)
    figure = Figure("accuracy", "", "patched", found.value, found.low, found.high, difference)
    assert from_json(Figure, dataclasses.asdict(figure)) == figure


def test_a_tally_sorts_images_and_keeps_metrics_apart():
    tally = Tally()
    tally.add("CorLoc", 4, 1.0, setting="a")
    tally.add("CorLoc", 1, 0.0, setting="a")
    tally.add("mIoU", 1, [1.0, 2.0], [3.0, 4.0])
    by_name = {(found.metric, found.setting): found for found in tally.scores(Processes())}
    assert by_name["CorLoc", "a"].places == (1, 4)
    assert by_name["CorLoc", "a"].numerators_BC.tolist() == [[0.0], [1.0]]
    assert by_name["CorLoc", "a"].denominators_BC.tolist() == [[1.0], [1.0]]
    assert by_name["mIoU", ""].denominators_BC.tolist() == [[3.0, 4.0]]
