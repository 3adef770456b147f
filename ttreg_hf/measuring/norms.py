"""Norms of patch tokens per block: sums that merge, and the report made of them.

Letters: `L` blocks, `B` images, `N` patches, `G` bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.images.processes import Processes

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

    def fraction_above(self, threshold: float) -> Tensor:
        """Share of each block's values above a threshold, `(L,)`, interpolated within its bin."""
        place = (torch.tensor(threshold, dtype=torch.float64).log2().item() - LOWEST_OCTAVE) * BINS_PER_OCTAVE
        place = min(max(place, 0.0), _NUM_BINS - 1e-9)
        whole = int(place)
        above = self.counts_LG[:, whole + 1 :].sum(1) + self.counts_LG[:, whole] * (whole + 1 - place)
        return above / self.counts_LG.sum(1).clamp_min(1)


class NormStatistics:
    """What is kept of all patch norms; two of them merge into one, in any order."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.num_images = 0
        self.num_patches = 0
        self.sum_L = torch.zeros(num_layers, dtype=torch.float64, device=device)
        self.sum_of_squares_L = torch.zeros_like(self.sum_L)
        self.max_L = torch.zeros_like(self.sum_L)
        self.patches = LogHistogram(num_layers, device)
        self.image_maxima = LogHistogram(num_layers, device)

    def add(self, norms_LBN: Tensor) -> None:
        """Take in a batch of images."""
        norms = norms_LBN.double()
        self.num_images += norms.shape[1]
        self.num_patches += norms.shape[1] * norms.shape[2]
        self.sum_L += norms.sum((1, 2))
        self.sum_of_squares_L += norms.square().sum((1, 2))
        maxima_LB = norms.amax(2)
        self.max_L = torch.maximum(self.max_L, maxima_LB.amax(1))
        self.patches.add(norms.flatten(1))
        self.image_maxima.add(maxima_LB)

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
        histograms = (self.patches.counts_LG.flatten(), self.image_maxima.counts_LG.flatten())
        return torch.cat([counts, self.sum_L, self.sum_of_squares_L, *histograms])

    def _take_sums(self, sums: Tensor) -> None:
        layers, bins = self.patches.counts_LG.shape
        counts, self.sum_L, self.sum_of_squares_L, patches, maxima = sums.split(
            [2, layers, layers, layers * bins, layers * bins]
        )
        self.num_images, self.num_patches = (int(count) for count in counts)
        self.patches.counts_LG = patches.reshape(layers, bins)
        self.image_maxima.counts_LG = maxima.reshape(layers, bins)

    @property
    def mean_L(self) -> Tensor:
        return self.sum_L / max(self.num_patches, 1)

    @property
    def deviation_L(self) -> Tensor:
        variance = self.sum_of_squares_L / max(self.num_patches, 1) - self.mean_L.square()
        return variance.clamp_min(0).sqrt()


@dataclass(frozen=True)
class NormReport:
    """L2 norms of the patch tokens at every block's raw output. Tuples have one entry a block.

    Quantiles and shares are read off a histogram with bins 1.1 % wide; mean, standard deviation and max are exact.

    Args:
        num_images: images seen.
        num_patches: patch tokens seen, per block.
        mean, std, median, p999, max: of the norms.
        detection_layer: block that outliers are told by.
        norm_threshold: norm above which a patch counts as an outlier token, in that block's units.
        outlier_fraction: share of the patches above the threshold.
        images_with_outliers: share of the images that have one at the detection block.
        first_outlier_layer: first block whose output has one; `None` if no block has.
        separation: of two populations of norms at each block, in robust standard deviations of the log norms; 0 where
            they are one.
        fixed_position_share: of the patches above the threshold, those at places that are above it in every image.
        content_share: of the patches above the threshold, those that were as extreme at the embeddings' output.
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
    separation: tuple[float, ...] = ()
    fixed_position_share: float = 0.0
    content_share: float = 0.0


def paper_threshold(statistics: NormStatistics, detection_layer: int) -> float:
    """Mean + 3 standard deviations of the patch norms. Source: Jiang et al. 2025 (arXiv 2506.08010), A.4."""
    return float(statistics.mean_L[detection_layer] + 3 * statistics.deviation_L[detection_layer])


def norm_report(
    statistics: NormStatistics,
    detection_layer: int,
    norm_threshold: float,
    *,
    separation: tuple[float, ...] = (),
    fixed_position_share: float = 0.0,
    content_share: float = 0.0,
) -> NormReport:
    """The report of these norms, as seen from one block and one threshold."""
    over = statistics.max_L > norm_threshold
    # no outlier where the exact maximum says so, whatever the histogram's bins say
    fraction_L = torch.where(over, statistics.patches.fraction_above(norm_threshold), 0.0)
    images_L = torch.where(over, statistics.image_maxima.fraction_above(norm_threshold), 0.0)
    return NormReport(
        num_images=statistics.num_images,
        num_patches=statistics.num_patches,
        mean=tuple(statistics.mean_L.tolist()),
        std=tuple(statistics.deviation_L.tolist()),
        median=tuple(statistics.patches.quantile(0.5).tolist()),
        p999=tuple(statistics.patches.quantile(0.999).tolist()),
        max=tuple(statistics.max_L.tolist()),
        detection_layer=detection_layer,
        norm_threshold=norm_threshold,
        outlier_fraction=tuple(fraction_L.tolist()),
        images_with_outliers=float(images_L[detection_layer]),
        first_outlier_layer=next((layer for layer, is_over in enumerate(over.tolist()) if is_over), None),
        separation=separation,
        fixed_position_share=fixed_position_share,
        content_share=content_share,
    )
