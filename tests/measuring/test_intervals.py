"""Bootstrap intervals."""

import math

import pytest
import torch

from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio


def test_the_interval_of_a_mean_is_the_normal_one_for_many_images():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() + 3
    low, high = interval_of_mean(values)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=0.02)


def test_equal_photographs_have_no_spread():
    assert interval_of_mean(torch.full((8,), 0.25)) == pytest.approx((0.25, 0.25))


def test_pairs_stay_pairs():
    """Every photograph keeps half of its outliers, however many it has."""
    before = torch.tensor([2.0, 10.0, 50.0, 4.0, 1.0, 7.0, 3.0, 20.0])
    assert interval_of_ratio(before / 2, before) == pytest.approx((0.5, 0.5))


def test_a_ratio_is_wide_where_photographs_differ():
    low, high = interval_of_ratio(torch.tensor([0.0] * 7 + [4.0]), torch.full((8,), 4.0))
    assert low == 0.0
    assert high > 0.3


@pytest.mark.parametrize("count", [0, 1, 7])
def test_fewer_than_eight_give_no_interval(count):
    assert interval_of_mean(torch.rand(count)) is None
    without = torch.zeros(20)  # what has no outlier says nothing about outliers
    assert interval_of_ratio(torch.ones(20), without.index_fill(0, torch.arange(count), 2.0)) is None
    assert interval_of_ratio(torch.ones(20), without.index_fill(0, torch.arange(8), 2.0)) is not None


def test_draws_without_outliers_are_left_out():
    before = torch.tensor([2.0] * 8 + [0.0] * 1000)
    assert interval_of_ratio(before / 2, before) == pytest.approx((0.5, 0.5))
