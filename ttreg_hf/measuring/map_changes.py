"""What patching changes in the maps that people look at: attention of the last block, and the mean patch feature."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.image_maps import ImageMaps, MapRecorder
from ttreg_hf.measuring.tower import VisionTower


@dataclass(frozen=True)
class MapChanges:
    """Means over images. Attention is the last block's, as in `ImageMaps`: what CLS gives, or patches receive.

    Args:
        largest_before: largest share of the attention that one patch gets.
        largest_after: the same of the patched model.
        entropy_before: of the attention on patches, as a share of the even spread's; 1 is even.
        entropy_after: the same of the patched model.
        on_register: share of the attention that goes to the test-time registers.
        mean_patch_similarity: cosine of the mean patch feature to the base model's.
    """

    largest_before: float
    largest_after: float
    entropy_before: float
    entropy_after: float
    on_register: float
    mean_patch_similarity: float


def map_changes(
    base: VisionTower, patched: VisionTower, batches: Iterable[Batch], *, detection_layer: int, limit: BatchLimit
) -> MapChanges:
    """Base against patched, on the same images.

    Args:
        base: the base model's tower.
        patched: its twin's.
        batches: the images.
        detection_layer: block whose norms the maps show.
        limit: how many images go through a model at once.
    """
    rows = []
    with (
        MapRecorder(base.model, detection_layer=detection_layer) as base_maps,
        MapRecorder(patched.model, detection_layer=detection_layer) as patched_maps,
    ):
        for batch in batches:
            before, after = (list(_maps(maps, batch, limit)) for maps in (base_maps, patched_maps))
            rows += [_row(*pair) for pair in zip(before, after, strict=True)]
    return MapChanges(*torch.tensor(rows, dtype=torch.float64).mean(0).tolist())


def _maps(maps: MapRecorder, batch: Batch, limit: BatchLimit) -> Iterator[ImageMaps]:
    grid = (batch.pixel_values.shape[-2], batch.pixel_values.shape[-1])
    for _, recording in limit.record(maps.recorder, batch):
        yield from maps.maps_of(recording, grid)


def _row(before: ImageMaps, after: ImageMaps) -> list[float]:
    mean_before, mean_after = (maps.features.flatten(0, 1).mean(0) for maps in (before, after))
    return [
        float(before.attention.max()),
        float(after.attention.max()),
        _entropy(before),
        _entropy(after),
        after.register_attention or 0.0,
        float(torch.nn.functional.cosine_similarity(mean_before, mean_after, dim=0)),
    ]


def _entropy(maps: ImageMaps) -> float:
    """Of the attention on patches, scaled to sum to 1, over that of an even spread."""
    shares = maps.attention.flatten().double()
    shares = shares / shares.sum()
    return float(-torch.xlogy(shares, shares).sum() / torch.tensor(float(len(shares))).log())
