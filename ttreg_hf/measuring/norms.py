"""Norms of patch tokens per block: sums that merge, and the report made of them.

Letters: `L` blocks, `B` images, `N` patches, `G` bins.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.population_config import MIN_OUTLIER_RATIO
from ttreg_hf.measuring.position_report import PositionReport

BINS_PER_OCTAVE = 64  # a bin is 1.1 % wide
LOWEST_OCTAVE, _HIGHEST_OCTAVE = -10, 24
_NUM_BINS = (_HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE


class LogHistogram:
    """Counts of positive values per block, on bins that are equally wide in log2. Merges by addition."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.counts_LG = torch.zeros(num_layers, _NUM_BINS, dtype=torch.float64, device=device)

    def add_to(self, layer: int, values_X: Tensor) -> None:
        """Count values of one block."""
        one = LogHistogram(1, values_X.device)
        one.add(values_X[None])
        self.counts_LG[layer] += one.counts_LG[0]

    def add(self, values_LX: Tensor) -> None:
        """Count values of every block."""
        octaves = values_LX.clamp_min(2.0**LOWEST_OCTAVE).log2() - LOWEST_OCTAVE
        bins = (octaves * BINS_PER_OCTAVE).long().clamp_(max=_NUM_BINS - 1)
        self.counts_LG.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))

    def quantile(self, share: float) -> Tensor:
        """Value below which this share of each block's values lies, `(L,)`, to the width of a bin."""
        cumulative = self.counts_LG.cumsum(1)
        reached = (cumulative >= share * cumulative[:, -1:]).double().argmax(1)
        return 2.0 ** ((reached + 0.5) / BINS_PER_OCTAVE + LOWEST_OCTAVE)


class NormStatistics:
    """What is kept of all patch norms; two of them merge into one, in any order."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.num_images = 0
        self.num_patches = 0
        self.sum_L = torch.zeros(num_layers, dtype=torch.float64, device=device)
        self.sum_of_squares_L = torch.zeros_like(self.sum_L)
        self.max_L = torch.zeros_like(self.sum_L)
        self.patches = LogHistogram(num_layers, device)

    def add(self, norms_LBN: Tensor) -> None:
        """Take in a batch of images."""
        norms = norms_LBN.double()
        self.num_images += norms.shape[1]
        self.num_patches += norms.shape[1] * norms.shape[2]
        self.sum_L += norms.sum((1, 2))
        self.sum_of_squares_L += norms.square().sum((1, 2))
        self.max_L = torch.maximum(self.max_L, norms.amax((1, 2)))
        self.patches.add(norms.flatten(1))

    def merge(self, other: "NormStatistics") -> None:
        """Take in what another part of the images gave."""
        self._take_sums(self._sums() + other._sums())
        self.max_L = torch.maximum(self.max_L, other.max_L)

    def merge_processes(self, processes: Processes) -> None:
        """Take in what all other processes saw."""
        self._take_sums(processes.sum(self._sums()))
        self.max_L = processes.max(self.max_L)

    def _sums(self) -> Tensor:
        """All that adds up, as one flat float64 tensor."""
        counts = self.sum_L.new_tensor([self.num_images, self.num_patches])
        return torch.cat([counts, self.sum_L, self.sum_of_squares_L, self.patches.counts_LG.flatten()])

    def _take_sums(self, sums: Tensor) -> None:
        layers, bins = self.patches.counts_LG.shape
        counts, self.sum_L, self.sum_of_squares_L, patches = sums.split([2, layers, layers, layers * bins])
        self.num_images, self.num_patches = (int(count) for count in counts)
        self.patches.counts_LG = patches.reshape(layers, bins)

    @property
    def mean_L(self) -> Tensor:
        return self.sum_L / max(self.num_patches, 1)

    def quantile_L(self, share: float) -> Tensor:
        """Norm below which this share of the patches lies, to the width of a bin, and never above the largest."""
        return torch.minimum(self.patches.quantile(share), self.max_L)

    @property
    def deviation_L(self) -> Tensor:
        variance = self.sum_of_squares_L / max(self.num_patches, 1) - self.mean_L.square()
        return variance.clamp_min(0).sqrt()


@dataclass(frozen=True)
class NormReport:
    """L2 norms of the patch tokens at every block's raw output. Tuples have one entry a block.

    Quantiles are read off a histogram with bins 1.1 % wide; all else is exact. Outlier tokens are told by one rule, at
    the detection block; at the other blocks the same tokens are followed.

    Args:
        num_images: images seen.
        num_patches: patch tokens seen, per block.
        mean, std, median, p999, max: of the norms.
        detection_layer: block that outliers are told by.
        norm_threshold: norm above which a patch counts as an outlier token, in that block's units.
        outlier_fraction: share of the patches that are outlier tokens, and have at that block at least a quarter of
            their excess (log of norm over median) at the detection block.
        images_with_outliers: share of the photographs that have an outlier token.
        first_outlier_layer: block in which the first of them begin; `None` if there are none.
        num_photographs: whose patches were told apart: crops and copies count once.
        separation: of two populations of norms at each block, in robust standard deviations of the log norms; 0 where
            they are one.
        fixed_position_share: of the patches above the threshold, those at places that are above it in every image.
        content_share: of the patches above the threshold, those that were as extreme at the embeddings' output.
        positions: patches that stand out at the same places in every image, by stage, and their source.
    """

    num_images: int
    num_patches: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    median: tuple[float, ...]
    p999: tuple[float, ...]
    max: tuple[float, ...]
    detection_layer: int
    norm_threshold: float
    outlier_fraction: tuple[float, ...]
    images_with_outliers: float
    first_outlier_layer: int | None
    num_photographs: int
    separation: tuple[float, ...] = ()
    fixed_position_share: float = 0.0
    content_share: float = 0.0
    positions: PositionReport | None = None

    @property
    def photographs_with_outliers(self) -> int:
        """How many have an outlier token."""
        return round(self.images_with_outliers * self.num_photographs)

    @property
    def largest_ratio(self) -> float:
        """Largest norm over the median, at the detection block."""
        median = self.median[self.detection_layer]
        return self.max[self.detection_layer] / median if median else math.inf

    @property
    def shows_outliers(self) -> bool:
        """Whether there are outlier tokens, and the largest norm is no ordinary one, whatever threshold was given."""
        return self.images_with_outliers > 0 and self.largest_ratio >= MIN_OUTLIER_RATIO


def paper_threshold(statistics: NormStatistics, detection_layer: int) -> float:
    """Mean + 3 standard deviations of the patch norms. Source: Jiang et al. 2025 (arXiv 2506.08010), A.4."""
    return float(statistics.mean_L[detection_layer] + 3 * statistics.deviation_L[detection_layer])


@dataclass(frozen=True)
class OutlierCounts:
    """Outlier tokens of some images; arguments as the fields of `NormReport`."""

    num_photographs: int
    photographs_with_outliers: int
    fraction_L: tuple[float, ...]
    first_layer: int | None


def norm_report(
    statistics: NormStatistics,
    detection_layer: int,
    norm_threshold: float,
    outliers: OutlierCounts,
    *,
    separation: tuple[float, ...] = (),
    fixed_position_share: float = 0.0,
    content_share: float = 0.0,
) -> NormReport:
    """The report of these norms, as seen from one block and one threshold."""
    return NormReport(
        num_images=statistics.num_images,
        num_patches=statistics.num_patches,
        mean=tuple(statistics.mean_L.tolist()),
        std=tuple(statistics.deviation_L.tolist()),
        median=tuple(statistics.quantile_L(0.5).tolist()),
        p999=tuple(statistics.quantile_L(0.999).tolist()),
        max=tuple(statistics.max_L.tolist()),
        detection_layer=detection_layer,
        norm_threshold=norm_threshold,
        outlier_fraction=outliers.fraction_L,
        images_with_outliers=outliers.photographs_with_outliers / max(outliers.num_photographs, 1),
        first_outlier_layer=outliers.first_layer,
        num_photographs=outliers.num_photographs,
        separation=separation,
        fixed_position_share=fixed_position_share,
        content_share=content_share,
    )
