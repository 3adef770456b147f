"""Which photographs of a calibration the report shows."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.images.batches import ImageBatches
from ttreg_hf.measuring.image_maps import MapRecorder

_MOST_PHOTOGRAPHS, _MOST_LOOKED_AT = 4, 8


def photographs_to_show(model: PreTrainedModel, batches: ImageBatches, result: CalibrationResult) -> Sequence[Tensor]:
    """The first images that verified, filled up with the first of all: those with outlier patches before the others.

    Args:
        model: the base model that was calibrated.
        batches: all images of the calibration.
        result: its outcome.

    Returns:
        At most four, `(C, H, W)` each.
    """
    images = batches.on_every_process().without_workers()
    found: dict[int, Tensor] = {}
    if result.verification is not None and not result.verification.in_sample:
        verified = set(result.verification.places)
        found = _first_images(images.where(lambda place: place in verified))
    if len(found) < _MOST_PHOTOGRAPHS:
        found |= _first_images(images)
    threshold, has_outliers = result.norms.norm_threshold, {}
    with MapRecorder(model, detection_layer=result.norms.detection_layer) as maps_of:
        for index, image in list(found.items())[:_MOST_LOOKED_AT]:
            has_outliers[index] = bool((maps_of(image.unsqueeze(0))[0].patch_norms > threshold).any())
    order = sorted(has_outliers, key=lambda place: not has_outliers[place])  # stable
    return [found[place] for place in order[:_MOST_PHOTOGRAPHS]]


def _first_images(images: ImageBatches) -> dict[int, Tensor]:
    """By place."""
    return {
        place: image
        for batch in images.first(_MOST_LOOKED_AT)
        for place, image in zip(batch.places, batch.pixel_values, strict=True)
    }
