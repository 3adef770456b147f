"""Which tokens are outliers: one rule, used wherever they are counted.

Letters: `L` blocks, `B` images, `T` tokens, `N` patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.measuring.recorder import Recording
from ttreg_hf.modeling.registers import TokenLayout


@dataclass(frozen=True)
class Content:
    """What makes a token content: at the embeddings' output it was as extreme already.

    Args:
        embedding_median: median patch norm of the embeddings' output.
        detection_median: the same of the detection block's.
        share: of its excess (log of norm over median) at the detection block that a token of content had before.
    """

    embedding_median: float
    detection_median: float
    share: float = 0.5

    def is_content(self, embedding_norms: Tensor, detection_norms: Tensor) -> Tensor:
        """Bool, elementwise."""
        before = (embedding_norms / self.embedding_median).log()
        return before >= self.share * (detection_norms / self.detection_median).log()


@dataclass(frozen=True)
class OutlierRule:
    """A token is an outlier if its norm at the detection block is strictly above the threshold, with exceptions.

    Args:
        detection_layer: block whose raw output is looked at, 0-based.
        norm_threshold: L2 norm over channels.
        detect_on_prefix: whether prefix tokens count.
        fixed_positions: patches that are above it in every image, and are no outliers of the images' making.
        content: which tokens above it are content; `None`: no such exception.
        counts_fixed: whether those at fixed positions count, because there is something to take them away; then they
            are never content.
    """

    detection_layer: int
    norm_threshold: float
    detect_on_prefix: bool = False
    fixed_positions: tuple[int, ...] = ()
    content: Content | None = None
    counts_fixed: bool = False

    @property
    def left_out(self) -> tuple[int, ...]:
        """The fixed positions, where they do not count."""
        return () if self.counts_fixed else self.fixed_positions

    def outliers(self, recording: Recording, layout: TokenLayout, row: int) -> Tensor:
        """`(B, T)` bool.

        Args:
            recording: with the norms of the detection block.
            layout: of the tokens between the blocks.
            row: of the detection block in `recording.norms_LBT`.
        """
        norms_BT, patches = recording.norms_LBT[row], layout.patches
        outliers_BT = self.above(norms_BT, layout)
        outliers_BT[:, patches] = self.without_exceptions(
            outliers_BT[:, patches], recording.embedding_norms_BT[:, patches], norms_BT[:, patches]
        )
        return outliers_BT

    def above(self, norms_BT: Tensor, layout: TokenLayout) -> Tensor:
        """Tokens above the threshold, exceptions among them; `(B, T)` bool."""
        above_BT = norms_BT > self.norm_threshold
        above_BT[:, layout.registers] = False  # a patched model's hold the norm by design
        if not self.detect_on_prefix:
            above_BT[:, layout.prefix] = False
        return above_BT

    def without_exceptions(self, above_BN: Tensor, embedding_norms_BN: Tensor, norms_BN: Tensor) -> Tensor:
        """Patches above the threshold, less those at fixed positions and those that are content; `(B, N)` bool."""
        kept_BN = above_BN.clone()
        if self.content is not None:
            kept_BN &= ~self.content.is_content(embedding_norms_BN, norms_BN)
        if self.fixed_positions:
            fixed = torch.tensor(self.fixed_positions, device=kept_BN.device)
            kept_BN[:, fixed] = above_BN[:, fixed] if self.counts_fixed else False
        return kept_BN
