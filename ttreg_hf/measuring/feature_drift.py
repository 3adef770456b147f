"""How far features move from the base model's: of the whole image, and of the patches that were ordinary in the base.

Letters: `B` images, `U` photographs, `N` patches, `D` channels, `h`, `w` patches in height and width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.measurement import Measurement
from ttreg_hf.measuring.perturbations import Perturbation
from ttreg_hf.measuring.photographs import means_of_photographs
from ttreg_hf.measuring.recorder import Recorder
from ttreg_hf.measuring.tower import VisionTower


@dataclass(frozen=True)
class FeatureDrift:
    """1 - cosine to the base model's features on the unchanged images, `(U,)` float64, one value a photograph.

    Args:
        pooled_U: of the pooled feature.
        patches_U: of the patches' final features, mean over those that are no outliers in the base model.
    """

    pooled_U: Tensor
    patches_U: Tensor


@dataclass(frozen=True)
class Seen:
    """A model, and what it is shown in place of the images; `None`: the images as they are."""

    tower: VisionTower
    perturbation: Perturbation | None = None


def feature_drifts(
    base: VisionTower,
    others: Mapping[str, Seen],
    batches: Iterable[Batch],
    before: Measurement,
    limit: BatchLimit,
) -> dict[str, FeatureDrift]:
    """The drift of each of the others, by the same names.

    Args:
        base: the base model's tower.
        others: twins on the same images, or the base model on changed ones.
        batches: the images.
        before: what the base model made of them, in their order: its outliers are left out.
        limit: how many images go through a model at once.
    """
    pooled: dict[str, list[Tensor]] = {name: [] for name in others}
    patches: dict[str, list[Tensor]] = {name: [] for name in others}
    start = 0
    for batch in batches:
        ordinary = [~mask_N for mask_N in before.outliers_BN[start : start + len(batch)]]
        start += len(batch)
        base_BD, base_BDhw = _features(base, batch, limit)
        for name, seen in others.items():
            feature_BD, patches_BDhw = _features(seen.tower, _changed(batch, seen.perturbation), limit)
            columns = seen.perturbation.columns if seen.perturbation else 0
            pooled[name].append(1 - torch.cosine_similarity(feature_BD.double(), base_BD.double(), dim=-1).cpu())
            patches[name].append(torch.stack(list(_of_ordinary(patches_BDhw, base_BDhw, ordinary, columns))))
    return {
        name: FeatureDrift(
            means_of_photographs(torch.cat(pooled[name]), before.photographs),
            means_of_photographs(torch.cat(patches[name]), before.photographs),
        )
        for name in others
    }


def _features(tower: VisionTower, batch: Batch, limit: BatchLimit) -> tuple[Tensor, Tensor]:
    """Pooled and patch features of a batch."""
    with Recorder(tower, norm_layers=(), patches=True) as recorder:
        recordings = [recording for _, recording in limit.record(recorder, batch)]
    pooled, patches = zip(*((each.feature_BD, each.patches_BDhw) for each in recordings), strict=True)
    return torch.cat(pooled), torch.cat(patches)


def _changed(batch: Batch, perturbation: Perturbation | None) -> Batch:
    return batch if perturbation is None else batch.with_pixels(perturbation.change(batch.pixel_values))


def _of_ordinary(
    patches_BDhw: Tensor, base_BDhw: Tensor, ordinary_BN: Sequence[Tensor], columns: int
) -> Iterator[Tensor]:
    """For each image, the mean drift of its ordinary patches, of which the last columns may have left the image."""
    width = base_BDhw.shape[-1] - columns
    drift_Bhw = 1 - torch.cosine_similarity(patches_BDhw[..., columns:], base_BDhw[..., :width], dim=1)
    for drift_hw, ordinary_N in zip(drift_Bhw.double().cpu(), ordinary_BN, strict=True):
        kept_hw = ordinary_N.reshape(base_BDhw.shape[-2:])[:, :width]
        yield drift_hw[kept_hw].mean() if kept_hw.any() else drift_hw.new_zeros(())
