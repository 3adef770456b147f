"""Are some tokens a population of their own, or the tail of one? Asked of a histogram of norms on a log scale.

Away from its mode, the density of one population on a log scale only falls, however heavy its tail. So a dip with a
peak behind it is the sign of a second one. The test takes a valley and the peak behind it as two neighbouring
intervals: if the density did not rise, a value that lies in either is in the peak with probability `peak width / both
widths` at most. How unlikely the counts are then is bounded by Chernoff's inequality.

Letters: `G` bins of the histogram, `C` coarse bins.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.measuring.norms import BINS_PER_OCTAVE, LOWEST_OCTAVE
from ttreg_hf.measuring.population_config import PopulationConfig


@dataclass(frozen=True)
class Populations:
    """Two populations of norms.

    Args:
        threshold: the middle of the dip between them, in the units of the norms.
        share: of the values above the threshold.
        separation: distance of the two medians on the log scale, in robust standard deviations of the lower one. (The
            upper one may be several: outliers that are made in different layers have different norms.)
        evidence: of the dip, in nats.
    """

    threshold: float
    share: float
    separation: float
    evidence: float


def two_populations(counts_G: Tensor, config: PopulationConfig | None = None) -> Populations | None:
    """The lowest dip that one population does not explain; `None` if there is none.

    Args:
        counts_G: one block's counts, as `LogHistogram` keeps them.
        config: how sure it has to be.
    """
    config = config or PopulationConfig()
    counts = counts_G.double().cpu()
    if counts.sum() == 0:
        return None
    median, deviation = _quantile(counts, 0.5), _deviation(counts)  # octaves
    counts_C = counts.reshape(-1, BINS_PER_OCTAVE // config.bins_per_octave).sum(1)
    dips = _dips(counts_C, config)
    allowed = [
        dip
        for dip in dips
        if dip.evidence >= config.min_evidence
        and dip.middle >= median + math.log2(config.min_ratio)
        and dip.peak_start >= median + config.min_deviations * deviation
        and dip.num_above <= config.max_share * counts_C.sum()
    ]
    if not allowed:
        return None
    lowest_end = min(dip.peak_start for dip in allowed)
    best = max((dip for dip in allowed if dip.valley_start < lowest_end), key=lambda dip: dip.evidence)
    cut = round((best.middle - LOWEST_OCTAVE) * BINS_PER_OCTAVE)
    lower, upper = counts.clone(), counts.clone()
    lower[cut:], upper[:cut] = 0, 0
    distance = _quantile(upper, 0.5) - _quantile(lower, 0.5)
    return Populations(
        threshold=2.0**best.middle,
        share=float(upper.sum() / counts.sum()),
        separation=distance / max(_deviation(lower), 1 / BINS_PER_OCTAVE),
        evidence=best.evidence,
    )


@dataclass(frozen=True)
class _Dip:
    """A valley and the peak behind it, in octaves.

    Args:
        valley_start, peak_start: where they begin.
        num_above: values above the middle of the valley.
        evidence: of the dip, in nats.
    """

    valley_start: float
    peak_start: float
    num_above: float
    evidence: float

    @property
    def middle(self) -> float:
        return (self.valley_start + self.peak_start) / 2


def _dips(counts_C: Tensor, config: PopulationConfig) -> list[_Dip]:
    """For each valley the most telling peak behind it, where there is one."""
    cumulative = torch.cat([counts_C.new_zeros(1), counts_C.cumsum(0)])
    used = counts_C.nonzero()
    first, last = int(used.min()), int(used.max()) + 1
    widths = torch.arange(1, config.widest * config.bins_per_octave + 1)
    found = []
    for peak_start in range(first + 1, last):
        starts = (peak_start - widths).clamp_min(0)
        ends = (peak_start + widths).clamp_max(len(counts_C))
        valley_V1 = (cumulative[peak_start] - cumulative[starts])[:, None]
        peak_1P = (cumulative[ends] - cumulative[peak_start])[None, :]
        share_of_width = widths / (widths + widths[:, None])
        total = valley_V1 + peak_1P
        share = peak_1P / total.clamp_min(1)
        divergence = _xlogy_ratio(share, share_of_width) + _xlogy_ratio(1 - share, 1 - share_of_width)
        evidence_VP = torch.where(share > share_of_width, total * divergence, 0.0)
        value, place = evidence_VP.flatten().max(0)
        valley_start = int(starts[int(place) // len(widths)])
        num_above = float(counts_C[round((valley_start + peak_start) / 2) :].sum())
        start, end = (place_C / config.bins_per_octave + LOWEST_OCTAVE for place_C in (valley_start, peak_start))
        found.append(_Dip(start, end, num_above, float(value)))
    return found


def _xlogy_ratio(share: Tensor, other: Tensor) -> Tensor:
    return torch.xlogy(share, share) - torch.xlogy(share, other)


def _quantile(counts: Tensor, share: float) -> float:
    """In octaves."""
    cumulative = counts.cumsum(0)
    reached = int((cumulative >= share * cumulative[-1]).double().argmax())
    return (reached + 0.5) / BINS_PER_OCTAVE + LOWEST_OCTAVE


def _deviation(counts: Tensor) -> float:
    """Robust standard deviation of the log norms, in octaves: 1.4826 times the median distance from the median."""
    centres = (torch.arange(len(counts)) + 0.5) / BINS_PER_OCTAVE + LOWEST_OCTAVE
    distances, order = (centres - _quantile(counts, 0.5)).abs().sort()
    cumulative = counts[order].cumsum(0)
    return 1.4826 * float(distances[int((cumulative >= 0.5 * cumulative[-1]).double().argmax())])
