"""Two populations are told from the tail of one, however heavy."""

import pytest
import torch
from torch import Tensor

from ttreg_hf.measuring.norms import LogHistogram
from ttreg_hf.measuring.populations import PopulationConfig, Populations, two_populations

COUNT = 8192
SEEDS = range(8)


def _told(values: Tensor, **config: float) -> Populations | None:
    histogram = LogHistogram(1, torch.device("cpu"))
    histogram.add(values[None])
    return two_populations(histogram.counts_LG[0], PopulationConfig(**config))


def _ordinary(seed: int, spread: float = 0.15) -> Tensor:
    return 10 * torch.exp(spread * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed)))


def _tails(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    sample = lambda distribution: torch.as_tensor(distribution.sample((COUNT,)))  # noqa: E731
    pareto = sample(torch.distributions.Pareto(1.0, 1.0))
    return {
        "narrow": _ordinary(seed),
        "log-normal": _ordinary(seed, spread=0.8),
        "Student t": 10 * (sample(torch.distributions.StudentT(1.5)).abs() + 1),
        "Pareto": 10 * pareto,
        "every tenth Pareto": torch.where(torch.rand(COUNT) < 0.1, pareto, 1.0) * _ordinary(seed),
    }


@pytest.mark.parametrize("tail", list(_tails(0)))
def test_the_tail_of_one_population_is_no_second_one(tail):
    assert [_told(_tails(seed)[tail]) for seed in SEEDS] == [None] * len(SEEDS)


@pytest.mark.parametrize(("times", "spread"), [(3, 0.1), (5, 0.3), (30, 0.6)])
def test_a_second_population_is_seen_and_the_threshold_lies_in_the_dip(times, spread):
    for seed in SEEDS:
        values = _ordinary(seed)
        outliers = values[:160] * times * torch.exp(spread * torch.randn(160) / 2)
        found = _told(torch.cat([values[160:], outliers]))
        assert found is not None
        assert values[160:].quantile(0.999) < found.threshold < outliers.quantile(0.05)
        assert found.share == pytest.approx(160 / COUNT, rel=0.1)


def test_a_wide_gap_counts_from_where_the_second_population_begins():
    """The lower one is wide, 15 to 70: the middle of the gap is within three of its deviations, its end is not."""
    random = torch.Generator().manual_seed(0)
    lower = 15 * (70 / 15) ** torch.rand(COUNT, generator=random)
    upper = 282 + 20 * torch.rand(COUNT // 16, generator=random)
    found = _told(torch.cat([lower, upper]))
    assert found is not None
    assert 70 < found.threshold < 3.0**1.5 * lower.median() < 282
    assert _told(torch.cat([lower, upper / 2])) is None  # a gap, but a population next to the first


def test_a_wider_gap_separates_more():
    near, far = (_told(torch.cat([_ordinary(0), times * _ordinary(1)[:100]])) for times in (4, 40))
    assert near is not None
    assert far is not None
    assert far.separation > near.separation > 3
    assert near.separation == pytest.approx(torch.tensor(4.0).log().item() / 0.15, rel=0.2)


def test_the_lowest_of_two_dips_is_the_threshold():
    values = torch.cat([_ordinary(0), 4 * _ordinary(1)[:100], 60 * _ordinary(2)[:400]])
    found = _told(values)
    assert found is not None
    assert 15 < found.threshold < 40
    assert found.share == pytest.approx(500 / len(values), rel=0.05)


def test_more_values_above_than_allowed_are_no_outliers():
    values = torch.cat([_ordinary(0), 10 * _ordinary(1)[:400]])
    assert _told(values) is not None
    assert _told(values, max_share=0.04) is None


@pytest.mark.parametrize(("few", "is_seen"), [(1, False), (2, False), (40, True)])
def test_one_token_is_no_population(few, is_seen):
    assert (_told(torch.cat([_ordinary(0)[:2000], torch.full((few,), 80.0)])) is not None) == is_seen


def test_nothing_is_no_population():
    assert two_populations(torch.zeros_like(LogHistogram(1, torch.device("cpu")).counts_LG[0])) is None
