"""Norms of every patch of some images, kept one by one: what tells content and fixed positions from outliers.

Letters: `L` blocks, `B` images, `N` patches, `K` tokens chosen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttreg_hf.images.processes import Processes
from ttreg_hf.measuring.norms import LogHistogram
from ttreg_hf.measuring.outlier_rule import Content, OutlierRule
from ttreg_hf.measuring.photographs import Key, photographs_of


class PatchNorms:
    """Norms of every patch of some images at the embeddings' output and at every block's; they merge by joining.

    `keys` tell which photographs the images are of.
    """

    def __init__(self) -> None:
        self._norms: list[Tensor] = []
        self._grids: list[tuple[int, int]] = []
        self.keys: list[Key] = []

    def add(self, embedding_norms_BN: Tensor, norms_LBN: Tensor, keys: Sequence[Key], grid: tuple[int, int]) -> None:
        """Take in a batch of images of one grid (height and width in patches); `keys` tell their photographs."""
        self._norms.append(torch.cat([embedding_norms_BN[None], norms_LBN]).cpu())
        self._grids.append(grid)
        self.keys += keys

    def join(self, other: "PatchNorms") -> None:
        """Take in what another part of the images gave."""
        self._norms += other._norms
        self._grids += other._grids
        self.keys += other.keys

    def merge_processes(self, processes: Processes) -> None:
        """Take in what all other processes saw."""
        self._norms = processes.collect(self._norms)
        self._grids = processes.collect(self._grids)
        self.keys = processes.collect(self.keys)

    @property
    def photographs(self) -> list[int]:
        """Of each image, as `photographs_of` numbers them."""
        return photographs_of(self.keys)

    def photographs_with(self, chosen: Sequence[Tensor]) -> int:
        """How many photographs hold a chosen token; of each batch, `(B, N)` bool."""
        holds_any = torch.cat([mask.any(1) for mask in chosen]).tolist() if chosen else []
        return len({number for number, holds in zip(self.photographs, holds_any, strict=True) if holds})

    @property
    def num_images(self) -> int:
        return sum(norms.shape[1] for norms in self._norms)

    def by_grid(self) -> dict[tuple[int, int], Tensor]:
        """For each grid, norms of its images' patches, `(L + 1, B, N)`, the embeddings' first."""
        return {
            grid: torch.cat([norms for norms, own in zip(self._norms, self._grids, strict=True) if own == grid], dim=1)
            for grid in dict.fromkeys(self._grids)
        }

    def medians(self) -> Tensor:
        """`(L + 1,)`, the embeddings' first."""
        return torch.cat([norms.flatten(1) for norms in self._norms], dim=1).median(1).values

    def histogram_without_content(
        self,
        *,
        content_share: float,
        min_ratio: float,
        fixed_positions: Sequence[int] = (),
        no_content: Sequence[int] = (),
    ) -> LogHistogram:
        """Norms per block; a patch with a large norm that is content is counted as an ordinary one.

        Args:
            content_share: as in `Content`.
            min_ratio: of a norm to the median, from which on it is large.
            fixed_positions: patches that are counted as ordinary ones too.
            no_content: patches that are none, however extreme: they are so in every image.
        """
        medians = self.medians()
        histogram = LogHistogram(len(medians) - 1, torch.device("cpu"))
        for norms in self._norms:
            for layer, median in enumerate(medians[1:]):
                content = Content(float(medians[0]), float(median), content_share)
                is_large = norms[layer + 1] > min_ratio * median
                is_left_out = is_large & content.is_content(norms[0], norms[layer + 1])
                is_left_out[:, list(no_content)] = False
                is_left_out[:, list(fixed_positions)] = True
                values = torch.where(is_left_out, median, norms[layer + 1])
                histogram.add_to(layer, values.flatten())
        return histogram

    def tokens(self, chosen: Sequence[Tensor]) -> Tensor:
        """`(L + 1, K)`: norms of the chosen tokens of each batch, `(B, N)` bool."""
        return torch.cat([norms[:, mask] for norms, mask in zip(self._norms, chosen, strict=True)], dim=1)

    def above(self, layer: int, threshold: float) -> list[Tensor]:
        """For each batch, which patches are above a threshold at a block, `(B, N)` bool."""
        return [norms[layer + 1] > threshold for norms in self._norms]

    def outliers(self, rule: OutlierRule) -> list[Tensor]:
        """For each batch, which patches are outliers, `(B, N)` bool."""
        found = []
        for norms in self._norms:
            mask_BN = norms[rule.detection_layer + 1] > rule.norm_threshold
            found.append(rule.without_exceptions(mask_BN, norms[0], norms[rule.detection_layer + 1]))
        return found
