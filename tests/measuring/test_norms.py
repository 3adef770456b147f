"""Norm statistics against numpy and against counts made by hand."""

import math

import numpy as np
import pytest
import torch
from norm_reports import assert_equal_reports

from ttreg_hf.measuring.norms import NormReport, NormStatistics, OutlierCounts, norm_report, paper_threshold

CPU = torch.device("cpu")
ONE_BIN = 2 ** (1 / 64)  # a histogram bin's width, 1.1 %


def _norms(num_images: int = 40, num_patches: int = 50) -> torch.Tensor:
    """Three blocks of ordinary norms around 1, 10 and 100; the last two have outliers in every fourth image."""
    random = torch.Generator().manual_seed(1)
    norms = torch.exp(0.2 * torch.randn(3, num_images, num_patches, generator=random))
    norms *= torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    norms[1, ::4, 0] = 300.0
    norms[2, ::4, :2] = 5000.0
    return norms


def _statistics(norms: torch.Tensor) -> NormStatistics:
    statistics = NormStatistics(len(norms), CPU)
    statistics.add(norms)
    return statistics


NONE = OutlierCounts(0, 0, (0.0, 0.0, 0.0), 0)


def _report(norms: torch.Tensor) -> NormReport:
    return norm_report(_statistics(norms), min(1, len(norms) - 1), 200.0, NONE)


def test_mean_deviation_and_max_are_exact():
    norms, report = _norms(), _report(_norms())
    flat = norms.double().flatten(1).numpy()
    np.testing.assert_allclose(report.mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(report.std, flat.std(1), rtol=1e-9)
    assert report.max == tuple(flat.max(1).tolist())
    assert (report.num_images, report.num_patches) == (40, 2000)


def test_quantiles_are_right_within_a_bin():
    flat, report = _norms().double().flatten(1).numpy(), _report(_norms())
    for found, share in ((report.median, 0.5), (report.p999, 0.999)):
        exact = np.quantile(flat, share, axis=1, method="inverted_cdf")
        assert all(1 / ONE_BIN < value / true < ONE_BIN for value, true in zip(found, exact, strict=True))


@pytest.mark.parametrize("value", [1e-9, 0.0, 1e9])
def test_values_off_the_scale_are_counted_at_its_ends(value):
    statistics = _statistics(torch.full((1, 2, 4), value))
    assert statistics.patches.counts_LG.sum() == 8
    assert math.isfinite(statistics.patches.quantile(0.5).item())
    assert statistics.max_L.item() == pytest.approx(value)


@pytest.mark.parametrize("value", [3.0, 100.0, 1e-9])
def test_no_quantile_is_above_the_largest_norm(value):
    """A bin's middle may be."""
    report = _report(torch.full((1, 4, 9), value))
    assert report.median == report.p999 == pytest.approx(report.max)
    assert report.p999[0] <= report.max[0]


@pytest.mark.parametrize(("largest", "with_outliers", "shown"), [(15.0, 3, True), (14.0, 3, False), (15.0, 0, False)])
def test_outliers_are_shown_where_there_are_some_and_the_largest_norm_is_no_ordinary_one(
    largest, with_outliers, shown
):
    norms = torch.full((2, 4, 50), 10.0)
    norms[1, 0, 0] = largest
    norms[0, 0, 0] = 1e3  # another block
    counts = OutlierCounts(12, with_outliers, (0.0, 0.1), 1)
    report = norm_report(_statistics(norms), 1, 12.0, counts)
    assert report.shows_outliers is shown
    assert (report.num_photographs, report.photographs_with_outliers) == (12, with_outliers)
    assert report.images_with_outliers == pytest.approx(with_outliers / 12)
    assert report.largest_ratio == pytest.approx(largest / 10, rel=0.02)


def test_paper_threshold_is_mean_plus_three_deviations():
    statistics = _statistics(torch.tensor([[[1.0, 1.0, 1.0, 5.0]], [[2.0, 4.0, 2.0, 4.0]]]))
    assert paper_threshold(statistics, 0) == pytest.approx(2 + 3 * math.sqrt(3))
    assert paper_threshold(statistics, 1) == pytest.approx(3 + 3)


@pytest.mark.parametrize("sizes", [[1, 39], [13, 13, 14], [39, 1], [1] * 40])
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reversed"])
def test_merging_parts_in_any_order_equals_one_pass(sizes, reverse):
    parts = list(_norms().split(sizes, dim=1))
    merged = NormStatistics(3, CPU)
    for part in reversed(parts) if reverse else parts:
        merged.merge(_statistics(part))
    assert_equal_reports(norm_report(merged, 1, 200.0, NONE), _report(_norms()), rel=1e-9)


def test_batch_size_does_not_matter():
    batched = NormStatistics(3, CPU)
    for part in _norms().split(7, dim=1):
        batched.add(part)
    assert_equal_reports(norm_report(batched, 1, 200.0, NONE), _report(_norms()), rel=1e-9)


def test_images_of_other_sizes_count_by_their_patches():
    """One image with one patch of norm 1 and one with three of norm 5: the mean over patches is 4, of means 3."""
    statistics = _statistics(torch.full((1, 1, 1), 1.0))
    statistics.add(torch.full((1, 1, 3), 5.0))
    assert norm_report(statistics, 0, 100.0, NONE).mean == (4.0,)
