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


def test_equal_images_have_no_spread():
    assert interval_of_mean(torch.full((5,), 0.25)) == pytest.approx((0.25, 0.25))


def test_pairs_stay_pairs():
    """Every image keeps half of its outliers, however many it has."""
    before = torch.tensor([2.0, 10.0, 50.0, 4.0])
    assert interval_of_ratio(before / 2, before) == pytest.approx((0.5, 0.5))


def test_a_ratio_is_wide_where_images_differ():
    low, high = interval_of_ratio(torch.tensor([0.0, 0.0, 4.0, 0.0]), torch.full((4,), 4.0))
    assert low == 0.0
    assert high > 0.5


def test_draws_without_outliers_are_left_out():
    low, high = interval_of_ratio(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert (low, high) == pytest.approx((0.5, 0.5))
    assert interval_of_ratio(torch.zeros(3), torch.zeros(3)) is None
