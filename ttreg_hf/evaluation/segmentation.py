"""Zero-shot segmentation: does the attention of CLS show the object?

Letters: `H`, `W` height and width of a mask in pixels, `h`, `w` patches in height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import MASK, counted_pixels
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores, Tally


@dataclass(frozen=True)
class AttentionFigures:
    """One attention map against one mask.

    Args:
        intersections: pixels of background and of foreground where map and mask agree.
        unions: pixels where either says so.
        pixels: that count.
        average_precision: of the map's values as scores of the foreground.
    """

    intersections: tuple[float, float]
    unions: tuple[float, float]
    pixels: int
    average_precision: float


def attention_figures(
    attention_hw: Tensor, mask_HW: Any, *, ignore_index: int | None = None
) -> AttentionFigures | None:
    """Compare an attention map with a mask: what is above the map's mean is called foreground.

    Args:
        attention_hw: what CLS gives to each patch; resized to the mask bilinearly.
        mask_HW: 0 is background, all else foreground.
        ignore_index: pixels of this class do not count.

    Returns:
        `None` if no pixel of the foreground counts.

    Source: the measures of zero-shot segmentation in Jiang et al. 2025 (arXiv 2506.08010), after Gandelsman et al.
    2024 (arXiv 2310.05916): pixel accuracy, mIoU of foreground and background, mean average precision.
    """
    from sklearn.metrics import average_precision_score

    size = (int(mask_HW.shape[0]), int(mask_HW.shape[1]))
    resized_HW = nn.functional.interpolate(attention_hw[None, None].float(), size=size, mode="bilinear")[0, 0].numpy()
    counts_HW = counted_pixels(mask_HW, ignore_index)
    found, true = (resized_HW > float(attention_hw.mean()))[counts_HW], (mask_HW != 0)[counts_HW]
    if not true.any():
        return None
    return AttentionFigures(
        intersections=(float((~found & ~true).sum()), float((found & true).sum())),
        unions=(float((~found | ~true).sum()), float((found | true).sum())),
        pixels=int(counts_HW.sum()),
        average_precision=float(average_precision_score(true, resized_HW[counts_HW])),
    )


@dataclass(frozen=True)
class AttentionSegmentation:
    """Foreground by the last block's attention, mean over heads: what CLS gives, or without CLS what patches receive.

    Args:
        ignore_index: class of pixels that do not count; 255 by default, `None` for none.
    """

    ignore_index: int | None = 255

    name: ClassVar[str] = "segmentation"
    truths: ClassVar[tuple[str, ...]] = (MASK,)
    learns: ClassVar[bool] = False
    whole_images: ClassVar[bool] = True
    is_dense: ClassVar[bool] = True
    hub_task: ClassVar[str] = "image-segmentation"
    hub_metrics: ClassVar[Mapping[str, str]] = {
        "mIoU": "mean_iou",
        "pixel accuracy": "pixel_accuracy",
        "mAP": "average_precision",
    }

    @torch.no_grad()
    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """mIoU of background and foreground over all pixels, pixel accuracy, mean average precision over images.

        Raises:
            ValueError: no mask has a foreground.
        """
        tally = Tally()
        with row.map_recorder() as maps_of:
            for batch, truths in test:
                for truth, maps in zip(truths, maps_of(batch.pixel_values), strict=True):
                    figures = attention_figures(maps.attention, truth.mask, ignore_index=self.ignore_index)
                    if figures is not None:
                        tally.add("mIoU", truth.place, figures.intersections, figures.unions)
                        tally.add("pixel accuracy", truth.place, sum(figures.intersections), figures.pixels)
                        tally.add("mAP", truth.place, figures.average_precision)
        return tally.scores(test.processes)
