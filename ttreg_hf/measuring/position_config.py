"""When a place stands out in nearly every image: constants, and nothing that imports torch."""

from dataclasses import dataclass

from ttreg_hf.measuring.population_config import MIN_OUTLIER_RATIO


@dataclass(frozen=True)
class PositionConfig:
    """When a place is fixed.

    Args:
        min_ratio: of a norm to the median, at least.
        min_deviations: robust standard deviations (of the log norms of one image) above the median, at least.
        fixed_share: of the images in which the patch there stands out, at least.
        min_images: fewer images of a grid cannot tell.
    """

    min_ratio: float = MIN_OUTLIER_RATIO
    min_deviations: float = 3.0
    fixed_share: float = 0.8
    min_images: int = 6
