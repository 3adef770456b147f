"""A base model and its patched twin on the same images, in numbers.

Letters: `U` photographs.
"""

from dataclasses import dataclass

from ttreg_hf.measuring.intervals import interval_of_mean, interval_of_ratio
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.photographs import means_of_photographs


@dataclass(frozen=True)
class Comparison:
    """A base model and its patched twin on the same images. Intervals are 95 %, over photographs.

    Args:
        num_images: images compared.
        num_photographs: that they are of: crops and copies count once.
        photographs_with_outliers: how many of those have one in the base model.
        outlier_fraction_before: share of the base model's patches above the threshold, at the detection block.
        outlier_fraction_after: share of the patched model's.
        outlier_ratio_interval: of after / before; `None` where fewer than eight photographs had one before.
        max_norm_before: largest patch norm of each block's output, base model.
        max_norm_after: the same of the patched model.
        tail_before: for each block, the 99.9th percentile of the patch norms over their median, base model.
        tail_after: the same of the patched model.
        register_norm: mean norm of the test-time registers at the detection block.
        feature_similarity: mean cosine between the pooled features of the two.
        feature_similarity_interval: of it; `None` of fewer than eight photographs.
        min_feature_similarity: the smallest.
    """

    num_images: int
    num_photographs: int
    photographs_with_outliers: int
    outlier_fraction_before: float
    outlier_fraction_after: float
    outlier_ratio_interval: tuple[float, float] | None
    max_norm_before: tuple[float, ...]
    max_norm_after: tuple[float, ...]
    tail_before: tuple[float, ...]
    tail_after: tuple[float, ...]
    register_norm: float
    feature_similarity: float
    feature_similarity_interval: tuple[float, float] | None
    min_feature_similarity: float

    @property
    def outlier_ratio(self) -> float:
        """Outliers after / before; 1 where there were none, because then nothing was shown to work."""
        return self.outlier_fraction_after / self.outlier_fraction_before if self.outlier_fraction_before else 1.0


def compare(before: Measurement, after: Measurement) -> Comparison:
    """What patching changed."""
    similarity_U = means_of_photographs(after.similarity_to(before), before.photographs)
    return Comparison(
        num_images=before.num_images,
        num_photographs=before.num_photographs,
        photographs_with_outliers=int((before.outliers_U > 0).sum()),
        outlier_fraction_before=before.outlier_fraction,
        outlier_fraction_after=after.outlier_fraction,
        outlier_ratio_interval=interval_of_ratio(after.outliers_U, before.outliers_U),
        max_norm_before=tuple(before.norms.max_L.tolist()),
        max_norm_after=tuple(after.norms.max_L.tolist()),
        tail_before=_tail(before),
        tail_after=_tail(after),
        register_norm=after.register_norm,
        feature_similarity=float(similarity_U.mean()),
        feature_similarity_interval=interval_of_mean(similarity_U),
        min_feature_similarity=float(similarity_U.min()),
    )


def _tail(measurement: Measurement) -> tuple[float, ...]:
    patches = measurement.norms.patches
    return tuple((patches.quantile(0.999) / patches.quantile(0.5)).tolist())
