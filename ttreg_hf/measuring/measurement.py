"""One model, stock or patched, on some images: outliers, norms and pooled features, image by image.

Letters: `L` blocks, `B` images, `U` photographs, `T` tokens, `N` patches, `D` channels of the pooled feature.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttreg_hf.images.batches import Batch
from ttreg_hf.measuring.batch_limit import BatchLimit
from ttreg_hf.measuring.norms import NormStatistics
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.measuring.patch_norms import PatchNorms
from ttreg_hf.measuring.photographs import (
    Key,
    PhotographOf,
    own_photograph,
    photograph_keys,
    sums_of_photographs,
)
from ttreg_hf.measuring.population_config import STAYING_SHARE
from ttreg_hf.measuring.recorder import Recorder, Recording
from ttreg_hf.measuring.tower import VisionTower

_ORDINARY = 0.999  # of the patches that are no outliers: norms up to this quantile are ordinary


@dataclass(frozen=True)
class Measurement:
    """What one model makes of the images.

    Args:
        outliers_BN: for each image, which of its patches are outliers, bool on the CPU.
        norms_BN: for each image, norms of its patches at the detection block, on the CPU.
        patch_norms: of every patch at every block.
        norms: of all patches, per block.
        register_norm: mean norm of the test-time registers at the detection block; 0 without them.
        features_BD: pooled features, float32 on the CPU.
        places: of the images in the order of their source.
    """

    outliers_BN: tuple[Tensor, ...]
    norms_BN: tuple[Tensor, ...]
    patch_norms: PatchNorms
    norms: NormStatistics
    register_norm: float
    features_BD: Tensor
    places: tuple[int, ...]

    @property
    def photographs(self) -> list[int]:
        """Of each image, numbered from 0."""
        return self.patch_norms.photographs

    @property
    def num_photographs(self) -> int:
        return len(set(self.photographs))

    @property
    def outliers_U(self) -> Tensor:
        """How many outliers each photograph has, `(U,)` float64."""
        return sums_of_photographs(self.outliers_B, self.photographs)

    @property
    def num_images(self) -> int:
        return len(self.outliers_BN)

    @property
    def outliers_B(self) -> Tensor:
        """How many outliers each image has, float64."""
        return torch.stack([mask.sum() for mask in self.outliers_BN]).double()

    @property
    def outlier_fraction(self) -> float:
        """Share of all patches."""
        return float(self.outliers_B.sum()) / sum(mask.numel() for mask in self.outliers_BN)

    def similarity_to(self, base: "Measurement") -> Tensor:
        """Cosine of each image's pooled feature to another model's, `(B,)` float64."""
        return torch.nn.functional.cosine_similarity(self.features_BD.double(), base.features_BD.double(), dim=-1)


def measure(
    tower: VisionTower,
    batches: Iterable[Batch],
    rule: OutlierRule,
    *,
    limit: BatchLimit | None = None,
    base: Measurement | None = None,
    photograph_of: PhotographOf = own_photograph,
    staying_share: float = STAYING_SHARE,
) -> Measurement:
    """Run a model over the images.

    Args:
        tower: stock or patched.
        batches: the images.
        rule: which tokens are outliers.
        limit: how many images go through the model at once.
        base: what the base model made of the same images, if this is its patched twin: its outliers may stay some,
            though the rule alone would say no.
        photograph_of: from an image's place to its photograph.
        staying_share: of its excess (log of norm over median), for an outlier of the base model to stay one.

    Raises:
        ValueError: there is no image.
    """
    layout = tower.layout
    statistics = NormStatistics(tower.num_layers, tower.trunk.device)
    patch_norms = PatchNorms()
    outliers: list[Tensor] = []
    norms: list[Tensor] = []
    registers: list[Tensor] = []
    features: list[Tensor] = []
    seen: list[int] = []
    known = {} if base is None else dict(zip(base.places, base.patch_norms.keys, strict=True))
    with Recorder(tower) as recorder:
        for places, keys, recording in _parts(recorder, batches, limit or BatchLimit(), photograph_of, known):
            assert recording.feature_BD is not None  # all blocks ran
            norms_LBN = recording.norms_LBT[:, :, layout.patches]
            statistics.add(norms_LBN)
            patch_norms.add(recording.embedding_norms_BT[:, layout.patches], norms_LBN, keys, recording.grid)
            seen += places
            outliers += rule.outliers(recording, layout, rule.detection_layer)[:, layout.patches].cpu()
            norms += norms_LBN[rule.detection_layer].cpu()
            registers.append(recording.norms_LBT[rule.detection_layer, :, layout.registers])
            features.append(recording.feature_BD.cpu())
    if not features:
        raise ValueError("A stage needs at least one readable image, got none. Give more images, or repair them.")
    if base is not None:
        staying = _staying(base, norms, rule.norm_threshold, staying_share)
        outliers = [new_N | old_N for new_N, old_N in zip(outliers, staying, strict=True)]
    register_norms = torch.cat(registers)
    return Measurement(
        outliers_BN=tuple(outliers),
        norms_BN=tuple(norms),
        patch_norms=patch_norms,
        norms=statistics,
        register_norm=float(register_norms.mean()) if register_norms.numel() else 0.0,
        features_BD=torch.cat(features),
        places=tuple(seen),
    )


def _parts(
    recorder: Recorder,
    batches: Iterable[Batch],
    limit: BatchLimit,
    photograph_of: PhotographOf,
    known: Mapping[int, Key],
) -> Iterator[tuple[tuple[int, ...], list[Key], Recording]]:
    """Places, photographs and recording of a few images at a time."""
    for batch in batches:
        keys = known or dict(zip(batch.places, photograph_keys(batch, photograph_of), strict=True))
        for places, recording in limit.record(recorder, batch):
            yield places, [keys[place] for place in places], recording


def _staying(base: Measurement, norms_BN: Sequence[Tensor], threshold: float, staying_share: float) -> list[Tensor]:
    """For each image, which outliers of the base model are still some in a twin with these norms.

    Those above the threshold; and those between it and the norms of ordinary patches that have more than
    `staying_share` of their excess left. The rule alone would let a token go that has lost just enough of its norm to
    be below the threshold, or so much that it could pass for content.
    """
    before = torch.cat(list(base.norms_BN))
    ordinary = before[~torch.cat(list(base.outliers_BN))]
    median, highest = before.median(), before.min()
    if len(ordinary):
        highest = ordinary.kthvalue(math.ceil(_ORDINARY * len(ordinary))).values

    def stays(old_N: Tensor, new_N: Tensor) -> Tensor:
        is_kept_N = (new_N / median).log() > staying_share * (old_N / median).log()
        return (new_N > threshold) | ((new_N > highest) & is_kept_N)

    return [
        outlier_N & stays(old_N, new_N)
        for outlier_N, old_N, new_N in zip(base.outliers_BN, base.norms_BN, norms_BN, strict=True)
    ]
