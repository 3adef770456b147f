"""Where a calibration's result comes from, as data."""

import datetime
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass

from ttreg_hf.images.batches import BadImage, ImageBatches
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.tower import VisionTower
from ttreg_hf.measuring.trunk_weights import weights_checksums


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    Args:
        model: name or path of the base model.
        revision: its commit, if known.
        model_class: transformers class that was calibrated.
        source: of the images.
        num_images: how many were asked for.
        images_scored: how many were gone through to score neurons: fewer, if some were held out or unreadable, or if
            the images ended early.
        images_with_outliers: how many of those had an outlier.
        bad_images: keys of the unreadable ones, in the order of the images.
        image_size: height and width of `pixel_values`; of the first image, where they differ in size.
        processes: how many shared the images.
        dtype: of the model.
        weights: SHA-256 of what was measured, by number format; see `weights_checksums`.
        versions: of the packages that matter.
        created: date and time, UTC, ISO 8601.
    """

    model: str
    revision: str | None
    model_class: str
    source: DataSource
    num_images: int
    images_scored: int
    images_with_outliers: int
    bad_images: tuple[str, ...]
    image_size: tuple[int, int]
    processes: int
    dtype: str
    weights: dict[str, str]
    versions: dict[str, str]
    created: str


def provenance_of(
    tower: VisionTower,
    batches: ImageBatches,
    *,
    source: DataSource,
    revision: str | None,
    images_scored: int,
    images_with_outliers: int,
    bad_images: Iterable[BadImage],
) -> Provenance:
    """What is written down of a calibration that ends now; arguments as the fields of `Provenance`."""
    first = next(batches.on_every_process().without_workers().first(1))
    return Provenance(
        model=str(tower.model.name_or_path),
        revision=revision,
        model_class=type(tower.model).__name__,
        source=source,
        num_images=batches.num_images,
        images_scored=images_scored,
        images_with_outliers=images_with_outliers,
        bad_images=tuple(bad.key for bad in bad_images),
        image_size=(first.pixel_values.shape[-2], first.pixel_values.shape[-1]),
        processes=batches.processes.world,
        dtype=str(tower.model.dtype).removeprefix("torch."),
        weights=weights_checksums(tower),
        versions={package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
